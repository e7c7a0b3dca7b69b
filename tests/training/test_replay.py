"""Steps as recordings: with a stand-in for CUDA graphs that computes the same function on the CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onecycle.errors import UsageError
from onecycle.training import replay
from onecycle.training.compute import Compute
from onecycle.training.step import Step


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


@pytest.fixture
def recorded(monkeypatch):
    """Shapes of the batches that were recorded. As a graph does, a recording computes nothing while
    it is made, reads and writes the same memory each time, and its outputs are no new tensors."""
    shapes = []

    def stand_in(model, *others):
        parameters = [p for module in (model, *others) for p in module.parameters()]

        def record(run, device):
            before = {name: value.clone() for name, value in model.state_dict().items()}
            outputs = run()
            shapes.append(len(shapes))
            model.load_state_dict(before)
            memory = [(p, p.grad) for p in parameters if p.grad is not None]
            for tensor in (*outputs, *(gradient for _, gradient in memory)):
                tensor.fill_(float("nan"))

            def again():
                for own, new in zip(outputs, run()):
                    own.copy_(new)
                for parameter, gradient in memory:
                    gradient.copy_(parameter.grad)
                    parameter.grad = None

            return outputs, again

        monkeypatch.setattr(replay, "record", record)
        monkeypatch.setattr(replay, "aside", lambda run, device: run())
        return shapes

    return stand_in


def batches(sizes=(8, 8, 5, 8, 5, 8)):
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        yield torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 3


def train(model, mode, **options):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=6)
    compute = Compute("cpu", compile_mode=mode)
    step = Step(
        model, nn.CrossEntropyLoss(), optimizer, schedule, compute,
        clip_norm=options.pop("clip_norm", 0.0),
    )  # fmt: skip
    return [
        step(images, labels, share=1.0, is_last=number == 5, **options)
        for number, (images, labels) in enumerate(batches())
    ]


@pytest.mark.parametrize("options", [{}, {"radius": 0.2}, {"clip_norm": 0.1}], ids=str)
def test_recorded_steps_have_the_same_bits(recorded, options):
    plain, graphed = network(), network()
    expected = train(plain, None, **options)
    shapes = recorded(graphed)
    found = train(graphed, "graph", **options)
    assert len(shapes) == 2  # of eight and of five images
    for ours, theirs in zip(found, expected):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    for name, value in plain.state_dict().items():
        assert torch.equal(value, graphed.state_dict()[name]), name


def test_a_mixed_batch_is_a_recording_of_its_own(recorded):
    model = network()
    shapes = recorded(model)
    step = Step(
        model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), None,
        Compute("cpu", compile_mode="graph"),
    )  # fmt: skip
    twin = network()
    plain = Step(
        twin,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(twin.parameters(), lr=0.1),
        None,
        Compute("cpu"),
    )
    for number, (images, labels) in enumerate(batches((8,) * 6)):
        mixed = (labels.flip(0), torch.tensor(0.1 * number)) if number % 2 else ()
        for each in (step, plain):
            each(images, labels, *mixed, share=1.0, is_last=False)
    assert len(shapes) == 2
    assert torch.equal(model[0].weight, twin[0].weight)


def test_batches_of_ever_new_shapes_do_not_fill_the_memory(recorded):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    shapes = recorded(model)
    step = Step(
        model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), None,
        Compute("cpu", compile_mode="graph"),
    )  # fmt: skip
    for size in (*range(4, 24), *range(4, 24)):
        step(torch.randn(2, 3, size, size), torch.tensor([0, 1]), share=1.0, is_last=False)
    assert len(shapes) == replay.MOST


def test_frozen_parameters_get_no_gradient(recorded):
    model = network()
    model[0].weight.requires_grad_(False)
    recorded(model)
    train(model, "graph")
    assert model[0].weight.grad is None and model[4].weight.grad is not None
    assert torch.equal(model[0].weight, network()[0].weight)


class Temperature(nn.Module):
    """A loss with a parameter to train."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, output, labels):
        return F.cross_entropy(output * self.scale, labels)


def test_parameters_of_the_loss_are_trained_too(recorded):
    ends = []
    for mode in (None, "graph"):
        model, criterion = network(), Temperature()
        recorded(model, criterion)
        optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1)
        compute = Compute("cpu", compile_mode=mode)
        step = Step(model, criterion, optimizer, None, compute)
        for images, labels in batches():
            step(images, labels, share=1.0, is_last=False)
        ends.append(criterion.scale.item())
    assert ends[0] == ends[1] != 1.5


def test_what_is_unfrozen_later_is_recorded_anew(recorded):
    ends = []
    for mode in (None, "graph"):
        model = network()
        model[0].requires_grad_(False)
        shapes = recorded(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = Step(
            model, nn.CrossEntropyLoss(), optimizer, None, Compute("cpu", compile_mode=mode)
        )
        for number, (images, labels) in enumerate(batches((8,) * 7)):
            model[0].requires_grad_(number > 3)
            step(images, labels, share=1.0, is_last=False)
        ends.append(model[0].weight.detach().clone())
    assert len(shapes) == 2
    assert torch.equal(*ends) and not torch.equal(ends[0], network()[0].weight)


@pytest.mark.parametrize("mode", [None, "graph"])
def test_the_norm_is_that_of_a_step_where_the_optimizer_holds_a_part(recorded, mode):
    model = network()
    recorded(model)
    optimizer = torch.optim.SGD(model[4].parameters(), lr=0.0)
    step = Step(model, nn.CrossEntropyLoss(), optimizer, None, Compute("cpu", compile_mode=mode))
    images, labels = next(batches((8,)))
    norms = [step(images, labels, share=1.0, is_last=False)[1].item() for _ in range(4)]
    assert norms == pytest.approx([norms[0]] * 4)


def test_a_shape_that_cannot_be_recorded_is_computed_as_it_is(recorded, monkeypatch):
    plain, model = network(), network()
    expected = train(plain, None)
    recorded(model)
    working = replay.record

    def first_alone(run, device):
        monkeypatch.setattr(replay, "record", fail)
        return working(run, device)

    def fail(run, device):
        raise RuntimeError("no")

    monkeypatch.setattr(replay, "record", first_alone)
    for ours, theirs in zip(train(model, "graph"), expected):
        assert torch.equal(ours[0], theirs[0])


def test_memory_is_given_back(recorded):
    model = network()
    recorded(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = Step(model, nn.CrossEntropyLoss(), optimizer, None, Compute("cpu", compile_mode="graph"))
    for images, labels in batches():
        step(images, labels, share=1.0, is_last=False)
    step.release()
    assert not step._gradient.recordings
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_recorded_is_told(recorded, monkeypatch):
    recorded(network())

    def fail(run, device):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(replay, "record", fail)
    with pytest.raises(
        UsageError, match=r"\(operation not permitted .* capturing\); leave compile"
    ):
        train(network(), "graph")


def test_measurements_are_not_written_over_by_the_next_step(recorded):
    model = network()
    recorded(model)
    found = train(model, "graph")
    losses = [measured[0].item() for measured, _ in found]
    assert len(set(losses)) == len(losses)
    images, labels = next(batches((8,)))
    first = F.cross_entropy(network()(images), labels)
    assert losses[0] == pytest.approx(first.item())
