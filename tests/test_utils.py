"""The face ``utils``: helpers that belong to no larger subject."""

import random

import numpy as np
import torch

import utils


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


def test_seed_reaches_every_generator():
    draws = []
    for _ in range(2):
        utils.set_seed(3)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]
