import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOTS = {
    "train",
    "training_run",
    "training_input",
    "training_parts",
    "training_results",
    "evaluate",
    "predict",
    "command_line",
}  # may import several rooms
LEAVES = {"errors", "records", "storage"}  # what went wrong, what was measured, how it is kept
ROOMS = {path.stem: path for path in ROOT.glob("*.py") if path.stem not in ROOTS} | {
    "models": ROOT / "models" / "custom_resnet.py",
    "weights_file": ROOT / "models" / "weights_file.py",
    "checkpoint": ROOT / "checkpoint" / "run.py",
    "report": ROOT / "report" / "page.py",
    **{
        f"{package}.{path.stem}": path
        for package, main in (("checkpoint", "run"), ("report", "page"))
        for path in (ROOT / package).glob("*.py")
        if path.stem not in ("__init__", main)
    },
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_no_library_module_imports_another(room):
    assert set(imported(ROOMS[room])) & set(ROOMS) <= LEAVES - {room}


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_library_is_quiet_and_never_exits(room):
    calls = {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(ROOMS[room].read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    }
    allowed = {"print"} if room == "training_log" else set()  # writing is what it is for
    assert not (calls & {"print", "exit", "sys.exit", "os._exit", "plt.show"}) - allowed


def test_rooms_can_be_read_in_one_sitting():
    lengths = {room: len(path.read_text("utf-8").splitlines()) for room, path in ROOMS.items()}
    assert {room: n for room, n in lengths.items() if n > 350} == {}


def test_dependencies_are_lower_bounds_so_that_nothing_loaded_is_replaced():
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    names = [line.split(">=")[0] for line in requirements]
    assert sorted(names) == sorted(
        ["torch", "torchvision", "albumentations", "torch-lr-finder", "torchsummary", "matplotlib",
         "tqdm", "scikit-learn"]
    )  # fmt: skip
    assert [line for line in requirements if "," in line] == ["albumentations>=2.0,<3"]
