import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import utils
from errors import DivergedError
from models import CustomResNet


def loader(count=50, batch_size=16, num_classes=4, seed=0):
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


def training(epochs=2, lr=1e-3, criterion=None, batches=None, **options):
    batches = batches or loader()
    model = network()
    optimizer = utils.get_optimizer(model, lr=lr, weight_decay=0.1, betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    history = utils.fit(
        model, batches, loader(seed=7, count=21), optimizer, scheduler,
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
    batches, twin = loader(), network()
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


def test_evaluation_is_a_true_mean_and_leaves_the_model_as_it_was():
    model, batches = network().train(), loader(count=21)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss, accuracy = utils.evaluate(model, batches)
    images, labels = batches.dataset.tensors
    with torch.no_grad():
        output = model.eval()(images)
    assert loss == pytest.approx(F.cross_entropy(output, labels).item(), rel=1e-5)
    assert accuracy == pytest.approx((output.argmax(1) == labels).double().mean().item())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    model.train()
    utils.evaluate(model, batches)
    assert model.training


def test_history_ends_with_the_evaluation_of_the_trained_model():
    model, _, history = training(epochs=2)
    assert (history.epochs[-1].test_loss, history.epochs[-1].test_accuracy) == utils.evaluate(
        model, loader(seed=7, count=21)
    )


def test_same_seed_same_training():
    (first, _, a), (second, _, b) = training(), training()
    assert a.steps == b.steps
    for ours, theirs in zip(first.parameters(), second.parameters()):
        assert torch.equal(ours, theirs)


def test_callbacks_see_every_step_and_epoch():
    seen, epochs = [], []
    _, _, history = training(on_step=lambda *x: seen.append(x), on_epoch=epochs.append)
    assert [step for _, step, _ in seen] == history.steps
    assert [epoch for epoch, _, _ in seen] == [1] * 4 + [2] * 4
    assert seen[3][2] == history.epochs[0].train_accuracy
    assert epochs == history.epochs


def test_loader_is_told_each_epochs_number():
    told = []
    batches = loader()
    batches.set_epoch = told.append
    training(epochs=3, batches=batches)
    assert told == [1, 2, 3]


def test_what_breaks_in_the_very_last_step_is_noticed():
    class Poison(nn.CrossEntropyLoss):
        calls = 0

        def forward(self, output, labels):
            self.calls += 1
            loss = super().forward(output, labels)
            return loss if self.calls < 8 else loss * torch.tensor(math.nan)

    with pytest.raises(DivergedError, match="the loss is nan in epoch 2, step 7"):
        training(criterion=Poison())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_training_and_is_located(bad):
    class Poisoned(nn.CrossEntropyLoss):
        calls = 0

        def forward(self, output, labels):
            self.calls += 1
            return super().forward(output, labels) * (bad if self.calls == 6 else 1.0)

    with pytest.raises(DivergedError, match=r"in epoch 2, step 6, at rate .*lower lr_max"):
        training(criterion=Poisoned())


def test_predictions():
    model, batches = network(), loader(count=21)
    predictions = utils.predict(model, batches)
    images, labels = batches.dataset.tensors
    with torch.no_grad():
        expected = model.eval()(images).softmax(1).numpy()
    np.testing.assert_allclose(predictions.probabilities, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(predictions.labels, labels.numpy())
    np.testing.assert_array_equal(predictions.predicted, expected.argmax(1))
    loss, accuracy = utils.evaluate(model, batches)
    assert predictions.accuracy == accuracy == accuracy_score(labels, expected.argmax(1))
    assert loss == pytest.approx(log_loss(labels, expected), rel=1e-5)


def test_bfloat16_trains_float32_weights_close_to_float32():
    exact, _, a = training()
    mixed, _, b = training(precision="bfloat16")
    assert all(p.dtype == torch.float32 for p in mixed.parameters())
    assert a.steps != b.steps
    np.testing.assert_allclose([s.loss for s in a.steps], [s.loss for s in b.steps], rtol=0.03)


def test_biases_and_bn_are_not_decayed():
    model = network()
    optimizer = utils.get_optimizer(model, lr=0.5, weight_decay=0.1, betas=(0.9, 0.99))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_statistics_equal_numpys():
    images = np.random.default_rng(0).integers(0, 256, (17, 32, 32, 3), np.uint8)
    images[..., 1] //= 3
    mean, std = utils.get_stats(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-12)


def test_summary_changes_nothing():
    model = CustomResNet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    text = utils.model_summary(model)
    assert "Total params: 6,575,370" in text and "LogSoftmax" in text
    assert torch.equal(torch.get_rng_state(), random_state) and model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module._forward_hooks for module in model.modules())


def test_seed_reaches_every_generator():
    draws = []
    for _ in range(2):
        utils.set_seed(3)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
