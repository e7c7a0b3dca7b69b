import json
import subprocess
import sys
import tarfile

import pytest
import torch
from small_benchmarks import CPU, TOY, arguments, script, stored

from benchmarks import accuracy, baseline, campaign, gpu, input, scaling, step, study
from onecycle.errors import DataError, UsageError


def test_every_section_of_the_gpu_command_runs_on_a_cpu_at_toy_size(tmp_path, in_process):
    small = campaign.DESIGN.read_text("utf-8")
    for old, new in (
        ("val = 5000", "val = 200\nlimit_train = 48\nlimit_test = 30"),
        ("[recipe]", "[recipe]\nepochs = 2\nbatch_size = 16"),
        ("sharpness_from = 19", "sharpness_from = 1"),
    ):
        assert old in small
        small = small.replace(old, new)
    (tmp_path / "small.toml").write_text(small)
    toy = {
        "screening": ["--design", str(tmp_path / "small.toml")],
        "halving": [*TOY[2:], "--val", "200", "--epochs", "1"],
        "chosen": [*TOY[2:]],
        "accuracy": [*TOY[2:]],
        "speedrun": [*TOY[2:]],
        "speedrun_epochs": [*TOY[2:], "--val", "200"],
        "step": ["--images", "48", "--batch-size", "16", "--rounds", "1", "--product", "16"],
        "input": ["--images", "40", "--batch-size", "8", "--rounds", "1", "--seconds", "0.01",
                  "--workers", "0"],
        "baseline": ["--images", "48", "--batch-size", "16", "--rounds", "2"],
        "scaling": ["--images", "64", "96", "--batch-size", "16", "--epochs", "1", "2",
                    "--rounds", "1"],
    }  # fmt: skip
    chosen = gpu.sections([0], None)
    assert {section.name for section in chosen} == set(toy)
    for section in chosen:
        main = {"accuracy.py": accuracy, "step.py": step, "input.py": input,
                "baseline.py": baseline, "scaling.py": scaling, "study.py": study}[section.script].main  # fmt: skip
        follow = section.follow(tmp_path) if section.follow else []
        options = [*section.options, *follow, *toy[section.name], "--data-dir", "digits", *CPU]
        main([*options, "--out", str(tmp_path / f"{section.name}.json")])
        result = stored(tmp_path / f"{section.name}.json")
        assert result["summary"] and not any("failed" in run for run in result["runs"]), (
            section.name
        )


FASTEST = """
json.dump({"machine": {"device_name": "card"}, "summary": {"fastest_loop": "default"}},
          open(out, "w"))
"""
SAY = "json.dump({'runs': sys.argv[1:], 'summary': {}}, open(out, 'w'))"


@pytest.mark.parametrize(
    ("card", "mode"), [("card", "default"), ("another card", "reduce-overhead")]
)
def test_the_sections_take_the_mode_that_was_fastest_on_this_card(
    tmp_path, monkeypatch, card, mode
):
    monkeypatch.setattr(gpu, "probe_compiler", lambda mode, seconds: "")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: card)
    step, other = script(tmp_path, "a.py", FASTEST), script(tmp_path, "b.py", SAY)
    chosen = [gpu.Section("step", step, (), 60, 0), gpu.Section("other", other, (), 60, 0)]
    args = arguments(tmp_path)
    args.device = "cuda"

    def taken():
        words = json.loads((tmp_path / "out" / "other.json").read_text("utf-8"))["runs"]
        return words[words.index("--compile") + 1]

    gpu.run_all(chosen, args)
    assert taken() == mode
    args.only = ["other"]  # in a call of its own too, which keeps what the first one said
    done = gpu.run_all(chosen[1:], args)
    assert taken() == mode == done["compile"]
    assert done["sections"]["step"]["said"] == "done"


@pytest.mark.parametrize(
    ("failing", "mode"),
    [
        ((), ["--compile", "reduce-overhead"]),
        (("reduce-overhead",), ["--compile", "default"]),
        (("reduce-overhead", "default"), []),
    ],
)
def test_the_compiler_is_used_in_the_first_mode_that_works(monkeypatch, failing, mode):
    monkeypatch.setattr(gpu, "probe_compiler", lambda mode, _: "no" if mode in failing else "")
    taken, said = gpu.working_mode()
    assert taken == mode
    assert said == ("works" if not failing else "".join(f"{name}: no\n" for name in failing))


def test_a_section_follows_what_an_earlier_one_left(tmp_path):
    follow = lambda out: ["--chosen", json.loads((out / "first.json").read_text())["best"]]

    def lacking(out):
        raise UsageError("nothing to go on with")

    say = script(tmp_path, "b.py", SAY)
    chosen = [
        gpu.Section("first", script(tmp_path, "a.py", "json.dump({'best': 'P1'}, open(out, 'w'))"),
                    (), 60, 0),
        gpu.Section("second", say, (), 60, 0, follow),
        gpu.Section("third", say, (), 60, 0, lacking),
    ]  # fmt: skip
    done = gpu.run_all(chosen, arguments(tmp_path))
    words = json.loads((tmp_path / "out" / "second.json").read_text("utf-8"))["runs"]
    assert words[words.index("--chosen") + 1] == "P1"
    assert done["sections"]["third"]["said"] == "left out: nothing to go on with"


def test_a_campaign_is_told_to_end_before_its_section_is_ended(tmp_path):
    section = gpu.sections([0], None)[0]
    command = gpu.command_of(section, tmp_path, ["--compile", "default"], arguments(tmp_path), 260)
    assert command[command.index("--most-seconds") + 1] == "250"
    assert command[command.index("--compile") + 1] == "default"


def test_a_section_that_lacked_time_is_not_done_and_goes_on_when_it_is_named(tmp_path):
    text = """
from pathlib import Path
before = json.loads(Path(out).read_text())["runs"] if Path(out).exists() else 0
json.dump({"runs": before + 1, "summary": {}, "missing": [["a", 0]] * (1 - before)}, open(out, "w"))
"""
    chosen = [gpu.Section("works", script(tmp_path, "a.py", text), (), 60, 0)]
    args = arguments(tmp_path)
    runs = lambda: json.loads((tmp_path / "out" / "works.json").read_text("utf-8"))["runs"]
    said = lambda: gpu.run_all(chosen, args)["sections"]["works"]["said"]
    assert (said(), runs()) == ("no time for 1 of its runs", 1)
    assert (said(), runs()) == ("no time for 1 of its runs", 1)  # afresh
    args.only = ["works"]
    assert (said(), runs()) == ("done", 2)


def test_a_part_is_done_when_its_own_sections_are(tmp_path, monkeypatch):
    works = gpu.Section("works", script(tmp_path, "d.py", "write([4])"), (), 60, 0)
    other = gpu.Section("other", works.script, (), 60, 0)
    monkeypatch.setattr(gpu, "sections", lambda seeds, references: [works, other])
    (tmp_path / "gpu.json").write_text(json.dumps({"sections": {"step": {"said": "left out"}}}))
    options = ["--data-dir", "digits", "--device", "cpu", "--out", str(tmp_path), "--only", "works"]
    (tmp_path / "other.json").write_text("{}")
    assert set(gpu.main(options)["sections"]) == {"step", "works"}
    assert (tmp_path / "other.json").read_text() == "{}"
    with pytest.raises(UsageError, match="--only typo: the sections are works, other"):
        gpu.main([*options, "typo"])


def test_a_section_that_fails_or_hangs_is_recorded_and_the_next_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "END_S", 2.0)
    tidy = "try: time.sleep(600)\nfinally: write([2])"  # as one that has started a reference
    deaf = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); write([5]); time.sleep(600)"
    )
    chosen = [
        gpu.Section(
            "fails", script(tmp_path, "a.py", "write([1]); raise OSError('no')"), (), 60, 0
        ),
        gpu.Section("hangs", script(tmp_path, "b.py", tidy), (), 3, 0),
        gpu.Section("deaf", script(tmp_path, "e.py", deaf), (), 3, 0),
        gpu.Section("long", script(tmp_path, "c.py", "write([3])"), (), 60, 1000),
        gpu.Section("works", script(tmp_path, "d.py", "write([4])"), (), 60, 0),
    ]
    done = gpu.run_all(chosen, arguments(tmp_path))
    said = {name: row["said"] for name, row in done["sections"].items()}
    assert "OSError: no" in said["fails"] and "its time" in said["hangs"]
    assert "its time" in said["deaf"] and "left out" in said["long"] and said["works"] == "done"
    results = {
        name: json.loads((tmp_path / "out" / f"{name}.json").read_text("utf-8"))
        for name in ("fails", "hangs", "works")
    }
    assert results["fails"]["runs"] == [1] and "OSError" in results["fails"]["broken_off"]
    assert results["hangs"]["runs"] == [2] and results["works"] == {"runs": [4], "summary": {}}
    assert json.loads((tmp_path / "out" / "gpu.json").read_text("utf-8")) == done


def test_the_images_may_be_an_archive(tmp_path):
    inside = tmp_path / "cifar"
    (inside / "train" / "cat").mkdir(parents=True)
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
        archive.add(inside, "cifar")
    found = gpu.find_images(str(tmp_path / "images.tar.gz"), tmp_path / "scratch")
    assert (found / "train" / "cat").is_dir()
    with pytest.raises(DataError, match="neither a folder nor an archive"):
        gpu.find_images(str(tmp_path / "nothing.tar"), tmp_path)
    with pytest.raises(UsageError, match="DATA"):
        gpu.find_images(None, tmp_path)


def test_the_batched_path_needs_none_of_what_a_gpu_machine_may_lack():
    script = """
import sys
lacking = ["albumentations", "cv2", "torch_lr_finder", "torchsummary"]
sys.modules.update(dict.fromkeys(lacking))
import torch
from benchmarks import accuracy, baseline, gpu, input, references, scaling, step
from benchmarks.training import make_run, plain_recipe, random_images
from onecycle.training.compute import Compute
images = random_images(8)
run = make_run(plain_recipe(4, 2), (images, images), Compute(torch.device("cpu")))
for loader in (run.train_loader, run.test_loader):
    assert next(iter(loader))[0].shape[1:] == (3, 32, 32)
assert any("--set" in section.options for section in gpu.sections([0], None))
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=gpu.ROOT)
