"""Steps whose gradient is that of the worst weights nearby."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onecycle.errors import UsageError
from onecycle.recipe import Recipe
from onecycle.training.compute import Compute
from onecycle.training.sharpness import Sharpness
from onecycle.training.step import Step


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


def stepped(radius, images, labels, *, clip_norm=0.0):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = Step(model, nn.CrossEntropyLoss(), optimizer, None, Compute("cpu"), clip_norm=clip_norm)
    measured, norm = step(images, labels, share=1.0, is_last=False, radius=radius)
    return model, measured, norm


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 3


def test_a_step_takes_the_gradient_where_the_climb_ends(batch):
    images, labels = batch
    model, high = network(), network()
    gradient = torch.autograd.grad(F.cross_entropy(model(images), labels), model.parameters())
    length = torch.cat([g.flatten() for g in gradient]).norm()
    with torch.no_grad():
        for weight, g in zip(high.parameters(), gradient):
            weight += 0.3 * g / length
    gradient = torch.autograd.grad(F.cross_entropy(high(images), labels), high.parameters())
    length = torch.cat([g.flatten() for g in gradient]).norm()

    found, _, norm = stepped(0.3, images, labels)
    assert norm.item() == pytest.approx(length.item(), rel=1e-5)
    for before, g, after in zip(network().parameters(), gradient, found.parameters()):
        torch.testing.assert_close(after, before - 0.1 * g)
    plain, _, _ = stepped(0.0, images, labels)
    assert not torch.equal(plain[0].weight, found[0].weight)


def test_what_is_measured_and_the_running_statistics_are_of_the_weights_themselves(batch):
    plain, measured, _ = stepped(0.0, *batch)
    sharp, too, _ = stepped(0.3, *batch)
    assert torch.equal(measured, too)
    for name, value in plain.named_buffers():
        assert torch.equal(value, dict(sharp.named_buffers())[name])


def test_a_gradient_that_is_not_finite_stays_so(batch):
    images, labels = batch
    model, _, norm = stepped(0.3, images * float("inf"), labels)
    assert not norm.isfinite()


def test_a_flat_loss_leaves_the_weights(batch):
    model = network()
    before = copy.deepcopy(model.state_dict())
    step = Step(
        model, lambda output, labels: 0 * output.sum(), torch.optim.SGD(model.parameters(), lr=1.0),
        None, Compute("cpu"),
    )  # fmt: skip
    step(*batch, share=1.0, is_last=False, radius=0.5)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])


def test_the_first_such_step_is_after_some_epochs():
    assert [Sharpness(0.1, 1.5).at(epochs) for epochs in (0, 1.4, 1.5, 2)] == [0, 0, 0.1, 0.1]


def test_a_beginning_without_a_radius_is_refused():
    with pytest.raises(UsageError, match="give sharpness"):
        Recipe(sharpness_from=2)
    with pytest.raises(UsageError, match="sharpness_from is 30"):
        Recipe(sharpness=0.1, sharpness_from=30, epochs=24)
