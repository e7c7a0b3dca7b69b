"""Trained weights as one safetensors file that says what it was trained on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onecycle.errors import CheckpointError, StorageError, UsageError
from onecycle.files import steers, write_whole
from onecycle.paths import read_input
from onecycle.recipe import Recipe

PUBLISHED = Path(__file__).parents[1] / "weights" / "custom_resnet_cifar10.safetensors"
"""The weights of the published run, which know CIFAR-10's classes."""
LONGEST_NAME = 1000
MOST_BYTES = 1 << 30
"""Above this nothing is read: ten classes need 26 MB in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """What a file of weights holds; see :func:`load_weights`."""

    file: Path
    """where it was read"""
    sha256: str
    """digest of the whole file, in hexadecimal"""
    state_dict: dict[str, Tensor]
    """finite tensors by name, float32 whatever was stored; counters stay int64"""
    classes: tuple[str, ...]
    """the K class names, in the order of the network's outputs"""
    mean: tuple[float, float, float]
    """of each channel, 0..1, as the images were normalised"""
    std: tuple[float, float, float]
    """of each channel, 0..1"""
    source: str
    """where the training images come from"""
    data: dict[str, Any]
    """all that was said of the images: the four above, and what was counted"""
    recipe: dict[str, Any]
    """the recipe of the run, plain data"""

    @property
    def image_size(self) -> int:
        """Height and width of the images that it was trained on, in pixels."""
        return self.recipe.get("image_size") or 32


def load_weights(file: str | os.PathLike) -> WeightsFile:
    """Read and check a file of weights. Nothing in it is executed.

    Args:
        file: as :func:`save_weights` writes it.

    Raises:
        CheckpointError: it is missing, damaged, foreign, or holds numbers that are not finite.
        UsageError: the package safetensors is not installed.
    """
    file = Path(file)
    library = _safetensors()
    try:
        content = read_input(file, MOST_BYTES)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    try:
        stored = library.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = header.get("__metadata__") or {}
    except Exception as error:  # whatever the library raises, of its own types and of Python's
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{file} is damaged or no safetensors file ({reason}); get it again, or give the "
            "model.safetensors of a run"
        ) from error
    try:
        data, recipe = (_plain(about[name]) for name in ("data", "recipe"))
        fields = _check_metadata(data, recipe)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} does not say what it was trained on ({type(error).__name__}: {error}); "
            "make it with scripts/publish.py or save_weights"
        ) from error
    if about.get("digest", digest := _digest(stored, about)) != digest:
        raise CheckpointError(f"{file} is damaged: its content has another SHA-256; get it again")
    return WeightsFile(
        file=file,
        sha256=hashlib.sha256(content).hexdigest(),
        state_dict={
            name: _finite(file, name, value)
            for name, value in sorted(without_wrappers(stored).items())
        },
        data=data,
        recipe=recipe,
        **fields,
    )


def save_weights(
    file: str | os.PathLike,
    state_dict: Mapping[str, Tensor],
    *,
    data: Mapping[str, Any],
    recipe: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write weights with what they were trained on, whole or not at all.

    Args:
        file: usually ``NAME.safetensors``; its folder must be there.
        state_dict: finite tensors by name, also those of a compiled or distributed network.
        data: plain data with ``source``, ``classes``, ``mean`` and ``std``.
        recipe: plain data.
        dtype: what the floating-point numbers are rounded to.

    Raises:
        CheckpointError: a number is not finite, in ``dtype`` at the latest, or ``data`` is not
            as above.
        StorageError: it cannot be written.
        UsageError: the package safetensors is not installed.
    """
    file = Path(file)
    library = _safetensors()
    tensors = {}
    for name, value in without_wrappers(state_dict).items():
        value = value.detach().cpu().contiguous()
        value = value.to(dtype) if value.is_floating_point() else value
        _finite(file, name, value)
        tensors[name] = value
    try:
        about = {"data": json.dumps(dict(data)), "recipe": json.dumps(dict(recipe))}
        _check_metadata(*map(_plain, about.values()))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is not written: {type(error).__name__}: {error}") from error
    about["digest"] = _digest(tensors, about)
    content = _sort_header(library.save(tensors, metadata=about))
    try:
        write_whole(file, content)
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror}") from error
    return file


def without_wrappers(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors by the names of the network itself.

    ``torch.compile`` puts ``_orig_mod.`` before the names of what it wraps, ``DataParallel`` and
    ``DistributedDataParallel`` put ``module.`` before all.
    """
    state = {name.replace("_orig_mod.", ""): value for name, value in state_dict.items()}
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def check_fit(weights: WeightsFile, expected: Mapping[str, Tensor]) -> None:
    """Check that the weights fit a network, before any is copied into it.

    Args:
        weights: what a file holds.
        expected: the network's own ``state_dict()``.

    Raises:
        CheckpointError: a tensor is missing, too many, or of another shape or type.
    """
    found, wanted = (
        {name: (tuple(value.shape), value.dtype) for name, value in state.items()}
        for state in (weights.state_dict, without_wrappers(expected))
    )
    wrong = [
        f"{name} is {_describe(found.get(name))} instead of {_describe(wanted.get(name))}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{weights.file} does not fit the network for its {len(weights.classes)} classes: "
            f"{', '.join(wrong[:3])}{more}; name a file of this network"
        )


def load_into(model: nn.Module, file: str | os.PathLike | WeightsFile) -> WeightsFile:
    """Give a network the weights of a file.

    Args:
        model: on any device, compiled or not; stays as it is if the weights are not its own.
        file: as :func:`save_weights` writes it, or what :func:`load_weights` read from it.

    Raises:
        CheckpointError: the file is missing, damaged, foreign or of another network.
        UsageError: the package safetensors is not installed.
    """
    weights = file if isinstance(file, WeightsFile) else load_weights(file)
    own = model.state_dict()
    check_fit(weights, own)
    names = zip(own, without_wrappers(own))  # in the same order
    model.load_state_dict({name: weights.state_dict[plain] for name, plain in names})
    return weights


def _describe(tensor: tuple | None) -> str:
    return "absent" if tensor is None else f"{str(tensor[1]).removeprefix('torch.')} {tensor[0]}"


def _check_metadata(data: Any, recipe: Any) -> dict[str, Any]:
    classes, source = data["classes"], data["source"]
    if not isinstance(recipe, dict):
        raise ValueError(f"recipe is {recipe!r:.60}, not a dictionary")
    _check_recipe(recipe)
    if not _is_name(source):
        raise ValueError(f"source is {source!r:.60}, not a name")
    if not (
        isinstance(classes, list)
        and classes
        and all(map(_is_name, classes))
        and len(set(classes)) == len(classes)
    ):
        raise ValueError(f"classes are {classes!r:.60}, not different names")
    channels = {}
    for name, lowest in (("mean", 0.0), ("std", 1e-6)):
        numbers = data[name]
        if not (
            isinstance(numbers, list)
            and len(numbers) == 3
            and all(type(x) in (int, float) and lowest <= x <= 1 for x in numbers)
        ):
            raise ValueError(f"{name} is {numbers!r:.60}, not three numbers of {lowest:g}..1")
        channels[name] = tuple(map(float, numbers))
    return {"classes": tuple(classes), "source": source, **channels}


def _check_recipe(recipe: dict[str, Any]) -> None:
    known = {each.name for each in fields(Recipe)}
    try:
        Recipe(**{n: value for n, value in recipe.items() if n in known and value is not None})
    except UsageError as error:
        raise ValueError(f"recipe: {error}") from error


def _is_name(text: Any) -> bool:
    """A text of a line that every file, terminal and page can hold."""
    is_short = isinstance(text, str) and 0 < len(text) <= LONGEST_NAME
    return is_short and not any(map(steers, text))


def _plain(text: str) -> Any:
    """JSON without numbers that are not finite, which JSON does not have."""

    def refuse(number: str) -> None:
        raise ValueError(f"{number} is no number of JSON")

    return json.loads(text, parse_constant=refuse)


def _finite(file: Path, name: str, value: Tensor) -> Tensor:
    value = value.float() if value.is_floating_point() else value
    if not torch.isfinite(value).all():
        raise CheckpointError(f"{file}: {name} holds numbers that are not finite; get it again")
    if name.endswith("running_var") and (value < 0).any():
        raise CheckpointError(f"{file}: {name} holds a variance below 0; get it again")
    return value


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """Of names, types, shapes, numbers and metadata: the format itself has no checksum."""
    digest = hashlib.sha256(f"{about['data']}\n{about['recipe']}\n".encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _sort_header(content: bytes) -> bytes:
    """The library shuffles the metadata; sorted, the same weights are the same file."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def _safetensors() -> Any:
    try:
        import safetensors.torch as library
    except ImportError as error:
        raise UsageError("weights files need one package more: pip install safetensors") from error
    return library
