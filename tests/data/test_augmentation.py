import albumentations as A
import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2_contingency, chisquare

from onecycle.data.augmentation import (
    Draws,
    augment_pixels,
    draw_augmentation,
    pad_images,
)
from onecycle.data.batches import (
    BatchNormalize,
    get_test_batch_transform,
    get_train_batch_transform,
)
from onecycle.data.dataset import CIFAR10_MEAN, CIFAR10_STD
from onecycle.errors import UsageError
from transformation import get_test_aug_transform, get_train_aug_transform

CPU = torch.device("cpu")


# A blue that no pixel of the coordinate image has marks the hole: 0.9 * 255, rounded.
MEAN, HOLE = (0.9, 0.9, 0.9), 230


def random_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def chosen(count=1, top=4, left=4, flip=False, hole_top=0, hole_left=0):
    """The same draws for ``count`` images."""
    return Draws(*(torch.full((count,), x) for x in (top, left, flip, hole_top, hole_left)))


FILL = BatchNormalize(CIFAR10_MEAN, CIFAR10_STD, CPU).fill


def by_albumentations(images, indices, draws, transforms):
    """Each image by itself, through ``apply`` of the pipeline's transforms."""
    pad, crop, flip, dropout = transforms
    results = []
    for i, top, left, flipped, y, x in zip(indices, *(getattr(draws, f) for f in FIELDS)):
        top, left, y, x = int(top), int(left), int(y), int(x)
        out = pad.apply(images[i], pad_top=4, pad_bottom=4, pad_left=4, pad_right=4)
        out = crop.apply(out, crop_coords=(left, top, left + 32, top + 32))
        out = flip.apply(out) if flipped else out
        results.append(dropout.apply(out, holes=np.array([[x, y, x + 8, y + 8]]), seed=0))
    return np.stack(results)


FIELDS = ("top", "left", "flip", "hole_top", "hole_left")
SIZES = (9, 9, 2, 25, 25)
GOLDEN = [[8, 0, 5, 1], [8, 4, 0, 4], [1, 0, 0, 0], [9, 23, 14, 3], [6, 6, 21, 13]]


@pytest.mark.parametrize("padding", ["constant", "reflect"])
@pytest.mark.parametrize("mean", [CIFAR10_MEAN, (0.9, 0.1, 0.5)])  # 229.5, 25.5, 127.5: rounding
def test_batch_equals_albumentations_pixel_by_pixel(mean, padding):
    images = random_images(500)
    pipeline = get_train_aug_transform(mean, CIFAR10_STD, padding=padding).transforms
    normalize = BatchNormalize(mean, CIFAR10_STD, CPU)
    padded = pad_images(images, CPU, mode=padding)
    rng = np.random.default_rng(1)
    for _ in range(10):
        indices = torch.from_numpy(rng.integers(0, 500, 1000))
        draws = Draws(*(torch.from_numpy(rng.integers(0, size, 1000)) for size in SIZES))
        draws = Draws(draws.top, draws.left, draws.flip == 1, draws.hole_top, draws.hole_left)
        expected = by_albumentations(images, indices, draws, pipeline[:4])
        pixels = augment_pixels(padded, indices, draws, normalize.fill)
        np.testing.assert_array_equal(pixels.numpy(), expected)
    normalized = normalize(pixels)
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    for image, pixel in zip(normalized[:100], expected):
        reference = A.Compose(pipeline[4:])(image=pixel)["image"]
        assert image.shape == reference.shape and image.dtype == reference.dtype
        np.testing.assert_allclose(image.numpy(), reference.numpy(), rtol=0, atol=1e-6)


def test_crop_from_the_middle_without_a_hole_is_the_image():
    images = random_images(5)
    padded = pad_images(images, CPU)
    out = augment_pixels(padded, torch.arange(5), chosen(5), FILL, cutout_size_px=0)
    np.testing.assert_array_equal(out, images)
    draws = chosen(5, flip=True)
    mirrored = augment_pixels(padded, torch.arange(5), draws, FILL, cutout_size_px=0)
    np.testing.assert_array_equal(mirrored, images[:, :, ::-1])


@pytest.mark.parametrize("size", [0, 3, 8, 32])
def test_cutout_changes_a_square_of_its_size_and_nothing_else(size):
    images = random_images(200) // 2 + 128  # without the fill value
    padded = pad_images(images, CPU)
    indices = torch.arange(200)
    draws = draw_augmentation(0, 1, indices, cutout_size_px=size)
    whole = augment_pixels(padded, indices, draws, FILL, cutout_size_px=0)
    cut = augment_pixels(padded, indices, draws, FILL, cutout_size_px=size)
    changed = (whole != cut).all(dim=3)
    assert ((whole != cut).any(dim=3) == changed).all()
    assert (changed.sum((1, 2)) == size**2).all()
    assert (cut[changed] == FILL).all()
    assert ((changed.sum(1) > 0).sum(1) == size).all()  # so many columns, each of them whole


@pytest.mark.parametrize(
    ("size", "hole", "padding"), [(8, 8, "constant"), (24, 5, "reflect"), (48, 8, "constant")]
)
def test_images_of_another_size_are_cropped_flipped_and_cut_out_in_it(size, hole, padding):
    images = np.random.default_rng(0).integers(0, 256, (300, size, size, 3), np.uint8)
    make = get_train_batch_transform
    transform = make(
        images, MEAN, CIFAR10_STD, device=CPU, seed=4, cutout_size_px=hole, padding=padding
    )
    indices = torch.arange(300)
    draws = draw_augmentation(4, 2, indices, cutout_size_px=hole, size_px=size)
    assert int(draws.hole_top.max()) == int(draws.hole_left.max()) == size - hole
    border = (size // 8, size // 8)
    padded = np.pad(images, ((0, 0), border, border, (0, 0)), mode=padding)
    expected = []
    for i in range(300):
        top, left, flip, y, x = (int(getattr(draws, field)[i]) for field in FIELDS)
        image = padded[i, top : top + size, left : left + size]
        image = image[:, ::-1].copy() if flip else image.copy()
        image[y : y + hole, x : x + hole] = HOLE
        expected.append((image / 255 - MEAN) / CIFAR10_STD)
    found = transform(indices, 2).permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    plain = get_test_batch_transform(images, MEAN, CIFAR10_STD, device=CPU)(indices, 0)
    np.testing.assert_allclose(
        plain.permute(0, 2, 3, 1), (images / 255 - MEAN) / CIFAR10_STD, atol=1e-5
    )


def test_a_hole_may_be_as_large_as_the_image_and_no_larger():
    images = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), np.uint8)
    mean = tuple(np.array(HOLE) / 255 for _ in range(3))
    transform = get_train_batch_transform(images, mean, CIFAR10_STD, device=CPU, cutout_size_px=24)
    assert transform(torch.arange(5), 0).abs().max() < 1e-6
    with pytest.raises(UsageError, match="cutout_size_px is 25; it must be from 0 to 24"):
        get_train_batch_transform(images, mean, CIFAR10_STD, device=CPU, cutout_size_px=25)


def test_images_stay_as_they_are_and_the_result_is_their_own():
    images = random_images(8)
    before = images.copy()
    transform = get_train_batch_transform(images, CIFAR10_MEAN, CIFAR10_STD, device=CPU)
    first = transform(torch.arange(8), 1).clone()
    transform(torch.arange(8), 1).zero_()
    evaluated = get_test_batch_transform(images, CIFAR10_MEAN, CIFAR10_STD, device=CPU)
    evaluated(torch.arange(8), 1).zero_()
    np.testing.assert_array_equal(images, before)
    assert torch.equal(transform(torch.arange(8), 1), first)


def test_an_image_does_not_depend_on_its_batch():
    images = random_images(60)
    transform = get_train_batch_transform(images, CIFAR10_MEAN, CIFAR10_STD, device=CPU, seed=3)
    together = transform(torch.arange(60), 2)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(transform(order, 2), together[order])
    for i in (0, 17, 59):
        assert torch.equal(transform(torch.tensor([i]), 2)[0], together[i])
    assert not torch.equal(transform(torch.arange(60), 3), together)
    assert torch.equal(transform(torch.arange(60), 2), together)  # epochs in any order


def test_batched_test_transform_equals_the_pipeline():
    images = random_images(20)
    expected = get_test_aug_transform(CIFAR10_MEAN, CIFAR10_STD)
    transform = get_test_batch_transform(images, CIFAR10_MEAN, CIFAR10_STD, device=CPU)
    for i, image in zip((5, 3), transform(torch.tensor([5, 3]), 0)):
        reference = expected(image=images[i])["image"]
        np.testing.assert_allclose(image.numpy(), reference.numpy(), rtol=0, atol=1e-6)


def table(seed, epoch, count=50_000):
    """(5, count) draws."""
    draws = draw_augmentation(seed, epoch, torch.arange(count))
    return np.stack([getattr(draws, field).numpy().astype(int) for field in FIELDS])


def independent(first, second):
    """The smallest p of the 25 pairs of a draw of ``first`` and one of ``second``."""
    pairs = [
        np.bincount(a * n + b, minlength=m * n).reshape(m, n)
        for a, m in zip(first, SIZES)
        for b, n in zip(second, SIZES)
    ]
    return min(chi2_contingency(pair).pvalue for pair in pairs)


def test_each_batched_draw_is_uniform():
    for seed, epoch in ((0, 0), (0, 1), (1, 1), (2**40, 24)):
        for draw, size in zip(table(seed, epoch), SIZES):
            assert draw.min() >= 0 and draw.max() == size - 1
            assert chisquare(np.bincount(draw, minlength=size)).pvalue > 1e-4


def test_draws_of_an_image_are_pairwise_independent_in_a_batch():
    draws = table(0, 1)
    for i in range(5):
        for j in range(i):
            pair = np.bincount(draws[i] * SIZES[j] + draws[j], minlength=SIZES[i] * SIZES[j])
            assert chi2_contingency(pair.reshape(SIZES[i], SIZES[j])).pvalue > 1e-4, (i, j)


@pytest.mark.parametrize("distance", [1, 2, 512])
def test_draws_of_neighbours_are_independent(distance):
    draws = table(0, 1)
    assert independent(draws[:, :-distance], draws[:, distance:]) > 1e-5


@pytest.mark.parametrize(
    ("first", "second"),
    [((0, 1), (0, 2)), ((0, 23), (0, 24)), ((0, 1), (1, 1)), ((0, 1), (1, 0)), ((5, 1), (6, 2)),
     ((0, 1), (2**32, 1))],
)  # fmt: skip
def test_draws_of_epochs_and_seeds_are_independent(first, second):
    assert independent(table(*first), table(*second)) > 1e-5
    # Nor is one the other shifted by one image.
    assert independent(table(*first)[:, 1:], table(*second)[:, :-1]) > 1e-5


def test_an_image_is_flipped_in_half_of_its_epochs_and_never_gets_the_same_run_of_draws():
    epochs = np.stack([table(0, epoch, 20_000) for epoch in range(1, 25)])
    flips = np.bincount(epochs[:, 2].sum(0), minlength=25)[5:20]
    expected = binom.pmf(np.arange(5, 20), 24, 0.5)
    assert chisquare(flips, expected / expected.sum() * flips.sum()).pvalue > 1e-4
    assert len(np.unique(epochs.reshape(24, -1), axis=0)) == 24
    assert len(np.unique(epochs.transpose(2, 0, 1).reshape(20_000, -1), axis=0)) == 20_000


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_flip_probability_of_a_batch(probability):
    flip = draw_augmentation(0, 1, torch.arange(40_000), flip_probability=probability).flip
    assert flip.double().mean().item() == pytest.approx(probability, abs=0.01)
    assert probability not in (0, 1) or flip.double().mean() == probability


def test_alternating_flip_shows_every_image_both_ways_in_two_epochs():
    def flips(seed, epoch):
        return draw_augmentation(seed, epoch, torch.arange(10_000), alternating_flip=True).flip

    first = flips(0, 1)
    assert 4_800 < first.sum() < 5_200
    assert torch.equal(flips(0, 2), ~first) and torch.equal(flips(0, 3), first)
    assert 4_800 < (flips(1, 1) == first).sum() < 5_200
    # The other draws stay as they are.
    draws = draw_augmentation(0, 1, torch.arange(100), alternating_flip=True)
    assert torch.equal(draws.hole_top, draw_augmentation(0, 1, torch.arange(100)).hole_top)


def test_draws_are_the_same_in_every_version_and_on_every_device():
    # Else a run that goes on after an update or elsewhere would be another one.
    assert table(7, 3, 4).tolist() == GOLDEN
    if torch.cuda.is_available():
        draws = draw_augmentation(7, 3, torch.arange(4, device="cuda"))
        assert [getattr(draws, field).int().tolist() for field in FIELDS] == GOLDEN


@pytest.mark.parametrize(
    ("options", "message"),
    [({"flip_probability": 1.5}, "flip_probability is 1.5"), ({"cutout_size_px": 33}, "is 33")],
)
def test_batched_options_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        get_train_batch_transform(
            random_images(2), CIFAR10_MEAN, CIFAR10_STD, device=CPU, **options
        )


@pytest.mark.parametrize("make", [get_train_batch_transform, get_test_batch_transform])
def test_images_of_another_size_or_type_are_refused(make):
    for images in (
        np.zeros((2, 32, 64, 3), np.uint8), np.zeros((2, 7, 7, 3), np.uint8),
        np.zeros((2, 3, 32, 32), np.uint8), random_images(2) / np.float32(255),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="they must be uint8, .N, S, S, 3. with S of 8"):
            make(images, CIFAR10_MEAN, CIFAR10_STD, device=CPU)
