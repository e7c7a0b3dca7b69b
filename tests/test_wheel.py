"""The wheel: what is in it, what it asks for, and what importing it does."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import onecycle

ROOT = Path(__file__).resolve().parent.parent
FACES = ("data", "transformation", "utils", "visualize")
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("onecycle", "models")
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__main__.py"  # which runs the command
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "requirements.txt", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("onecycle", "models"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.ipynb")]:
        shutil.copy(path, source)
    for other in ("benchmarks", "docs", "images", "results", "runs", "scripts", "tests"):
        (source / other).mkdir()
        (source / other / "__init__.py").touch()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def metadata(site, file):
    (path,) = site.glob(f"onecycle-*.dist-info/{file}")
    return path.read_text("utf-8")


def run_python(script, site, folder, *options):
    """Run a script in a folder that comes first on its path, with the wheel and nothing of here."""
    return subprocess.run(
        [sys.executable, *options, "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )


def test_it_is_named_after_the_package_and_its_version(wheel):
    assert wheel.name == f"onecycle-{onecycle.__version__}-py3-none-any.whl"


def test_it_holds_exactly_the_library(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    tops = {name.split("/")[0].removesuffix(".py") for name in names}
    assert tops == {"models", "onecycle", *FACES}
    expected = {f"{face}.py" for face in FACES} | {"onecycle/py.typed"}
    expected |= {"onecycle/weights/custom_resnet_cifar10.safetensors"}
    expected |= {f"onecycle/results/report/report.{kind}" for kind in ("css", "js")}
    expected |= {"onecycle/results/compare/compare.css"}
    for package in ("onecycle", "models"):
        expected |= {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
    assert names == expected


def test_it_brings_the_command(site):
    lines = metadata(site, "entry_points.txt").split("\n")
    assert [line for line in lines if line] == [
        "[console_scripts]",
        "onecycle = onecycle.__main__:start",
    ]


def test_it_asks_for_what_requirements_txt_says(site):
    asked = {
        line.removeprefix("Requires-Dist: ").replace(" ", "")
        for line in metadata(site, "METADATA").splitlines()
        if line.startswith("Requires-Dist") and "extra ==" not in line
    }
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    expected = {line for line in lines if line and not line.startswith("#")}

    def parts(items):  # of a requirement: its name and its bounds, in any order
        return {frozenset(re.findall(r"[<>]=?[\d.]+|^[\w-]+", item)) for item in items}

    assert parts(asked) == parts(expected) and len(asked) == len(expected)


WATCHED = """
import importlib, os, random, signal, socket, sys, threading, warnings
import matplotlib, numpy, torch
import sklearn.metrics, torchvision  # which add warning filters of their own

def refuse(*args, **options):
    raise AssertionError("a socket was opened")

random.seed(0), numpy.random.seed(0), torch.manual_seed(0)

def state():
    return {
        "seeds": (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()),
        "backend": dict.__getitem__(matplotlib.rcParams, "backend"),
        "matplotlib": {k: v for k, v in dict.items(matplotlib.rcParams) if k != "backend"},
        "signals": {s: signal.getsignal(s) for s in signal.valid_signals()},
        "filters": list(warnings.filters),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "running": threading.active_count(),
        "environment": dict(os.environ),
        "dtype": torch.get_default_dtype(),
    }

def check(names):
    socket.socket.connect = socket.socket.connect_ex = socket.socket.bind = refuse
    socket.getaddrinfo = refuse
    before = state()
    for name in names:
        module = importlib.import_module(name)
        assert module.__file__.startswith(SITE), module.__file__
        for what, value in state().items():
            assert value == before[what], f"{name} changed {what}"
"""


@pytest.mark.parametrize("backend", ["svg", None])
def test_importing_does_nothing_else(site, tmp_path, backend, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)
    chosen = f"matplotlib.use({backend!r})" if backend else ""
    script = f"SITE = {str(site)!r}\n{WATCHED}\n{chosen}\ncheck({[*MODULES, *FACES]!r})"
    done = run_python(script, site, tmp_path, "-W", "error::UserWarning")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_foreign_modules_of_the_same_names_do_not_matter(site, tmp_path):
    for name in (*(f"{face}.py" for face in FACES), "models/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError('this is another one')\n")
    script = (
        "from onecycle import Run, Recipe, load_digits\n"
        "import sys, torch\n"
        "train, test = load_digits()\n"
        "network = lambda classes: torch.nn.Sequential(\n"
        "    torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, classes))\n"
        "recipe = Recipe(epochs=1, batch_size=16, lr_max=0.001)\n"
        "run = Run('run', (train.sample(64), test.sample(20)), network, recipe, device='cpu')\n"
        "assert 0 <= run.evaluate().accuracy <= 1\n"
        f"assert not set(sys.modules) & {set(('models', *FACES))!r}\n"
    )
    done = run_python(script, site, tmp_path)
    assert done.returncode == 0, done.stderr
