import copy
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import CustomResNet
from models.custom_resnet import CustomResNet as from_its_module
from onecycle.modules import freeze_idle_biases
from onecycle.optim.adam import get_optimizer
from onecycle.optim.muon import get_speedrun_optimizer, prepare_network


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CustomResNet().eval()


def images(count):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_both_import_lines_give_the_same_class():
    assert CustomResNet is from_its_module


def test_importing_the_network_needs_torch_alone():
    """Neither the library nor anything else that torch does not import by itself."""
    code = (
        "import sys, torch, torch.nn.functional; before = set(sys.modules)\n"
        "from models import CustomResNet; CustomResNet()\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - {'torch'}\n"
        "assert new <= {'models', *sys.stdlib_module_names}, new"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_parameter_count():
    assert sum(p.numel() for p in CustomResNet().parameters()) == 6_575_370
    assert sum(p.numel() for p in CustomResNet(num_classes=7).parameters()) == 6_575_370 - 3 * 513


@pytest.mark.parametrize("count", [1, 2, 33])
def test_output_shape_and_rows_are_log_probabilities(model, count):
    with torch.no_grad():
        output = model(images(count))
    assert output.shape == (count, 10)
    torch.testing.assert_close(output.exp().sum(1), torch.ones(count))


def trained(model, epochs=3):
    """The losses of a few steps in float64."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    pictures, labels = images(8).double(), torch.arange(8)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pictures), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("momentum", [0.1, 0.4, None])
def test_frozen_biases_change_nothing(momentum):
    torch.manual_seed(0)
    plain = CustomResNet().double()
    for layer in plain.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = momentum
    frozen = copy.deepcopy(plain)
    freeze_idle_biases(frozen)
    assert trained(frozen) == pytest.approx(trained(plain), rel=1e-9)
    for (name, one), two in zip(frozen.named_parameters(), plain.parameters()):
        if name.endswith("conv.bias"):  # neither has a gradient but rounding errors
            assert one.grad is None and one.abs().max() > 0
        else:
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)
    # Those of BN too, so that it classifies as the other one does.
    for one, two in zip(frozen.buffers(), plain.buffers()):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-9)
    pictures = images(5).double()
    torch.testing.assert_close(
        frozen.eval()(pictures), plain.eval()(pictures), rtol=1e-6, atol=1e-6
    )


def test_frozen_biases_never_meet_the_images_of_a_training():
    model = CustomResNet()
    freeze_idle_biases(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("conv.bias"):
                parameter.fill_(math.nan)
    model.train()
    assert model(images(4)).isfinite().all()
    assert model.prep_layer.bn.running_mean.isnan().all()


def test_a_block_with_more_or_less_in_it_computes_all_of_it():
    model = CustomResNet()
    freeze_idle_biases(model)
    part = model.layer2[:2]
    assert type(part[1]) is nn.MaxPool2d and part(torch.zeros(1, 128, 4, 4)).shape == (1, 256, 2, 2)
    model.prep_layer.add_module("off", nn.Threshold(math.inf, 0.0))
    assert not model.train().prep_layer(images(2)).any()


class Squared(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, images):
        return super().forward(images) ** 2


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.Conv2d, {"stride": 2}), (nn.Conv2d, {"padding_mode": "reflect"}),
        (nn.Conv2d, {"dilation": 2}), (nn.Conv2d, {"groups": 2}), (Squared, {}),
    ],
)  # fmt: skip
def test_a_block_with_another_convolution_computes_it_in_training_too(kind, options):
    torch.manual_seed(0)
    block = CustomResNet().layer1.res_block[0]
    block.conv = kind(128, 128, 3, padding=1, **options)
    plain = copy.deepcopy(block)
    freeze_idle_biases(block)
    pictures = torch.randn(2, 128, 8, 8)
    torch.testing.assert_close(block.train()(pictures), plain.train()(pictures))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_the_network_can_be_scripted(model):
    scripted = torch.jit.script(model)
    with torch.no_grad():
        torch.testing.assert_close(scripted(images(2)), model(images(2)))


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_no_optimizer_trains_the_biases_that_do_nothing(name):
    model = CustomResNet()
    freeze_idle_biases(model)
    if name == "adam":
        optimizer = get_optimizer(model, lr=0.001, weight_decay=0.1, betas=(0.9, 0.99))
    else:
        noise = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
        prepare_network(model, noise, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        optimizer = get_speedrun_optimizer(model, lr=0.001, betas=(0.9, 0.99))
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    names = {name for name, p in model.named_parameters() if p in trained}
    assert not {name for name in names if name.endswith("conv.bias")}
    assert {"fc.bias", "layer1.x.bn.bias", "layer3.x.conv.weight"} <= names


def test_number_of_classes():
    assert CustomResNet(num_classes=3)(images(2)).shape == (2, 3)
    with pytest.raises(ValueError, match="num_classes is 0"):
        CustomResNet(num_classes=0)


def test_layers_are_the_assignments_in_its_order(model):
    block, pooled = (
        ["Conv2d", "BatchNorm2d", "ReLU"],
        ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"],
    )
    expected = {
        "prep_layer": block,
        "layer1": pooled + block + block,
        "layer2": pooled,
        "layer3": pooled + block + block,
        "max_pool": ["MaxPool2d"],
        "flatten": ["Flatten"],
        "fc": ["Linear"],
        "softmax": ["LogSoftmax"],
    }
    found = {
        name: [type(m).__name__ for m in child.modules() if not list(m.children())]
        for name, child in model.named_children()
    }
    assert found == expected
    assert list(found) == list(expected)


def test_modules_run_in_the_order_in_which_they_are_listed(model):
    ran = []
    leaves = [m for m in model.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(lambda m, *_: ran.append(m)) for m in leaves]
    with torch.no_grad():
        model(images(1))
    for hook in hooks:
        hook.remove()
    assert ran == leaves


def test_shapes_between_the_layers(model):
    shapes = {}
    hooks = [
        child.register_forward_hook(
            lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape[1:])})
        )
        for name, child in model.named_children()
    ]
    with torch.no_grad():
        model(images(1))
    for hook in hooks:
        hook.remove()
    assert shapes == {
        "prep_layer": (64, 32, 32),
        "layer1": (128, 16, 16),
        "layer2": (256, 8, 8),
        "layer3": (512, 4, 4),
        "max_pool": (512, 1, 1),
        "flatten": (512,),
        "fc": (10,),
        "softmax": (10,),
    }


def test_every_convolution_is_3x3_stride_1_padding_1_with_a_bias(model):
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 8
    for conv in convolutions:
        assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        assert conv.bias is not None


@pytest.mark.parametrize("name", ["layer1", "layer3"])
def test_residual_layers_add_x_and_its_block(model, name):
    layer = getattr(model, name)
    x = torch.randn(2, layer.x.conv.in_channels, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        first = layer.x(x)
        torch.testing.assert_close(layer(x), first + layer.res_block(first))


def test_cross_entropy_has_the_value_and_gradient_that_it_has_on_the_logits():
    torch.manual_seed(3)
    model = CustomResNet().double().train()
    batch, labels = images(4).double(), torch.tensor([0, 3, 9, 3])
    logits = []
    model.fc.register_forward_hook(lambda _m, _i, out: logits.append(out))
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    loss = criterion(model(batch), labels)
    on_logits = criterion(logits[0], labels)
    torch.testing.assert_close(loss, on_logits)
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters, retain_graph=True),
        torch.autograd.grad(on_logits, parameters),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_an_images_result_does_not_depend_on_its_batch(model):
    batch = images(8)
    with torch.no_grad():
        torch.testing.assert_close(model(batch)[3:4], model(batch[3:4]), rtol=1e-4, atol=1e-5)


def test_log_probabilities_stay_float32_under_autocast(model):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = model(images(2))
    assert output.dtype == torch.float32
    torch.testing.assert_close(F.log_softmax(output, 1), output)
