import io
import os
import pickle
import socket
import warnings
from hashlib import md5
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits as load_sklearn_digits
from torchvision.datasets import CIFAR10

import data
from data import (
    CACHE_FILE,
    CIFAR10_CLASSES,
    Cifar10Dataset,
    ImageDataset,
    load_cifar10,
    load_digits,
    load_image_folder,
    stratified_order,
)
from errors import DataError, UsageError
from transformation import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    get_test_aug_transform,
    get_train_aug_transform,
)

LETTERS = "abcdefghijklmnop"
ANIMALS = ("cat", "dog", "emu")


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


def no_decoding(monkeypatch):
    def fail(file, *_, **__):
        raise AssertionError(f"{file} is decoded")

    monkeypatch.setattr(data.Image, "open", fail)


def write_folder(root, classes=ANIMALS, per_class=2, suffix=".png"):
    """An image folder of noise; returns the pixels by split, in the order of class and name."""
    pixels = {}
    for seed, split in enumerate(("train", "test")):
        pixels[split] = noise(len(classes) * per_class, seed)
        for index, image in enumerate(pixels[split]):
            file = root / split / classes[index // per_class] / f"{index:03}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return pixels


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture
def folder(tmp_path):
    """A small image folder, loaded once, so that the decoded images are kept."""
    pixels = write_folder(tmp_path)
    return SimpleNamespace(root=tmp_path, pixels=pixels, loaded=load_image_folder(tmp_path))


@pytest.fixture
def official(tmp_path, monkeypatch):
    """The official layout in miniature: 5 batches of 4 images, 3 test images, 10 classes."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = {"train": noise(20, seed=0), "test": noise(3, seed=1)}
    labels = {"train": shuffled_labels([2] * 10), "test": np.array([9, 0, 5])}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return name, md5((folder / name).read_bytes()).hexdigest()

    def batch(split, part):
        # A row is the red plane, the green one, the blue one, each line by line.
        rows = images[split][part].transpose(0, 3, 1, 2).reshape(-1, 3072)
        return {"data": rows, "labels": labels[split][part].tolist()}

    train = [
        write(f"data_batch_{i + 1}", batch("train", slice(4 * i, 4 * i + 4))) for i in range(5)
    ]
    name, digest = write("batches.meta", {"label_names": list(CIFAR10_CLASSES)})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch("test", slice(None)))])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
    return SimpleNamespace(root=tmp_path, folder=folder, images=images, labels=labels)


# The digits


def test_digits_are_split_1437_to_360(digits):
    train, test = digits
    for part, count in ((train, 1437), (test, 360)):
        assert len(part) == count
        assert part.data.shape == (count, 32, 32, 3)
        assert part.data.dtype == np.uint8
        assert part.classes == tuple("0123456789")
        assert part.source == "digits"


def test_digits_have_each_class_in_its_proportion_in_both_parts(digits):
    whole = np.bincount(load_sklearn_digits().target)
    counts = [np.bincount(part.targets) for part in digits]
    assert np.array_equal(sum(counts), whole)
    assert np.abs(counts[1] - whole * 360 / 1797).max() < 1


def test_no_digit_is_in_both_parts_or_twice(digits):
    images = np.concatenate([part.data for part in digits])
    assert len({image.tobytes() for image in images}) == 1797


def test_digits_are_scikit_learns_enlarged_in_grey_with_their_labels(digits):
    images = np.concatenate([part.data for part in digits])
    labels = np.concatenate([part.targets for part in digits])
    assert images.min() == 0
    assert images.max() == 255
    assert np.array_equal(images, images[..., :1].repeat(3, axis=-1))

    def standardised(rows):
        rows = rows.reshape(1797, 64) - rows.reshape(1797, 64).mean(axis=1, keepdims=True)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    source = load_sklearn_digits()
    small = images[..., 0].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4))
    likeness = standardised(small) @ standardised(source.images).T
    # Enlarging smooths, so a few digits come closest to a near twin; none leaves its class.
    assert likeness.max(axis=1).min() > 0.95
    assert np.array_equal(source.target[likeness.argmax(axis=1)], labels)
    assert len(set(likeness.argmax(axis=1))) > 1780
    assert small.mean() == pytest.approx(source.images.mean() * 255 / 16, rel=0.01)


def test_digits_are_the_same_each_time_without_a_network(digits, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a socket is opened")

    monkeypatch.setattr(socket, "socket", fail)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    np.random.seed(5)
    torch.manual_seed(5)
    for part, again in zip(digits, load_digits(), strict=True):
        assert same_images(part, again)


def test_another_number_of_test_digits_can_be_had():
    train, test = load_digits(num_test=100)
    assert (len(train), len(test)) == (1697, 100)
    with pytest.raises(UsageError, match="1797 of 1,797"):
        load_digits(num_test=1797)


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
        (np.zeros((3, 28, 28, 3), np.uint8), [0, 1, 2], r"uint8 .*\(3, 28, 28, 3\)"),
        (np.zeros((3, 32, 32), np.uint8), [0, 1, 2], r"uint8 .*\(3, 32, 32\)"),
        (np.zeros((3, 3, 32, 32), np.uint8), [0, 1, 2], r"uint8 .*\(3, 3, 32, 32\)"),
        (np.zeros((3, 32, 32, 3), np.float32), [0, 1, 2], r"float32 .*\(3, 32, 32, 3\)"),
        (np.zeros((0, 32, 32, 3), np.uint8), [], r"\(0, 32, 32, 3\) with 0 labels"),
        (np.zeros((3, 32, 32, 3), np.uint8), [0, 1], r"\(3, 32, 32, 3\) with 2 labels"),
        (np.zeros((3, 32, 32, 3), np.uint8), [0, 1, 3], r"image 2 has label 3; .*0\.\.2"),
        (np.zeros((3, 32, 32, 3), np.uint8), [0, -1, 2], r"image 1 has label -1; .*0\.\.2"),
    ],
    ids=[
        "size", "grey", "channels first", "type", "empty", "fewer labels", "label above",
        "label below",
    ],
)  # fmt: skip
def test_arrays_that_are_no_data_set_are_refused_with_what_was_found(images, labels, found):
    with pytest.raises(DataError, match=found) as caught:
        ImageDataset(images, labels, "abc", "my pictures")
    assert str(caught.value).startswith("my pictures: ")
    assert "\n" not in str(caught.value)


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


# The image folder


def test_folder_gives_exact_pixels_and_labels_in_the_order_of_sorted_names(tmp_path):
    pixels = write_folder(tmp_path, classes=("zebra", "Ant", "bee"))
    # Ant, bee, zebra: the first written comes last.
    order = [2, 3, 4, 5, 0, 1]
    for split, part in zip(("train", "test"), load_image_folder(tmp_path), strict=True):
        assert part.classes == ("Ant", "bee", "zebra")
        assert np.array_equal(part.targets, [0, 0, 1, 1, 2, 2])
        assert np.array_equal(part.data, pixels[split][order])


def test_pictures_of_every_mode_become_rgb(tmp_path):
    write_folder(tmp_path, classes=("cat", "dog"), per_class=1)
    rgb, palette = noise(1)[0], noise(1, seed=2)[0, :8].reshape(256, 3)
    grey = rgb[..., 0]
    indexed = Image.fromarray(grey)
    indexed.putpalette(palette.tobytes())
    opaque = np.dstack([rgb, np.full((32, 32), 255, np.uint8)])
    expected = {
        "grey.png": (Image.fromarray(grey), np.dstack([grey] * 3)),
        "palette.png": (indexed, palette[grey]),
        "rgb.PNG": (Image.fromarray(rgb), rgb),
        "rgba.png": (Image.fromarray(opaque), rgb),
    }
    for name, (picture, _) in expected.items():
        picture.save(tmp_path / "train" / "dog" / name)
    with Image.open(tmp_path / "train" / "dog" / "palette.png") as picture:
        assert picture.mode == "P"
    train, _ = load_image_folder(tmp_path)
    assert train.targets.tolist() == [0, 1, 1, 1, 1, 1]
    for image, (name, (_, pixels)) in zip(train.data[2:], expected.items(), strict=True):
        assert np.array_equal(image, pixels), name


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpegs_are_read_in_colour_and_in_grey(tmp_path, suffix):
    ramp = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
    colour = np.dstack([4 * ramp, 255 - 4 * ramp, 60 + 2 * ramp])
    for split in ("train", "test"):
        for name, image in (("colour", colour), ("grey", 4 * ramp)):
            (tmp_path / split / name).mkdir(parents=True)
            picture = Image.fromarray(image)
            picture.save(tmp_path / split / name / f"0{suffix}", "JPEG", quality=95)
    for part in load_image_folder(tmp_path):
        for image, pixels in zip(part.data, (colour, np.dstack([4 * ramp] * 3)), strict=True):
            assert np.abs(image.astype(int) - pixels).mean() < 4


def test_names_with_spaces_and_foreign_letters_work_and_are_kept(tmp_path, monkeypatch):
    classes = ("große Katze", "犬 (いぬ)")
    pixels = write_folder(tmp_path / "mes données", classes, suffix=" été 1.png")
    train, test = load_image_folder(tmp_path / "mes données")
    assert train.classes == test.classes == classes
    assert np.array_equal(train.data, pixels["train"])
    no_decoding(monkeypatch)
    assert same_images(load_image_folder(tmp_path / "mes données")[0], train)


def test_hidden_and_other_files_are_ignored(tmp_path):
    pixels = write_folder(tmp_path)
    for name in (".DS_Store", "._000.png", "Thumbs.db", "notes.txt"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"no picture")
    (tmp_path / "test" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "labels.csv").write_text("cat, dog, emu")
    train, test = load_image_folder(tmp_path)
    assert train.classes == test.classes == ANIMALS
    assert np.array_equal(train.data, pixels["train"])
    assert np.array_equal(test.data, pixels["test"])


@pytest.mark.parametrize(
    "classes, source",
    [
        (CIFAR10_CLASSES, "CIFAR-10 (image folder)"),
        (CIFAR10_CLASSES[:9], "image folder"),
        ((*CIFAR10_CLASSES[:9], "tram"), "image folder"),
        ((*CIFAR10_CLASSES, "unicorn"), "image folder"),
    ],
    ids=["its ten", "nine of them", "another tenth", "one more"],
)
def test_only_the_ten_class_names_of_cifar10_make_it_cifar10(tmp_path, classes, source):
    write_folder(tmp_path, classes, per_class=1)
    assert [part.source for part in load_image_folder(tmp_path)] == [source, source]


def test_progress_counts_the_pictures_of_both_parts(tmp_path):
    write_folder(tmp_path)
    seen = []
    load_image_folder(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 12) for done in range(1, 13)]


def test_second_load_decodes_nothing(folder, monkeypatch):
    no_decoding(monkeypatch)
    for part, again in zip(folder.loaded, load_image_folder(folder.root), strict=True):
        assert same_images(part, again)
        assert (part.classes, part.source) == (again.classes, again.source)
    (folder.root / CACHE_FILE).unlink()
    with pytest.raises(AssertionError, match="is decoded"):
        load_image_folder(folder.root)


def test_folder_can_be_moved_with_its_decoded_images(folder, tmp_path_factory, monkeypatch):
    moved = tmp_path_factory.mktemp("elsewhere") / "pictures"
    folder.root.rename(moved)
    no_decoding(monkeypatch)
    assert same_images(load_image_folder(moved)[0], folder.loaded[0])


def change_pixels(cat, dog):
    time_ns = cat.stat().st_mtime_ns
    Image.fromarray(noise(1, seed=7)[0]).save(cat)
    # Two seconds on: some file systems keep no finer time.
    os.utime(cat, ns=(time_ns, time_ns + 2_000_000_000))


def change_size_alone(cat, dog):
    time_ns = cat.stat().st_mtime_ns
    Image.new("RGB", (32, 32), "teal").save(cat)
    os.utime(cat, ns=(time_ns, time_ns))


@pytest.mark.parametrize(
    "change",
    [
        change_pixels,
        change_size_alone,
        lambda cat, dog: Image.new("RGB", (32, 32), "teal").save(cat.with_name("new.png")),
        lambda cat, dog: cat.unlink(),
        lambda cat, dog: cat.rename(cat.with_name("zzz.png")),
        lambda cat, dog: cat.with_name("001.png").rename(dog.with_name("001.png")),
        lambda cat, dog: cat.parent.rename(cat.parent.with_name("tiger")),
    ],
    ids=["pixels", "size", "added", "removed", "renamed", "other class", "class renamed"],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_change_in_the_folder_is_noticed(folder, split, change):
    cat, _, dog, *_ = sorted((folder.root / split).glob("*/*.png"))
    change(cat, dog)
    if not cat.parent.exists():
        other = folder.root / {"train": "test", "test": "train"}[split]
        (other / "cat").rename(other / "tiger")
    seen = load_image_folder(folder.root)
    (folder.root / CACHE_FILE).unlink()
    for part, fresh in zip(seen, load_image_folder(folder.root), strict=True):
        assert same_images(part, fresh)
        assert part.classes == fresh.classes
    changed = seen[split == "test"]
    before = folder.loaded[split == "test"]
    assert not same_images(changed, before) or changed.classes != before.classes


def other_archive(good):
    stream = io.BytesIO()
    np.savez(stream, something=np.zeros(3))
    return stream.getvalue()


def bare_array(good):
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: b"",
        lambda good: good[:100],
        lambda good: good[: len(good) // 2],
        lambda good: good[:-1],
        lambda good: b"no archive " * 1000,
        lambda good: bytes(len(good)),
        other_archive,
        bare_array,
        lambda good: good.replace(b"32, 32, 3)", b"32, 22, 3)"),
        lambda good: good.replace(b"train_images", b"train_imagez"),
    ],
    ids=[
        "empty", "start", "half", "last byte missing", "junk", "zeros", "other arrays",
        "bare array", "other shapes", "other name",
    ],
)  # fmt: skip
def test_damaged_kept_images_are_decoded_anew_and_kept_again(folder, monkeypatch, damage):
    kept = folder.root / CACHE_FILE
    kept.write_bytes(damage(kept.read_bytes()))
    for part, again in zip(folder.loaded, load_image_folder(folder.root), strict=True):
        assert same_images(part, again)
    no_decoding(monkeypatch)
    assert same_images(load_image_folder(folder.root)[0], folder.loaded[0])


def test_no_flipped_byte_in_the_kept_images_does_harm(tmp_path):
    write_folder(tmp_path, classes=("cat", "dog"), per_class=1)
    loaded = load_image_folder(tmp_path)
    kept = tmp_path / CACHE_FILE
    good = kept.read_bytes()
    # Every fifth byte of the first headers and of the table at the end, a few in between.
    table = good.index(b"PK\x01\x02")
    places = [*range(0, 250, 5), *range(250, table, 1997), *range(table, len(good), 5)]
    harm = {}
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 1 << place % 8
        kept.write_bytes(damaged)
        try:
            again = load_image_folder(tmp_path)
            if not all(map(same_images, loaded, again)):
                harm[place] = "other images"
        except Exception as error:  # noqa: BLE001 - of any kind, it must not reach the user
            harm[place] = repr(error)
    assert not harm


def refuse_replacing(root, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.os, "replace", fail)


def put_a_folder_in_its_place(root, monkeypatch):
    (root / CACHE_FILE).mkdir()


@pytest.mark.parametrize("prevent", [refuse_replacing, put_a_folder_in_its_place])
def test_where_images_cannot_be_kept_only_a_warning_comes(tmp_path, monkeypatch, prevent):
    pixels = write_folder(tmp_path)
    prevent(tmp_path, monkeypatch)
    with pytest.warns(UserWarning, match="not kept") as warned:
        train, test = load_image_folder(tmp_path)
    assert str(tmp_path / CACHE_FILE) in str(warned[0].message)
    assert np.array_equal(train.data, pixels["train"])
    assert np.array_equal(test.data, pixels["test"])
    assert {entry.name for entry in tmp_path.iterdir()} <= {"train", "test", CACHE_FILE}
    assert not (tmp_path / CACHE_FILE).is_file()


def test_nothing_but_the_kept_images_is_written(tmp_path):
    write_folder(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image_folder(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"train", "test", CACHE_FILE}


def remove_class(root, split, name):
    for file in (root / split / name).iterdir():
        file.unlink()
    (root / split / name).rmdir()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_only_one_part_has_is_refused_by_name(tmp_path, split):
    write_folder(tmp_path)
    remove_class(tmp_path, split, "dog")
    with pytest.raises(DataError, match="dog") as caught:
        load_image_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "cat" not in str(caught.value).replace(str(tmp_path), "")


def test_a_single_class_is_refused(tmp_path):
    write_folder(tmp_path, classes=("cat",))
    with pytest.raises(DataError, match="train/ has 1 classes"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_part_is_refused(tmp_path, split):
    write_folder(tmp_path / "pictures")
    (tmp_path / "pictures" / split).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=split):
        load_image_folder(tmp_path / "pictures")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_class_is_refused_by_name(tmp_path, split):
    write_folder(tmp_path)
    remove_class(tmp_path, split, "dog")
    (tmp_path / split / "dog").mkdir()
    (tmp_path / split / "dog" / ".hidden.png").touch()
    with pytest.raises(DataError) as caught:
        load_image_folder(tmp_path)
    assert str(tmp_path / split / "dog") in str(caught.value)


def replace_by_folder(file):
    file.unlink()
    file.mkdir()


def replace_by_dangling_link(file):
    file.unlink()
    file.symlink_to(file.with_name("gone"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"<html>not found</html>"),
        lambda file: file.write_bytes(file.read_bytes()[:1500]),
        lambda file: file.write_bytes(file.read_bytes()[:60]),
        replace_by_folder,
        replace_by_dangling_link,
    ],
    ids=["empty", "junk", "half", "header alone", "folder", "dangling link"],
)
def test_an_unreadable_picture_is_refused_by_name(folder, damage):
    file = folder.root / "test" / "dog" / "003.png"
    damage(file)
    with pytest.raises(DataError) as caught:
        load_image_folder(folder.root)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(32, 31), (33, 32), (224, 160), (1, 1)])
def test_a_picture_of_another_size_is_refused_by_name_and_size(folder, size):
    file = folder.root / "test" / "dog" / "003.png"
    Image.new("RGB", size).save(file)
    with pytest.raises(DataError, match=f"{size[0]}x{size[1]}") as caught:
        load_image_folder(folder.root)
    assert str(file) in str(caught.value)


def test_a_mended_folder_loads_after_an_error(folder):
    file = folder.root / "train" / "cat" / "000.png"
    good = file.read_bytes()
    file.write_bytes(b"junk")
    with pytest.raises(DataError):
        load_image_folder(folder.root)
    file.write_bytes(good)
    assert same_images(load_image_folder(folder.root)[0], folder.loaded[0])


# The official files


@pytest.mark.parametrize("split", ["train", "test"])
def test_official_files_give_images_labels_and_classes(official, split):
    dataset = Cifar10Dataset(official.root, train=split == "train")
    assert np.array_equal(dataset.data, official.images[split])
    assert np.array_equal(dataset.targets, official.labels[split])
    assert dataset.classes == CIFAR10_CLASSES
    assert dataset.source == "CIFAR-10"
    image, label = dataset[1]
    assert np.array_equal(image, official.images[split][1])
    assert label == official.labels[split][1]


def test_official_images_pass_through_the_transform(official):
    transform = get_test_aug_transform(CIFAR10_MEAN, CIFAR10_STD)
    dataset = Cifar10Dataset(str(official.root), train=False, transform=transform)
    expected = (official.images["test"] / 255 - CIFAR10_MEAN) / CIFAR10_STD
    images = torch.stack([image for image, _ in dataset])
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), expected, atol=1e-5)
    assert np.array_equal(dataset.data, official.images["test"])


def flip_a_byte(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [flip_a_byte, Path.unlink], ids=["flipped byte", "missing"])
@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_a_damaged_or_missing_official_file_is_refused_by_name(official, name, damage):
    damage(official.folder / name)
    for train in (True, False):
        with pytest.raises(DataError) as caught:
            Cifar10Dataset(official.root, train=train)
        assert str(official.folder / name) in str(caught.value)
        assert "\n" not in str(caught.value)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_file_with_another_digest_is_never_unpickled(official, tmp_path, name):
    marker = tmp_path / "unpickled"
    (official.folder / name).write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(DataError, match=name):
        load_cifar10(official.root)
    assert not marker.exists()
    # The payload does work: loading the file would have shown.
    pickle.loads((official.folder / name).read_bytes())
    assert marker.is_dir()


def test_load_cifar10_takes_the_official_layout(official):
    for split, part in zip(("train", "test"), load_cifar10(official.root), strict=True):
        assert np.array_equal(part.data, official.images[split])
        assert part.source == "CIFAR-10"


def test_load_cifar10_prefers_the_official_files_to_pictures_beside_them(official):
    write_folder(official.root, CIFAR10_CLASSES, per_class=1)
    assert [part.source for part in load_cifar10(official.root)] == ["CIFAR-10", "CIFAR-10"]


def test_load_cifar10_takes_an_image_folder(tmp_path):
    pixels = write_folder(tmp_path, CIFAR10_CLASSES, per_class=1)
    seen = []
    parts = load_cifar10(str(tmp_path), progress=lambda done, total: seen.append((done, total)))
    for split, part in zip(("train", "test"), parts, strict=True):
        assert np.array_equal(part.data, pixels[split])
        assert part.source == "CIFAR-10 (image folder)"
    assert seen[-1] == (20, 20)


@pytest.mark.parametrize("name", ["", "not there"])
def test_load_cifar10_refuses_a_folder_without_images(tmp_path, name):
    with pytest.raises(DataError) as caught:
        load_cifar10(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
