import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import CustomResNet
from onecycle import commands
from onecycle.commands.export import export
from onecycle.data.cifar10 import load_cifar10
from onecycle.data.digits import load_digits
from onecycle.results.weights import load_weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "onecycle" / "weights" / "custom_resnet_cifar10.safetensors"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    file = tmp_path_factory.mktemp("onnx") / "network.onnx"
    assert commands.main(["export", str(WEIGHTS), str(file)]) == 0
    return file


def differences(exported, data):
    """The largest difference from torch's log-probabilities, for batches of different sizes."""
    weights = load_weights(WEIGHTS)
    images = ((data / 255 - weights.mean) / weights.std).astype(np.float32)
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = CustomResNet.from_pretrained(weights)(torch.from_numpy(images)).numpy()
    for size in (1, 7, len(images)):
        (found,) = session.run(["log_probabilities"], {"images": images[:size]})
        assert found.shape == (size, 10)
        yield np.abs(found - expected[:size]).max()


def test_onnxruntime_gives_what_torch_gives_on_digits(exported):
    assert max(differences(exported, load_digits()[1].data[:40])) < 1e-4


def test_onnxruntime_gives_what_torch_gives_on_the_real_images(exported, cifar10_dir):
    _, images = load_cifar10(cifar10_dir)
    assert max(differences(exported, images.sample(200).data)) < 1e-4


@pytest.mark.parametrize(
    "give", [lambda x: {"logits": x}, lambda x: x.softmax(1), lambda x: x.log_softmax(1)]
)
def test_log_probabilities_are_exported_whatever_the_network_gives(give, monkeypatch):
    class Net(nn.Sequential):
        def forward(self, images):
            return give(super().forward(images))

    torch.manual_seed(0)
    net = Net(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10)).eval()
    monkeypatch.setattr("onecycle.results.networks.network_of", lambda weights, name: net)
    model = export(load_weights(WEIGHTS)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 32, 32)
    (found,) = session.run(["log_probabilities"], {"images": images.numpy()})
    with torch.no_grad():
        expected = nn.Sequential(*net)(images).log_softmax(1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_model_says_how_it_is_used_and_nothing_of_the_machine(exported):
    model = onnx.load(exported)
    onnx.checker.check_model(model)
    (image,) = model.graph.input
    sizes = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
    assert (image.name, sizes) == ("images", ["N", 3, 32, 32])
    weights, about = load_weights(WEIGHTS), {p.key: p.value for p in model.metadata_props}
    assert json.loads(about["classes"]) == list(weights.classes)
    assert json.loads(about["mean"]) == list(weights.mean)
    assert json.loads(about["std"]) == list(weights.std)
    assert str(ROOT).encode() not in exported.read_bytes()
    assert not any(exported.parent.glob("*.data"))  # one file


@pytest.mark.parametrize(
    "arguments, exit_code, said",
    [
        ([], 2, "required: WEIGHTS, FILE"),
        (["gone.safetensors", "out.onnx"], 4, "gone.safetensors"),
        ([".", "out.onnx"], 4, "model.safetensors does not exist"),
        ([str(ROOT / "README.md"), "out.onnx"], 4, "README.md"),
        ([str(WEIGHTS), str(ROOT / "README.md" / "out.onnx")], 6, "cannot write"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, monkeypatch, capsys, arguments, exit_code, said):
    monkeypatch.chdir(tmp_path)
    assert commands.main(["export", *arguments]) == exit_code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)  # its import fails
    assert commands.main(["export", str(WEIGHTS), str(tmp_path / "out.onnx")]) == 2
    assert f"pip install {package}\n" in capsys.readouterr().err
