"""On the real CIFAR-10 images, where the variable CIFAR10_DIR names them."""

import json
from pathlib import Path

import numpy as np

from models import CustomResNet
from onecycle import commands
from onecycle.data.augmentation import CIFAR10_MEAN, CIFAR10_STD
from onecycle.data.cifar10 import CIFAR10_CLASSES, load_cifar10
from onecycle.data.dataset import get_stats
from onecycle.data.loaders import get_loader
from onecycle.training.inference import evaluate
from transformation import get_test_aug_transform

ROOT = Path(__file__).resolve().parents[2]


def test_the_images_are_cifar10(cifar10_dir):
    train_images, test_images = load_cifar10(cifar10_dir)
    assert (len(train_images), len(test_images)) == (50_000, 10_000)
    assert train_images.classes == CIFAR10_CLASSES
    assert set(np.bincount(train_images.targets)) == {5000}
    mean, std = get_stats(train_images.data)
    np.testing.assert_allclose(mean, CIFAR10_MEAN, atol=0.002)
    np.testing.assert_allclose(std, CIFAR10_STD, atol=0.01)  # JPEG takes some contrast away


def test_a_short_training_learns(cifar10_dir, tmp_path):
    # 1,600 images, once: chance is 10 %, a network that does not learn stays there.
    arguments = [
        "--data-dir", cifar10_dir, "--limit-train", "1600", "--limit-test", "500",
        "--batch-size", "50", "--epochs", "1", "--lr-max", "0.002", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert commands.main(["train", *arguments]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    assert results["final"]["test_accuracy"] > 0.2


def test_published_weights_have_the_published_accuracy(cifar10_dir):
    results = json.loads((ROOT / "results" / "cifar10" / "results.json").read_text("utf-8"))
    model = CustomResNet.from_pretrained(
        ROOT / "onecycle" / "weights" / "custom_resnet_cifar10.safetensors"
    )
    _, images = load_cifar10(cifar10_dir)
    images = images.sample(1000).with_transform(get_test_aug_transform(CIFAR10_MEAN, CIFAR10_STD))
    _, accuracy = evaluate(model, get_loader(images, 250, train=False))
    published = results["final"]["test_accuracy"]
    assert abs(accuracy - published) < 0.03  # three standard errors of 1,000 images
