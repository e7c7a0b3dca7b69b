"""What a run is computed on: device, number format, and their description."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

from errors import UsageError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PACKAGES = (
    "torch", "torchvision", "albumentations", "torch-lr-finder", "torchsummary", "numpy",
    "matplotlib", "scikit-learn",
)  # fmt: skip


def get_device(name: str = "auto") -> torch.device:
    """The device to train on.

    Args:
        name: "auto" for the best of cuda, mps and cpu, or one of them by name.

    Raises:
        UsageError: the device is unknown or not on this machine.
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
        name: "auto" for the fastest that the hardware is built for, or one of the three.

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
        raise UsageError(f"precision is float16 on {device.type}; take bfloat16 or float32 there")
    return name


def _cpu_has_bfloat16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def describe_machine(device: torch.device, precision: str) -> dict[str, Any]:
    """Versions, processor and settings that a run's figures depend on."""
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(terse=True),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    return fields.get("model name", platform.machine())
