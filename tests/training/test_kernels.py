"""On a GPU where there is one, else in Triton's interpreter."""

import copy
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models import CustomResNet
from models.custom_resnet import ResidualLayer
from onecycle.errors import UsageError
from onecycle.modules import freeze_idle_biases
from onecycle.training import fused
from onecycle.training.compute import Compute, to_device
from onecycle.training.fused import fuse

pytest.importorskip("triton")

from triton.runtime import interpreter

from onecycle.training import kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LOW = [torch.bfloat16, torch.float16]
COMPILE = """
import sys, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from onecycle.training import kernels

fixed = {"ROWS": kernels.ROWS, "COLUMNS": kernels.COLUMNS, "PARTS": kernels.PARTS}
counts = dict.fromkeys(["rows", "channels", "height", "width", "span", "parts"], "i32")
images = dict.fromkeys(["x", "y", "pooled", "grad", "grad_x"], sys.argv[1])
others = {"index": "*i8", "momentum": "fp32", "eps": "fp32"}
for name in "_statistics _merge_statistics _apply _sums _merge_sums _apply_backward".split():
    kernel = getattr(kernels, name)
    for absent in ({}, {"index": None, "pooled": None, "shift": None}):
        constants = {n: v for n, v in (fixed | absent).items() if n in kernel.arg_names}
        kinds = counts | images | others | dict.fromkeys(constants, "constexpr")
        signature = {n: kinds.get(n, "*fp32") for n in kernel.arg_names}
        source = ASTSource(kernel, signature, constants)
        print(len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
"""


@pytest.fixture(autouse=True)
def rounded(monkeypatch):
    """The interpreter cuts bfloat16 off, where a GPU rounds; and a GPU's convolutions cut float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def convert(data, _, to, __):
        data = torch.from_numpy(np.ascontiguousarray(data))
        if str(to) == "bf16":
            return data.view(torch.float32).bfloat16().view(torch.uint16).numpy()
        return data.view(torch.bfloat16).float().view(torch.uint32).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.fixture
def count(monkeypatch):
    """How often the kernels were called."""
    calls, forward = [], kernels.forward
    monkeypatch.setattr(kernels, "forward", lambda *a: calls.append(a) or forward(*a))
    return calls


def block(channels, *, pool=False, **options):
    """The convolution passes the images on, exactly in every number format."""
    conv = nn.Conv2d(channels, channels, 1, groups=channels)
    nn.init.dirac_(conv.weight, groups=channels).requires_grad_(False)
    nn.init.uniform_(conv.bias)
    bn = nn.BatchNorm2d(channels, **options)
    nn.init.normal_(bn.weight)
    nn.init.normal_(bn.bias)
    layers = [conv, nn.MaxPool2d(2), bn, nn.ReLU()] if pool else [conv, bn, nn.ReLU()]
    made = to_device(nn.Sequential(*layers), DEVICE)
    freeze_idle_biases(made)
    return made


def images_of(shape, dtype=torch.float32):
    made = torch.randn(shape).to(DEVICE, dtype, memory_format=torch.channels_last)
    return made + 0.5


def results(model, images):
    """Output, gradients and buffers after one step."""
    low = images.dtype in LOW
    x = images.detach().clone().requires_grad_()
    with torch.autocast(DEVICE.type, images.dtype if low else torch.bfloat16, enabled=low):
        y = model(x)
    generator = torch.Generator().manual_seed(1)
    y.backward(torch.randint(-3, 4, y.shape, generator=generator).to(DEVICE, y.dtype))
    grads = {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {"y": y.detach(), "x": x.grad, **grads, **dict(model.named_buffers())}


def fused_of(model):
    made = copy.deepcopy(model)
    assert fuse(made) == 1
    return made


def reference(model, images):
    return results(copy.deepcopy(model).double(), images.double())


def assert_rounded_once(found, exact, dtype):
    """As near as the number format allows, and sums nearer."""
    for name, value in found.items():
        of_weights = name not in ("y", "x")
        assert value.dtype == (exact[name].dtype if value.ndim == 0 else torch.float32) or (
            not of_weights and value.dtype == dtype
        )
        half = torch.finfo(value.dtype).eps / 2 if value.dtype.is_floating_point else 0
        error = (value.double() - exact[name].double()).abs()
        scale = exact[name].double().abs()
        assert (error <= half * scale + 2e-6 * scale.max() + 1e-7).all(), name


@pytest.mark.parametrize("sharing", [(512, 64), (3, 2)], ids=["wide", "narrow"])
@pytest.mark.parametrize("shape", [(2, 70, 7, 7), (3, 5, 12, 9)])
@pytest.mark.parametrize("pool", [False, True], ids=["plain", "pooled"])
@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
def test_a_block_is_its_formula_rounded_once(dtype, pool, shape, sharing, monkeypatch, count):
    monkeypatch.setattr(kernels, "PROGRAMS", sharing[0])
    monkeypatch.setattr(kernels, "PARTS", sharing[1])
    model, images = block(shape[1], pool=pool, momentum=0.4), images_of(shape, dtype)
    found = results(fused_of(model), images)
    assert len(count) == 1
    assert_rounded_once(found, reference(model, images), dtype)


@pytest.mark.parametrize("pool", [False, True], ids=["plain", "pooled"])
def test_a_batch_of_336_far_from_zero_has_the_statistics_of_its_deviations(pool):
    model = block(3, pool=pool)
    images = images_of((336, 3, 2, 2)) + 1000
    found, exact = results(fused_of(model), images), reference(model, images)
    torch.testing.assert_close(found["y"].double(), exact["y"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found["x"].double(), exact["x"], rtol=1e-3, atol=1e-3)


def test_of_equal_pixels_the_first_has_the_gradient():
    model = block(4, pool=True)
    values = torch.tensor([-1.0, -0.0, 0.0, 1.0], device=DEVICE)
    images = values[torch.randint(4, (6, 4, 7, 6))].to(memory_format=torch.channels_last)
    found, plain = (results(m, images)["x"] for m in (fused_of(model), model))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)
    assert torch.equal(found != 0, plain != 0)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # in numpy
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("pool", [False, True], ids=["plain", "pooled"])
def test_what_is_not_finite_goes_where_it_goes_in_pytorch(pool, value):
    model, images = block(3, pool=pool), images_of((2, 3, 4, 4))
    images[1, 0, 2, 3] = images[1, 0, 3, 3] = value
    found, plain = (results(made, images) for made in (fused_of(model), model))
    for name in found:
        assert torch.equal(found[name].isnan(), plain[name].isnan()), name
    assert found["y"].isnan().any() and not found["y"].isnan().all()


def test_several_steps_leave_the_statistics_that_evaluation_takes():
    model = block(6, momentum=0.3, eps=1e-2)
    ours = fused_of(model)
    for _ in range(3):
        images = images_of((2, 6, 5, 5))
        model(images), ours(images)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], buffer)
    with torch.no_grad():
        ours.load_state_dict(model.state_dict())
        assert torch.equal(ours.eval()(images), model.eval()(images))


@pytest.mark.parametrize("frozen", [["1.weight"], ["1.bias"], []])
def test_only_what_is_trained_has_a_gradient(frozen):
    model = block(3)
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    images, ours = images_of((2, 3, 4, 4)), fused_of(model)
    for made in (model, ours):
        made(images).square().sum().backward()  # the images need none
    for name, parameter in model.named_parameters():
        grad = ours.get_parameter(name).grad
        assert (grad is None) == (parameter.grad is None)
        if grad is not None:
            torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-4)


def hooked(model):
    model[1].register_forward_hook(lambda *_: None)


def one_pixel_too_many(model):
    fused.MOST_NUMBERS = 2 * 3 * 4 * 4


@pytest.mark.parametrize(
    ("change", "dtype", "layout"),
    [
        (None, torch.float64, torch.channels_last),
        (None, torch.float32, torch.contiguous_format),
        (hooked, torch.float32, torch.channels_last),
        (one_pixel_too_many, torch.float32, torch.channels_last),
    ],
    ids=["float64", "layout", "hook", "size"],
)
def test_what_the_kernels_do_not_take_is_computed_by_the_layers(
    change, dtype, layout, count, monkeypatch
):
    monkeypatch.setattr(fused, "MOST_NUMBERS", fused.MOST_NUMBERS)
    model = block(3)
    ours = fused_of(model)
    model, ours = (made.to(memory_format=layout) for made in (model, ours))
    for made in (model, ours):
        made.to(dtype)
    if change:
        change(ours)
    images = images_of((2, 3, 4, 4)).to(dtype, memory_format=layout)
    found, plain = results(ours, images), results(model, images)
    for name in found:
        torch.testing.assert_close(found[name], plain[name])
    assert not count


class Twice(nn.Sequential):
    def forward(self, images):
        return super().forward(super().forward(images))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, momentum=None), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(3, 2), nn.BatchNorm2d(3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(2, ceil_mode=True), nn.BatchNorm2d(3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.GELU()),
        nn.Sequential(nn.Conv2d(3, 3, 1), type("Ghost", (nn.BatchNorm2d,), {})(3), nn.ReLU()),
        Twice(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()),
    ],
    ids=["momentum", "affine", "overlap", "ceil", "gelu", "other norm", "own forward"],
)  # fmt: skip
def test_other_blocks_stay_as_they_are(model):
    assert fuse(model) == 0 and "forward" not in vars(model)
    with pytest.raises(UsageError, match="compile is 'fused', and the network has no block"):
        Compute("cpu", compile_mode="fused").place_model(model)


def test_blocks_in_one_long_sequence_are_found():
    parts = [[nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)] for _ in range(2)]
    model = to_device(nn.Sequential(*parts[0], *parts[1]), DEVICE)
    ours = copy.deepcopy(model)
    assert fuse(ours) == fuse(ours) == 2
    images = images_of((2, 3, 8, 8))
    torch.testing.assert_close(ours(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_fused_network_can_be_saved_whole():
    model = fused_of(block(3))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again, images = torch.load(file, weights_only=False), images_of((2, 3, 4, 4))
    nn.init.ones_(model[1].weight)  # of the first one alone
    assert not torch.equal(again(images), model(images))


def test_the_network_trains_as_it_does_without(count):
    assert fuse(CustomResNet()) == 8
    model = ResidualLayer(3, 6)
    freeze_idle_biases(model)
    ours = Compute(DEVICE, compile_mode="fused").place_model(copy.deepcopy(model))
    model = to_device(model, DEVICE)
    assert list(ours.state_dict()) == list(model.state_dict())
    images = images_of((4, 3, 8, 8))
    for made in (model, ours, copy.deepcopy(ours)):
        made(images).square().sum().backward()
    assert len(count) == 6  # the copy too
    for name, parameter in model.named_parameters():
        grad = ours.get_parameter(name).grad
        assert (grad is None) == (parameter.grad is None), name
        if grad is not None:
            torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-4)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the other tests compile them")
def test_the_kernels_compile_for_a_gpu_that_is_not_here(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, "*bf16"], capture_output=True, text=True, env=env,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) == 12
