import socket

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as load_sklearn_digits

from onecycle.data.digits import load_digits
from onecycle.errors import UsageError


def same_images(one, other):
    return np.array_equal(one.data, other.data) and np.array_equal(one.targets, other.targets)


@pytest.fixture(scope="module")
def digits():
    return load_digits()


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
