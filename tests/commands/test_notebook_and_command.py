"""A run may be begun in a notebook or a script, be killed, and resume by the command, and vice versa."""

import dataclasses

import pytest
from small_runs import die, in_child
from tiny_network import WORDS, Tiny, make_quick

from onecycle import PRESETS, Run, commands, load_digits

RECIPE = dataclasses.replace(PRESETS["digits"], epochs=3, batch_size=16, lr_max=0.01)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    make_quick(monkeypatch)


def by_run(out, *callbacks):
    train, test = load_digits()
    return Run(
        out, (train.sample(64), test.sample(20)), Tiny, RECIPE,
        callbacks=callbacks, device="cpu", precision="float32", save_every_s=0,
    )  # fmt: skip


def by_command(out):
    return commands.main([*WORDS, "--out", str(out)])


class Killed:
    """Kills the process after a step."""

    def on_step(self, epoch, step, accuracy):
        if step.step == 6:
            die()


def weights_and_steps(out):
    return [(out / name).read_bytes() for name in ("model.safetensors", "steps.csv")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        out = tmp_path_factory.mktemp("whole")
        assert by_command(out) == 0
        return weights_and_steps(out)


def test_begun_by_run_and_resumed_by_the_command(whole, tmp_path):
    assert in_child(lambda: by_run(tmp_path, Killed()).save() and None) == -9
    assert (tmp_path / "last.ckpt").exists()
    assert by_command(tmp_path) == 0
    assert weights_and_steps(tmp_path) == whole


def test_begun_by_the_command_and_resumed_by_run(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(Tiny, "at", 8)
    monkeypatch.setattr(Tiny, "fault", staticmethod(die))
    assert in_child(lambda: by_command(tmp_path)) == -9
    monkeypatch.setattr(Tiny, "at", None)
    run = by_run(tmp_path)
    assert run.checkpoint.source == tmp_path / "last.ckpt"
    run.save()
    assert weights_and_steps(tmp_path) == whole


def test_a_finished_run_is_known_to_both(tmp_path, capsys):
    by_run(tmp_path).save()
    before = (tmp_path / "results.json").read_bytes()
    assert by_command(tmp_path) == 0
    assert "already complete (3 of 3 epochs)" in capsys.readouterr().out
    assert by_run(tmp_path).fit().epochs[-1].epoch == 3
    assert (tmp_path / "results.json").read_bytes() == before
