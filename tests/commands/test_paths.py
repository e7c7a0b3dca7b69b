"""Whatever a path is, a command works or says in one line why not, before anyone has waited."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_network import WORDS, make_quick

from onecycle import commands
from onecycle.commands import app, export, images, train
from onecycle.commands.common import command_of
from onecycle.errors import DataError
from onecycle.files import write_file
from onecycle.results import weights
from onecycle.results.weights import PUBLISHED
from onecycle.training.signals import Signals

ROOT = Path(__file__).resolve().parents[2]
REACHED = 99
KINDS = {
    "nothing": "", "too long": "n" * 256, "long": "a/" * 3000, "loop": "loop",
    "device": "/dev/zero", "pipe": "pipe", "folder": "folder", "file": "file",
    "below a file": "file/x", "missing": "missing", "below missing": "missing/x",
    "not readable": "closed/x", "memory": "/proc/self/mem", "255 letters": "n" * 255,
    "bytes": "a\udcff", "dash": "-x", "quotes": "a'b\"c", "two lines": "a\nb",
    "escape": "a\x1b[31mb", "home": "~", "NUL": "a\0b",
}  # fmt: skip
GOOD_NAMES = {"255 letters", "bytes", "dash", "quotes", "two lines", "escape", "home"}
NEW = GOOD_NAMES | {"missing"}
DIGITS = ["train", "--dataset", "digits"]
USES = {
    "train --out": ([*DIGITS, "--out=@"], 6, NEW | {"folder", "below missing"}),
    "train --resume": ([*DIGITS, "--out=o", "--resume=@"], 4, {"file", "memory"}),
    "train --init": ([*DIGITS, "--out=o", "--init=@"], 4, {"file", "memory"}),
    "train --recipe": ([*DIGITS, "--out=o", "--recipe=@"], 2, set()),
    "train --data-dir": (["train", "--out=o", "--data-dir=@"], 3, set()),
    "train --cache-dir": (
        [*DIGITS, "--out=o", "--cache-dir=@"], 6, NEW | {"folder", "below missing"},
    ),
    "evaluate": (["evaluate", "--out=o", "--", "@"], 4, set()),
    "evaluate --out": (["evaluate", str(PUBLISHED), "--out=@"], 6,
        NEW | {"folder", "below missing"}),
    "evaluate --data-dir": (["evaluate", str(PUBLISHED), "--out=o", "--data-dir=@"], 3, set()),
    "compare": (["compare", "--out=o.html", "--", "one", "@"], 4, set()),
    "predict": (["predict", "--", "@"], 3, set()),
    "predict --weights": (["predict", "file", "--weights=@"], 4, {"file", "memory"}),
    "predict --csv": (["predict", "folder", "--csv=@"], 6, NEW | {"device", "pipe"}),
    "predict --json": (["predict", "folder", "--json=@"], 6, NEW | {"device", "pipe"}),
    "app": (["app", "--", "@"], 4, {"file", "memory"}),
    "export": (["export", "--", "@", "o.onnx"], 4, set()),
    "export FILE": (["export", "--", str(PUBLISHED), "@"], 6, NEW | {"device", "pipe"}),
}  # fmt: skip
"""A command line, its exit code, and the kinds of path for which the command begins its work."""


class Reached(DataError):
    exit_code = REACHED


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of paths of all kinds; the commands stop where their work would begin."""

    def stop(*args, **kwargs):
        raise Reached("reached")

    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"x")
    Path("folder").mkdir()
    Path("loop").symlink_to("other")
    Path("other").symlink_to("loop")
    os.mkfifo("pipe")
    Path("closed").symlink_to("/root/closed" if os.geteuid() else "file")
    return stop


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use", USES)
def test_a_path_of_any_kind_works_or_is_refused_in_one_line(place, monkeypatch, capsys, use, kind):
    words, code, begins = USES[use]
    if "data-dir" not in use:
        monkeypatch.setattr(images, "load_images", place)
        monkeypatch.setattr(images, "load_test", place)
    monkeypatch.setattr(train, "train_one", place)
    monkeypatch.setattr(export, "export", place)
    monkeypatch.setattr(app, "GRADIO", ())
    monkeypatch.setattr(app, "make_page", place)
    if kind in begins:  # what a damaged file is told is another test
        monkeypatch.setattr(weights, "load_weights", place)
    before = sorted(os.listdir())
    found = commands.main([word.replace("@", KINDS[kind]) for word in words])
    said = capsys.readouterr()
    expected = 2 if kind in ("nothing", "NUL") else REACHED if kind in begins else code
    assert (found, said.err.count("\n")) == (expected, 1), said.err
    assert set(os.listdir()) - set(before) <= {"missing"}
    assert Path("file").read_bytes() == b"x"


@pytest.mark.parametrize("kind", sorted(GOOD_NAMES))
def test_runs_and_files_may_have_such_names(tmp_path, monkeypatch, kind):
    make_quick(monkeypatch)
    monkeypatch.chdir(tmp_path)
    name = KINDS[kind]
    assert commands.main([*WORDS, f"--out={name}"]) == 0
    assert Path(name, "report.html").is_file()
    write_file(Path(name, name), b"a table")
    assert Path(name, name).read_bytes() == b"a table" and not list(Path(name).rglob("*.part"))


@pytest.mark.parametrize("kind", sorted(GOOD_NAMES))
def test_a_command_that_is_shown_can_be_pasted(tmp_path, kind):
    words = ["train", f"--out={KINDS[kind]}", KINDS[kind], "b\\'\n\t"]
    shown = command_of(words)
    assert shown.isprintable()
    script = f"onecycle() {{ printf '%s\\0' \"$@\"; }}; {shown}"
    pasted = subprocess.run(["bash", "-c", script], stdout=subprocess.PIPE, check=True).stdout
    assert pasted.split(b"\0")[:-1] == [os.fsencode(word) for word in words]


def test_a_stopped_run_tells_how_it_resumes_whatever_its_name(tmp_path, monkeypatch, capsys):
    make_quick(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Signals, "stop", lambda self: True)
    assert commands.main([*WORDS, "--out=-a 'b"]) == 130
    said = capsys.readouterr().err.strip().rpartition("same command and ")[2]
    assert shlex.split(said) == ["--out=-a 'b"]


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [("MPLBACKEND", "garbage", 3), ("TQDM_MININTERVAL", "abc", 2), ("COLUMNS", "x", 3),
     ("TMPDIR", "/missing", 3), ("HOME", "/proc/missing", 3), ("PYTHONIOENCODING", "ascii", 3)],
)  # fmt: skip
def test_nonsense_in_the_environment_is_one_line_or_nothing(tmp_path, variable, value, code):
    words = ["predict", str(tmp_path / "\xe9.png")]
    done = subprocess.run(
        [sys.executable, "-m", "onecycle", *words], cwd=tmp_path, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": "", variable: value},
    )  # fmt: skip
    assert (done.returncode, done.stderr.count(b"\n")) == (code, 1), done.stderr
    assert done.stdout == b""


def test_an_interruption_while_modules_are_loaded_is_one_line(tmp_path):
    (tmp_path / "argparse.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "-c", "from onecycle.__main__ import start; raise SystemExit(start())"],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count(b"\n")) == (130, 1), done.stderr
