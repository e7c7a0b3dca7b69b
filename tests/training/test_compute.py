import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onecycle.errors import UsageError
from onecycle.training import compute as hardware

ROOT = Path(__file__).resolve().parents[2]


def test_devices_and_precisions():
    cpu = hardware.get_device("cpu")
    assert hardware.get_device().type in ("cuda", "mps", "cpu")
    assert hardware.get_precision(cpu) in ("float32", "bfloat16")
    assert hardware.get_precision(cpu, "float32") == "float32"
    for call in (
        lambda: hardware.get_device("tpu"),
        lambda: hardware.get_precision(cpu, "int4"),
        lambda: hardware.get_precision(cpu, "float16"),
    ):
        with pytest.raises(UsageError):
            call()
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="device is 'cuda'; this machine has"):
            hardware.get_device("cuda")


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
    assert hardware.get_precision(torch.device("cpu")) == precision


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "float32")],
)
def test_precision_follows_the_gpu(capability, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert hardware.get_precision(torch.device("cuda")) == precision


@pytest.mark.parametrize("missing", [None, "compiler", "headers", "triton"])
def test_the_step_is_compiled_where_everything_that_it_takes_is_there(
    missing, monkeypatch, tmp_path
):
    if missing != "headers":
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(hardware.sysconfig, "get_path", lambda _name: str(tmp_path))
    monkeypatch.setattr(hardware.shutil, "which", lambda _name: missing != "compiler" or None)
    monkeypatch.setattr(
        hardware.importlib.util, "find_spec", lambda _name: missing != "triton" or None
    )
    gpu = torch.device("cuda")
    assert hardware.get_compile_mode(gpu) is None
    if missing is None:
        for mode in ("default", "reduce-overhead"):
            assert hardware.get_compile_mode(gpu, mode) == mode
    else:
        with pytest.raises(UsageError, match="leave it off"):
            hardware.get_compile_mode(gpu, "default")


def test_nothing_is_compiled_on_a_cpu():
    cpu = torch.device("cpu")
    assert hardware.get_compile_mode(cpu) is None
    with pytest.raises(UsageError, match="needs a GPU"):
        hardware.get_compile_mode(cpu, "default")
    with pytest.raises(UsageError, match="compile is 'fast'; it must be off"):
        hardware.get_compile_mode(cpu, "fast")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_freed_memory_stays_in_the_process_only_where_that_is_asked_for():
    script = """
import torch, hardware

def left_behind():
    resident = lambda: int(open("/proc/self/statm").read().split()[1])
    before = resident()
    torch.ones(2**26)
    return resident() - before

given_back = left_behind()
hardware.tune_process()
print(given_back < 10_000, left_behind() > 60_000)  # of 65,536 pages
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True True\n"


def test_a_c_library_without_the_setting_does_no_harm(monkeypatch):
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda _name: object())
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    hardware.tune_process()
    assert torch.backends.cudnn.benchmark
