import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare

import transformation
from onecycle.data.batches import get_test_batch_transform, get_train_batch_transform
from onecycle.data.dataset import CIFAR10_MEAN, CIFAR10_STD
from transformation import get_test_aug_transform, get_train_aug_transform

CPU = torch.device("cpu")


def python(code):
    """Runs the code in a process of its own, without the variable that the pipelines set."""
    root = Path(__file__).resolve().parents[2]
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True
    )


# A blue that no pixel of the coordinate image has marks the hole: 0.9 * 255, rounded.
MEAN, HOLE = (0.9, 0.9, 0.9), 230


def seeded(transform, seed):
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    return transform


def coordinate_image():
    """Every pixel tells where it came from: row + 1, column + 1, 0; padding is all 0."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0], image[..., 1] = np.mgrid[1:33, 1:33]
    return image


def geometry(transform, count, seed):
    """(row shift, column shift, flipped, hole's row, hole's column) of ``count`` draws."""
    # Before Normalize. A Compose takes new seeds for what is put into it: seeded after that.
    stages = seeded(A.Compose(transform.transforms[:4]), seed)
    image, draws = coordinate_image(), []
    for _ in range(count):
        out = stages(image=image)["image"].astype(int)
        hole = out[..., 2] == HOLE
        rows, columns = np.nonzero(hole)
        whole = (out[..., 0] > 0) & ~hole
        row = np.flatnonzero(whole.sum(1) > 1)[0]
        first, last = np.flatnonzero(whole[row])[[0, -1]]
        flipped = out[row, first, 1] > out[row, last, 1]
        origin = 31 - first if flipped else first
        draws.append(
            (
                out[row, first, 0] - 1 - row,
                out[row, first, 1] - 1 - origin,
                int(flipped),
                rows.min(),
                columns.min(),
            )
        )
    return np.array(draws)


@pytest.fixture(scope="module")
def draws():
    transform = get_train_aug_transform(MEAN, (0.25,) * 3, padding="constant")
    return geometry(transform, 6000, seed=1)


def test_pipelines_are_built_without_a_warning():
    # albumentations only warns of an argument it does not know, and takes its default.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_train_aug_transform(CIFAR10_MEAN, CIFAR10_STD)
        get_test_aug_transform(CIFAR10_MEAN, CIFAR10_STD)


@pytest.mark.parametrize("padding", ["constant", "reflect"])
def test_train_pipeline_equals_a_plain_numpy_one_pixel_by_pixel(padding):
    rng = np.random.default_rng(0)
    transforms = get_train_aug_transform(CIFAR10_MEAN, CIFAR10_STD, padding=padding).transforms
    steps = seeded(A.ReplayCompose(transforms, save_key="replay"), seed=2)
    mean, std = np.array(CIFAR10_MEAN), np.array(CIFAR10_STD)
    for _ in range(200):
        image = rng.integers(0, 256, (32, 32, 3), np.uint8)
        result = steps(image=image)
        applied = {t["__class_fullname__"]: t for t in result["replay"]["transforms"]}
        crop = applied["RandomCrop"]["params"]["crop_coords"]
        left, top, right, bottom = crop
        expected = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode=padding)[top:bottom, left:right]
        if applied["HorizontalFlip"]["applied"]:
            expected = expected[:, ::-1]
        expected = expected.copy()
        ((x0, y0, x1, y1),) = applied["CoarseDropout"]["params"]["holes"]
        assert (x1 - x0, y1 - y0) == (8, 8)
        expected[y0:y1, x0:x1] = [125, 123, 114]  # the mean, 0..255
        expected = ((expected / 255 - mean) / std).transpose(2, 0, 1)
        np.testing.assert_allclose(result["image"].numpy(), expected, atol=1e-5)


def test_train_output_is_a_float_tensor_and_the_input_stays_as_it_was():
    image = coordinate_image()
    before = image.copy()
    out = get_train_aug_transform(CIFAR10_MEAN, CIFAR10_STD)(image=image)["image"]
    assert out.shape == (3, 32, 32) and out.dtype == torch.float32
    np.testing.assert_array_equal(image, before)


def test_hole_is_the_mean_after_normalising():
    white = np.full((32, 32, 3), 255, np.uint8)
    transform = seeded(get_train_aug_transform(CIFAR10_MEAN, CIFAR10_STD), seed=3)
    for _ in range(20):
        near_zero = transform(image=white)["image"].abs().amax(0) < 0.01
        assert near_zero.sum() == 64


def test_each_draw_is_uniform(draws):
    for column, size in zip(draws.T, (9, 9, 2, 25, 25)):
        values, counts = np.unique(column, return_counts=True)
        assert len(values) == size
        assert chisquare(counts).pvalue > 1e-3
    assert set(draws[:, 0]) == set(draws[:, 1]) == set(range(-4, 5))


def test_draws_are_pairwise_independent(draws):
    for i in range(5):
        for j in range(i):
            table = np.histogram2d(draws[:, i], draws[:, j], bins=(9, 9))[0]
            table = table[table.sum(1) > 0][:, table.sum(0) > 0]
            assert chi2_contingency(table).pvalue > 1e-3, (i, j)


def test_draws_of_neighbouring_images_are_independent(draws):
    for column in draws.T:
        table = np.histogram2d(column[:-1], column[1:], bins=(9, 9))[0]
        table = table[table.sum(1) > 0][:, table.sum(0) > 0]
        assert chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize(("probability", "flips"), [(0.0, 0), (1.0, 50)])
def test_flip_probability(probability, flips):
    transform = get_train_aug_transform(MEAN, (0.25,) * 3, flip_probability=probability)
    assert geometry(transform, 50, seed=0)[:, 2].sum() == flips


def test_test_pipeline_only_normalises():
    image = np.random.default_rng(4).integers(0, 256, (32, 32, 3), np.uint8)
    out = get_test_aug_transform(CIFAR10_MEAN, CIFAR10_STD)(image=image)["image"]
    expected = ((image / 255 - np.array(CIFAR10_MEAN)) / np.array(CIFAR10_STD)).transpose(2, 0, 1)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)


def test_importing_leaves_the_environment_and_albumentations_alone():
    done = python(
        "import os, sys, torchvision\n"  # which sets a variable of torch's compiler
        "before = dict(os.environ); import onecycle, data, transformation\n"
        "assert dict(os.environ) == before and 'albumentations' not in sys.modules\n"
        "transformation.get_test_aug_transform((0.5,) * 3, (0.3,) * 3)\n"
        "assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1'\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_batched_transforms_can_be_imported_beside_the_pipelines():
    assert transformation.get_train_batch_transform is get_train_batch_transform
    assert transformation.get_test_batch_transform is get_test_batch_transform
    assert (transformation.CIFAR10_MEAN, transformation.CIFAR10_STD) == (CIFAR10_MEAN, CIFAR10_STD)
