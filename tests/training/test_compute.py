import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onecycle.commands.options import COMPILE_MODES
from onecycle.errors import UsageError
from onecycle.training import compute
from onecycle.training.compute import Compute
from onecycle.training.group import Group

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def test_devices_and_precisions():
    cpu = compute.get_device("cpu")
    assert compute.get_device().type in ("cuda", "mps", "cpu")
    assert compute.get_precision(cpu) in ("float32", "bfloat16")
    assert compute.get_precision(cpu, "float32") == "float32"
    for call in (
        lambda: compute.get_device("tpu"),
        lambda: compute.get_precision(cpu, "int4"),
        lambda: compute.get_precision(cpu, "float16"),
    ):
        with pytest.raises(UsageError):
            call()
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="device is 'cuda'; this machine has"):
            compute.get_device("cuda")


@pytest.mark.parametrize(
    ("flags", "precision"),
    [("avx2 amx_bf16", "bfloat16"), ("avx512_bf16", "bfloat16"), ("avx2", "float32")],
)
def test_precision_follows_the_processor(flags, precision, monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\n")
    real_open = open
    monkeypatch.setattr(
        "builtins.open",
        lambda f, *a, **k: real_open(cpuinfo if f == "/proc/cpuinfo" else f, *a, **k),
    )
    assert compute.get_precision(torch.device("cpu")) == precision


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "float32")],
)
def test_precision_follows_the_gpu(capability, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert compute.get_precision(torch.device("cuda")) == precision


@pytest.mark.parametrize("missing", [None, "compiler", "headers", "triton"])
def test_the_step_is_compiled_where_everything_that_it_takes_is_there(
    missing, monkeypatch, tmp_path
):
    if missing != "headers":
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(compute.sysconfig, "get_path", lambda _name: str(tmp_path))
    monkeypatch.setattr(compute.shutil, "which", lambda _name: missing != "compiler" or None)
    monkeypatch.setattr(
        compute.importlib.util, "find_spec", lambda _name: missing != "triton" or None
    )
    gpu = torch.device("cuda")
    assert compute.get_compile_mode(gpu) is None
    if missing is None:
        for mode in ("fused", "default", "reduce-overhead"):
            assert compute.get_compile_mode(gpu, mode) == mode
    else:
        with pytest.raises(UsageError, match="leave it off"):
            compute.get_compile_mode(gpu, "default")


def test_nothing_is_compiled_on_a_cpu():
    cpu = torch.device("cpu")
    assert compute.get_compile_mode(cpu) is None
    with pytest.raises(UsageError, match="needs a GPU"):
        compute.get_compile_mode(cpu, "default")
    with pytest.raises(UsageError, match="compile is 'fast'; it must be off"):
        compute.get_compile_mode(cpu, "fast")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_memory_stays_in_the_process_only_where_that_is_asked_for():
    script = """
import torch
from onecycle.training import compute

def left_behind():
    resident = lambda: int(open("/proc/self/statm").read().split()[1])
    before = resident()
    torch.ones(2**26)
    return resident() - before

given_back = left_behind()
compute.tune_process()
print(given_back < 10_000, left_behind() > 60_000)  # of 65,536 pages
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True True\n"


def test_a_c_library_without_the_setting_does_no_harm(monkeypatch):
    monkeypatch.setattr(compute.ctypes, "CDLL", lambda _name: object())
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    compute.tune_process()
    assert torch.backends.cudnn.benchmark


def test_compute_is_the_models_device_in_float32_and_one_process():
    own = Compute.of(torch.nn.Linear(2, 2))
    assert own == Compute("cpu") == Compute(CPU, "float32", None, Group(CPU))
    assert own.group.world_size == 1 and own.dtype == torch.float32
    with own.autocast():
        assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype == torch.float32


def test_compute_is_chosen_by_name_and_refused_as_its_parts_are():
    chosen = Compute.choose("cpu", "bfloat16")
    assert chosen == Compute("cpu", "bfloat16")
    with chosen.autocast():
        assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype == chosen.dtype == torch.bfloat16
    group = Group(CPU, rank=1, world_size=2)
    assert Compute.choose(group=group, precision="float32") == Compute("cpu", group=group)
    for options in ({"device": "tpu"}, {"precision": "int4"}, {"compile": "fast"}):
        with pytest.raises(UsageError, match=f"{list(options)[0]} is"):
            Compute.choose(**{"device": "cpu", **options})
    with pytest.raises(UsageError, match="precision is 'auto'; it must be one of float32, "):
        Compute("cpu", "auto")


@pytest.mark.parametrize("mode", [None, "fused", "graph", "fused-graph", "default"])
def test_only_torchs_modes_are_given_to_its_compiler(mode):
    own = Compute("cpu", compile_mode=mode)
    assert own.torch_compile_mode == ("default" if mode == "default" else None)
    assert own.is_graph == (mode in ("graph", "fused-graph"))
    assert own.describe()["compile_mode"] == mode


def test_ways_to_compute_are_those_of_the_command_line_and_a_graph_is_for_one_process():
    assert COMPILE_MODES == ("off", *compute.COMPILE_MODES)
    with pytest.raises(UsageError, match="compile is 'graph', which needs a GPU"):
        Compute.choose("cpu", compile="graph")
    with pytest.raises(UsageError, match="compile is 'graph', which is for one process"):
        Compute("cpu", compile_mode="graph", group=Group(CPU, world_size=2))


def test_images_are_placed_in_the_fast_memory_format_and_labels_as_they_are():
    images, labels = torch.randn(2, 3, 4, 4), torch.arange(2)
    placed = Compute("cpu").place(images)
    assert placed.is_contiguous(memory_format=torch.channels_last) and torch.equal(placed, images)
    assert Compute("cpu").place(labels) is labels
    model = torch.nn.Conv2d(3, 8, 3)
    assert Compute("cpu").place_model(model) is model
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_description_has_the_keys_that_kept_results_have():
    group = Group(CPU, world_size=2)
    described = Compute("cpu", "bfloat16", None, group).describe()
    assert list(described) == [
        "device", "device_name", "precision", "compile_mode", "num_processes", "threads",
        "platform", "versions",
    ]  # fmt: skip
    assert described["device"] == "cpu" and described["precision"] == "bfloat16"
    assert described["num_processes"] == 2 and described["threads"] == torch.get_num_threads()
    assert described["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
