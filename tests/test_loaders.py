import albumentations as A
import numpy as np
import pytest
import torch

from data import ImageDataset
from errors import UsageError
from loaders import get_loader
from transformation import get_train_aug_transform


class Draws:
    """A transform that gives the next draw of its stream in place of an image."""

    def set_random_state(self, generator, _python):
        self.generator = generator

    def __call__(self, image):
        return {"image": torch.tensor(self.generator.random())}


def dataset(count=40, transform=None):
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return ImageDataset(images, np.arange(count) % 10, list("abcdefghij"), "test", transform)


def epochs_of(loader, count):
    return [torch.cat([images for images, _ in loader]) for _ in range(count)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_worker_and_no_epoch_repeats_a_draw(num_workers):
    loader = get_loader(dataset(transform=Draws()), 10, train=True, num_workers=num_workers)
    draws = torch.cat(epochs_of(loader, 3))
    assert len(draws.unique()) == 120


@pytest.mark.parametrize("num_workers", [0, 2])
def test_transforms_of_a_pipeline_draw_independently(num_workers):
    # Seeded alike, both flips would always fall together.
    flips = A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    images = dataset(200, flips)
    images.data = np.zeros_like(images.data)
    images.data[:, 0, 0] = 1  # which corner it ends in tells both draws
    loader = get_loader(images, 50, train=True, num_workers=num_workers)
    corners = torch.cat(epochs_of(loader, 2))[:, [0, 0, -1, -1], [0, -1, 0, -1], 0]
    assert corners.sum(0).min() > 60  # 100 of 400 expected in each


@pytest.mark.parametrize("num_workers", [0, 2])
def test_same_seed_same_batches_and_another_seed_others(num_workers):
    def batches(seed):
        transform = get_train_aug_transform((0.5,) * 3, (0.25,) * 3)
        loader = get_loader(
            dataset(transform=transform), 16, train=True, seed=seed, num_workers=num_workers
        )
        return epochs_of(loader, 2)

    first, again, other = batches(1), batches(1), batches(2)
    for a, b, c in zip(first, again, other):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    assert not torch.equal(first[0], first[1])


def test_an_epoch_can_be_drawn_alone():
    loader = get_loader(dataset(transform=Draws()), 10, train=True)
    third = epochs_of(loader, 3)[2]
    fresh = get_loader(dataset(transform=Draws()), 10, train=True)
    fresh.set_epoch(2)
    assert torch.equal(epochs_of(fresh, 1)[0], third)


def test_global_seeds_and_generators_are_left_alone():
    loader = get_loader(dataset(transform=Draws()), 10, train=True)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    torch.manual_seed(5)
    epochs_of(loader, 1)
    assert torch.equal(torch.rand(3), expected)


def test_training_sees_every_image_once_in_another_order_each_epoch():
    loader = get_loader(dataset(transform=lambda image: {"image": torch.tensor(0)}), 16, train=True)
    loader.dataset.dataset.targets = np.arange(40)
    orders = [torch.cat([labels for _, labels in loader]).tolist() for _ in range(2)]
    for order in orders:
        assert sorted(order) == list(range(40))
    assert orders[0] != orders[1] != list(range(40))


def test_evaluation_keeps_the_order():
    loader = get_loader(dataset(transform=Draws()), 16, train=False)
    assert torch.cat([labels for _, labels in loader]).tolist() == [i % 10 for i in range(40)]


def test_a_last_batch_of_one_is_dropped_in_training_and_kept_in_evaluation():
    sizes = {
        train: [len(labels) for _, labels in get_loader(dataset(33, Draws()), 16, train=train)]
        for train in (True, False)
    }
    assert sizes == {True: [16, 16], False: [16, 16, 1]}
    assert [len(y) for _, y in get_loader(dataset(34, Draws()), 16, train=True)] == [16, 16, 2]


@pytest.mark.parametrize(
    ("batch_size", "num_workers", "message"),
    [(41, 0, "batch_size is 41, more than the 40"), (8, -1, "workers is -1")],
)
def test_what_cannot_be_loaded_is_refused(batch_size, num_workers, message):
    with pytest.raises(UsageError, match=message):
        get_loader(dataset(), batch_size, train=True, num_workers=num_workers)
