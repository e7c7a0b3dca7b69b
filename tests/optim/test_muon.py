import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import CustomResNet
from onecycle.data.batches import get_test_batch_transform, get_train_batch_transform
from onecycle.data.dataset import get_stats
from onecycle.data.digits import load_digits
from onecycle.data.loaders import ResidentLoader
from onecycle.errors import UsageError
from onecycle.optim.muon import (
    WHITENING_IMAGES,
    Muon,
    dirac_,
    get_speedrun_optimizer,
    prepare_network,
    whiten_,
)
from onecycle.optim.schedule import one_cycle
from onecycle.recipe import PRESETS
from onecycle.training.compute import set_seed
from onecycle.training.inference import evaluate
from onecycle.training.loop import fit

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture(scope="module")
def images():
    """Smooth noise: neighbouring pixels and the channels go together, as in photographs."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(64, 34, 34, 1)) + 0.3 * rng.normal(size=(64, 34, 34, 3))
    smooth = sum(noise[:, y : y + 32, x : x + 32] for y in range(3) for x in range(3))
    return (128 + 20 * smooth).clip(0, 255).astype(np.uint8)


def prepared(images):
    set_seed(0)
    model = CustomResNet()
    prepare_network(model, images, MEAN, STD)
    return model


def normalised(images):
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def test_whitened_filters_give_uncorrelated_outputs_of_variance_one(images):
    layer = nn.Conv2d(3, 64, 3, bias=False)
    rest = layer.weight[54:].clone()
    whiten_(layer, normalised(images))
    outputs = layer(normalised(images)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.cov(outputs[:27]), torch.eye(27), atol=2e-3, rtol=0)
    torch.testing.assert_close(outputs[27:54], -outputs[:27])
    assert torch.equal(layer.weight[54:], rest)


def test_whitening_looks_at_images_of_all_classes_where_these_come_one_after_the_other(images):
    black = np.zeros((2 * WHITENING_IMAGES, 32, 32, 3), np.uint8)
    black[WHITENING_IMAGES::100] = images[0]
    filters = prepared(black).prep_layer.conv.weight[:27]
    assert filters.flatten(1).norm(dim=1).min() < 100  # of black alone all would be 1,000


def test_whitening_puts_the_direction_of_most_variance_first(images):
    layer = nn.Conv2d(3, 64, 3, bias=False)
    whiten_(layer, normalised(images))
    # Smooth images vary most in their brightness: one sign, and the smallest weights.
    assert (layer.weight[0].sign() == layer.weight[0, 0, 0, 0].sign()).all()
    norms = layer.weight[:27].flatten(1).norm(dim=1)
    assert (norms.diff() >= 0).all()


def test_whitening_survives_images_without_variance():
    layer = nn.Conv2d(3, 64, 3)
    whiten_(layer, torch.zeros(2, 3, 32, 32))
    assert layer.weight.isfinite().all()


def test_too_few_filters_to_whiten_are_refused():
    with pytest.raises(UsageError, match="20 filters cannot whiten patches of 27 numbers"):
        whiten_(nn.Conv2d(3, 20, 3), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("out_channels", [4, 8])
def test_identities_pass_each_channel_unchanged_and_leave_the_rest(out_channels):
    layer = nn.Conv2d(4, out_channels, 3, padding=1, bias=False)
    rest = layer.weight[4:].clone()
    dirac_(layer)
    signals = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(layer(signals)[:, :4], signals)
    assert torch.equal(layer.weight[4:], rest)


def test_names_shapes_and_number_of_parameters_stay(images):
    model = prepared(images)
    plain = CustomResNet()
    assert {name: p.shape for name, p in model.state_dict().items()} == {
        name: p.shape for name, p in plain.state_dict().items()
    }
    assert sum(p.numel() for p in model.parameters()) == 6_575_370
    plain.load_state_dict(model.state_dict())
    batch = normalised(images[:2])
    assert torch.equal(plain.eval()(batch), model.eval()(batch))


def test_what_a_bn_makes_meaningless_is_not_trained(images):
    frozen = {n for n, p in prepared(images).named_parameters() if not p.requires_grad}
    names = [n for n, _ in CustomResNet().named_parameters()]
    assert frozen == {"prep_layer.conv.weight"} | {
        n for n in names if n.endswith(("conv.bias", "bn.weight"))
    }


def test_a_prepared_network_begins_near_uniform(images):
    with torch.no_grad():
        loss = F.cross_entropy(prepared(images)(normalised(images[:20])), torch.arange(20) % 10)
    assert loss.item() == pytest.approx(np.log(10), abs=0.4)


def test_a_muon_step_moves_filters_of_a_fixed_norm_by_its_rate():
    set_seed(0)
    weight = nn.Parameter(torch.randn(8, 4, 3, 3))
    before = weight.detach() * (8**0.5 / weight.detach().norm())
    weight.grad = 1e-3 * torch.randn(8, 4, 3, 3)
    Muon([{"params": [weight], "orthogonal": True}], lr=0.1, betas=(0.6, 0.99)).step()
    moved = (weight.detach() - before).flatten(1)
    singular = torch.linalg.svdvals(moved)
    assert 0.06 < singular.min() and singular.max() < 0.125
    assert (moved * weight.grad.flatten(1)).sum() < 0


def test_muon_looks_ahead_as_nesterov_does():
    # With one filter, to orthogonalise is to divide by the norm: the direction can be computed.
    first, second = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    weight = nn.Parameter(torch.tensor([[1.0, 0.0]]))
    optimizer = Muon([{"params": [weight], "orthogonal": True}], lr=0.1, betas=(0.5, 0.99))
    weight.grad = first
    optimizer.step()
    between = weight.detach() / weight.detach().norm()
    weight.grad = second
    optimizer.step()
    mean = 0.5 * (0.5 * first) + 0.5 * second
    ahead = 0.5 * second + 0.5 * mean
    moved = weight.detach() - between
    assert F.cosine_similarity(moved, -ahead).item() == pytest.approx(1, abs=1e-3)


def test_other_parameters_go_by_adam_at_their_share_of_the_rate():
    set_seed(0)
    ours, theirs = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    muon = Muon([{"params": [ours], "lr_scale": 0.1}], lr=0.2, betas=(0.6, 0.99))
    adam = torch.optim.Adam([theirs], lr=0.02, betas=(0.6, 0.99))
    for _ in range(4):
        ours.grad = theirs.grad = torch.randn(5)
        muon.step()
        adam.step()
    torch.testing.assert_close(ours, theirs)


def test_the_optimizer_goes_on_from_its_state(images):
    def steps(model, optimizer, seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            for p in model.parameters():
                p.grad = torch.randn_like(p) if p.requires_grad else None
            optimizer.step()

    def small():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))

    rates = {"lr": 0.1, "betas": (0.6, 0.99)}
    model = small()
    optimizer = get_speedrun_optimizer(model, **rates)
    steps(model, optimizer, [1, 2])
    twin = copy.deepcopy(model)
    again = get_speedrun_optimizer(twin, **rates)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, [3])
    steps(twin, again, [3])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters()))


def test_the_compiled_iteration_makes_the_same_steps(monkeypatch):
    compiled = []

    def compile_eagerly(function, **options):
        compiled.append(options)
        return plain(function, backend="eager", **options)

    plain = torch.compile
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    ends = []
    for options in ({}, {"compiled": True}):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten())
        model.to(memory_format=torch.channels_last)
        optimizer = get_speedrun_optimizer(model, lr=0.1, betas=(0.6, 0.99), **options)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 3, 5, 5)).square().sum().backward()
            optimizer.step()
        ends.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert compiled == [{"dynamic": False}]
    torch.testing.assert_close(*ends)
    # A copy, as the range test makes one, goes on without the compiler.
    model, optimizer = copy.deepcopy((model, optimizer))
    model(torch.ones(2, 3, 5, 5)).sum().backward()
    optimizer.step()


def test_every_trained_parameter_is_in_one_group(images):
    model = prepared(images)
    optimizer = get_speedrun_optimizer(model, lr=0.1, betas=(0.6, 0.99))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {p for p in model.parameters() if p.requires_grad}


def test_the_preset_learns_the_digits_in_one_epoch():
    recipe = replace(PRESETS["speedrun"], epochs=1, batch_size=32)
    train, test = load_digits()
    mean, std = get_stats(train.data)
    set_seed(recipe.seed)
    # The shape of the network's first and last layers, at a fraction of its work.
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(4),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    prepare_network(model, train.data, mean, std)
    optimizer = get_speedrun_optimizer(model, lr=recipe.lr_max, betas=(recipe.beta1, recipe.beta2))
    augment = get_train_batch_transform(
        train.data, mean, std, device=CPU, flip_probability=0, padding=recipe.padding,
        cutout_size_px=recipe.cutout_size_px,
    )  # fmt: skip
    loader = ResidentLoader(
        augment, train.targets, recipe.batch_size, device=CPU, seed=recipe.seed, train=True
    )
    scheduler = one_cycle(
        optimizer,
        lr_max=recipe.lr_max,
        lr_min=recipe.lr_max / recipe.lr_ratio,
        total_steps=len(loader),
        peak_step=round(recipe.peak * len(loader)),
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    fit(model, loader, None, optimizer, scheduler, criterion, epochs=recipe.epochs)
    plain = get_test_batch_transform(test.data, mean, std, device=CPU)
    test_loader = ResidentLoader(plain, test.targets, len(test), device=CPU, train=False)
    _, accuracy = evaluate(model, test_loader)
    assert accuracy > 0.8
