import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from onecycle.data.dataset import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    ImageDataset,
    get_stats,
    stratified_order,
)
from onecycle.data.digits import load_digits
from onecycle.errors import DataError, UsageError
from transformation import get_test_aug_transform, get_train_aug_transform

LETTERS = "abcdefghijklmnop"


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def shuffled_labels(mix, seed=1):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(mix)), mix))


def numbered_images(mix):
    """A data set whose every image tells its place and its label."""
    labels = shuffled_labels(mix)
    images = np.zeros((len(labels), 32, 32, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(len(labels)), 256)
    images[:, 0, 0, 2] = labels
    return ImageDataset(images, labels, LETTERS[: len(mix)], "numbers")


def numbers(images):
    return (256 * images.data[:, 0, 0, 0].astype(int) + images.data[:, 0, 0, 1]).tolist()


def same_images(one, other):
    return np.array_equal(one.data, other.data) and np.array_equal(one.targets, other.targets)


# The stratified order


@pytest.mark.parametrize(
    "mix",
    [
        [20] * 10,
        [1],
        [7, 3],
        [1, 99],
        [50, 30, 20],
        [17, 18, 17, 18, 18, 18, 18, 17, 17, 18],
        [150, 100, 50, 25, 12, 6, 3],
        [100] + [10] * 10,
        [500, 50, 20, 5],
    ],
    ids=lambda mix: "-".join(map(str, mix)),
)
def test_every_prefix_holds_the_classes_in_their_proportions(mix):
    labels = shuffled_labels(mix)
    order = stratified_order(labels)
    assert sorted(order.tolist()) == list(range(len(labels)))
    counts = np.cumsum(np.eye(len(mix))[labels[order]], axis=0)
    fair = np.arange(1, len(labels) + 1)[:, None] * np.array(mix) / len(labels)
    # A plain shuffle strays by ten and more on the larger mixes.
    assert np.abs(counts - fair).max() <= 2


def test_order_depends_on_the_seed_alone():
    labels = shuffled_labels([30, 20, 10])
    order = stratified_order(labels, seed=3)
    np.random.seed(1)
    assert np.array_equal(order, stratified_order(labels, seed=3))
    assert not np.array_equal(order, stratified_order(labels, seed=4))


def test_order_is_shuffled_within_a_class():
    labels = np.repeat([0, 1], 50)
    order = stratified_order(labels)
    for label in (0, 1):
        members = order[labels[order] == label]
        assert not np.array_equal(members, np.sort(members))


# ImageDataset


@pytest.mark.parametrize(
    "images, labels, found",
    [
        (np.zeros((3, 28, 32, 3), np.uint8), [0, 1, 2], r"uint8 .*\(3, 28, 32, 3\)"),
        (np.zeros((3, 7, 7, 3), np.uint8), [0, 1, 2], r"\(3, 7, 7, 3\) .* 8 pixels or more"),
        (np.zeros((3, 3, 32, 32), np.uint8), [0, 1, 2], r"3, 3, 32, 32\).*transpose\(0, 2, 3, 1\)"),
        (np.zeros((3, 32, 32, 3), np.float32), [0, 1, 2], r"float32 .*\(3, 32, 32, 3\).*255 \*"),
        (np.full((3, 32, 32, 3), 4000, np.uint16), [0, 1, 2], r"uint16 .* 12 bits, .*data >> 4\)"),
        (np.zeros((0, 32, 32, 3), np.uint8), [], r"\(0, 32, 32, 3\) with 0 labels"),
        (np.zeros((3, 32, 32, 3), np.uint8), [0, 1], r"\(3, 32, 32, 3\) with 2 labels"),
        (np.zeros((3, 32, 32, 3), np.uint8), [0, 1, 3], r"image 2 has label 3; .*0\.\.2"),
        (np.zeros((3, 32, 32, 3), np.uint8), [0, -1, 2], r"image 1 has label -1; .*0\.\.2"),
        (np.zeros((3, 32, 32, 3), np.uint8), ["a", "b", "c"], "labels .* such as 'a'; .*index"),
        (np.zeros((3, 32, 32, 3), np.uint8), [0, 0.5, 1], "labels are not whole numbers"),
        (torch.zeros(3, 3, 32, 32), [0, 1, 2], r"float32 .*transpose\(0, 2, 3, 1\)"),
    ],
    ids=[
        "not square", "too small", "channels first", "type", "16 bits", "empty", "fewer labels",
        "label above", "label below", "words", "halves", "tensor",
    ],
)  # fmt: skip
def test_arrays_that_are_no_data_set_are_refused_with_what_was_found(images, labels, found):
    with pytest.raises(DataError, match=found) as caught:
        ImageDataset(images, labels, "abc", "my pictures")
    assert str(caught.value).startswith("my pictures: ")
    assert "\n" not in str(caught.value)


def test_tensors_and_labels_that_are_whole_floats_are_arrays_as_well():
    plain = ImageDataset(noise(3), [0, 1, 0], "ab", "x")
    other = ImageDataset(torch.from_numpy(noise(3)), torch.tensor([0.0, 1.0, 0.0]), "ab", "x")
    assert same_images(plain, other) and type(other.data) is np.ndarray
    with pytest.raises(DataError, match="classes are 2; give their names"):
        ImageDataset(noise(3), [0, 1, 0], 2, "x")


def test_an_item_without_transform_is_the_image_and_its_label():
    images = noise(3)
    image, label = ImageDataset(images, [2, 0, 1], "abc", "noise")[1]
    assert np.array_equal(image, images[1])
    assert (label, type(label)) == (0, int)


def test_an_item_with_the_test_transform_is_the_normalised_image():
    images = noise(3)
    transform = get_test_aug_transform(CIFAR10_MEAN, CIFAR10_STD)
    image, label = ImageDataset(images, [2, 0, 1], "abc", "noise", transform)[2]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.float32
    assert label == 1
    expected = (images[2] / 255 - CIFAR10_MEAN) / CIFAR10_STD
    np.testing.assert_allclose(image.permute(1, 2, 0), expected, atol=1e-5)


def test_an_item_with_a_torchvision_transform_is_what_that_gives():
    images = noise(3)
    image, label = ImageDataset(images, [2, 0, 1], "abc", "noise", v2.ToImage())[2]
    assert torch.equal(image, torch.from_numpy(images[2]).permute(2, 0, 1))
    assert label == 1


@pytest.mark.parametrize("size", [8, 24, 48])
def test_images_of_any_square_size_are_a_data_set(size):
    images = np.random.default_rng(0).integers(0, 256, (6, size, size, 3), np.uint8)
    whole = ImageDataset(images, [0, 1] * 3, "ab", "mine")
    assert [part.size_px for part in (whole, *whole.hold_out(2))] == [size] * 3
    assert np.array_equal(whole[3][0], images[3])


def test_mean_and_std_are_those_of_the_images():
    images = ImageDataset(noise(40), [0, 1] * 20, "ab", "mine")
    part = images.sample(10)
    for given in (images, part, part.with_transform(None)):
        np.testing.assert_allclose(given.mean, given.data.mean((0, 1, 2)) / 255, rtol=1e-12)
        np.testing.assert_allclose(given.std, given.data.std((0, 1, 2)) / 255, rtol=1e-12)
        assert (given.mean, given.std) == get_stats(given.data)
    assert part.mean != images.mean


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 8, 8, 1)])
def test_grey_images_have_three_equal_channels(shape):
    grey = noise(3)[:, :8, :8, :1].reshape(shape)
    images = ImageDataset(grey, [0, 1, 0], "ab", "mine")
    assert images.data.shape == (3, 8, 8, 3)
    assert all(np.array_equal(images.data[..., c], grey.reshape(3, 8, 8)) for c in range(3))
    mean, std = get_stats(grey)
    np.testing.assert_allclose(mean, [grey.mean() / 255] * 3)
    np.testing.assert_allclose(std, [grey.std() / 255] * 3)
    assert (images.mean, images.std) == (mean, std)


@pytest.mark.parametrize(
    "images", [np.zeros((3, 3, 8, 8), np.uint8), np.zeros((3, 8, 8, 3)), np.zeros((8, 8), np.uint8)]
)
def test_statistics_of_what_are_no_images_are_refused(images):
    with pytest.raises(DataError, match="expected uint8 of shape"):
        get_stats(images)


def test_a_channel_without_any_deviation_can_be_divided_by_it():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    images[..., 2] = 7
    mean, std = get_stats(images)
    assert (mean[2], std[2]) == (pytest.approx(7 / 255), 1 / 255)


@pytest.mark.parametrize("source", ["CIFAR-10", "CIFAR-10 (image folder)"])
def test_of_cifar10_mean_and_std_are_the_published_ones_for_every_part(source):
    images = ImageDataset(noise(40), [0, 1] * 20, "ab", source)
    for given in (images, images.sample(10), *images.hold_out(10), images.with_transform(None)):
        assert (given.mean, given.std) == (CIFAR10_MEAN, CIFAR10_STD)


def test_parts_keep_the_name_and_only_held_out_images_have_another():
    mine = ImageDataset(noise(8), [0, 1] * 4, "ab", "mine", name="my images")
    rest, held_out = mine.hold_out(2)
    parts = mine, rest, mine.sample(4), mine.subset([1, 2]), mine.with_transform(None)
    assert {part.name for part in parts} == {"my images"}
    assert held_out.name == held_out.sample(1).name == "held-out training images"
    assert [part.name for part in load_digits()] == ["test images", "test images"]


@pytest.mark.parametrize("pipeline", [get_train_aug_transform, get_test_aug_transform])
def test_transforms_leave_the_stored_images_as_they_are(pipeline):
    transform = pipeline(CIFAR10_MEAN, CIFAR10_STD)
    dataset = ImageDataset(noise(8), [0] * 8, "a", "noise", transform)
    for image, _ in (dataset[i % 8] for i in range(40)):
        assert image.shape == (3, 32, 32)
        assert image.dtype == torch.float32
        image.fill_(0)
    assert np.array_equal(dataset.data, noise(8))


def test_with_transform_shares_the_images_and_leaves_the_first_set_alone():
    plain = numbered_images([3, 2])
    seen = plain.with_transform(lambda image: {"image": image.sum()})
    assert np.shares_memory(plain.data, seen.data)
    assert np.array_equal(plain.targets, seen.targets)
    assert (seen.classes, seen.source, len(seen)) == (plain.classes, plain.source, 5)
    assert seen[4] == (plain.data[4].sum(), plain.targets[4])
    assert np.array_equal(plain[4][0], plain.data[4])


def test_subset_keeps_the_order_asked_for():
    whole = numbered_images([4, 4])
    part = whole.subset([5, 0, 3])
    assert numbers(part) == [5, 0, 3]
    assert np.array_equal(part.targets, whole.targets[[5, 0, 3]])


def test_sample_of_none_is_everything():
    whole = numbered_images([4, 4])
    assert same_images(whole.sample(None), whole)


def test_sample_has_the_classes_in_their_proportions_and_is_always_the_same():
    whole = numbered_images([60, 30, 10])
    sample = whole.sample(20)
    assert np.bincount(sample.targets).tolist() == [12, 6, 2]
    assert np.array_equal(sample.targets, sample.data[:, 0, 0, 2])
    assert len(set(numbers(sample))) == 20
    np.random.seed(9)
    torch.manual_seed(9)
    assert numbers(whole.sample(20)) == numbers(sample)
    assert (sample.classes, sample.source) == (whole.classes, whole.source)


def test_a_sample_holds_every_smaller_one():
    whole = numbered_images([60, 30, 10])
    assert set(numbers(whole.sample(10))) < set(numbers(whole.sample(25)))
    assert sorted(numbers(whole.sample(100))) == list(range(100))


@pytest.mark.parametrize("count", [0, -1, 11])
def test_a_sample_out_of_range_is_refused(count):
    with pytest.raises(UsageError, match=rf"{count} of 10 .*from 1 to 10\b"):
        numbered_images([5, 5]).sample(count)


def test_hold_out_splits_completely_in_proportion_and_always_the_same():
    whole = numbered_images([60, 30, 10])
    rest, held_out = whole.hold_out(30)
    assert sorted(numbers(rest) + numbers(held_out)) == list(range(100))
    assert np.bincount(held_out.targets).tolist() == [18, 9, 3]
    for part in (rest, held_out):
        assert np.array_equal(part.targets, part.data[:, 0, 0, 2])
        assert (part.classes, part.source) == (whole.classes, whole.source)
    np.random.seed(9)
    torch.manual_seed(9)
    assert [numbers(part) for part in whole.hold_out(30)] == [numbers(rest), numbers(held_out)]


@pytest.mark.parametrize("count", [0, -1, 10, 11])
def test_hold_out_out_of_range_is_refused(count):
    with pytest.raises(UsageError, match=rf"{count} of 10 .*from 1 to 9\b"):
        numbered_images([5, 5]).hold_out(count)


def test_a_part_knows_where_its_images_were_in_the_whole():
    whole, _ = load_digits()
    part = whole.with_transform(None).sample(50).hold_out(20)[1].with_transform(None)
    places = [np.flatnonzero(whole.indices == i).item() for i in part.indices]
    assert np.array_equal(whole.data[places], part.data)
