"""The face ``utils``: helpers that belong to no larger subject."""

import random

import numpy as np
import pytest
import torch

import utils
from models import CustomResNet


def test_the_face_names_what_it_says():
    assert all(callable(getattr(utils, name)) for name in utils.__all__)
    described = utils.__doc__.split()
    assert all(f"``{name}``" in " ".join(described) for name in utils.__all__)


def test_statistics_equal_numpys():
    images = np.random.default_rng(0).integers(0, 256, (17, 32, 32, 3), np.uint8)
    images[..., 1] //= 3
    mean, std = utils.get_stats(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-12)


def test_a_channel_without_any_deviation_can_be_divided_by_it():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    images[..., 2] = 7
    mean, std = utils.get_stats(images)
    assert (mean[2], std[2]) == (pytest.approx(7 / 255), 1 / 255)


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
