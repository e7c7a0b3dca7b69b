"""A network that trains in no time, for the tests of the command line."""

import torch
from torch import nn

WORDS = [
    "train", "--dataset", "digits", "--epochs", "3", "--batch-size", "16", "--limit-train", "64",
    "--limit-test", "20", "--lr-max", "0.01", "--device", "cpu", "--precision", "float32",
    "--save-minutes", "0",
]  # fmt: skip
"""A training of it."""
STEPS = 12


class Tiny(nn.Module):
    """Has what a run asks of a network; before its call ``at``, ``fault`` happens."""

    at, fault = None, None

    def __init__(self, num_classes=10):
        super().__init__()
        self.layer3 = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4), nn.ReLU())
        self.fc = nn.Linear(4 * 7 * 7, num_classes)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores = self.fc(self.layer3(images).flatten(1))
        self.calls += self.training
        if self.training and self.calls == self.at:
            scores = scores * self.fault()
        return scores.log_softmax(1)


def make_quick(patch):
    """Trainings of the command line take milliseconds then."""
    patch.setattr("models.CustomResNet", Tiny)
    patch.setattr("onecycle.run.FIGURES", {})  # most of the time of a run this small
