import contextlib
import types
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from onecycle.errors import DataError, UsageError
from onecycle.optim.lr_finder import find_lr
from onecycle.results.pictures import predict_pictures
from onecycle.training.inference import evaluate, predict
from onecycle.training.loop import fit

CLASSES = 4
Pair = namedtuple("Pair", "logits aux")


def images(count=8):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


LABELS = torch.arange(8) % CLASSES
SOFT = torch.eye(CLASSES)[LABELS] * 0.8 + 0.05


class Net(nn.Module):
    """A small network; ``give`` makes its output of the logits."""

    def __init__(self, give=lambda logits: logits, *, normalises=False):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(),
            nn.Linear(144, CLASSES),
        )  # fmt: skip
        self.give, self.normalises = give, normalises

    def forward(self, x):
        return self.give(self.body(x.float() / 255 if self.normalises else x))


def trained(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.manual_seed(3)  # for the dropout
    return fit(model, batches, None, optimizer, None, nn.CrossEntropyLoss(), epochs=1)


def ranged(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return find_lr(model, optimizer, nn.CrossEntropyLoss(), batches, num_steps=20)


def losses_of_the_range_test(model, batches):
    losses = []

    class Noted(nn.CrossEntropyLoss):
        def forward(self, output, labels):
            loss = super().forward(output, labels)
            losses.append(loss.item())
            return loss

    torch.manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters())
    with contextlib.suppress(UsageError):  # a curve of eight images says little
        find_lr(model, optimizer, Noted(), batches, num_steps=20)
    return losses


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(first, second):
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


BATCHES = {
    "a dictionary": ({"pixels": images(), "label": LABELS}, "a dictionary of 'pixels': a tensor"),
    "three parts": ((images(), LABELS, ["a.png"] * 8), r"3 parts \(.*int64 \(8,\), a list of 8"),
    "no labels": (images(), r"a tensor float32 \(8, 3, 8, 8\)"),
    "names": ((images(), ["cat"] * 8), r"float32 \(8, 3, 8, 8\), a list of 8 values"),
    "fewer labels": ((images(), LABELS[:5]), "as many labels as images"),
    "bytes": ((images().byte(), LABELS), r"uint8 images of \(3, 8, 8\).*float\(\) / 255"),
    "float64": ((images().double(), LABELS), "float64 images of .*weights are float32"),
    "one channel": ((images()[:, :1], LABELS), r"take images of \(1, 8, 8\): .*3 channels"),
    "other size": ((images().repeat(1, 1, 2, 2), LABELS), r"\(3, 16, 16\): mat1 and mat2"),
    "channels last": ((images().permute(0, 2, 3, 1), LABELS), r"permute\(0, 3, 1, 2\)"),
    "grey": ((images()[:, 0], LABELS), r"\(8, 8\) .*unsqueeze\(1\)"),
    "float labels": ((images(), LABELS.float()), r"labels are float32.*0\.\.3: try labels.long"),
    "bool labels": ((images(), LABELS > 1), "labels are bool"),
    "one hot": ((images(), torch.eye(4)[LABELS].long()), r"int64 of shape \(8, 4\).*argmax\(1\)"),
    "from 1": ((images(), LABELS + 1), r"labels are 1\.\.4, and the network has 4 outputs"),
    "negative": ((images(), LABELS - 1), r"labels are -1\.\.2"),
    "no sum of 1": ((images(), 2 * SOFT), "rows that do not sum to 1"),
}


@pytest.mark.parametrize("use", [trained, ranged])
@pytest.mark.parametrize(("batch", "said"), BATCHES.values(), ids=BATCHES)
def test_a_batch_that_is_none_is_refused_in_a_line_before_anything_changes(batch, said, use):
    model = Net().train()
    before = state(model)
    torch.manual_seed(3)
    random = torch.get_rng_state()
    with pytest.raises(UsageError, match=said) as caught:
        use(model, [batch])
    assert "\n" not in str(caught.value)
    assert_same(before, model.state_dict())
    assert torch.equal(torch.get_rng_state(), random) and model.training


@pytest.mark.parametrize("name", ["a dictionary", "three parts", "one channel", "from 1", "bytes"])
def test_evaluation_refuses_such_a_batch_as_well(name):
    batch, said = BATCHES[name]
    with pytest.raises(UsageError, match=said):
        evaluate(Net(), [batch])


def test_what_torch_said_is_the_cause_and_later_errors_stay_as_they_are():
    with pytest.raises(UsageError) as caught:
        trained(Net(), [(images()[:, :1], LABELS)])
    assert type(caught.value.__cause__) is RuntimeError
    with pytest.raises(RuntimeError, match="channels") as caught:
        trained(Net(), [(images(), LABELS), (images()[:, :1], LABELS)])
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize("where", ["network", "loss"])
def test_what_fails_in_training_only_is_told_of_the_network_alone(where):
    class Fails(Net if where == "network" else nn.CrossEntropyLoss):
        def forward(self, *given):
            if self.training and torch.is_grad_enabled():
                raise RuntimeError("too small\nfor this")
            return super().forward(*given)

    model, criterion = (Fails(), nn.CrossEntropyLoss()) if where == "network" else (Net(), Fails())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(RuntimeError if where == "loss" else UsageError) as caught:
        fit(model, [(images(), LABELS)], None, optimizer, None, criterion, epochs=1)
    said = "too small\nfor this"
    if where == "network":
        said = "the network does not take images of (3, 8, 8): too small"
    assert str(caught.value) == said


@pytest.mark.parametrize("use", [trained, ranged])
def test_images_that_are_not_finite_are_refused(use):
    broken = images()
    broken[3, 0, 0, 0], broken[5] = torch.nan, torch.inf
    with pytest.raises(DataError, match="2 of the 8 images .* NaN"):
        use(Net(), [(broken, LABELS)])
    with pytest.raises(DataError, match="2 of the 8 images"):
        evaluate(Net(), [(broken, LABELS)])


def test_a_probability_for_each_class_is_trained_on():
    assert len(trained(Net(), [(images(), SOFT)]).steps) == 1


@pytest.mark.parametrize("labels", [LABELS.int(), LABELS.byte(), LABELS[:, None]])
def test_other_forms_of_labels_are_right(labels):
    model, twin = Net(), Net()
    history = trained(model, [(images(), labels)])
    assert history.steps == trained(twin, [(images(), LABELS)]).steps
    assert_same(model.state_dict(), twin.state_dict())
    assert evaluate(model, [(images(), labels)]) == evaluate(twin, [(images(), LABELS)])


def test_a_network_that_takes_bytes_is_trained_on_them():
    history = trained(Net(normalises=True), [(images().byte(), LABELS)])
    assert len(history.steps) == 1


FORMS = {
    "dictionary": lambda logits: {"loss": None, "logits": logits},
    "named tuple": lambda logits: Pair(logits, logits),
    "object": lambda logits: types.SimpleNamespace(logits=logits),
}


@pytest.mark.parametrize("give", FORMS.values(), ids=FORMS)
def test_logits_are_taken_out_of_what_the_network_gives(give):
    model, plain, batches = Net(give), Net(), [(images(), LABELS)]
    assert trained(model, batches).steps == trained(plain, batches).steps
    assert_same(model.state_dict(), plain.state_dict())
    assert evaluate(model, batches) == evaluate(plain, batches)
    found, expected = predict(model, batches, mirrored=True), predict(plain, batches, mirrored=True)
    assert np.array_equal(found.probabilities, expected.probabilities)
    assert np.array_equal(found.mirrored, expected.mirrored)
    curve = losses_of_the_range_test(model, batches)
    assert len(curve) >= 20 and curve == losses_of_the_range_test(plain, batches)


@pytest.mark.parametrize(
    ("give", "said"),
    [
        (lambda logits: (logits, logits), "a tuple of 2"),
        (lambda logits: {"scores": logits}, "a dictionary of scores"),
        (lambda logits: None, "a NoneType"),
        (lambda logits: logits[:, :, None], r"float32 of shape \(2, 4, 1\) for 2 images"),
        (lambda logits: logits.argmax(1), "int64"),
        (lambda logits: logits.flatten(), r"\(8,\) for 2 images"),
        (lambda logits: logits.softmax(1), "gives probabilities.*log-softmax"),
    ],
)
def test_an_output_that_is_no_scores_is_refused(give, said):
    for use in (trained, ranged):
        with pytest.raises(UsageError, match=said):
            use(Net(give), [(images(), LABELS)])


@pytest.mark.parametrize(
    "give", [lambda x: x.log_softmax(1), lambda x: x.softmax(1), lambda x: {"logits": x.softmax(1)}]
)
@pytest.mark.parametrize("count", [1, 8])
def test_probabilities_are_the_same_whichever_the_network_gives(give, count):
    batches = [(images(count), LABELS[:count])]
    plain, model = Net(), Net(give)
    expected, found = (predict(net, batches, mirrored=True) for net in (plain, model))
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-4)
    np.testing.assert_allclose(found.mirrored, expected.mirrored, rtol=1e-4)
    assert evaluate(model, batches) == pytest.approx(evaluate(plain, batches), rel=1e-4)
    pictures = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    normal = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "classes": "abcd"}
    for ours, theirs in zip(
        predict_pictures(model, pictures, **normal), predict_pictures(plain, pictures, **normal)
    ):
        assert [guess.label for guess in ours] == [guess.label for guess in theirs]
        assert [g.probability for g in ours] == pytest.approx([g.probability for g in theirs])


def test_logits_that_sum_to_1_by_chance_are_no_probabilities():
    class Chance(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 0, 0], 1 - x[:, 0, 0, 0]], 1) + x[:, :1, 0, 1]

    image = torch.zeros(1, 3, 8, 8)
    image[0, 0, 0, 0] = 0.3
    found = predict(Chance(), [(image, LABELS[:1])]).probabilities
    np.testing.assert_allclose(found, torch.tensor([[0.3, 0.7]]).softmax(1), rtol=1e-5)


def test_a_probability_of_0_has_a_finite_loss():
    model = Net(lambda logits: (1000 * logits).softmax(1))
    loss, _ = evaluate(model, [(images(), LABELS)])
    assert 0 < loss < 100


@pytest.mark.parametrize("use", [trained, ranged])
def test_a_frozen_network_is_refused(use):
    model = Net().requires_grad_(False)
    with pytest.raises(UsageError, match="all weights of the network are frozen"):
        use(model, [(images(), LABELS)])


def test_an_optimizer_that_needs_a_closure_is_refused_by_its_name():
    model, batches, criterion = Net(), [(images(), LABELS)], nn.CrossEntropyLoss()
    optimizer = torch.optim.LBFGS(model.parameters())
    with pytest.raises(UsageError, match="LBFGS needs a closure"):
        fit(model, batches, None, optimizer, None, criterion, epochs=1)
    with pytest.raises(UsageError, match="LBFGS needs a closure"):
        find_lr(model, optimizer, criterion, batches)


def test_parameters_of_the_loss_may_be_trained_as_well():
    class Scaled(nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, labels):
            return super().forward(output * self.scale, labels)

    model, criterion = Net(), Scaled()
    optimizer = torch.optim.SGD([*model.parameters(), criterion.scale], lr=0.1)
    fit(model, [(images(), LABELS)], None, optimizer, None, criterion, epochs=1)
    assert criterion.scale != 1


LOSSES = {
    "weights of 3": (nn.CrossEntropyLoss(torch.ones(3)), "weight tensor .*all 4 classes"),
    "of two classes": (nn.BCEWithLogitsLoss(), r"scores \(2, 4\) and labels \(2,\)"),
    "three arguments": (lambda output, labels, weight: 0, "weight"),
    "no mean": (nn.CrossEntropyLoss(reduction="none"), r"the loss is a tensor float32 \(2,\)"),
    "no tensor": (lambda output, labels: 1.0, "the loss is a float"),
}


@pytest.mark.parametrize("ranges", [False, True])
@pytest.mark.parametrize(("criterion", "said"), LOSSES.values(), ids=LOSSES)
def test_a_loss_that_is_none_is_refused_before_a_weight_moves(criterion, said, ranges):
    model, batches = Net(), [(images(), LABELS)]
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(UsageError, match=said):
        if ranges:
            find_lr(model, optimizer, criterion, batches, num_steps=20)
        else:
            fit(model, batches, None, optimizer, None, criterion, epochs=1)
    assert all(map(torch.equal, before, model.parameters()))


def loader(count, batch_size, **options):
    data = TensorDataset(images(count), torch.zeros(count, dtype=torch.int64))
    return DataLoader(data, batch_size=batch_size, **options)


def flat_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))


def test_a_last_batch_of_one_is_refused_where_batch_norm_cannot_train_on_it():
    model = flat_net()
    before = state(model)
    with pytest.raises(
        UsageError, match=r"last batch has 1 image \(9 in batches of 4\).*drop_last"
    ):
        trained(model, loader(9, 4))
    with pytest.raises(UsageError, match="last batch has 1 image"):
        trained(model, loader(3, 1))
    assert_same(before, model.state_dict())
    assert len(trained(model, loader(9, 4, drop_last=True)).steps) == 2
    assert len(trained(flat_net(), loader(10, 4)).steps) == 3
    assert len(trained(Net(), loader(9, 4)).steps) == 3  # its maps have many values per channel


def test_a_network_without_parameters_is_evaluated():
    class Rule(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    assert evaluate(Rule(), [(images(), LABELS % 3)])[0] > 0
