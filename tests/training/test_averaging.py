import dataclasses

import pytest
import torch
from torch import nn

from onecycle.records import EpochRecord, History
from onecycle.training.averaging import KeptWeights


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def walk(model, kept, steps):
    """Random steps; the state after each."""
    seen = []
    for _ in range(steps):
        model(torch.randn(4, 3, 3, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        kept.note_step()
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
    return seen


def test_the_average_is_a_mean_of_the_first_steps_then_exponential():
    model = network()
    kept = KeptWeights(model, keep="average", average_steps=3)
    seen = walk(model, kept, 5)
    assert kept.steps == 5
    kept.apply()
    for name, value in model.state_dict().items():
        steps = [state[name] for state in seen]
        if not value.is_floating_point():
            assert value == steps[-1] == 5
            continue
        expected = sum(steps[:3]) / 3
        for step in steps[3:]:
            expected = expected * 2 / 3 + step / 3
        torch.testing.assert_close(value, expected)


def test_the_average_is_in_the_network_inside_the_block_alone():
    model = network()
    kept = KeptWeights(model, average_steps=100)
    seen = walk(model, kept, 4)
    with kept.averaged():
        inside = model[0].weight.clone()
    torch.testing.assert_close(inside, sum(state["0.weight"] for state in seen) / 4)
    for name, value in model.state_dict().items():
        assert torch.equal(value, seen[-1][name])
    kept.apply()  # keep is last
    assert torch.equal(model[0].weight, seen[-1]["0.weight"])


def test_the_best_epoch_is_kept_the_first_of_several():
    model, history = network(), History()
    kept, first = KeptWeights(model, keep="best"), EpochRecord(1, 0.1, 1, 0.5, 1, 0.5, 1, 1)
    weights = []
    for epoch, accuracy in enumerate([0.2, 0.6, 0.4, 0.6, 0.5], 1):
        weights.append(walk(model, kept, 1)[0])
        history.epochs.append(dataclasses.replace(first, epoch=epoch, test_accuracy=accuracy))
        kept.note_epoch(history)
    assert history.best.epoch == 2
    kept.apply()
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[1][name])


@pytest.mark.parametrize("keep", ["last", "average", "best"])
def test_the_state_comes_back_in_another_object(keep):
    model = network()
    kept = KeptWeights(model, keep=keep, average_steps=7)
    walk(model, kept, 3)
    other = KeptWeights(network(), keep=keep, average_steps=7)
    other.load_state_dict(kept.state_dict())
    assert other.steps == 3
    for ours, theirs in ((other.average, kept.average), (other.best, kept.best)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    walk(model, kept, 1)
    assert other.steps == 3 and not torch.equal(other.average["0.bias"], kept.average["0.bias"])
