import hashlib
import multiprocessing
import os
import signal
import socket
import time
from functools import partial
from threading import Timer

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from onecycle.data.loaders import EpochBatches, ResidentLoader
from onecycle.data.mixing import Mixing
from onecycle.errors import RunError, UsageError
from onecycle.training import waiting
from onecycle.training.averaging import KeptWeights
from onecycle.training.compute import Compute
from onecycle.training.criterion import WeightedCrossEntropy
from onecycle.training.group import Group, odd_one
from onecycle.training.inference import predict
from onecycle.training.joining import join_group, named_losses
from onecycle.training.loop import fit
from onecycle.training.signals import catch_signals

CPU = torch.device("cpu")


def images(count=52):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 6, 6, generator=generator, dtype=torch.float64)


def resident(count=52, batch_size=16, train=True, group=None):
    pixels, shares = images(count), {}
    labels = (pixels.mean((1, 2, 3)).argsort().argsort() * 4 // count).numpy()
    if group is not None:
        shares = {"rank": group.rank, "world_size": group.world_size}
    return ResidentLoader(
        lambda indices, epoch: pixels[indices] * (1 + epoch / 10), labels, batch_size,
        device=CPU, train=train, **shares,
    )  # fmt: skip


def network(bn):
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6) if bn else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 4)).double()


def training(group=None, *, bn=False, count=52, batch_size=16, epochs=2, **options):
    model = network(bn)
    optimizer = options.pop("optimizer", torch.optim.SGD)(model.parameters(), lr=0.5)
    criterion = options.pop("criterion", None) or nn.CrossEntropyLoss(label_smoothing=0.1)
    if options.pop("averaged", False):
        options["kept"] = KeptWeights(model, keep="average", average_steps=4)
    history = fit(
        model, resident(count, batch_size, group=group), resident(21, 4, False, group),
        optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        criterion, epochs=epochs, compute=Compute(CPU, group=group), **options,
    )  # fmt: skip
    if "kept" in options:
        options["kept"].apply()
    return model, history


def with_settings(group=None, **options):
    """Weights of classes, a clipped gradient and the average of the weights."""
    weighted = WeightedCrossEntropy(np.repeat([0, 1, 2, 3], [40, 7, 3, 2]), 4).double()
    return training(group, criterion=weighted, clip_norm=0.3, averaged=True, **options)


def losses(history):
    return [step.loss for step in history.steps], [
        (epoch.train_accuracy, epoch.test_accuracy) for epoch in history.epochs
    ]


def launched(rank, port, **other):
    """What a launcher sets."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **other,
    }  # fmt: skip
    torch.set_num_threads(1)


def said_by(call):
    """The error of a call, in words."""
    try:
        call()
    except RunError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def together(rank, port, folder, die_at):
    """What each of the two processes does; it leaves what it found in a file."""
    launched(rank, port)
    with join_group(CPU) as group:
        if die_at is not None:
            asked = iter(range(100))
            stop = lambda: os._exit(9) if rank == 1 and next(asked) == die_at else False  # noqa: E731
            training(group, stop=stop)
            return
        # As if the second process were the first of another machine, which has a lot to do.
        machine, done = Group(CPU, rank, 2, local_rank=1 - rank), folder / "done"
        with machine.one_by_machine_first():
            if rank == 1:
                sum(torch.randn(300, 300).inverse().sum() for _ in range(100))
                done.touch()
            was_done = done.exists()
        one_step, _ = training(group, count=15, batch_size=15, epochs=1)
        plain, history = training(group)
        with_bn, _ = training(group, bn=True)
        settings, _ = with_settings(group)
        mixed, mixed_history = with_settings(group, bn=True, mixing=Mixing(1.0, 1.0))
        asked = iter([False, False, rank == 1] + [False] * 50)
        _, stopped = training(group, stop=lambda: next(asked))
        predictions = {
            count: predict(
                plain, resident(count, 4, False, group), compute=Compute(CPU, group=group)
            )
            for count in (1, 2, 21)
        }
        digest = lambda model: hashlib.sha256(  # noqa: E731
            b"".join(value.numpy().tobytes() for value in model.state_dict().values())
        ).hexdigest()
        found = {
            "gradient step": one_step.state_dict(),
            "weights": plain.state_dict(),
            "losses": losses(history),
            "bn digest": digest(with_bn),
            "settings": settings.state_dict(),
            "mixed": (digest(mixed), losses(mixed_history)),
            "stopped after": len(stopped.steps),
            "predictions": {n: (p.probabilities, p.labels) for n, p in predictions.items()},
            "second machine came first": was_done,
            "agree": [group.agrees(rank < least) for least in (0, 1, 2)],
            "said by the first": group.same(f"process {rank}"),
            "compared": [
                said_by(partial(group.compare, values))
                for values in ({"recipe": {"seed": 0}}, {"recipe": {"seed": rank}, "data": "same"})
            ],
        }
        torch.save(found, folder / f"{rank}.pt")


def start(folder, die_at=None, target=together):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    both = [spawn.Process(target=target, args=(rank, port, folder, die_at)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(240)
        process.kill()
    return [process.exitcode for process in both]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    assert start(folder) == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_gradient_of_two_processes_is_that_of_one(found):
    # One step of rate 0.5 on 15 images, 8 and 7 of them: weights differ by half the gradients'.
    model, _ = training(count=15, batch_size=15, epochs=1)
    for name, value in model.state_dict().items():
        assert (value - found[0]["gradient step"][name]).abs().max() < 1e-12


def test_training_of_two_processes_is_that_of_one(found):
    model, history = training()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, found[0]["weights"][name], rtol=0, atol=1e-10)
    steps, accuracies = losses(history)
    np.testing.assert_allclose(found[0]["losses"][0], steps, rtol=1e-5)
    assert found[0]["losses"][1] == accuracies


def test_settings_of_two_processes_are_those_of_one(found):
    model, _ = with_settings()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, found[0]["settings"][name], rtol=0, atol=1e-10)
    assert found[0]["mixed"] == found[1]["mixed"]  # buffers of the average too


def test_processes_end_with_the_same(found):
    first, second = found
    assert first["bn digest"] == second["bn digest"]
    assert first["losses"] == second["losses"]
    assert first["said by the first"] == second["said by the first"] == "process 0"
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name])


def test_processes_of_a_machine_wait_for_its_first(found):
    assert all(each["second machine came first"] for each in found)


def test_processes_know_in_what_they_differ(found):
    said = "UsageError: process 1 has recipe.seed 1, process 0 has 0; start all processes"
    for each in found:
        assert each["compared"][0] == "" and each["compared"][1].startswith(said)


def test_processes_know_whether_they_agree(found):
    assert [each["agree"] for each in found] == [[True, False, True]] * 2


def test_a_wish_to_stop_in_one_process_stops_all_at_the_same_step(found):
    assert [each["stopped after"] for each in found] == [3, 3]


@pytest.mark.parametrize("count", [1, 2, 21])
def test_every_image_is_evaluated_once_and_in_its_place(found, count):
    model = network(bn=False)
    model.load_state_dict(found[0]["weights"])
    alone = predict(model, resident(count, 4, False))
    for each in found:
        probabilities, labels = each["predictions"][count]
        np.testing.assert_allclose(probabilities, alone.probabilities, rtol=1e-5)
        np.testing.assert_array_equal(labels, alone.labels)


@pytest.mark.parametrize("world_size", range(1, 9))
def test_shares_of_the_processes_are_all_images_once(world_size):
    for count in range(51):
        parts = [
            list(EpochBatches(count, 8, train=False, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        assert sorted(i for part in parts for batch in part for i in batch) == list(range(count))


def test_when_one_process_dies_the_other_ends_too(tmp_path):
    first, second = start(tmp_path, die_at=2)
    assert second == 9 and first not in (0, None, -9)  # it ended by itself, with an error


def wait_for(file, most_s):
    end = time.monotonic() + most_s
    while not file.exists() and time.monotonic() < end:
        os.sched_yield()


def waits(rank, port, folder, signal_number):
    """The second process never comes to where the first one waits, until that one is ended."""
    launched(rank, port)
    waiting.GRACE_S = waiting.SAID_AFTER_S = 0.4
    said = []
    with join_group(CPU, timeout_s=60 if signal_number else 1.0, say=said.append) as group:
        if rank == 1:
            wait_for(folder / "ended", 30)
            return
        note = lambda *words: (folder / "ended").write_text(repr((words, said)))  # noqa: E731
        group.watch.last_words.append(note)
        if signal_number:
            Timer(0.5, lambda: os.kill(os.getpid(), signal_number)).start()
        with catch_signals():
            note(said_by(lambda: lost(lambda: group.sum(torch.ones(1)))))


def lost(call):
    with named_losses(1.0):
        call()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGTERM, 143, "ended by SIGTERM"),
     (None, 0, "WorkerError: another process of the group is gone (no sign of it")],
)  # fmt: skip
def test_a_process_that_waits_says_so_and_can_be_stopped(tmp_path, number, code, said):
    assert start(tmp_path, number, target=waits)[0] == code
    noted = (tmp_path / "ended").read_text()
    assert said in noted and "waiting for the other processes (their measurements)" in noted


def comes_twice(rank, port, folder, _):
    launched(0, port, TORCHELASTIC_USE_AGENT_STORE="True")
    found = said_by(lambda: join_group(CPU, timeout_s=5.0).__enter__())
    (folder / f"{rank}").write_text(found)


def test_two_processes_of_one_rank_are_refused(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    spawn = multiprocessing.get_context("spawn")
    both = [spawn.Process(target=comes_twice, args=(n, port, tmp_path, None)) for n in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    said = sorted((tmp_path / name).read_text() for name in "01")
    assert said[0].startswith("UsageError: two processes have RANK 0")
    assert said[1].startswith("WorkerError: process 1 of 2 did not come")
    assert store.check(["onecycle/0/about 0"])


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in {
            "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(taken.getsockname()[1]),
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match="MASTER_PORT .* in use"), join_group(CPU):
            pass


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([{"seed": 1}, {"seed": 0}, {"seed": 0}], "process 0 on a has seed 1, process 1 on b has 0"),
        ([{"seed": 0}, {"seed": 0}, {"--val": 3, "seed": 0}],
         "process 2 on b has --val 3, process 0 on a has none"),
        ([{"a": [1.0, None]}] * 3, ""),
    ],
)  # fmt: skip
def test_the_odd_process_is_the_one_that_differs_from_most(values, said):
    assert odd_one(["a", "b", "b"], values) == said


def test_without_torchrun_there_is_a_group_of_one(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with join_group(CPU) as group:
        assert (group.rank, group.world_size) == (0, 1)
        module = nn.Linear(2, 2)
        assert group.wrap(module) is module and group.same("x") == "x"


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="there are 2; lower --nproc-per-node"):
        with join_group(torch.device("cuda")):
            pass


def test_several_processes_on_mps_are_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="without torchrun, or on cpu"):
        with join_group(torch.device("mps")):
            pass


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "x", "RANK": "0"}, "WORLD_SIZE is 'x'"),
        ({"WORLD_SIZE": "2", "RANK": "-1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK is '-1'"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT is not set"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE is 0; it must be 1 or more"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2; it must be from 0 to 1"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "99999"},
            "MASTER_PORT is 99999; it must be from 1 to 65535",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a..b", "MASTER_PORT": "1"},
            "MASTER_ADDR is 'a..b', which is not known here",
        ),
    ],
)
def test_variables_of_the_launcher_that_make_no_sense_are_named(monkeypatch, variables, said):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=said), join_group(torch.device("cpu")):
        pass


def test_empty_variables_of_the_launcher_are_none(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.setenv(name, "")
    with join_group(torch.device("cpu")) as group:
        assert (group.rank, group.world_size) == (0, 1)
