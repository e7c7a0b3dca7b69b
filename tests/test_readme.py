import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from test_architecture import ROOTS

from onecycle.commands import train

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands():
    return [
        line
        for block in blocks("")
        for line in block.splitlines()
        if line.startswith(("make ", ".venv/bin/python train.py"))
    ]


@pytest.fixture(scope="module")
def publish():
    spec = importlib.util.spec_from_file_location("publish", ROOT / "scripts" / "publish.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_two_commands_come_first():
    assert commands()[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("command", commands())
def test_commands_exist(command):
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert words[1] in targets
    else:
        train.choose_recipe(train.parse(words[2:]))


def test_snippets_run_one_after_the_other(tmp_path, monkeypatch):
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    Image.new("RGB", (60, 40), "green").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    written_by_hand = re.sub(
        r"<!-- (\w+): made by .*?<!-- end of \1 -->", "", README, flags=re.DOTALL
    )
    names = {}
    for snippet in blocks("python", written_by_hand):
        exec(snippet, names)
    assert names["best"].label in names["weights"].classes
    assert 0 <= names["history"].epochs[-1].test_accuracy <= 1


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_numbers_are_those_of_the_results_file(publish):
    assert publish.render_readme(README) == README
    results = json.loads((ROOT / "results" / "cifar10" / "results.json").read_text("utf-8"))
    assert f"**{results['final']['test_accuracy']:.2%}**" in README
    measured = publish.BENCHMARKS.read_text("utf-8")
    assert publish.fill(measured, {"benchmarks": publish.render_benchmarks()}) == measured


def test_every_picture_is_published_with_the_run(publish):
    shown = set(re.findall(r"\(images/(\S+?)\)", README))
    assert shown == set(publish.IMAGES.values())
    assert shown == {path.name for path in (ROOT / "images").iterdir()}


def test_modules_of_the_table_are_all_of_them():
    listed = set(re.findall(r"^\| \[`(\w+)\.py`\]", README, re.MULTILINE))
    assert listed | ROOTS == {path.stem for path in ROOT.glob("*.py")}
