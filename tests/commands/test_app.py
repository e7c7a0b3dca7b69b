import dataclasses
import io
import re
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from models import CustomResNet
from onecycle import commands
from onecycle.commands import app
from onecycle.data.batches import get_test_batch_transform
from onecycle.data.pictures import read_picture
from onecycle.errors import DataError, StorageError
from onecycle.results.grad_cam import grad_cam
from onecycle.results.pictures import predict_pictures
from onecycle.results.report.sprites import heated
from onecycle.results.weights import load_weights, save_weights

CLASSES = ["<b>cat</b>", "犬", *"cdefg"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of a network of seven classes."""
    torch.manual_seed(0)
    data = {"source": "zoo", "classes": CLASSES, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.2]}
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    return save_weights(path, CustomResNet(7).state_dict(), data=data, recipe={})


@pytest.fixture(scope="module")
def weights(file):
    return load_weights(file)


@pytest.fixture(scope="module")
def model(weights):
    return CustomResNet.from_pretrained(weights)


@pytest.fixture
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def test_the_predictions_are_those_of_the_command_predict(model, weights, photo):
    found = app.explain(model, weights, photo)
    (best,) = predict_pictures(
        model, [read_picture(photo)], mean=weights.mean, std=weights.std, classes=weights.classes
    )
    assert list(found.guesses.items()) == [tuple(guess) for guess in best]
    assert len(found.guesses) == 5


def test_the_map_lies_over_the_picture_that_the_network_sees(model, weights, photo):
    found = app.explain(model, weights, photo)
    assert np.array_equal(found.seen, read_picture(photo))
    normalise = get_test_batch_transform(
        found.seen[None].copy(), weights.mean, weights.std, device=torch.device("cpu")
    )
    best = CLASSES.index(next(iter(found.guesses)))
    image = normalise(torch.tensor([0]), 0)
    expected = heated(found.seen[None], grad_cam(model, image, [best]))[0]
    assert np.abs(found.looked.astype(int) - expected).max() <= 1
    other = heated(found.seen[None], grad_cam(model, image, [best - 1]))[0]
    assert np.abs(found.looked.astype(int) - other).max() > 20


def test_a_network_without_a_map_and_pictures_of_another_size(weights, photo):
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 7))
    small = dataclasses.replace(weights, recipe={"image_size": 16})
    found = app.explain(flat, small, photo)
    assert found.looked is None and found.seen.shape == (16, 16, 3)


def test_the_page_shows_both_pictures_and_escapes_class_names(model, weights, photo, monkeypatch):
    monkeypatch.setattr(app, "explain", lambda *_: app.Explained(
        {"<b>cat</b>": 1.0}, np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)
    ))  # fmt: skip
    guesses, html = app.answer(model, weights, photo)
    assert guesses == {"<b>cat</b>": 1.0}
    assert len(re.findall(r'src="data:image/png;base64,', html)) == 2
    assert "&lt;b&gt;cat&lt;/b&gt;" in html and "<b>" not in html


def test_a_file_that_is_no_picture_is_one_line_on_the_page(model, weights):
    with pytest.raises(DataError):
        app.explain(model, weights, b"<i>text</i>")
    guesses, html = app.answer(model, weights, b"<i>text</i>")
    assert guesses is None and "not a picture of a known format" in html and "\n" not in html
    assert app.answer(model, weights, None) == (None, "")


def test_a_port_that_is_taken_gives_the_next():
    with socket.socket() as taken:
        taken.bind((app.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < app.free_port(port) <= port + app.PORTS_TRIED


def test_no_free_port_is_told(monkeypatch):
    monkeypatch.setattr(app, "PORTS_TRIED", 1)
    with socket.socket() as taken:
        taken.bind((app.HOST, 0))
        taken.listen()
        with pytest.raises(StorageError, match="--port"):
            app.free_port(taken.getsockname()[1])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere.safetensors"], 4, "nowhere.safetensors does not exist"),
        (["{file}", "--port", "0"], 2, "--port is 0"),
        (["."], 4, "model.safetensors does not exist"),
    ],
)
def test_what_is_missing_is_one_line(file, capsys, words, code, said):
    assert commands.main(["app", *(word.format(file=file) for word in words)]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("found", "said"),
    [(None, "needs gradio 6.31 or newer: pip"), ("5.50.0", "newer, and 5.50 is here: pip")],
)
def test_without_the_package_or_with_an_older_one_its_installation_is_told(
    file, capsys, monkeypatch, found, said
):
    def version(name):
        if found is None:
            raise app.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(app.metadata, "version", version)
    assert commands.main(["app", str(file)]) == 2
    error = capsys.readouterr().err
    assert said in error and '"onecycle[app]"' in error and error.count("\n") == 1
