import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from onecycle.errors import UsageError
from onecycle.results.figures.errors import BAR, MOST_PICTURES, plot_predictions
from onecycle.results.pictures import Guess, predict_pictures

CLASSES = ("red", "green", "blue")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Channels(nn.Module):
    """Log-probabilities from the means of the normalised channels: a pure colour wins."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.num_classes = num_classes

    def forward(self, images):
        assert not self.training
        return (self.scale * images.mean((2, 3)))[:, : self.num_classes].log_softmax(1)


def pictures(count=3):
    colours = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3))
    return np.broadcast_to(colours, (count, 32, 32, 3)).astype(np.uint8)


def predict(images, model=None, **options):
    model = model or Channels()
    return predict_pictures(model, images, mean=MEAN, std=STD, classes=CLASSES, **options)


def test_guesses_are_the_probabilities_in_falling_order():
    images = pictures()
    logits = (images[:, 0, 0] / 255 - MEAN) / STD
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for best, probabilities in zip(predict(images), expected, strict=True):
        order = np.argsort(-probabilities)
        assert [guess.label for guess in best] == [CLASSES[k] for k in order]
        np.testing.assert_allclose([g.probability for g in best], probabilities[order], rtol=1e-5)


@pytest.mark.parametrize("top, count", [(1, 1), (2, 2), (3, 3), (5, 3)])
def test_so_many_guesses_as_asked_for_and_there_are(top, count):
    best = predict(pictures(), top=top)
    assert [len(guesses) for guesses in best] == [count] * 3
    assert best == [guesses[:count] for guesses in predict(pictures())]


def test_many_pictures_and_none():
    many = pictures(600)
    assert predict(list(many)) == predict(many)
    np.testing.assert_allclose(
        predict(many)[599][0].probability, predict(many[599:])[0][0].probability, rtol=1e-6
    )
    assert predict([]) == []


def test_the_mode_of_the_network_is_what_it_was():
    for training in (True, False):
        model = Channels().train(training)
        predict(pictures(), model)
        assert model.training == training


def test_each_module_keeps_its_own_mode():
    frozen = nn.BatchNorm2d(3)
    model = nn.Sequential(frozen, nn.AdaptiveAvgPool2d(1), nn.Dropout(), nn.Flatten())
    model.train()
    frozen.eval()
    before = [module.training for module in model.modules()]
    predict(pictures(), model)
    assert [module.training for module in model.modules()] == before
    assert model.training and not frozen.training


def test_logits_and_log_probabilities_give_the_same_true_probabilities():
    class Logits(Channels):
        def forward(self, images):
            return self.scale * images.mean((2, 3))

    best = predict(pictures(), Logits())
    for guesses, others in zip(best, predict(pictures()), strict=True):
        assert sum(guess.probability for guess in guesses) == pytest.approx(1, abs=1e-6)
        assert [guess.label for guess in guesses] == [guess.label for guess in others]
        np.testing.assert_allclose(
            [guess.probability for guess in guesses], [guess.probability for guess in others],
            rtol=1e-5,
        )  # fmt: skip


def test_names_that_do_not_belong_to_the_network_are_refused():
    with pytest.raises(UsageError, match="2 classes and 3 names"):
        predict(pictures(), Channels(2))
    with pytest.raises(UsageError, match="top is 0"):
        predict(pictures(), top=0)


def texts(figure):
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    found += [axes.get_title() for axes in figure.axes]
    return [figure.get_suptitle(), *found]


def test_the_figure_shows_each_picture_with_its_guesses():
    images, best = pictures(2), [[Guess("cat", 0.75), Guess("$x", 0.25)], [Guess("emu", 1.0)]]
    figure = plot_predictions(images, best, names=["a$b$.png", "x" * 99], source="photographs")
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    for shown, image in zip(axes.images, images, strict=True):
        assert np.array_equal(shown.get_array(), image)
    bars = [bar.get_width() / BAR for bar in axes.patches]
    assert bars == pytest.approx([0.75, 0.25, 1.0])
    assert {"a$b$.png", "cat", "$x", "emu", "75.0%"} <= set(texts(figure))
    assert "trained on photographs" in figure.get_suptitle()
    figure.savefig(io.BytesIO(), format="png", dpi=20)


@pytest.mark.parametrize("count", [0, 1, 12, MOST_PICTURES + 3])
def test_the_figure_is_drawn_for_any_number_of_pictures(count):
    names = ["\udce4 no text"] * count
    figure = plot_predictions(pictures(count), predict(pictures(count)), names=names, source="x")
    (axes,) = figure.axes  # "no data" needs one, too
    assert len(axes.images) == min(count, MOST_PICTURES)
    assert ("the first 60 of 63" in figure.get_suptitle()) == (count > MOST_PICTURES)
    width, height = figure.get_size_inches()
    assert 0.5 < width / height < 2 or count <= 1  # no strip
    figure.savefig(io.BytesIO(), format="png", dpi=10)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (pictures() / 255, "float64"),
        (pictures()[0], r"shape \(32, 32, 3\)"),
        (pictures().transpose(0, 3, 1, 2), r"\(3, 3, 32, 32\)"),
        ([pictures()[0], pictures()[0, :16]], "not of one size"),
    ],
    ids=["0..1", "one", "channels first", "sizes"],
)
def test_pictures_of_another_form_are_refused_and_not_guessed_at(given, said):
    with pytest.raises(UsageError, match=said):
        predict(given)
