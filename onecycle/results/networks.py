"""Networks by name: the custom ResNet, those of torchvision, and your own."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable

from torch import nn

from onecycle.errors import UsageError
from onecycle.modules import make
from onecycle.results.weights import WeightsFile, load_into

CUSTOM_RESNET = "CustomResNet"
NAMES = {"custom_resnet": CUSTOM_RESNET, CUSTOM_RESNET: CUSTOM_RESNET}


def find_model(name: str, of: str | os.PathLike = "") -> Callable[[int], nn.Module]:
    """What makes a network for a number of classes.

    Args:
        name: custom_resnet, a classification network of torchvision, such as resnet18, or
            package.module:function of your own, found from the current folder too.
        of: the file or folder that says this name; empty: a person does.

    Raises:
        UsageError: there is none of that name.
    """
    if name in NAMES:
        return _custom_resnet()
    make = _own(name) if ":" in name else _of_torchvision(name, of)
    make.__name__ = make.__qualname__ = name  # what results and weights say, to find it again
    return make


def network_of(weights: WeightsFile, name: str | None) -> nn.Module:
    """The network of a file of weights, with these weights, in evaluation mode.

    Args:
        weights: what the file holds.
        name: as of :func:`find_model`; None: what the file says, ``CustomResNet`` if nothing.

    Raises:
        CheckpointError: the weights are of another network.
        UsageError: there is no network of that name.
    """
    of = "" if name else weights.file
    name = name or weights.data.get("model") or CUSTOM_RESNET
    if name in NAMES:
        return _custom_resnet().from_pretrained(weights)
    model = find_model(name, of)(len(weights.classes))
    load_into(model, weights)
    return model.eval()


def _custom_resnet() -> type[nn.Module]:
    try:
        # By its name: nothing here is bound to the folder models until a file asks for it.
        return importlib.import_module("models").CustomResNet
    except (ImportError, AttributeError) as error:
        name = getattr(error, "name", None) or ""
        if isinstance(error, ImportError) and name.partition(".")[0] != "models":
            raise
        reason = f"{error}; run it in a folder that has no models of its own"
        raise UsageError(f"the network is not found: {reason}") from error


def _own(name: str) -> Callable[[int], nn.Module]:
    module, _, function = name.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:  # a file of weights may name anything
        raise UsageError(f"--model {name} is of Python itself; name a network, such as resnet18")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--model {name} is not found: {error}") from error

    def made(classes: int) -> nn.Module:
        try:
            return make("model", found, classes)
        except UsageError as error:
            raise UsageError(f"--model {name}: {error}") from error
        except Exception as error:  # of code that is not ours
            said = " ".join(str(error).split())[:200]
            raise UsageError(f"--model {name} fails: {type(error).__name__}: {said}") from error

    return made


def _of_torchvision(name: str, of: str | os.PathLike) -> Callable[[int], nn.Module]:
    from torchvision import models

    if name not in models.list_models(module=models):
        if of:
            raise UsageError(
                f"the network of {of} is {name}, which is not known by this name; name it with "
                f"--model package.module:{name}, or give it to Run.load(folder, data, {name})"
            )
        near = difflib.get_close_matches(name, models.list_models(module=models), cutoff=0.5)
        meant = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise UsageError(
            f"--model is {name}{meant}; it must be custom_resnet, a classification network of "
            "torchvision, such as resnet18, or package.module:function"
        )
    return lambda classes: models.get_model(name, num_classes=classes)
