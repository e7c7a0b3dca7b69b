"""Where and how a training computes: device, precision, compilation, and the group of processes."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import platform
import random
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onecycle.errors import UsageError
from onecycle.training.fused import fuse
from onecycle.training.group import Group

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The number formats of the matrix products, by name."""
FUSED, GRAPH = ("fused", "fused-graph"), ("graph", "fused-graph")
"""The compile modes that are none of torch's: with kernels of our own, and as a CUDA graph."""
COMPILE_MODES = ("graph", "fused", "fused-graph", "default", "reduce-overhead")
"""Ways to make the training step faster."""
PACKAGES = (
    "torch", "torchvision", "albumentations", "torch-lr-finder", "torchsummary", "numpy",
    "matplotlib", "scikit-learn",
)  # fmt: skip


@dataclass(frozen=True)
class Compute:
    """Where and how a training computes.

    The constructor takes the values as they are; :meth:`choose` picks the best for this machine.

    Args:
        device: where the network computes.
        precision: number format of the matrix products: "float32", "bfloat16" or "float16". The
            weights stay float32.
        compile_mode: for the training step "graph" for a CUDA graph (see
            :class:`~onecycle.training.replay.Replays`), "fused" for kernels of our own (see
            :func:`~onecycle.training.fused.fuse`), "fused-graph" for both, or a mode of
            ``torch.compile``; None: as PyTorch computes it.
        group: the processes that train together; None: this process alone.

    Raises:
        UsageError: ``precision`` is not one of the three; or a graph is asked for and there are
            several processes.
    """

    device: torch.device
    precision: str = "float32"
    compile_mode: str | None = None
    group: Group = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}"
            )
        object.__setattr__(self, "device", torch.device(self.device))
        if self.group is None:
            object.__setattr__(self, "group", Group(self.device))
        if self.is_graph and self.group.world_size > 1:
            raise UsageError(
                f"compile is {self.compile_mode!r}, which is for one process; with several use "
                "default, or leave it off"
            )

    @classmethod
    def choose(
        cls,
        device: str = "auto",
        precision: str = "auto",
        compile: str = "off",
        group: Group | None = None,
    ) -> Compute:
        """The best that this machine has, or what is asked for by name.

        Args:
            device: "auto", "cuda", "mps" or "cpu", see :func:`get_device`; a group has its own.
            precision: "auto", "float32", "bfloat16" or "float16", see :func:`get_precision`.
            compile: "off" or one of ``COMPILE_MODES``, see :func:`get_compile_mode`.
            group: the processes that train together; None: this process alone.

        Raises:
            UsageError: this machine does not have what is asked for.
        """
        place = get_device(device) if group is None else group.device
        return cls(place, get_precision(place, precision), get_compile_mode(place, compile), group)

    @classmethod
    def of(cls, model: nn.Module) -> Compute:
        """The model's device, in float32, in this process alone."""
        return cls(next((p.device for p in model.parameters()), torch.device("cpu")))

    @property
    def dtype(self) -> torch.dtype:
        """The precision as torch's type."""
        return PRECISIONS[self.precision]

    @property
    def torch_compile_mode(self) -> str | None:
        """The mode of ``torch.compile``; None: it is not used."""
        return None if self.compile_mode in FUSED + GRAPH else self.compile_mode

    @property
    def is_graph(self) -> bool:
        """Whether a step is recorded as a CUDA graph."""
        return self.compile_mode in GRAPH

    def autocast(self) -> torch.autocast:
        """A context in which matrix products have the precision."""
        enabled = self.precision != "float32"
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def place(self, batch: Tensor) -> Tensor:
        """A batch on the device; images (N, C, H, W) in the memory format that is fastest there."""
        return batch.to(
            self.device,
            # On mps such a copy can read memory that was freed in the meantime.
            non_blocking=self.device.type == "cuda",
            memory_format=_memory_format(self.device) if batch.ndim == 4 else torch.preserve_format,
        )

    def place_model(self, model: nn.Module) -> nn.Module:
        """The model, moved to the device in place. Make its optimizer afterwards.

        Raises:
            UsageError: the compile mode has kernels of our own, and the model has nothing to fuse.
        """
        if self.compile_mode in FUSED and not fuse(model):
            raise UsageError(
                f"compile is {self.compile_mode!r}, and the network has no block of convolution, batch "
                "norm and ReLU in an nn.Sequential; leave it off, or use graph or default"
            )
        return to_device(model, self.device)

    def describe(self) -> dict[str, Any]:
        """Versions, processor and settings that the last bits of a run depend on."""
        on_gpu = self.device.type == "cuda"
        return {
            "device": self.device.type,
            "device_name": torch.cuda.get_device_name(self.device) if on_gpu else _cpu_name(),
            "precision": self.precision,
            "compile_mode": self.compile_mode,
            "num_processes": self.group.world_size,
            "threads": torch.get_num_threads(),
            "platform": platform.platform(terse=True),
            "versions": {"python": platform.python_version(), **_versions()},
        }


def get_device(name: str = "auto") -> torch.device:
    """The device to train on.

    Args:
        name: "auto" for the best of cuda, mps and cpu, or one of them by name.

    Raises:
        UsageError: this machine does not have the device.
    """
    here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, is_here in here.items() if is_here))
    if not here.get(name, False):
        found = ", ".join(kind for kind, is_here in here.items() if is_here)
        raise UsageError(f"device is {name!r}; this machine has {found} (or auto)")
    return torch.device(name)


def get_precision(device: torch.device, name: str = "auto") -> str:
    """The number format of the matrix products: "float32", "bfloat16" or "float16".

    Args:
        device: where the network trains.
        name: "auto" for the fastest one with hardware support, or one of the three.

    Raises:
        UsageError: the name is unknown, or float16 on a device other than cuda.
    """
    if name == "auto":
        if device.type == "cuda":
            capability = torch.cuda.get_device_capability(device)
            if capability >= (8, 0):
                return "bfloat16"
            return "float16" if capability >= (7, 0) else "float32"
        return "bfloat16" if device.type == "cpu" and _cpu_has_bfloat16() else "float32"
    if name not in PRECISIONS:
        raise UsageError(f"precision is {name!r}; it must be auto, {', '.join(PRECISIONS)}")
    if name == "float16" and device.type != "cuda":
        raise UsageError(f"precision is float16 on {device.type}; use bfloat16 or float32 there")
    return name


def get_compile_mode(device: torch.device, name: str = "off") -> str | None:
    """How the training step is made faster; None: it is not.

    ``torch.compile`` delays the first step, so it is worth it for long runs only.

    Args:
        device: where the network trains.
        name: "off"; "graph" for a CUDA graph of the step; "fused" for kernels of our own;
            "fused-graph" for both; "default" for ``torch.compile``, or "reduce-overhead" for the
            same with CUDA graphs.

    Raises:
        UsageError: the name is unknown, or the device cannot compile.
    """
    if name == "off":
        return None
    if name not in COMPILE_MODES:
        raise UsageError(f"compile is {name!r}; it must be off, {', '.join(COMPILE_MODES)}")
    if name == "graph":
        if device.type != "cuda":
            raise UsageError("compile is 'graph', which needs a GPU; leave it off")
        return name
    # Triton compiles its launchers with the machine's C compiler and Python's headers.
    compiler = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    triton = importlib.util.find_spec("triton")
    if not (device.type == "cuda" and triton and compiler and headers):
        raise UsageError(
            f"compile is {name!r}, which needs a GPU, Triton, a C compiler and Python's headers; "
            "leave it off"
        )
    return name


def tune_process() -> None:
    """Make every training in this process faster; call it once, before the first.

    On cuda, cuDNN tries its kernels on the first batch of each shape and keeps the fastest. On the
    CPU, the process keeps freed memory for the next tensors: glibc would return each large block
    to the system, which then clears the same pages again a moment later. So the process never
    shrinks.

    Source:
        mallopt(3): M_MMAP_MAX and M_TRIM_THRESHOLD.
    """
    torch.backends.cudnn.benchmark = True
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # not in musl
        m_trim_threshold, m_mmap_max = -1, -4  # as malloc.h numbers them
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


def set_seed(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, on all devices.

    Args:
        seed: 0..2**32 - 1.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def to_device(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a network to a device, in the memory format that is fastest there.

    Args:
        model: any network; moved in place.
        device: where it will compute.

    Returns:
        The same model.
    """
    device = torch.device(device)
    return model.to(device, memory_format=_memory_format(device))


def _memory_format(device: torch.device) -> torch.memory_format:
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def _cpu_has_bfloat16() -> bool:
    flags = _cpu_fields().get("flags", "")
    return "amx_bf16" in flags or "avx512_bf16" in flags


def _versions() -> dict[str, str | None]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _cpu_name() -> str:
    return _cpu_fields().get("model name") or platform.processor() or platform.machine()


def _cpu_fields() -> dict[str, str]:
    """What Linux says of the processor; nothing elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            pairs = (line.split(":", 1) for line in file if ":" in line)
            return {name.strip(): value.strip() for name, value in pairs}
    except OSError:
        return {}
