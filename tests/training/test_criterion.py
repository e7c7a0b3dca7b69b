import numpy as np
import pytest
import torch
from torch import nn

from onecycle.training.criterion import WeightedCrossEntropy

TARGETS = np.repeat([0, 1, 3], [60, 30, 10])


def batch(count=40):
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(count, 4, generator=generator)
    labels = torch.tensor(TARGETS)[torch.randperm(100, generator=generator)[:count]]
    return output, labels


def test_weights_are_inverse_to_the_counts_and_one_in_the_mean_over_the_images():
    weights = WeightedCrossEntropy(TARGETS, 4).weights.numpy()
    np.testing.assert_allclose(weights[[0, 1, 3]] * [60, 30, 10], 100 / 3, rtol=1e-6)
    assert weights[2] == 0  # no image
    assert weights[TARGETS].mean() == pytest.approx(1)
    np.testing.assert_allclose(WeightedCrossEntropy(np.arange(8) % 4, 4).weights, 1)


def test_the_loss_is_the_plain_mean_of_weighted_losses():
    (output, labels), criterion = batch(), WeightedCrossEntropy(TARGETS, 4)
    summed = nn.CrossEntropyLoss(weight=criterion.weights, reduction="sum")(output, labels)
    torch.testing.assert_close(criterion(output, labels), summed / len(labels))


def test_the_shares_of_two_processes_add_up():
    (output, labels), criterion = batch(), WeightedCrossEntropy(TARGETS, 4, label_smoothing=0.1)
    parts = [(output[:15], labels[:15]), (output[15:], labels[15:])]
    together = sum(criterion(*part) * len(part[1]) / len(labels) for part in parts)
    torch.testing.assert_close(together, criterion(output, labels))


def test_without_unequal_classes_it_is_the_plain_loss():
    output, labels = batch()
    criterion = WeightedCrossEntropy(np.arange(8) % 4, 4, label_smoothing=0.1)
    plain = nn.CrossEntropyLoss(label_smoothing=0.1)
    torch.testing.assert_close(criterion(output, labels), plain(output, labels))
