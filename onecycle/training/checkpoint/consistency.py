"""Whether the parts of one state go together: each may be whole and of another moment or training."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import lr_scheduler

from onecycle.records import EpochRecord
from onecycle.schema import COUNT, Many, Misfit, Number, check, of_record, shown

from .state import compare, plain

HISTORY = {
    "epochs": Many(of_record(EpochRecord)),
    "lrs": Many(Number()),
    "losses": Many(Number()),
    "running": {"images": COUNT, "correct": COUNT, "loss": Number(), "seconds": Number(0)},
    "skipped_steps": COUNT,
}
OWN_CHOICE = ("fused", "foreach", "capturable", "differentiable")
"""Of an optimizer: how this machine computes its steps."""


def contradictions(
    state: Mapping[str, Any],
    parts: Mapping[str, Any],
    *,
    epochs: int,
    num_steps: int,
    per_epoch: bool,
) -> Iterator[str]:
    """Each reason why the parts of a state are not of one moment of this training, in words.

    Args:
        state: what each part's ``state_dict`` gave.
        parts: of this run, by the same names; ``history`` among them.
        epochs: of the training.
        num_steps: of an epoch.
        per_epoch: the scheduler is stepped after each epoch.
    """
    history = state["history"]
    try:
        check(history, HISTORY, "history")
    except Misfit as error:
        yield str(error)
        return
    yield from _in_history(history, epochs, num_steps)
    steps, skipped = len(history["lrs"]), history["skipped_steps"]
    yield from _in_optimizer(state["optimizer"], parts["optimizer"], steps, skipped)
    if "scheduler" in parts:
        done, total = (len(history["epochs"]), epochs) if per_epoch else (steps, epochs * num_steps)
        yield from _in_scheduler(state["scheduler"], parts["scheduler"], done, total)
        if isinstance(parts["scheduler"], lr_scheduler.OneCycleLR):
            rates = [group["lr"] for group in state["optimizer"]["param_groups"]]
            yield from compare("scheduler._last_lr", state["scheduler"]["_last_lr"], rates)
    if state.get("scaler") and (own := parts["scaler"].state_dict()):
        yield from _unlike("scaler", state["scaler"], own)
        if not state["scaler"].get("scale", 0) > 0:
            yield f"scaler.scale is {shown(state['scaler'].get('scale'))}; it must be above 0"
    if "kept" in parts:
        own = parts["kept"].state_dict()
        expected = own | {"steps": steps if own["average"] else 0}
        yield from compare("kept", state["kept"], expected)


def _in_history(history: Mapping[str, Any], epochs: int, num_steps: int) -> Iterator[str]:
    rows, lrs, running = history["epochs"], history["lrs"], history["running"]
    done, steps = len(rows), len(lrs)
    if len(history["losses"]) != steps:
        yield f"history has {len(history['losses'])} losses and {steps} learning rates"
    if done > epochs or not done * num_steps <= steps <= min(done + 1, epochs) * num_steps:
        yield (
            f"history has {done} epochs and {steps} steps; the training has {epochs} epochs of "
            f"{num_steps} steps"
        )
        return
    for number, row in enumerate(rows, 1):
        last = lrs[number * num_steps - 1]
        if (row["epoch"], row["lr"]) != (number, last):
            yield (
                f"history row {number} has epoch {row['epoch']} and rate {row['lr']}; they must be "
                f"{number} and {last}"
            )
    if history["skipped_steps"] > steps or running["correct"] > running["images"]:
        yield f"history has {history['skipped_steps']} skipped steps of {steps}, or more right than all"
    if running["images"] < (position := steps - done * num_steps) or (
        running["images"] and not position
    ):
        yield f"history has {running['images']} images after {position} steps of its epoch"


def _in_optimizer(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer, steps: int, skipped: int
) -> Iterator[str]:
    groups, own = state["param_groups"], optimizer.state_dict()["param_groups"]
    if len(groups) != len(own):
        yield f"optimizer has {len(groups)} groups in the file and {len(own)} here"
        return
    for number, (there, here) in enumerate(zip(groups, own)):
        there, here = (
            {name: value for name, value in group.items() if name not in OWN_CHOICE}
            for group in (there, here)
        )
        yield from _unlike(f"optimizer.{number}", there, here)
        yield from compare(f"optimizer.{number}.params", there.get("params"), here["params"])
    if strange := state["state"].keys() - {p for group in own for p in group["params"]}:
        yield f"optimizer has a state of the parameter {shown(min(strange, key=str))}, which is not here"
    counts = [values["step"] for values in state["state"].values() if "step" in values]
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)) and not counts:
        counts = [0]
    most = float(max(counts, default=steps))
    if not steps - skipped <= most <= steps or any(count < 0 for count in counts):
        yield f"optimizer has made {most:g} steps; the history has {steps}"


def _in_scheduler(state: Mapping[str, Any], scheduler: Any, done: int, total: int) -> Iterator[str]:
    if not type(scheduler).__module__.startswith("torch."):
        return  # one of your own may keep what it likes
    own = scheduler.state_dict()
    if state.keys() != own.keys():
        yield from compare("scheduler", dict.fromkeys(state), dict.fromkeys(own))
        return
    constant = {"base_lrs", "_schedule_phases", *inspect.signature(type(scheduler)).parameters}
    for name in (constant & own.keys()) - {"last_epoch"}:
        yield from compare(f"scheduler.{name}", state[name], plain(own[name]))
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        return
    if (found := state.get("last_epoch", done)) not in (done, done - (done == total)):
        yield f"scheduler was stepped {shown(found)} times; the history has {done}"
    if isinstance(scheduler, lr_scheduler.OneCycleLR):
        yield from compare("scheduler._step_count", state["_step_count"], found + 1)


def _unlike(name: str, there: Any, here: Any) -> Iterator[str]:
    """Each place where two values are not of one form: names, lengths, types."""
    if isinstance(there, dict) and isinstance(here, dict):
        yield from compare(name, dict.fromkeys(there), dict.fromkeys(here))
        for key in there.keys() & here.keys():
            yield from _unlike(f"{name}.{key}", there[key], here[key])
    elif isinstance(there, (list, tuple)) and isinstance(here, (list, tuple)):
        if len(there) != len(here):
            yield f"{name} has {len(there)} values in the file and {len(here)} here"
        for number, (one, other) in enumerate(zip(there, here)):
            yield from _unlike(f"{name}.{number}", one, other)
    elif _form(there) is not _form(here):
        yield f"{name} is {shown(there)} in the file and {shown(here)} here"


def _form(value: Any) -> type:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_scalar = isinstance(value, Tensor) and not value.ndim  # an optimizer's rate may be one
    return float if is_number or is_scalar else type(value)
