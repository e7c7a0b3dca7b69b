"""What scripts/publish.py puts into pages is what the results files say, whole or not at all."""

import json
import re
import shutil
from pathlib import Path

import publish as script
import pytest

from onecycle.errors import CheckpointError
from onecycle.recipe import PRESETS, Recipe

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def publish():
    return script


@pytest.fixture
def results(publish):
    return publish.read(publish.RESULTS / "results.json")


@pytest.fixture
def moved(publish, tmp_path, monkeypatch):
    """The script with its results, weights, pictures and pages in an empty folder."""
    root = tmp_path / "root"
    shutil.copytree(publish.RESULTS, root / "results" / "cifar10")
    shutil.copytree(publish.WEIGHTS.parent, root / "weights")
    monkeypatch.setattr(publish, "PAGES", [root / page.relative_to(ROOT) for page in publish.PAGES])
    for page in publish.PAGES:
        page.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / page.relative_to(root), page)
    for name in ("RESULTS", "EVALUATION", "WEIGHTS"):
        monkeypatch.setattr(publish, name, root / getattr(publish, name).relative_to(ROOT))
    monkeypatch.setattr(publish, "ROOT", root)
    return publish


@pytest.fixture
def run(publish, results, tmp_path):
    """A whole run of the assignment, with contents of its own."""
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    for name in (*publish.NUMBERS, *(f"figures/{name}.png" for name in publish.IMAGES)):
        (run / name).write_text(f"new {name}")
    shutil.copy(publish.WEIGHTS, run / "model.safetensors")
    results["final"]["test_accuracy"] = 0.5123
    (run / "results.json").write_text(json.dumps(results))
    return run


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_block_is_what_the_results_files_say(publish):
    for page, content in publish.render_pages().items():
        assert page.read_bytes() == content, f"{page.name}: make publish fills it anew"


def test_the_headline_and_the_results_have_the_numbers_of_the_run(publish, results):
    headline, page = publish.render_headline(results), publish.render_results(results)
    accuracy = f"**{results['final']['test_accuracy']:.2%}**"
    assert accuracy in headline and accuracy in page
    rows = headline.splitlines()
    assert "single run" in rows[2] and publish.duration(results["seconds"]["train"]) in rows[2]
    measured = json.loads((ROOT / "benchmarks/results/gpu/accuracy.json").read_text("utf-8"))
    seeds = measured["summary"]["assignment"]
    assert f"{seeds['accuracy']['count']} seeds" in rows[3]
    assert f"**{seeds['accuracy']['mean']:.2%} ± " in rows[3]
    assert f"{seeds['training_seconds']['median']:.2f} s" in rows[3]
    assert "JPEG copy" in rows[-1] and rows[-1].startswith("\\*")


def test_times_are_said_in_a_unit_that_shows_them(publish, results):
    results["machine"] |= {"device": "cuda", "device_name": "a GPU", "threads": 16}
    results["seconds"] = {"train": 18.772, "test": 1.671}
    results["history"] = [{"train_seconds": 0.57}, {"train_seconds": 0.94}]
    headline, page = publish.render_headline(results), publish.render_results(results)
    assert "| a GPU, single run | " in headline and "| 18.77 s |" in headline
    assert "18.77 s of training, 0.57 s the fastest epoch, 1.67 s of evaluation" in page
    assert "| a GPU, " in page and "threads" not in page
    results["machine"] |= {"device": "cpu", "device_name": "a CPU", "threads": 2}
    results["seconds"] = {"train": 8_460.0, "test": 660.0}
    headline, page = publish.render_headline(results), publish.render_results(results)
    assert "| a CPU, 2 threads, single run | " in headline and "| 141 min |" in headline
    assert "141 min of training" in page and "11 min of evaluation" in page
    assert "| a CPU, 2 threads, " in page


@pytest.mark.parametrize(
    "changes", [None, {"broken_off": "time was over"}, {"recipes": {"assignment": {"epochs": 3}}}]
)
def test_a_benchmark_of_another_training_or_none_is_no_headline(
    publish, results, tmp_path, monkeypatch, changes
):
    if changes is not None:
        measured = json.loads((publish.render.GPU / "accuracy.json").read_text("utf-8"))
        (tmp_path / "accuracy.json").write_text(json.dumps(measured | changes))
    monkeypatch.setattr(publish.render, "GPU", tmp_path)
    results["data"]["source"] = "CIFAR-10"
    text = publish.render_headline(results)
    assert "seeds" not in text and "JPEG" not in text and "single run" in text


def test_each_number_of_the_recipe_is_a_row_with_its_meaning(publish, results):
    text = publish.render_results(results)
    for name, field in Recipe.__dataclass_fields__.items():
        if name not in ("beta1_at_peak", "finder_sweeps"):  # beta1 is constant, one sweep then
            assert f"| `{name}` | " in text
            assert field.metadata["about"].partition(" (")[0] in text
    assert "| `weight_decay` | 0.4 | decoupled" in text
    found = f"{results['learning_rate']['lr_max']:.4g}"
    assert f"| `lr_max` | {found} | LRMAX, the peak learning rate (found by a range test) |" in text
    results["recipe"]["lr_max"] = 0.01
    assert "| `lr_max` | 0.01 | LRMAX, the peak learning rate |" in publish.render_results(results)


def test_results_of_older_and_of_newer_runs_are_rendered_alike(publish, results):
    newer = results | {"identity": "0" * 64, "parts": {"model": "CustomResNet"}}
    older = results | {"recipe": {k: v for k, v in results["recipe"].items() if k != "padding"}}
    texts = {publish.render_results(each) for each in (results, newer, older)}
    assert len(texts) == 1
    for file in (
        "digits/results.json",
        *(f"choice/{p.name}" for p in (ROOT / "results/choice").glob("*.json")),
    ):
        each = publish.read(ROOT / "results" / file)
        if "recipe" in each:
            assert publish.recipe_rows(each)


def test_a_run_that_is_shorter_says_so(publish, results):
    results["recipe"]["epochs"] = 2
    text = publish.render_results(results)
    assert f"**This run has 2 epochs, not the assignment's {PRESETS['assignment'].epochs}**" in text


def test_a_whole_run_is_published(moved, run):
    moved.main(str(run))
    for name in moved.NUMBERS:
        assert (moved.RESULTS / name).read_bytes() == (run / name).read_bytes()
    for name, image in moved.IMAGES.items():
        assert (moved.ROOT / "images" / image).read_text() == f"new figures/{name}.png"
    assert not moved.EVALUATION.exists()  # it was of other weights
    for page in ("README.md", "docs/results.md", "weights/README.md"):
        assert "51.23%" in (moved.ROOT / page).read_text("utf-8")
    assert "new log.txt" in (moved.ROOT / "docs/results.md").read_text("utf-8")
    assert not [path for path in moved.ROOT.rglob("*") if path.name.endswith(".part")]


@pytest.mark.parametrize(
    ("changes", "without", "said"),
    [
        ({}, "model.safetensors", "model.safetensors"),
        ({}, "steps.csv", "steps.csv"),
        ({}, "figures/samples.png", "samples"),
        ({"recipe": {"optimizer": "muon"}}, None, "trained with muon"),
        ({"parts": {"model": "resnet18"}}, None, "resnet18"),
        ({"parts": {"model": "CustomResNet", "criterion": "MyLoss"}}, None, "MyLoss"),
        ({"data": {"source": "image folder"}}, None, "not a complete CIFAR-10 run"),
        ({"data": {"evaluated_on": "held-out training images"}}, None, "held-out"),
    ],
)
def test_a_run_that_is_not_complete_or_not_the_assignments_replaces_nothing(
    moved, results, run, changes, without, said
):
    (run / "results.json").write_text(
        json.dumps(results | {name: results.get(name, {}) | each for name, each in changes.items()})
    )
    if without:
        (run / without).unlink()
    before = contents(moved.ROOT)
    with pytest.raises((SystemExit, CheckpointError, OSError), match=re.escape(said)):
        moved.main(str(run))
    assert contents(moved.ROOT) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("<!-- end of log -->", ""),
        lambda text: text.replace("<!-- end of log -->", "<!-- end of log --> <!-- end of log -->"),
        lambda text: text + "<!-- speed: made by scripts/publish.py -->\n<!-- end of speed -->\n",
    ],
)
def test_a_page_without_its_markers_is_refused_before_anything_is_replaced(moved, run, change):
    page = moved.ROOT / "docs" / "results.md"
    page.write_text(change(page.read_text("utf-8")), "utf-8")
    before = contents(moved.ROOT)
    with pytest.raises(SystemExit, match="once each"):
        moved.main(str(run))
    assert contents(moved.ROOT) == before


def test_a_block_is_filled_in_whichever_page_has_it(publish):
    block = "<!-- {0}: made by scripts/publish.py -->\nold\n<!-- end of {0} -->\nafter"
    texts = publish.fill([block.format("one"), block.format("two")], {"two": r"\1 new"})
    assert texts[0] == block.format("one")
    assert texts[1] == block.format("two").replace("old", r"\1 new")


def test_every_picture_that_a_run_publishes_is_in_images(publish):
    assert set(publish.IMAGES.values()) == {path.name for path in (ROOT / "images").iterdir()}


def test_the_table_of_faults_has_what_was_counted(publish, tmp_path):
    file = tmp_path / "faults.json"
    assert "make faults" in publish.render_faults(file)
    sections = {
        "kills": {
            "random_kills": 200, "kills_inside_a_save": {"mid-write": 6, "between": 5},
            "runs": 100, "failures": [], "seconds": 9.0,
        },
        "signals": {"failures": ["stopped by a bug"], "seconds": 1.0},
    }  # fmt: skip
    machine = {"device_name": "a processor", "versions": {"torch": "2.15"}}
    file.write_text(json.dumps({"seconds": 120, "machine": machine, "sections": sections}))
    text = publish.render_faults(file)
    assert "200 SIGKILLs" in text and "and 11 at five points" in text and "2 minutes" in text
    assert "| test | result |" in text and "bit-identical" in text
    assert "| signals | **failures: 1**, first stopped by a bug |" in text
    assert "| mutations | **failures: 1**, first it was not run |" in text
