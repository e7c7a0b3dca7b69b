"""What the state of a run may contain, and where two states differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onecycle.files import printable
from onecycle.schema import LONGEST_NAME, shown


def misfits(
    state: dict[str, Any], parts: Mapping[str, Any], current: Mapping[str, Any]
) -> Iterator[str]:
    """Each reason why a state cannot be loaded into the parts, in words.

    Args:
        state: from a file.
        parts: by name, see ``Checkpoint.restore``.
        current: the ``state_dict`` of each part.
    """
    yield from compare("", state["kinds"], kinds(parts))
    for name in (name for name in parts if name in state["parts"]):
        part, there = parts[name], state["parts"][name]
        if isinstance(part, nn.Module):
            yield from compare(name, there, current[name])
            for key, value in there.items():
                if key.endswith("running_var") and isinstance(value, Tensor) and (value < 0).any():
                    yield f"{name}.{key} holds a variance below 0"
        elif isinstance(part, torch.optim.Optimizer):
            parameters = [p for group in part.param_groups for p in group["params"]]
            for index, values in there["state"].items():
                for key, value in values.items():
                    if isinstance(value, Tensor) and value.ndim:  # else a counter
                        yield from compare(f"{name}.{index}.{key}", value, parameters[index])


def for_this_machine(there: Any, here: Any) -> Any:
    """The state in the file, but with this run's choice of how an optimizer computes its steps.

    Args:
        there: state of a part in the file.
        here: state of the same part in this run.
    """
    if "param_groups" not in there or len(there["param_groups"]) != len(here["param_groups"]):
        return there  # with other groups the optimizer itself refuses the state
    groups = [
        group | {key: own[key] for key in ("fused", "foreach", "capturable") if key in own}
        for group, own in zip(there["param_groups"], here["param_groups"])
    ]
    return there | {"param_groups": groups}


def kinds(parts: Mapping[str, Any]) -> dict[str, str]:
    """The type of each part, by name."""
    return {name: type(part).__name__ for name, part in parts.items()}


def compare(name: str, there: Any, here: Any) -> Iterator[str]:
    """Each place where the file and this run differ, in words.

    Args:
        name: of the place; "" for the root.
        there: value in the file: mappings, tensors and plain data.
        here: value in this run.
    """
    if isinstance(there, dict) and isinstance(here, dict):
        for key in {**here, **there}:
            path = printable(f"{name}.{key}" if name else str(key))[:LONGEST_NAME]
            if key in here and key in there:
                yield from compare(path, there[key], here[key])
            else:
                yield f"{path} is only {'here' if key in here else 'in the file'}"
    elif isinstance(here, Tensor) and isinstance(there, Tensor):
        forms = [f"{x.dtype} {tuple(x.shape)}".removeprefix("torch.") for x in (there, here)]
        if forms[0] != forms[1] or there.layout != torch.strided:
            yield f"{name} is {forms[0]} in the file and {forms[1]} here"
    elif isinstance(here, Tensor) != isinstance(there, Tensor) or here != there:
        yield f"{name} is {shown(there)} in the file and {shown(here)} here"


def first(found: Iterable[str]) -> str:
    """The first three of the texts, and how many more there are."""
    found = list(found)
    rest = [f"and {len(found) - 3} more"] if len(found) > 3 else []
    return "; ".join(found[:3] + rest)


def plain(value: Any, name: str = "") -> Any:
    """The same value on the CPU, in types that ``weights_only=True`` accepts.

    Args:
        value: tensors and plain data, in mappings, lists and tuples.
        name: of the value, for the errors.

    Raises:
        ValueError: a number is not finite.
        TypeError: something is neither a tensor nor plain data.
    """
    if isinstance(value, Tensor):
        # Both ends of the range are NaN if one value is, and no mask of that size is made.
        value = value.detach().cpu()
        ends = torch.aminmax(value) if value.is_floating_point() and value.numel() else ()
        if not all(end.isfinite() for end in ends):
            raise ValueError(f"{name} has values that are not finite")
        return value
    if isinstance(value, Mapping):
        prefix = f"{name}." if name else ""
        return {key: plain(item, f"{prefix}{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(plain(x, name) for x in value)
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not np.isfinite(value):
        raise ValueError(f"{name} is {value}")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{name} is neither a tensor nor plain data: {type(value).__name__}")
