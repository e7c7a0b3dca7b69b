import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import CustomResNet
from onecycle import commands
from onecycle.commands import predict
from onecycle.data.pictures import read_picture
from onecycle.results.weights import PUBLISHED, load_weights, save_weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Weights of a network of three own classes."""
    torch.manual_seed(0)
    data = {"source": "zoo", "classes": ["Katze", "犬", "emu"], "mean": [0.5] * 3, "std": [0.2] * 3}
    file = tmp_path_factory.mktemp("weights") / "own.safetensors"
    return save_weights(file, CustomResNet(3).state_dict(), data=data, recipe={})


@pytest.fixture
def photos(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("犬.png", (90, 60)), ("b c.jpg", (32, 32)), ("d.webp", (20, 70))):
        noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    (folder / "notes.txt").write_text("no\npicture")
    monkeypatch.chdir(folder)
    return folder


def expected(file, name):
    """The network's answer without the code under test: classes and probabilities, best first."""
    weights = load_weights(file)
    images = (read_picture(name) / 255 - np.array(weights.mean)) / weights.std
    with torch.no_grad():
        model = CustomResNet.from_pretrained(weights)
        output = model(torch.from_numpy(images).permute(2, 0, 1)[None].float())
    probabilities = output.exp()[0].numpy()
    order = np.argsort(-probabilities)
    return [weights.classes[k] for k in order], probabilities[order]


def test_the_published_weights_are_taken_where_none_are_named(photos, capsys):
    assert commands.main(["predict", "b c.jpg"]) == 0
    out, err = capsys.readouterr()
    classes, probabilities = expected(PUBLISHED, "b c.jpg")
    shown = ", ".join(f"{c} {p:.1%}" for c, p in zip(classes[:5], probabilities[:5], strict=True))
    assert (out, err) == (f"b c.jpg: {shown}\n", "")


def test_all_outputs_say_the_same(photos, own, capsys):
    names = ["犬.png", "b c.jpg", "d.webp"]
    arguments = ["--csv", "o.csv", "--json", "o.json", "--figure", "o.png", "--weights", str(own)]
    assert commands.main(["predict", *names, *arguments, "--top", "2"]) == 0
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == names
    rows = list(csv.DictReader(Path("o.csv").read_text("utf-8").splitlines()))
    assert [row["picture"] for row in rows] == names
    objects = json.loads(Path("o.json").read_text("utf-8"))
    for place, (name, found) in enumerate(zip(names, objects, strict=True)):
        classes, probabilities = expected(own, name)
        assert found["picture"] == name
        assert [guess["class"] for guess in found["guesses"]] == classes[:2]
        values = [guess["probability"] for guess in found["guesses"]]
        np.testing.assert_allclose(values, probabilities[:2], rtol=1e-4)
        row = rows[place]
        assert [row["class"], row["class_2"]] == classes[:2]
        assert [float(row["probability"]), float(row["probability_2"])] == values
    with Image.open("o.png") as figure:
        assert min(figure.size) > 400


def test_what_is_no_picture_is_named_and_the_others_go_on(photos, own, capsys):
    names = ["notes.txt", "b c.jpg", "gone.png", "d.webp"]
    assert commands.main(["predict", *names, "--weights", str(own), "--json", "o.json"]) == 3
    out, err = capsys.readouterr()
    assert [line.split(": ")[0] for line in out.splitlines()] == ["b c.jpg", "d.webp"]
    lines = err.splitlines()
    assert len(lines) == 2
    for line, name in zip(lines, ("notes.txt", "gone.png"), strict=True):
        assert f": {name} " in line
    found = json.loads(Path("o.json").read_text("utf-8"))
    assert [row["picture"] for row in found] == ["b c.jpg", "d.webp"]


def test_pictures_alone_that_fail_still_give_the_files(photos, capsys):
    arguments = ["notes.txt", "--csv", "o.csv", "--json", "o.json", "--figure", "o.svg"]
    assert commands.main(["predict", *arguments]) == 3
    assert Path("o.csv").read_text("utf-8").startswith("picture,class,probability,class_2,")
    assert json.loads(Path("o.json").read_text("utf-8")) == []
    assert Path("o.svg").stat().st_size > 0


def test_more_pictures_than_are_read_at_once(photos, own, monkeypatch, capsys):
    monkeypatch.setattr(predict, "AT_ONCE", 2)
    names = ["b c.jpg", "d.webp", "notes.txt", "犬.png", "d.webp"]
    assert commands.main(["predict", *names, "--weights", str(own)]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [n for n in names if n != "notes.txt"]
    assert lines[1] == lines[3]


def test_a_folder_gives_all_its_pictures_and_in_a_run_its_own_weights(photos, own, capsys):
    (photos / "more").mkdir()
    Image.new("RGB", (40, 40), "teal").save(photos / "more" / "e.png")
    shutil.copy(own, "model.safetensors")
    assert commands.main(["predict", str(photos), "--top", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [str(photos / name) for name in ("b c.jpg", "d.webp", "more/e.png", "犬.png")]
    assert sorted(line.split(": ")[0] for line in lines) == sorted(names)
    assert all(line.count("%") == 3 and "emu" in line for line in lines)
    assert commands.main(["predict", "b c.jpg", "--weights", "."]) == 0


def test_nothing_that_is_there_is_overwritten_unless_it_is_asked_for(photos, own, capsys):
    words = ["predict", "b c.jpg", "--weights", str(own)]
    before = {file: file.read_bytes() for file in photos.iterdir()}
    for option, name in (("--csv", "d.webp"), ("--csv", "b c.jpg"), ("--json", "notes.txt")):
        assert commands.main([*words, option, name]) == 6
        assert name in capsys.readouterr().err
    for name in ("b c.jpg", str(own)):
        assert commands.main([*words, "--force", "--csv", name]) == 6
    assert commands.main([*words, "--csv", "o", "--json", "o"]) == 2
    assert {file: file.read_bytes() for file in photos.iterdir()} == before
    assert commands.main([*words, "--json", "notes.txt", "--force"]) == 0
    assert json.loads(Path("notes.txt").read_text("utf-8"))[0]["picture"] == "b c.jpg"


@pytest.mark.parametrize(
    "arguments, exit_code, said",
    [
        ([], 2, "PICTURE"),
        (["b c.jpg", "--top", "0"], 2, "--top is 0"),
        (["b c.jpg", "--figure", "o.bmp"], 2, "o.bmp"),
        (["b c.jpg", "--weights", "gone.safetensors"], 4, "gone.safetensors"),
        (["b c.jpg", "--weights", "b c.jpg"], 4, "b c.jpg"),
        (["b c.jpg", "--csv", "gone/o.csv"], 6, "gone/o.csv"),
        (["b c.jpg", "--json", "."], 6, "folder"),
        (["empty"], 3, "no pictures"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_its_exit_code(
    photos, capsys, arguments, exit_code, said
):
    (photos / "empty").mkdir()
    before = sorted(photos.iterdir())
    assert commands.main(["predict", *arguments]) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert sorted(photos.iterdir()) == before


def test_names_come_through_a_terminal_that_cannot_write_them(photos, own):
    done = subprocess.run(
        [sys.executable, "-m", "onecycle", "predict", "犬.png", "--weights", own],
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        cwd=photos,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"\\u72ac.png: ") or b".png: " in done.stdout
