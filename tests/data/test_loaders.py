import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import albumentations as A
import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from onecycle.data.batches import get_train_batch_transform
from onecycle.data.dataset import ImageDataset
from onecycle.data.loaders import (
    EpochBatches,
    ResidentLoader,
    SeededLoader,
    fits_device,
    get_loader,
)
from onecycle.data.workers import AHEAD
from onecycle.errors import DataError, UsageError, WorkerError
from transformation import get_train_aug_transform

CPU = torch.device("cpu")


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
def test_nor_does_a_part_or_a_sum_of_data_sets(num_workers):
    parts = [Subset(dataset(transform=Draws()), range(5, 25)) for _ in range(2)]
    both = ConcatDataset(parts)
    first, again = (
        torch.cat(epochs_of(get_loader(both, 10, train=True, num_workers=num_workers), 3))
        for _ in range(2)
    )
    assert len(first.unique()) == 120
    assert torch.equal(first, again)


class Handlers(Dataset):
    """Whether the process that loads it ignores Ctrl-C."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor(signal.getsignal(signal.SIGINT) is signal.SIG_IGN), 0


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_leave_ctrl_c_to_the_process_that_can_save(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    batches = EpochBatches(4, 4, train=False)
    loader = SeededLoader(Handlers(), batches, num_workers=1, multiprocessing_context=method)
    ((ignored, _),) = loader
    assert ignored.all()
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


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
    [
        (41, 0, r"batch_size is 41, more than the 40 .*; try batch_size=4 \(--batch-size 4\)"),
        (8, -1, r"num_workers is -1 \(--workers\); it must be 0 or more"),
        (0, 0, "batch_size is 0; it must be 2 or more"),
        (-4, 0, "batch_size is -4; it must be 2 or more"),
    ],
)
def test_what_cannot_be_loaded_is_refused(batch_size, num_workers, message):
    with pytest.raises(UsageError, match=message):
        get_loader(dataset(), batch_size, train=True, num_workers=num_workers)


@pytest.mark.parametrize(
    ("count", "world_size", "fitting"),
    [(2, 1, 2), (17, 1, 2), (240, 1, 16), (256, 1, 32), (1437, 1, 128), (40, 4, 8), (8, 4, 8)],
)
def test_the_batch_size_that_is_advised_is_accepted(count, world_size, fitting):
    with pytest.raises(UsageError, match=f"try batch_size={fitting} "):
        EpochBatches(count, count + 1, True, world_size=world_size)
    assert len(EpochBatches(count, fitting, True, world_size=world_size)) >= min(
        8, count // fitting
    )


def resident(count=40, batch_size=16, **options):
    """A loader whose images are (index, epoch), so that a batch tells what it is."""

    def transform(indices, epoch):
        return torch.stack((indices, torch.full_like(indices, epoch)), dim=1)

    options = {"train": True} | options
    return ResidentLoader(transform, np.arange(count) % 10, batch_size, device=CPU, **options)


@pytest.mark.parametrize("make", [resident, lambda: get_loader(dataset(), 16, train=True)])
def test_iterating_leaves_the_global_random_numbers_alone(make):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for _ in make():
        pass
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_both_loaders_go_through_the_images_in_the_same_order():
    # Else one option would change two things.
    seeded = get_loader(dataset(), 16, train=True, seed=3)
    loader = resident(seed=3)
    for epoch in (1, 2):
        seeded.set_epoch(epoch)
        loader.set_epoch(epoch)
        expected = loader.indices()
        assert torch.equal(seeded.indices(), expected)
        labels = torch.cat([labels for _, labels in seeded])
        assert torch.equal(labels, expected % 10)
        assert torch.equal(torch.cat([images for images, _ in loader])[:, 0], expected)


def test_resident_loader_sees_every_image_once_in_another_order_each_epoch_and_seed():
    def order(seed, epoch):
        loader = resident(seed=seed)
        loader.set_epoch(epoch)
        batches = list(loader)
        images, labels = (torch.cat(parts) for parts in zip(*batches))
        assert [len(labels) for _, labels in batches] == [16, 16, 8]
        assert torch.equal(labels, images[:, 0] % 10) and (images[:, 1] == epoch).all()
        return tuple(images[:, 0].tolist())

    orders = {order(seed, epoch) for seed in (0, 1) for epoch in (1, 2, 3)}
    assert len(orders) == 6
    assert all(sorted(order) == list(range(40)) for order in orders)


def test_each_iteration_goes_on_to_the_next_epoch():
    loader = resident()
    loader.set_epoch(4)
    assert [int(next(iter(loader))[0][0, 1]) for _ in range(3)] == [4, 5, 6]


@pytest.mark.parametrize("start", range(4))
def test_resident_loader_goes_on_in_the_middle_of_an_epoch(start):
    whole, rest = resident(), resident()
    whole.set_epoch(7)
    rest.set_epoch(7, start)
    assert len(rest.indices()) == sum(rest.global_batch(i) for i in range(start, 3))
    assert len(rest) == 3
    tail = list(rest)
    assert len(tail) == 3 - start
    for (images, labels), (expected, expected_labels) in zip(tail, list(whole)[start:]):
        assert torch.equal(images, expected) and torch.equal(labels, expected_labels)
    assert len(list(rest)) == 3  # the next epoch is whole again


@pytest.mark.parametrize(("num_workers", "start"), [(0, 0), (0, 2), (0, 3), (2, 1), (2, 2)])
def test_seeded_loader_goes_on_with_the_augmentation_of_an_unbroken_epoch(num_workers, start):
    def loader():
        transform = get_train_aug_transform((0.5,) * 3, (0.25,) * 3)
        return get_loader(dataset(transform=transform), 16, train=True, num_workers=num_workers)

    whole, rest = loader(), loader()
    whole.set_epoch(2)
    rest.set_epoch(2, start)
    expected, tail = list(whole), list(rest)
    assert len(tail) == 3 - start
    for (images, labels), (expected_images, expected_labels) in zip(tail, expected[start:]):
        assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


def test_a_start_outside_the_epoch_is_refused():
    for start in (-1, 4):
        with pytest.raises(UsageError, match=f"start is {start}; .* the 3 batches"):
            resident().set_epoch(1, start)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 16, 20])
def test_the_shares_of_all_processes_are_the_batch(world_size, train, batch_size):
    if train and batch_size < 2 * world_size:
        with pytest.raises(UsageError, match="batch_size"):
            EpochBatches(40, batch_size, train, world_size=world_size)
        return
    for count in range(batch_size if train else 0, batch_size + 40):
        everything = EpochBatches(count, batch_size, train, seed=1)
        everything.set_epoch(3)
        order = everything.order().tolist()
        ranks = [
            EpochBatches(count, batch_size, train, 1, r, world_size) for r in range(world_size)
        ]
        for batches in ranks:
            batches.set_epoch(3)
        shares = [list(batches) for batches in ranks]
        assert [len(batches) for batches in ranks] == [len(share) for share in shares]
        seen = 0
        for i in range(ranks[0].num_global):
            parts = [share[i] for share in shares if i < len(share)]
            assert all(parts)
            size = ranks[0].global_batch(i)
            assert sorted(sum(parts, [])) == sorted(order[seen : seen + size])
            if train:
                assert len(parts) == world_size and min(map(len, parts)) >= 2
            seen += size
        # Training goes without a last batch that is too small; evaluation never does.
        assert count - seen < (2 * world_size if train else 1)
        assert train or order == list(range(count))


def test_distributed_evaluation_can_place_its_rows():
    found = torch.full((41,), -1)
    for rank in range(3):
        loader = resident(41, 16, train=False, rank=rank, world_size=3)
        indices = loader.indices()
        found[indices] = torch.cat([labels for _, labels in loader])
    assert found.tolist() == [i % 10 for i in range(41)]


def test_an_image_does_not_depend_on_batch_size_process_or_resumption():
    images = dataset().data
    kept, sent = (
        get_train_batch_transform(
            images, (0.5,) * 3, (0.25,) * 3, device=CPU, seed=5, resident=resident
        )
        for resident in (True, False)
    )

    def by_index(start=0, transform=kept, **options):
        loader = ResidentLoader(transform, np.arange(40), device=CPU, train=True, **options)
        loader.set_epoch(2, start)
        return {int(i): image for batch, labels in loader for image, i in zip(batch, labels)}

    expected = by_index(batch_size=40)
    for found in (
        by_index(transform=sent, batch_size=7),
        by_index(transform=sent, start=2, batch_size=8),
        by_index(batch_size=7),
        by_index(start=2, batch_size=8),
        by_index(batch_size=20, rank=1, world_size=2),
        by_index(batch_size=20, rank=0, world_size=3, seed=9),
    ):
        assert found
        assert all(torch.equal(image, expected[i]) for i, image in found.items())


def test_images_that_are_not_kept_are_read_a_few_batches_ahead_and_no_further():
    asked = []

    def fetch(indices):
        asked.append(indices)
        if set(indices.tolist()) & lost:
            raise OSError("the disk is gone")
        return indices

    def transform(indices, epoch, fetched):
        assert torch.equal(indices, fetched)
        return fetched[:, None]

    transform.fetch = fetch
    loader = ResidentLoader(transform, np.arange(40), 4, device=CPU, train=True)
    lost, before = set(), threading.active_count()
    batches = iter(loader)
    next(batches)
    batches.close()  # as a training that is stopped
    assert len(asked) <= AHEAD and threading.active_count() == before
    lost = {int(loader.indices()[30])}
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        for images, labels in loader:
            assert torch.equal(images[:, 0], labels)
            seen.append(labels)
    assert len(seen) == 7


def test_processes_of_the_albumentations_path_do_not_draw_alike():
    draws = [
        torch.cat(epochs_of(get_loader(dataset(transform=Draws()), 20, train=True, **options), 1))
        for options in ({"rank": 0, "world_size": 2}, {"rank": 1, "world_size": 2})
    ]
    assert len(torch.cat(draws).unique()) == 40


def test_images_take_half_of_what_a_device_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    assert fits_device(500, torch.device("cuda")) and not fits_device(501, torch.device("cuda"))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 100}.get)
    assert fits_device(500, CPU) and not fits_device(501, CPU)


class Broken(ImageDataset):
    """Image 21 does what ``fault`` says."""

    def __getitem__(self, index):
        if index == 21:
            self.fault()
        return super().__getitem__(index)


def raise_error():
    raise ValueError("no such picture")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(1000)


def broken(fault, num_workers, batch_size=8, **options):
    images = dataset()
    broken = Broken(images.data, images.targets, images.classes, "test", None)
    broken.fault = fault
    return get_loader(broken, batch_size, train=False, num_workers=num_workers, **options)


def seen_before(loader, error, match):
    """The number of batches before ``error``; no process may be left."""
    seen = 0
    with pytest.raises(error, match=match) as caught:
        for _ in loader:
            seen += 1
    assert caught.tb is not None  # while it is kept, as a notebook does
    for process in multiprocessing.active_children():
        process.join(10)
        assert not process.is_alive()
    return seen


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_set_that_raises_names_the_image(num_workers):
    loader = broken(raise_error, num_workers)
    match = "epoch 0, batch 2: image 21 cannot be loaded: ValueError: no such picture"
    assert seen_before(loader, DataError, match) == 2


def test_a_worker_that_dies_is_named_with_a_way_out():
    match = r"(?s)worker.*(killed|exited).*use fewer workers, or none \(--workers 0"
    assert seen_before(broken(die, 2), WorkerError, match) <= 2


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError, ConnectionRefusedError])
def test_a_worker_that_dies_while_it_hands_over_a_batch_is_named_too(error, monkeypatch):
    # Now and then the broken connection is noticed before the death, and torch lets it through.
    iterator = torch.utils.data.dataloader._MultiProcessingDataLoaderIter

    def break_off(self):
        raise error

    monkeypatch.setattr(iterator, "_next_data", break_off)
    match = f"batch 0: DataLoader worker exited: {error.__name__}; .*use fewer workers"
    assert seen_before(broken(hang, 1), WorkerError, match) == 0


@pytest.mark.parametrize(
    ("said", "error", "match"),
    [
        ("DataLoader worker (pid 1) is killed by signal: Killed. ", WorkerError, "--workers 0"),
        ("no more threads", RuntimeError, "^no more threads$"),
    ],
)
def test_a_worker_that_dies_before_the_first_batch_is_asked_for_is_named_too(
    monkeypatch, said, error, match
):
    def start(self):
        raise RuntimeError(said)

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", start)
    with pytest.raises(error, match=match) as caught:
        iter(get_loader(dataset(), 8, train=False))
    assert type(caught.value) is error


def test_a_death_that_is_told_of_while_the_workers_end_leaves_none_behind(monkeypatch):
    gc.collect()  # the iterators of earlier tests would make the first call
    iterator = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    end, calls = iterator._shutdown_workers, []

    def end_late(self):
        calls.append(self)
        if len(calls) == 1:
            raise WorkerError("told of by the signal handler, as the function begins")
        end(self)

    monkeypatch.setattr(iterator, "_shutdown_workers", end_late)
    match = "epoch 0, batch 2: image 21 cannot be loaded"
    assert seen_before(broken(raise_error, 2), DataError, match) == 2
    assert calls[0] is calls[1]


def test_a_worker_that_hangs_is_given_up():
    match = "epoch 0, batch [0-2]: DataLoader timed out after 2 seconds.*--workers 0"
    assert seen_before(broken(hang, 1, timeout_s=2), WorkerError, match) <= 2


def test_a_worker_that_dies_while_the_program_does_something_else_is_named_too():
    batches = iter(broken(die, 1, batch_size=40))
    with pytest.raises(WorkerError, match="--workers 0"):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            pass
    del batches


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"sampler": [0, 1]}, "sampler is no option .* Subset"),
        ({"shuffle": False}, "shuffle .* train=False"),
        ({"persistent_workers": True}, "persistent_workers .* anew"),
        ({"collate_fn": list}, "collate_fn is no option"),
        ({"batchsize": 4}, "batchsize is no option of get_loader: it has seed, .*prefetch_factor"),
    ],
)
def test_options_that_contradict_the_loader_are_refused_by_name(option, said):
    with pytest.raises(UsageError, match=said):
        get_loader(TensorDataset(torch.zeros(10, 3), torch.zeros(10)), 4, train=True, **option)


def test_a_smaller_last_batch_is_left_out_if_that_is_asked_for():
    data = TensorDataset(torch.zeros(10, 3), torch.zeros(10))
    sizes = [len(labels) for _, labels in get_loader(data, 4, train=True, drop_last=True)]
    assert sizes == [4, 4]
    assert len(get_loader(data, 4, train=True)) == 3
    assert len(get_loader(data, 5, train=True, drop_last=True, seed=1)) == 2
    with pytest.raises(UsageError, match="drop_last is True with train=False"):
        get_loader(data, 4, train=False, drop_last=True)


def test_other_options_of_dataloader_are_passed_on():
    data = TensorDataset(torch.zeros(10, 3), torch.zeros(10))
    assert get_loader(data, 4, train=True, num_workers=1, prefetch_factor=3).prefetch_factor == 3


OF_A_NOTEBOOK = """
import torch
from torch.utils.data import Dataset, Subset
from onecycle.data.loaders import get_loader
from onecycle.errors import UsageError

class Own(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.zeros(3, 4, 4), 0

for data in (Own(), Subset(Own(), range(8))):
    for method in ("spawn", "forkserver"):
        try:
            list(get_loader(data, 4, train=True, num_workers=1, multiprocessing_context=method))
        except UsageError as error:
            print(error)
assert len(list(get_loader(Own(), 4, train=True, num_workers=1, multiprocessing_context="fork")))
"""


def test_a_data_set_of_a_notebook_is_refused_where_workers_start_anew():
    done = subprocess.run(
        [sys.executable, "-c", OF_A_NOTEBOOK], capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    assert len(said) == 4 and all("Own" in line and ".py file" in line for line in said)


def test_a_transform_that_cannot_be_sent_is_named_and_memory_is_not():
    data = ImageDataset(
        np.zeros((8, 8, 8, 3), np.uint8), [0, 1] * 4, ["a", "b"], "test", lambda x: x
    )
    loader = get_loader(data, 4, train=True, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(UsageError, match=r"lambda.*\.py file"):
        next(iter(loader))
