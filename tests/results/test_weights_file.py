import builtins
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models import CustomResNet
from onecycle.errors import CheckpointError, StorageError, UsageError
from onecycle.results.weights import load_into, load_weights, save_weights, without_wrappers

ROOT = Path(__file__).resolve().parent.parent.parent
PUBLISHED = ROOT / "onecycle" / "weights" / "custom_resnet_cifar10.safetensors"
DATA = {
    "source": "photographs", "classes": ["große Katze", "犬"], "mean": [0.5, 0.25, 1 / 3],
    "std": [0.2, 0.2, 0.3], "num_train": 7,
}  # fmt: skip
RECIPE = {"epochs": 2, "lr_max": None}


def small_state(dtype=torch.float32):
    numbers = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    return {"a.weight": numbers.to(dtype), "a.count": torch.tensor(5)}


@pytest.fixture
def small(tmp_path):
    return save_weights(tmp_path / "small.safetensors", small_state(), data=DATA, recipe=RECIPE)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return CustomResNet(num_classes=2).eval()


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "network.safetensors"
    return save_weights(file, network.state_dict(), data=DATA, recipe=RECIPE)


def refused(file, *, match=None):
    with pytest.raises(CheckpointError, match=match) as caught:
        load_weights(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def with_metadata(file, **changes):
    about = {"data": json.dumps(DATA), "recipe": json.dumps(RECIPE)} | changes
    save_file(small_state(), file, {name: text for name, text in about.items() if text})


def test_what_is_saved_is_loaded_in_float32_from_half(small):
    weights = load_weights(small)
    assert load_file(small)["a.weight"].dtype == torch.float16
    expected = small_state(torch.float16)["a.weight"].float()
    assert weights.state_dict["a.weight"].dtype == torch.float32
    assert torch.equal(weights.state_dict["a.weight"], expected)
    assert torch.equal(weights.state_dict["a.count"], torch.tensor(5))
    assert weights.classes == ("große Katze", "犬")
    assert (weights.mean, weights.std) == ((0.5, 0.25, 1 / 3), (0.2, 0.2, 0.3))
    assert (weights.source, weights.data, weights.recipe) == ("photographs", DATA, RECIPE)


def test_float32_can_be_kept_exactly(tmp_path):
    file = tmp_path / "whole.safetensors"
    save_weights(file, small_state(), data=DATA, recipe=RECIPE, dtype=torch.float32)
    assert torch.equal(load_weights(file).state_dict["a.weight"], small_state()["a.weight"])


def test_the_same_weights_are_the_same_file(small):
    before = small.read_bytes()
    for _ in range(5):
        save_weights(small, small_state(), data=DATA, recipe=RECIPE)
        assert small.read_bytes() == before
    assert [entry.name for entry in small.parent.iterdir()] == [small.name]


def test_network_from_a_file_gives_what_it_gave_before(network, saved):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model = CustomResNet.from_pretrained(str(saved))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())
    with torch.no_grad():
        # Half precision keeps 11 bits of each weight.
        torch.testing.assert_close(model(images), network(images), atol=0.01, rtol=0)


def test_two_networks_from_one_reading_share_nothing(saved):
    weights = load_weights(saved)
    first, second = (CustomResNet.from_pretrained(weights) for _ in range(2))
    with torch.no_grad():
        first.fc.bias.fill_(3)
    assert not torch.equal(first.fc.bias, second.fc.bias)
    assert torch.equal(second.fc.bias, weights.state_dict["fc.bias"])


def test_published_weights_are_a_network_of_the_ten_classes():
    weights = load_weights(PUBLISHED)
    assert len(weights.classes) == 10
    with torch.no_grad():
        output = CustomResNet.from_pretrained(weights)(torch.zeros(2, 3, 32, 32))
    assert output.shape == (2, 10)
    assert torch.isfinite(output).all()


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda state: state.pop("fc.bias"), r"fc.bias is absent instead of float32 \(2,\)"),
        (lambda state: state.update(more=torch.ones(1)), r"more is float32 \(1,\) instead of abs"),
        (lambda state: state.update({"fc.bias": torch.ones(3)}), r"\(3,\) instead of .*\(2,\)"),
        (lambda state: state.update({"fc.bias": torch.ones(2).int()}), "int32 .* of float32"),
        (lambda state: [state.pop(name) for name in list(state)[:9]], "and 6 more"),
        (
            lambda state: state.update({"fc.weight": torch.ones(10, 512)}),
            r"its 2 classes: fc.weight is float32 \(10, 512\) instead of float32 \(2, 512\)",
        ),
    ],
    ids=["missing", "extra", "shape", "type", "many", "other classes"],
)
def test_tensors_of_another_network_are_refused_by_name(network, tmp_path, change, match):
    state = network.state_dict()
    change(state)
    file = tmp_path / "other.safetensors"
    save_weights(file, state, data=DATA, recipe=RECIPE)
    with pytest.raises(CheckpointError, match=match) as caught:
        CustomResNet.from_pretrained(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_refused(small):
    good = small.read_bytes()
    for length in range(len(good)):
        small.write_bytes(good[:length])
        refused(small)
    small.write_bytes(good + b"\0")
    refused(small)


def test_no_flipped_bit_gives_other_weights(small):
    good, before = small.read_bytes(), load_weights(small)
    harm = []
    for place in range(len(good)):
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        small.write_bytes(damaged)
        try:
            after = load_weights(small)
        except CheckpointError:
            continue
        same = all(torch.equal(after.state_dict[n], v) for n, v in before.state_dict.items())
        if not same or (after.data, after.recipe) != (before.data, before.recipe):
            harm.append(place)
    assert not harm


def no_file(file):
    file.unlink()


def folder_in_its_place(file):
    file.unlink()
    file.mkdir()


def torch_pickle(file):
    torch.save({"state_dict": small_state()}, file)


@pytest.mark.parametrize(
    "damage",
    [
        no_file,
        folder_in_its_place,
        torch_pickle,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_text("<html>\nnot found\n</html>"),
        lambda file: file.write_bytes(b"\xff" * 1000),
        lambda file: save_file(small_state(), file),
    ],
    ids=["missing", "folder", "pickle", "empty", "html", "large header", "no metadata"],
)
def test_what_is_no_file_of_weights_is_refused(small, damage):
    damage(small)
    refused(small)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"data": None}, "data"),
        ({"recipe": None}, "recipe"),
        ({"recipe": "[]"}, r"recipe is \[\]"),
        ({"data": "{"}, "not JSON"),
        ({"data": "[" * 100_000}, "nested more than 50 deep"),
        ({"data": "3"}, "it is 3"),
        ({"data": json.dumps(DATA | {"classes": []})}, r"classes is \[\]"),
        ({"data": json.dumps(DATA | {"classes": ["cat", "cat"]})}, "without repetitions"),
        ({"data": json.dumps(DATA | {"classes": ["cat", 3]})}, "classes row 2 is 3"),
        ({"data": json.dumps(DATA | {"source": None})}, "source is"),
        ({"data": json.dumps(DATA | {"source": "\ud800"})}, "a value is"),
        ({"data": json.dumps(DATA | {"source": "x" * 5_000_000})}, "a value is"),
        ({"data": json.dumps(DATA | {"classes": ["cat", "\x1b[2Jred"]})}, "classes row 2 is"),
        ({"data": json.dumps(DATA | {"num_test": float("nan")})}, "NaN is no number"),
        ({"recipe": json.dumps(RECIPE | {"flip_probability": "x"})}, "flip_probability is 'x'"),
        ({"recipe": json.dumps(RECIPE | {"lr_max": float("inf")})}, "Infinity is no number"),
        ({"data": json.dumps(DATA | {"mean": [0.5, 0.5]})}, "mean is"),
        ({"data": json.dumps(DATA | {"mean": [0.5, 0.5, "x"]})}, "mean row 3 is 'x'"),
        ({"data": json.dumps(DATA | {"mean": [125, 122, 113]})}, "mean row 1 is 125"),
        ({"data": json.dumps(DATA | {"std": [0.2, 0.0, 0.2]})}, "std row 2 is 0.0"),
        ({"digest": "0" * 64}, "SHA-256"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(small, changes, match):
    with_metadata(small)
    load_weights(small)
    with_metadata(small, **changes)
    refused(small, match=match)


def test_metadata_that_json_cannot_hold_is_refused(tmp_path):
    data = DATA | {"mean": list(torch.full((3,), 0.5))}
    with pytest.raises(CheckpointError, match="not written: TypeError"):
        save_weights(tmp_path / "it.safetensors", {}, data=data, recipe={})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(small, number):
    about = {"data": json.dumps(DATA), "recipe": json.dumps(RECIPE)}
    save_file({"a": torch.ones(3), "b": torch.tensor([1.0, number])}, small, about)
    refused(small, match="b holds")


def test_a_variance_below_0_is_refused(small):
    about = {"data": json.dumps(DATA), "recipe": json.dumps(RECIPE)}
    save_file({"bn.running_var": torch.tensor([1.0, -1.0])}, small, about)
    refused(small, match="bn.running_var holds a variance below 0")


def test_numbers_too_large_for_half_precision_are_not_written(tmp_path):
    file = tmp_path / "large.safetensors"
    with pytest.raises(CheckpointError, match="running_var"):
        save_weights(file, {"running_var": torch.tensor([7e4])}, data=DATA, recipe=RECIPE)
    assert not list(tmp_path.iterdir())


def test_an_enormous_file_is_refused_unread(tmp_path, monkeypatch):
    file = tmp_path / "enormous.safetensors"
    with open(file, "wb") as stream:
        stream.truncate(1 << 40)  # sparse
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it is read"))
    refused(file, match="1,099,511,627,776 bytes")


@pytest.mark.parametrize("call", ["open", "replace"])
def test_where_nothing_can_be_written_the_old_file_stays(small, monkeypatch, call):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    before = small.read_bytes()
    monkeypatch.setattr({"open": builtins, "replace": os}[call], call, fail)
    with pytest.raises(StorageError, match="No space left"):
        save_weights(small, {"other": torch.ones(2)}, data=DATA, recipe=RECIPE)
    monkeypatch.undo()
    assert small.read_bytes() == before
    assert [entry.name for entry in small.parent.iterdir()] == [small.name]


def test_without_safetensors_one_line_says_what_to_install(small, monkeypatch):
    def absent(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UsageError, match="pip install safetensors"):
        load_weights(small)


def wrapped(kind):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2)))
    if kind == "compiled inside":
        model[1] = torch.compile(model[1])
    elif kind == "distributed":
        model = nn.DataParallel(model)
    elif kind == "both":
        model = torch.compile(nn.DataParallel(model))
    elif kind == "compiled":
        model = torch.compile(model)
    return model


KINDS = ["compiled", "compiled inside", "distributed", "both", "plain"]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_wrapped_network_have_the_names_of_the_network(kind, tmp_path):
    file = tmp_path / "w.safetensors"
    save_weights(file, wrapped(kind).state_dict(), data=DATA, recipe=RECIPE, dtype=torch.float32)
    plain = wrapped("plain").state_dict()
    assert load_file(file).keys() == plain.keys()
    for other in KINDS:
        model = wrapped(other)
        for parameter in model.parameters():
            parameter.data.zero_()
        load_into(model, file)
        for value, expected in zip(model.state_dict().values(), plain.values(), strict=True):
            assert torch.equal(value, expected)


def test_a_file_with_the_names_of_a_compiled_network_is_read_and_module_may_be_a_name(tmp_path):
    state = {f"_orig_mod.{name}": value for name, value in small_state().items()}
    about = {"data": json.dumps(DATA), "recipe": json.dumps(RECIPE)}
    save_file(state, tmp_path / "w.safetensors", about)
    assert load_weights(tmp_path / "w.safetensors").state_dict.keys() == small_state().keys()
    own = {"module.weight": torch.ones(2), "head.weight": torch.ones(2)}
    assert without_wrappers(own) == own
