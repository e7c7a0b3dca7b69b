import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import CustomResNet
from onecycle.errors import UsageError
from onecycle.modules import eval_mode, freeze_idle_biases, group_batch_norm, model_summary
from onecycle.outputs import probabilities


def frozen(model):
    """Names of the parameters that are out of training."""
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def after_freezing(model):
    freeze_idle_biases(model)
    return frozen(model)


def foreign():
    """A network of somebody else: one bias before a BN, one before a pooling and a BN, others."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 5, 3), nn.MaxPool2d(2), nn.BatchNorm2d(5), nn.ReLU()),
        nn.Conv2d(5, 6, 3), nn.ReLU(), nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 1), nn.Flatten(), nn.Linear(6 * 36, 3),
    )  # fmt: skip


def images(count=6, size=20):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)).double()


def trained(model, steps=3):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images()), torch.arange(6) % 3).backward()
        optimizer.step()
    return model


def test_of_a_foreign_network_only_biases_right_before_a_bn_are_frozen():
    assert after_freezing(foreign()) == {"0.bias", "3.0.bias"}


def test_of_the_assignments_network_those_of_all_convolutions_are():
    model = CustomResNet()
    convolutions = {name for name, _ in model.named_parameters() if name.endswith("conv.bias")}
    assert len(convolutions) == 8
    assert after_freezing(model) == convolutions


def test_a_frozen_network_computes_and_learns_the_same_in_both_modes():
    plain = foreign().double()
    model = copy.deepcopy(plain)
    freeze_idle_biases(model)
    for mode in (True, False):
        assert torch.equal(model.train(mode)(images()), plain.train(mode)(images()))
    trained(model.train())
    trained(plain.train())
    for mode in (True, False):
        one, other = model.train(mode)(images()), plain.train(mode)(images())
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    before = foreign().double().state_dict()
    assert torch.equal(model.state_dict()["0.bias"], before["0.bias"])
    assert not torch.equal(model.state_dict()["4.bias"], before["4.bias"])


class Twice(nn.Module):
    """Calls a convolution of its block by itself too."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.conv = self.block[0]

    def forward(self, images):
        return self.block(images) + self.conv(images)


def shared(*behind):
    """A convolution at several places, each with another layer behind it."""
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(*(nn.Sequential(conv, layer) for layer in behind))


def test_a_convolution_at_several_places_is_frozen_only_with_a_bn_behind_each():
    assert after_freezing(shared(nn.BatchNorm2d(3), nn.BatchNorm2d(3))) == {"0.0.bias"}
    assert after_freezing(shared(nn.BatchNorm2d(3), nn.ReLU())) == set()
    assert after_freezing(shared(nn.ReLU(), nn.BatchNorm2d(3))) == set()
    assert after_freezing(Twice()) == set()
    conv = nn.Conv2d(3, 3, 1)
    assert after_freezing(nn.Sequential(conv, nn.BatchNorm2d(3), conv)) == set()
    assert after_freezing(nn.Sequential(conv, conv, nn.BatchNorm2d(3))) == set()


def test_a_bias_that_two_layers_share_is_frozen_only_if_it_is_idle_in_both():
    def network(last):
        first = nn.Conv2d(3, 3, 1)
        last.bias = first.bias
        return nn.Sequential(first, nn.BatchNorm2d(3), last, nn.BatchNorm2d(3))

    assert after_freezing(network(nn.Conv2d(3, 3, 1))) == {"0.bias"}
    assert after_freezing(network(nn.Conv1d(3, 3, 1))) == set()


class Frozen(nn.BatchNorm2d):
    """A BN that stays in evaluation mode, in an own class."""

    def train(self, mode=True):
        return super().train(False)


def stays_in_evaluation_mode(channels):
    bn = nn.BatchNorm2d(channels)
    bn.train = lambda mode=True: nn.BatchNorm2d.train(bn, False)
    return bn.eval()


@pytest.mark.parametrize("make", [Frozen, stays_in_evaluation_mode, nn.InstanceNorm2d])
def test_a_bias_before_a_normalisation_that_takes_no_statistics_of_the_batch_is_trained(make):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), make(4), nn.Flatten(), nn.Linear(4 * 324, 3)).double()
    assert after_freezing(model) == set()
    before = model[0].bias.detach().clone()
    trained(model.train())
    if make is not nn.InstanceNorm2d:  # which cancels it too, but nobody says so here
        assert (model[0].bias - before).abs().min() > 1e-6


def test_a_bn_without_running_statistics_cancels_the_bias_in_both_modes():
    conv, bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(conv, bn).double().eval()
    assert after_freezing(model) == {"0.bias"}
    for mode in (True, False):
        with torch.no_grad():
            before = model.train(mode)(images())
            conv.bias += 3
            torch.testing.assert_close(model(images()), before, rtol=1e-9, atol=1e-9)


def test_freezing_a_network_in_evaluation_mode_leaves_it_there():
    model = foreign().eval()
    model[1].train()
    assert after_freezing(model) == {"0.bias", "3.0.bias"}
    assert [name for name, layer in model.named_modules() if layer.training] == ["1"]


class Doubled(nn.Conv2d):
    def forward(self, images):
        return super().forward(images) ** 2


def test_a_convolution_of_an_own_class_or_without_a_bias_is_left_alone():
    assert after_freezing(nn.Sequential(Doubled(3, 3, 1), nn.BatchNorm2d(3))) == set()
    plain = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3))
    assert after_freezing(plain) == set()


def test_eval_mode_ends_with_each_module_in_its_own_mode_even_after_an_error():
    model = foreign()
    model[3].eval()
    before = [layer.training for layer in model.modules()]
    with pytest.raises(ZeroDivisionError), eval_mode(model):
        assert not any(layer.training for layer in model.modules())
        raise ZeroDivisionError
    assert [layer.training for layer in model.modules()] == before
    assert any(before) and not all(before)


def test_logits_and_log_probabilities_give_the_same_probabilities():
    logits = 5 * torch.randn(2, 7, 10)
    found = probabilities(logits)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 7))
    torch.testing.assert_close(probabilities(logits.log_softmax(-1)), found)
    assert torch.equal(found.argmax(-1), logits.argmax(-1))
    assert probabilities(logits.bfloat16()).dtype == torch.float32


def test_the_summary_counts_the_parameters_and_changes_nothing():
    model = CustomResNet().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    table = model_summary(model)
    assert "Total params: 6,575,370" in table and "LogSoftmax" in table
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state) and model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_summary_tells_frozen_parameters_from_those_that_are_trained():
    model = CustomResNet()
    freeze_idle_biases(model)
    table = model_summary(model)
    assert "Trainable params: 6,573,130\nNon-trainable params: 2,240" in table
    assert "Conv2d-1" in table  # it is torchsummary's


class Token(nn.Module):
    """What torchsummary cannot show: a parameter of its own, attention, a dictionary at the end."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4).requires_grad_(False)

    def forward(self, x):
        tokens = torch.cat([self.token.expand(len(x), 1, 8), self.patches(x).flatten(2).mT], 1)
        return {
            "logits": self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0][:, 0])
        }


class Shared(nn.Module):
    """A layer that is called twice, which torchsummary counts twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, x):
        return self.head(self.layer(self.layer(x.mean((2, 3)))))


@pytest.mark.parametrize(
    ("make", "layers", "total", "trainable"),
    [
        (Token, {"patches": 1544, "attention": 288, "head": 36, "(all)": 8}, 1876, 1840),
        (Shared, {"layer": 12, "head": 16, "(all)": 0}, 28, 28),
    ],
)
def test_a_network_that_torchsummary_cannot_show_has_a_table(make, layers, total, trainable):
    model = make().train()
    first, *lines = model_summary(model, (3, 16, 16)).splitlines()
    assert "torchsummary cannot show" in first
    cells = [line.split() for line in lines]
    found = {row[0]: int(row[-1].replace(",", "")) for row in reversed(cells) if row[0] in layers}
    assert found == layers and sum(found.values()) == total
    assert ["patches", "Conv2d", "[-1,", "8,", "2,", "2]", "1,544"] in cells or make is Shared
    assert lines[-3:] == [
        f"Total params: {total:,}", f"Trainable params: {trainable:,}",
        f"Non-trainable params: {total - trainable}",
    ]  # fmt: skip
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_a_summary_of_images_that_the_network_does_not_take_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    with pytest.raises(UsageError, match=r"does not take images of \(3, 16, 16\): mat1 and mat2"):
        model_summary(model, (3, 16, 16))


def test_groups_of_batch_norm_are_batches_of_their_own():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    grouped = copy.deepcopy(plain)
    group_batch_norm(grouped, 3)
    images = torch.randn(12, 3, 8, 8)
    found, expected, means, variances = grouped(images), [], [], []
    for part in images.chunk(3):
        each = copy.deepcopy(plain)
        expected.append(each(part))
        means.append(each[1].running_mean), variances.append(each[1].running_var)
    torch.testing.assert_close(found, torch.cat(expected))
    torch.testing.assert_close(grouped[1].running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(grouped[1].running_var, torch.stack(variances).mean(0))
    assert grouped.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(grouped(images[:11]), copy.deepcopy(plain)(images[:11]))
    plain.load_state_dict(grouped.state_dict())
    assert torch.equal(grouped.eval()(images), plain.eval()(images))
