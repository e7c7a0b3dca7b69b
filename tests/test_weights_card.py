import hashlib
import json
import re
from pathlib import Path

import publish as script
import pytest
from PIL import Image

from onecycle.results.weights import load_weights

ROOT = Path(__file__).resolve().parent.parent
CARD = (ROOT / "onecycle" / "weights" / "README.md").read_text("utf-8")


@pytest.fixture
def publish():
    return script


@pytest.fixture
def results(publish):
    return json.loads((publish.RESULTS / "results.json").read_text("utf-8"))


@pytest.fixture
def evaluated(publish):
    """What ``onecycle evaluate`` would have written, with made-up figures."""
    scores = [
        {"name": name, "precision": 0.5 + k / 100, "recall": 0.6 + k / 100, "f1": 0.7 + k / 100}
        for k, name in enumerate(load_weights(publish.WEIGHTS).classes)
    ]
    return {
        "machine": {"device_name": "An abacus", "versions": {"torch": "9.9.9"}},
        "weights": {"sha256": hashlib.sha256(publish.WEIGHTS.read_bytes()).hexdigest()},
        "evaluation": {
            "images": 10_000, "errors": 1234, "accuracy": 0.8766, "mirrored_accuracy": 0.9, "loss": 0.54321,
            "calibration": {"error": 0.0125}, "classes": scores,
        },
    }  # fmt: skip


def test_the_card_is_made_from_the_file_and_the_results(publish, results):
    assert publish.render_card(publish.WEIGHTS, results, publish.read_evaluation()) == CARD


def test_the_card_has_the_digest_of_the_file_and_the_figures_of_the_run(publish, results):
    content = publish.WEIGHTS.read_bytes()
    assert hashlib.sha256(content).hexdigest() in CARD
    assert f"{len(content):,} bytes" in CARD
    assert f"{results['final']['test_accuracy']:.2%}" in CARD
    assert load_weights(publish.WEIGHTS).recipe == results["recipe"]


def test_a_committed_evaluation_is_of_the_committed_file(publish):
    if not publish.EVALUATION.is_file():
        pytest.skip("the published weights are not evaluated yet")
    evaluated = publish.read_evaluation()
    assert evaluated["weights"]["sha256"] in CARD
    assert evaluated["evaluation"]["images"] == 10_000
    assert f"{evaluated['evaluation']['accuracy']:.2%}" in CARD


def test_an_evaluation_comes_before_the_figures_of_the_training(publish, results, evaluated):
    card = publish.render_card(publish.WEIGHTS, results, evaluated)
    assert "**87.66%** (8,766 of 10,000)" in card
    assert "0.5432 nats" in card
    assert "An abacus, torch 9.9.9" in card
    assert "| automobile | 51.0% | 61.0% | 71.0% |" in card
    assert card.index("87.66%") < card.index(f"{results['final']['test_accuracy']:.2%}")


def test_an_evaluation_of_the_file_is_published(publish, results, evaluated, tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text(json.dumps(evaluated))
    monkeypatch.setattr(publish, "EVALUATION", tmp_path / "evaluation.json")
    assert "Published weights" not in publish.render_results(results)
    publish.copy_evaluation(tmp_path)
    assert publish.read_evaluation() == evaluated
    assert "**87.66%** (8,766 of 10,000)" in publish.render_results(results)


@pytest.mark.parametrize(
    "part, changes",
    [("weights", {"sha256": "0" * 64}), ("evaluation", {"images": 500, "errors": 60})],
)
def test_an_evaluation_of_another_file_or_of_some_images_is_not_published(
    publish, evaluated, tmp_path, monkeypatch, part, changes
):
    evaluated[part].update(changes)
    (tmp_path / "results.json").write_text(json.dumps(evaluated))
    monkeypatch.setattr(publish, "EVALUATION", tmp_path / "evaluation.json")
    with pytest.raises(SystemExit, match="10,000"):
        publish.copy_evaluation(tmp_path)
    assert not publish.EVALUATION.exists()


def test_a_class_without_a_share_is_a_dash(publish, results, evaluated):
    evaluated["evaluation"]["classes"][0] |= {"precision": None, "f1": None}
    evaluated["evaluation"]["mirrored_accuracy"] = None
    results["final"]["class_accuracy"]["airplane"] = None
    card = publish.render_card(publish.WEIGHTS, results, evaluated)
    assert "| airplane | – | 60.0% | – |" in card and "(flip TTA) | – |" in card
    card = publish.render_card(publish.WEIGHTS, results, None)
    assert "| airplane | – |" in card and "| – | " in publish.render_results(results)


def test_its_python_runs(tmp_path, monkeypatch):
    (tmp_path / "onecycle").symlink_to(ROOT / "onecycle")
    Image.new("RGB", (60, 40), "green").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", CARD, re.MULTILINE | re.DOTALL)
    names = {}
    exec(code, names)
    assert names["guesses"][0].label in names["weights"].classes


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", CARD):
        assert (ROOT / "onecycle" / "weights" / target).exists(), target
