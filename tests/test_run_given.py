import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from onecycle import Recipe, Run, UsageError, load_digits

TENSORS = TensorDataset(torch.zeros(8, 3, 32, 32), torch.zeros(8))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 10)

    def forward(self, images):
        return self.head(images.flatten(1))


def network(classes):
    return Net()


def sgd(model, recipe):
    return torch.optim.SGD(model.parameters(), lr=0.1)


GIVEN = {
    "a network without classes": ({"model": Net}, "the class Net, .*lambda classes"),
    "a name for a network": ({"model": "resnet18"}, "model is 'resnet18'; .*lambda classes"),
    "a network that is none": ({"model": lambda classes: None}, "model <lambda> gives None"),
    "a class for a network": ({"model": lambda classes: Net}, "gives the class Net"),
    "an optimizer as it is": ({"optimizer": sgd(Net(), None)}, "is an object of type SGD; .*model, recipe"),
    "the class of an optimizer": ({"optimizer": torch.optim.SGD}, "optimizer is the class SGD"),
    "an optimizer of the model": ({"optimizer": lambda model: None}, "too many positional"),
    "nothing for an optimizer": ({"optimizer": lambda model, recipe: None}, "gives None"),
    "a scheduler as it is": (
        {"scheduler": torch.optim.lr_scheduler.ConstantLR(sgd(Net(), None))}, "of type ConstantLR",
    ),
    "a scheduler of the optimizer": ({"scheduler": lambda optimizer: None}, "finding"),
    "the class of a loss": ({"criterion": nn.CrossEntropyLoss}, r"class CrossEntropyLoss; .*\(\)"),
    "the images to train on alone": ({"data": load_digits()[0]}, "data is ImageDataset; give two"),
    "other data sets": ({"data": (TENSORS, TENSORS)}, "TensorDataset and TensorDataset; .*fit"),
    "a dictionary for a recipe": ({"recipe": {"epochs": 1}}, "type dict; give a Recipe"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "said"), GIVEN.values(), ids=GIVEN)
def test_what_is_of_another_form_is_refused_before_a_file_is_made(given, said, tmp_path):
    usual = {"data": load_digits(), "model": network, "recipe": Recipe(epochs=1, lr_max=0.01)}
    with pytest.raises(UsageError, match=said) as caught:
        Run(tmp_path / "run", **(usual | given))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_error_in_a_function_that_was_given_stays_as_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError):
        Run(tmp_path / "run", load_digits(), lambda classes: classes / 0, Recipe(epochs=1))
