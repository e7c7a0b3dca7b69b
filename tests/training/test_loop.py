import copy
import dataclasses
import math
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from onecycle.data.mixing import Mixing
from onecycle.errors import DivergedError, UsageError
from onecycle.optim.adam import get_optimizer
from onecycle.records import History
from onecycle.training.compute import Compute
from onecycle.training.inference import evaluate, predict
from onecycle.training.loop import fit
from onecycle.training.meter import Meter


def batches_of(count=50, batch_size=16, num_classes=4, seed=0):
    torch.manual_seed(seed)
    images = torch.randn(count, 3, 8, 8)
    labels = (images.mean((1, 2, 3)).argsort().argsort() * num_classes // count).long()
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size)


def network(num_classes=4):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, num_classes),
    )


def loop_parts(lr=1e-3):
    model = network()
    optimizer = get_optimizer(model, lr=lr, weight_decay=0.1, betas=(0.9, 0.99))
    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (1 + n))


CPU = torch.device("cpu")


class Calls:
    """A callback of functions."""

    def __init__(self, **functions):
        vars(self).update(functions)


def training(epochs=2, lr=1e-3, criterion=None, batches=None, **options):
    batches = batches or batches_of()
    model, optimizer, scheduler = loop_parts(lr)
    history = fit(
        model, batches, batches_of(seed=7, count=21), optimizer, scheduler,
        criterion or nn.CrossEntropyLoss(label_smoothing=0.1), epochs=epochs, **options,
    )  # fmt: skip
    return model, scheduler, history


def test_steps_record_the_rate_that_was_used_and_none_follows_the_last():
    _, scheduler, history = training(epochs=3)
    assert [step.step for step in history.steps] == list(range(12))
    np.testing.assert_allclose([s.lr for s in history.steps], [1e-3 / (1 + n) for n in range(12)])
    assert scheduler.last_epoch == 11
    assert [epoch.lr for epoch in history.epochs] == [history.steps[i].lr for i in (3, 7, 11)]


def test_training_equals_a_loop_written_out():
    batches, twin = batches_of(), network()
    model, _, history = training(epochs=1, batches=batches)
    decayed = [p for p in twin.parameters() if p.ndim > 1]
    others = [p for p in twin.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.99),
    )
    total = correct = 0
    for step, (images, labels) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 / (1 + step)
        output = twin(images)
        optimizer.zero_grad()
        F.cross_entropy(output, labels, label_smoothing=0.1).backward()
        optimizer.step()
        total += F.cross_entropy(output, labels, reduction="sum").item()
        correct += (output.argmax(1) == labels).sum().item()
    for ours, theirs in zip(model.state_dict().values(), twin.state_dict().values()):
        torch.testing.assert_close(ours, theirs)
    record = history.epochs[0]
    # A true mean per image: the last batch has 2 of the 50 images.
    assert record.train_loss == pytest.approx(total / 50, rel=1e-5)
    assert record.train_accuracy == correct / 50


@pytest.mark.parametrize("mixing", [None, Mixing(0.4, 1.0)])
def test_a_compiled_step_is_one_graph_for_each_of_two_batch_shapes_and_trains_the_same(
    monkeypatch, mixing
):
    shapes, compile = [], torch.compile

    def backend(graph, inputs):
        shapes.extend(len(value) for value in inputs if value.ndim == 4 and value.shape[-1] == 8)
        return graph.forward

    def without_inductor(module, *, mode, dynamic):
        assert mode == "default"
        return compile(module, backend=backend, dynamic=dynamic)

    _, _, expected = training(epochs=3, mixing=mixing)
    monkeypatch.setattr(torch, "compile", without_inductor)
    compiled = Compute(CPU, compile_mode="default")
    _, _, history = training(epochs=3, compute=compiled, mixing=mixing)
    assert shapes == [16, 2]
    for ours, theirs in zip(history.steps, expected.steps, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)


def test_labels_may_be_probabilities():
    batches = batches_of()
    images, labels = batches.dataset.tensors
    soft = 0.7 * F.one_hot(labels, 4) + 0.3 * F.one_hot((labels + 1) % 4, 4)
    for given, rel in ((F.one_hot(labels, 4).float(), 1e-5), (soft, None)):
        loader = DataLoader(TensorDataset(images, given), batch_size=16)
        _, _, history = training(batches=loader)
        _, _, expected = training(batches=batches)
        if rel:
            losses = [step.loss for step in expected.steps]
            assert [step.loss for step in history.steps] == pytest.approx(losses, rel=rel)
            pairs = zip(history.epochs, expected.epochs)
            assert all(ours.train_accuracy == theirs.train_accuracy for ours, theirs in pairs)
    output = network()(images[:16])
    assert history.steps[0].loss == pytest.approx(F.cross_entropy(output, soft[:16]).item())


def test_a_mixed_batch_has_the_loss_of_both_labels():
    images, labels = batches_of().dataset.tensors
    mixed, first, second, weight = Mixing(1.0, 0)(images[:16], labels[:16], 1, 0)
    output = network()(mixed)
    loss = weight * F.cross_entropy(output, first) + (1 - weight) * F.cross_entropy(output, second)
    one_batch = DataLoader(TensorDataset(images[:16], labels[:16]), batch_size=16)
    _, _, history = training(epochs=1, batches=one_batch, mixing=Mixing(1.0, 0))
    assert history.steps[0].loss == pytest.approx(loss.item(), rel=1e-5)
    assert history.epochs[0].train_accuracy == (output.argmax(1) == first).double().mean()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_long_gradient_is_clipped_and_a_short_one_stays(precision):
    images, labels = batches_of().dataset.tensors
    batches = DataLoader(TensorDataset(images, labels), batch_size=25)

    def change(clip_norm):
        model = network()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        # One layer is not trained; float16 scales its gradients all the same.
        optimizer = torch.optim.SGD([*model[1].parameters(), *model[4].parameters()], lr=1.0)
        fit(
            model, [next(iter(batches))], None, optimizer,
            torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0), nn.CrossEntropyLoss(), epochs=1,
            compute=Compute(CPU, precision), clip_norm=clip_norm,
        )  # fmt: skip
        return [after.detach() - old for after, old in zip(model.parameters(), before)]

    whole, clipped, loose = change(0.0), change(0.01), change(1e6)
    norm = torch.nn.utils.get_total_norm(whole)
    assert torch.nn.utils.get_total_norm(clipped) == pytest.approx(0.01, rel=1e-3)
    for ours, theirs, same in zip(clipped, whole, loose):
        torch.testing.assert_close(ours * norm / 0.01, theirs, rtol=1e-3, atol=1e-4)
        assert torch.equal(same, theirs)


def test_evaluation_is_a_true_mean_and_leaves_the_model_as_it_was():
    model, batches = network().train(), batches_of(count=21)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss, accuracy = evaluate(model, batches)
    images, labels = batches.dataset.tensors
    with torch.no_grad():
        output = model.eval()(images)
    assert loss == pytest.approx(F.cross_entropy(output, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((output.argmax(1) == labels).double().mean().item())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    model.train()
    evaluate(model, batches)
    assert model.training


def test_history_ends_with_the_evaluation_of_the_trained_model():
    model, _, history = training(epochs=2)
    assert (history.epochs[-1].test_loss, history.epochs[-1].test_accuracy) == evaluate(
        model, batches_of(seed=7, count=21)
    )


def test_same_seed_same_training():
    (first, _, a), (second, _, b) = training(), training()
    assert a.steps == b.steps
    for ours, theirs in zip(first.parameters(), second.parameters()):
        assert torch.equal(ours, theirs)


def test_callbacks_see_every_step_and_epoch():
    seen, epochs = [], []
    _, _, history = training(
        callbacks=[Calls(on_step=lambda *x: seen.append(x)), Calls(on_epoch=epochs.append)]
    )
    assert [step for _, step, _ in seen] == history.steps
    assert [epoch for epoch, _, _ in seen] == [1] * 4 + [2] * 4
    assert seen[3][2] == history.epochs[0].train_accuracy
    assert epochs == history.epochs


class Epochs:
    """Batches in an order of their own in each epoch, and from any batch on."""

    def __init__(self, count=50, batch_size=16):
        self.all, self.batch_size = batches_of(count).dataset.tensors, batch_size
        self.told = []

    def __len__(self):
        return -(-len(self.all[0]) // self.batch_size)

    def set_epoch(self, epoch, start):
        self.told.append((epoch, start))

    def __iter__(self):
        epoch, start = self.told[-1]
        order = torch.randperm(len(self.all[0]), generator=torch.Generator().manual_seed(epoch))
        for chosen in order.split(self.batch_size)[start:]:
            yield self.all[0][chosen], self.all[1][chosen]


class Memory:
    """A checkpoint that is kept in memory."""

    def __init__(self, state=None):
        self.state, self.saves = state, []

    def restore(self, parts, agree):
        if self.state is not None:
            for name, part in parts.items():
                part.load_state_dict(copy.deepcopy(self.state[name]))

    def save(self, parts, *, epoch_end=False, now=False):
        if epoch_end or now:
            self.state = {n: copy.deepcopy(part.state_dict()) for n, part in parts.items()}
        self.saves.append(epoch_end)
        return epoch_end or now


def measured(history):
    return history.steps, [
        dataclasses.replace(record, train_seconds=0, test_seconds=0) for record in history.epochs
    ]


def test_loader_is_told_each_epochs_number():
    batches = Epochs()
    training(epochs=3, batches=batches)
    assert batches.told == [(1, 0), (2, 0), (3, 0)]


def test_checkpoint_is_offered_every_step_and_told_of_the_end_of_every_epoch():
    memory = Memory()
    training(epochs=2, batches=Epochs(), checkpoint=memory)
    assert memory.saves == ([False] * 4 + [True]) * 2


@pytest.mark.parametrize("stop_at", range(12))
def test_training_that_was_stopped_at_any_step_goes_on_to_the_same_end(stop_at):
    reference, scheduler, expected = training(epochs=3, batches=Epochs())
    memory, asked = Memory(), iter(range(1000))
    _, _, partial = training(
        epochs=3, batches=Epochs(), checkpoint=memory, stop=lambda: next(asked) >= stop_at
    )
    assert len(partial.epochs) < 3 and partial.steps == expected.steps[: len(partial.steps)]
    batches = Epochs()
    model, resumed, history = training(epochs=3, batches=batches, checkpoint=Memory(memory.state))
    done = len(partial.epochs)
    assert batches.told[0] == (done + 1, len(partial.steps) - 4 * done)
    assert measured(history) == measured(expected)
    assert resumed.state_dict() == scheduler.state_dict()
    for ours, theirs in zip(model.state_dict().values(), reference.state_dict().values()):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("where", [0, 5, 11, "epoch"])
def test_an_interrupt_out_of_a_callback_ends_the_training_where_it_can_go_on(where):
    def on_step(epoch, step, accuracy):
        if step.step == where:
            raise KeyboardInterrupt

    def on_epoch(record):
        if where == "epoch":
            raise KeyboardInterrupt

    _, _, expected = training(epochs=3, batches=Epochs())
    memory = Memory()
    _, _, partial = training(
        epochs=3, batches=Epochs(), checkpoint=memory,
        callbacks=[Calls(on_step=on_step, on_epoch=on_epoch)],
    )  # fmt: skip
    assert len(partial.steps) == (4 if where == "epoch" else where + 1)
    batches = Epochs()
    _, _, history = training(epochs=3, batches=batches, checkpoint=Memory(memory.state))
    assert batches.told[:1] == {0: [(1, 1)], 5: [(2, 2)], 11: [(3, 4)], "epoch": [(2, 0)]}[where]
    assert measured(history) == measured(expected)


def test_a_stop_in_the_evaluation_does_not_lose_the_epoch():
    memory, asked = Memory(), []

    def stop():
        asked.append(1)
        return len(asked) == 5  # after the four steps of the first epoch

    _, _, partial = training(epochs=2, batches=Epochs(), checkpoint=memory, stop=stop)
    assert (len(partial.steps), len(partial.epochs)) == (4, 0)
    _, _, history = training(epochs=2, batches=Epochs(), checkpoint=Memory(memory.state))
    assert measured(history) == measured(training(epochs=2, batches=Epochs())[2])


@pytest.mark.parametrize("during", ["the callback", "the save"])
def test_a_stop_that_comes_while_an_epoch_is_saved_costs_no_step_and_no_second_save(during):
    memory, came = Memory(), []
    save = memory.save

    def save_and_stop(parts, *, epoch_end=False, **when):
        came.extend([True] * epoch_end)
        return save(parts, epoch_end=epoch_end, **when)

    if during == "the save":
        memory.save = save_and_stop
    _, _, partial = training(
        epochs=3, batches=Epochs(), checkpoint=memory, stop=lambda: bool(came),
        callbacks=[Calls(on_epoch=came.append)] if during == "the callback" else [],
    )  # fmt: skip
    assert (len(partial.steps), len(partial.epochs)) == (4, 1)
    assert memory.saves == [False] * 4 + [True]


def test_a_loader_that_cannot_skip_is_not_resumed_within_an_epoch():
    memory = Memory()
    with pytest.raises(UsageError, match="set_epoch"):
        training(batches=batches_of(), checkpoint=memory)
    assert not memory.saves  # refused before anything is trained


@pytest.mark.parametrize("total", [4, 12])
def test_a_schedule_of_another_length_than_the_training_is_refused(total):
    model, optimizer, _ = loop_parts()
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
    arguments = model, batches_of(), None, optimizer, cycle, nn.CrossEntropyLoss()
    with pytest.raises(UsageError, match=f"8 steps, and the schedule has {total}"):
        fit(*arguments, epochs=2)
    assert len(fit(*arguments, epochs=total // 4).steps) == total


@pytest.mark.parametrize("precision", ["half", "float64", "auto"])
def test_another_precision_than_the_three_is_refused(precision):
    with pytest.raises(UsageError, match="one of float32, bfloat16, float16"):
        training(compute=Compute(CPU, precision))


def test_an_optimizer_of_another_model_is_refused():
    _, optimizer, schedule = loop_parts()
    twin, criterion = network(), nn.CrossEntropyLoss()
    with pytest.raises(UsageError, match="none of the model's trainable parameters; make it from"):
        fit(twin, batches_of(), None, optimizer, schedule, criterion, epochs=1)
    optimizer.add_param_group({"params": [twin[4].weight]})
    with pytest.raises(UsageError, match="5 of the optimizer's 6 parameters are not of this model"):
        fit(twin, batches_of(), None, optimizer, schedule, criterion, epochs=1)
    optimizer = torch.optim.SGD([twin[4].weight], lr=0.1)  # a part of them is a fine-tuning
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0)
    before = twin[4].weight.detach().clone()
    fit(twin, batches_of(), None, optimizer, schedule, criterion, epochs=1)
    assert not torch.equal(twin[4].weight, before)


def test_a_function_as_a_callback_is_refused():
    with pytest.raises(UsageError, match="has neither on_step nor on_epoch"):
        training(callbacks=[print])


@pytest.mark.parametrize("call", [evaluate, predict])
def test_a_model_on_another_device_than_compute_is_refused(call):
    with pytest.raises(UsageError, match="the model is on cpu and compute.device is meta"):
        call(network(), batches_of(), compute=Compute(torch.device("meta")))


def test_loaders_that_give_no_batch_are_refused():
    model, optimizer, schedule = loop_parts()
    arguments = optimizer, schedule, nn.CrossEntropyLoss()
    with pytest.raises(UsageError, match="2 epochs of 0 batches"):
        fit(model, [], None, *arguments, epochs=2)
    with pytest.raises(UsageError, match="no image to evaluate on"):
        fit(model, batches_of(), [], *arguments, epochs=2)


def test_a_parameter_that_the_loss_does_not_meet_does_no_harm():
    plain, _, expected = training()
    model, optimizer, schedule = loop_parts()
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    optimizer.add_param_group({"params": [model.unused]})
    test, criterion = batches_of(seed=7, count=21), nn.CrossEntropyLoss(label_smoothing=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (1 + n))
    history = fit(model, batches_of(), test, optimizer, schedule, criterion, epochs=2)
    assert measured(history) == measured(expected)


def test_evaluation_leaves_a_frozen_bn_in_its_mode():
    model = network().train()
    model[1].eval()
    evaluate(model, batches_of())
    assert [layer.training for layer in model.modules()] == [True, True, False, True, True, True]


def test_history_survives_its_state():
    _, _, history = training()
    twin = History()
    twin.load_state_dict(copy.deepcopy(history.state_dict()))
    assert twin == history


def test_without_test_images_nothing_is_evaluated():
    model, optimizer, schedule = loop_parts()
    history = fit(model, batches_of(), None, optimizer, schedule, nn.CrossEntropyLoss(), epochs=1)
    assert history.epochs[0].test_loss is history.epochs[0].test_accuracy is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("call", [1, 5, 8])
def test_a_loss_that_is_not_finite_stops_the_training_and_is_located(bad, call):
    class Poisoned(nn.CrossEntropyLoss):
        calls = 0

        def forward(self, output, labels):
            self.calls += 1
            return super().forward(output, labels) * (bad if self.calls == call else 1.0)

    memory = Memory()
    where = f"in epoch {(call + 3) // 4}, step {call - 1}, at rate .*lower lr_max"
    with pytest.raises(DivergedError, match=where):
        training(criterion=Poisoned(), checkpoint=memory, batches=Epochs())
    assert len(memory.saves) == (call - 1) + (call > 4)  # none after it


@pytest.mark.parametrize(
    ("where", "said"), [("loader", "does not hold a batch;"), ("step", "batches of 16;")]
)
def test_a_full_gpu_is_one_line_that_says_what_to_lower(where, said):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    batches, criterion = Epochs(), nn.CrossEntropyLoss()
    if where == "loader":
        batches.all = (mock.MagicMock(__getitem__=fail, __len__=lambda _: 50), None)
    else:
        criterion.forward = fail
    with pytest.raises(UsageError, match=f"{said} lower batch_size$"):
        training(batches=batches, criterion=criterion)


@pytest.mark.parametrize("where", ["images", "weights", "gradient", "buffer"])
def test_a_number_that_is_not_finite_anywhere_stops_the_training(where):
    model, optimizer, schedule = loop_parts()
    batches = Epochs()
    if where == "images":
        batches.all[0][13] = math.nan
    elif where == "weights":
        model[0].weight.data[0, 0, 0, 0] = math.inf
    elif where == "gradient":
        model[4].bias.register_hook(lambda gradient: gradient * math.nan)
    elif where == "buffer":
        model[1].running_var[0] = math.nan
    expected = {
        "images": "the loss is nan in epoch 1",
        "weights": "the loss is nan in epoch 1, step 0",
        "gradient": "the gradient's norm is nan in epoch 1, step 0",
        "buffer": "the test loss is nan in epoch 1, step 3",
    }
    with pytest.raises(DivergedError, match=expected[where]):
        fit(
            model, batches, batches_of(seed=7), optimizer, schedule, nn.CrossEntropyLoss(), epochs=2
        )


def test_steps_that_float16_skips_are_counted_and_too_many_are_divergence():
    history = History()
    meter = Meter(history, Compute(CPU, "float16"))
    meter.start()

    def step(norm):
        meter.note(0.1, 8, 1.0, torch.tensor([1.0, 4.0]), torch.tensor(norm))
        meter.read(1, False)

    for norm in [math.inf, math.nan, 1.0] + [math.inf] * 25 + [2.0]:
        step(norm)
    assert history.skipped_steps == 27 and len(history.steps) == 29
    with pytest.raises(DivergedError, match="the gradient's norm is inf in epoch 1, step 54"):
        for _ in range(26):
            step(math.inf)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_step_that_float16_skips_changes_no_weight_and_a_skipped_step_moves_no_rate(clip_norm):
    model, optimizer, scheduler = loop_parts()
    calls, weights = iter(range(100)), []
    model[4].bias.register_hook(lambda gradient: gradient * (math.inf if next(calls) == 2 else 1.0))
    history = fit(
        model, batches_of(), None, optimizer, scheduler, nn.CrossEntropyLoss(), epochs=2,
        compute=Compute(CPU, "float16"), clip_norm=clip_norm,
        callbacks=[Calls(on_step=lambda *_: weights.append(model[4].weight.detach().clone()))],
    )  # fmt: skip
    assert history.skipped_steps == 1
    np.testing.assert_allclose([s.lr for s in history.steps], [1e-3 / (1 + n) for n in range(8)])
    moved = [not torch.equal(a, b) for a, b in zip(weights, weights[1:])]
    assert moved == [True, False, True, True, True, True, True]


def test_mirrored_predictions_are_the_mean_of_both_views():
    model, batches = network(), batches_of(count=21)
    images, _ = batches.dataset.tensors
    with torch.no_grad():
        views = [model.eval()(view).log_softmax(1) for view in (images, images.flip(3))]
    found = predict(model, batches, mirrored=True)
    plain, both = views[0].softmax(1).numpy(), (sum(views) / 2).softmax(1).numpy()
    np.testing.assert_allclose(found.probabilities, plain, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.mirrored, both, rtol=1e-4, atol=1e-6)
    assert not np.allclose(plain, both, rtol=1e-3)
    assert predict(model, batches).mirrored is None


def test_predictions():
    model, batches = network(), batches_of(count=21)
    predictions = predict(model, batches)
    images, labels = batches.dataset.tensors
    with torch.no_grad():
        expected = model.eval()(images).softmax(1).numpy()
    np.testing.assert_allclose(predictions.probabilities, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(predictions.labels, labels.numpy())
    np.testing.assert_array_equal(predictions.predicted, expected.argmax(1))
    loss, accuracy = evaluate(model, batches)
    assert predictions.accuracy == accuracy == accuracy_score(labels, expected.argmax(1))
    assert loss == pytest.approx(log_loss(labels, expected), rel=1e-5)


def test_bfloat16_trains_float32_weights_close_to_float32():
    exact, _, a = training()
    mixed, _, b = training(compute=Compute(CPU, "bfloat16"))
    assert all(p.dtype == torch.float32 for p in mixed.parameters())
    assert a.steps != b.steps
    np.testing.assert_allclose([s.loss for s in a.steps], [s.loss for s in b.steps], rtol=0.03)
