import os
import pickle
import shutil
import tarfile
from hashlib import md5, sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from onecycle.data.cifar10 import Cifar10Dataset, load_cifar10
from onecycle.data.dataset import (
    CIFAR10_CLASSES,
    CIFAR10_MEAN,
    CIFAR10_STD,
)
from onecycle.data.folder import load_folder
from onecycle.errors import DataError
from transformation import get_test_aug_transform


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def shuffled_labels(mix, seed=1):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(mix)), mix))


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


@pytest.mark.parametrize("given", ["", "cifar-10-batches-py", "c10.tgz"])
def test_load_cifar10_takes_the_official_layout(official, given, monkeypatch):
    if given == "c10.tgz":
        archive = official.root / given
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(official.folder, official.folder.name)
        shutil.rmtree(official.folder)
        digest = sha256(archive.read_bytes()).hexdigest()
        monkeypatch.setattr("onecycle.data.download.CIFAR10_SHA256", digest)
    for split, part in zip(("train", "test"), load_cifar10(official.root / given), strict=True):
        assert np.array_equal(part.data, official.images[split])
        assert np.array_equal(part.targets, official.labels[split])
        assert (part.source, part.name) == ("CIFAR-10", "test images")


def write_pictures(root, classes):
    """One training picture of noise per class, and one to test on; returns both as arrays."""
    pixels = {split: noise(len(classes), seed) for seed, split in enumerate(("train", "test"))}
    for split, images in pixels.items():
        for name, image in zip(classes, images, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            Image.fromarray(image).save(folder / "1.png")
    return pixels


def test_load_cifar10_prefers_the_official_files_to_pictures_beside_them(official):
    write_pictures(official.root, CIFAR10_CLASSES)
    parts = load_cifar10(official.root)
    assert [part.source for part in parts] == ["CIFAR-10", "CIFAR-10"]


@pytest.mark.parametrize("load", [load_cifar10, load_folder])
@pytest.mark.parametrize(
    "classes, source",
    [
        (CIFAR10_CLASSES, "CIFAR-10 (image folder)"),
        (CIFAR10_CLASSES[:9], "mine"),
        ((*CIFAR10_CLASSES[:9], "tram"), "mine"),
        ((*CIFAR10_CLASSES, "unicorn"), "mine"),
    ],
    ids=["its ten", "nine of them", "another tenth", "one more"],
)
def test_only_the_ten_class_names_of_cifar10_make_a_folder_cifar10(tmp_path, classes, source, load):
    pixels = write_pictures(tmp_path / "mine", classes)
    seen = []
    parts = load(str(tmp_path / "mine"), progress=lambda done, total: seen.append((done, total)))
    for split, part in zip(("train", "test"), parts, strict=True):
        assert np.array_equal(part.data, pixels[split])
        assert part.targets.tolist() == list(range(len(classes)))
        assert (part.classes, part.source, part.name) == (tuple(classes), source, "test images")
    count = 2 * len(classes)
    assert seen == [(done, count) for done in range(1, count + 1)]


def test_nothing_is_downloaded_into_folders_of_classes(tmp_path, monkeypatch):
    monkeypatch.setattr("onecycle.data.cifar10.download_cifar10", pytest.fail)
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(noise(1)[0]).save(tmp_path / name / f"{number}.png")
    train, _ = load_cifar10(tmp_path, download=True)
    assert train.classes == ("a", "b")


@pytest.mark.parametrize("name", ["pictures.zip", "labels.xlsx"])
def test_a_file_of_your_own_is_not_taken_for_a_damaged_download(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(DataError, match="no folder and no CSV file; .*unpack") as caught:
        load_cifar10(tmp_path / name)
    assert "delete" not in str(caught.value)
