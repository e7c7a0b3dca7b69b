import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_architecture import ROOTS

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    "cifar10_files", "data", "distributed", "error_figures", "errors",
    "evaluation", "grad_cam", "hardware", "interrupts", "learning_rate", "loaders",
    "optimizer", "pictures", "predictions", "recipe", "records", "run_folder", "run_lock",
    "speedrun", "storage", "trackers", "training_log", "transformation", "utils", "visualize",
}  # fmt: skip
IMPORTS = "import torch; from models import CustomResNet; import checkpoint, report; " + "; ".join(
    f"import {name}" for name in sorted(MODULES)
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    packages = ("checkpoint", "models", "report")
    for name in (*packages, "pyproject.toml", "README.md", "requirements.txt", "LICENSE"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.ipynb")]:
        (source / path.name).write_bytes(path.read_bytes())
    for other in ("tests", "images", "scripts", "runs"):
        (source / other).mkdir()
        (source / other / "__init__.py").touch()
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index",
         "--no-build-isolation", "--wheel-dir", str(folder), str(source)],
        check=True,
    )  # fmt: skip
    (file,) = folder.glob("*.whl")
    return file


def test_wheel_holds_exactly_the_library(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    models = {f"models/{m}.py" for m in ("__init__", "custom_resnet", "weights_file")}
    report = {f"report/{path.name}" for path in (ROOT / "report").glob("*.*")}
    assert {"report/page.py", "report/report.css", "report/report.js"} <= report
    checkpoint = {f"checkpoint/{m}.py" for m in ("__init__", "file", "run", "state")}
    assert names == {f"{m}.py" for m in MODULES} | checkpoint | models | report
    assert MODULES == {path.stem for path in ROOT.glob("*.py")} - ROOTS


def test_wheel_asks_for_what_requirements_txt_says(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [n for n in archive.namelist() if n.endswith("METADATA")]
    asked = {
        line.removeprefix("Requires-Dist: ").replace(" ", "")
        for line in archive.read(name).decode().splitlines()
        if line.startswith("Requires-Dist") and "extra ==" not in line
    }
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    expected = {line for line in lines if line and not line.startswith("#")}
    parts = lambda items: {
        frozenset(item.replace("<", ",<").replace(">", ",>").split(",")) for item in items
    }  # noqa: E731
    assert parts(asked) == parts(expected)


def test_every_module_imports_from_the_wheel_alone_and_says_nothing(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    # An import must open no socket, move no seed and print nothing.
    script = (
        "import socket, random; socket.socket.connect = None\n"
        "random.seed(0); before = random.getstate()\n"
        f"{IMPORTS}\n"
        "assert random.getstate() == before\n"
        "import utils; assert utils.__file__.startswith(" + repr(str(tmp_path)) + ")"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
