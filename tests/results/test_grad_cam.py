import copy

import numpy as np
import pytest
import torch
from torch import nn

from models import CustomResNet
from onecycle.errors import UsageError
from onecycle.results.evaluation import evaluate_predictions
from onecycle.results.grad_cam import choose_layer, explain_errors, grad_cam

LAYER = "layer3"


class Tiny(nn.Module):
    """Two given maps of 2x2, their means, and two classes with given weights."""

    def __init__(self, weights, softmax=None):
        super().__init__()
        self.maps = nn.Conv2d(2, 2, 1, bias=False)
        self.maps.weight.data = torch.eye(2)[:, :, None, None]
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(2, 2, bias=False)
        self.fc.weight.data = torch.tensor(weights)
        self.softmax = softmax or nn.Identity()

    def forward(self, images):
        return self.softmax(self.fc(self.flatten(self.pool(self.maps(images)))))


IMAGE = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]]])


def test_map_is_the_weighted_sum_of_the_maps_as_computed_by_hand():
    # d(class 0)/d(map) is 3/4 and 1/4 a place, so the heat is 0.75 and 0.5, then over its maximum.
    heat = grad_cam(Tiny([[3.0, 1.0], [-1.0, 2.0]]), IMAGE, [0], "maps")
    np.testing.assert_allclose(heat, [[[1.0, 0.0], [0.0, 2 / 3]]], atol=1e-6)


def test_what_speaks_against_the_class_is_not_heat():
    heat = grad_cam(Tiny([[3.0, 1.0], [-1.0, 2.0]]), IMAGE, [1], "maps")
    np.testing.assert_allclose(heat, [[[0.0, 0.0], [0.0, 1.0]]], atol=1e-6)


def test_image_in_which_nothing_speaks_for_the_class_has_no_heat():
    assert not grad_cam(Tiny([[-3.0, -1.0], [1.0, 1.0]]), IMAGE, [0], "maps").any()


@pytest.mark.parametrize("softmax", [nn.LogSoftmax(dim=1), nn.Softmax(dim=1)])
def test_softmax_at_the_end_changes_nothing_however_sure_the_network_is(softmax):
    weights = [[300.0, 100.0], [-100.0, 200.0]]  # a probability of 1 in float32
    for label in (0, 1):
        plain = grad_cam(Tiny(weights), IMAGE, [label], "maps")
        np.testing.assert_array_equal(
            grad_cam(Tiny(weights, softmax), IMAGE, [label], "maps"), plain
        )


def test_map_is_resized_to_the_image():
    model = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data[:], model[1].bias.data[:] = 1, 0
    model[3].weight.data[:] = 1
    image = torch.zeros(1, 1, 8, 8)
    image[..., :4, :4] = 1
    (heat,) = grad_cam(model, image, [0], "1")
    assert heat.shape == (8, 8) and heat.dtype == np.float32
    assert heat[0, 0] == 1 and heat[7, 7] == 0 and 0 < heat[0, 3] < 1
    assert heat[0, 3] > heat[0, 4] > heat[0, 6]


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(),
        nn.Linear(288, 4), nn.LogSoftmax(1),
    )  # fmt: skip


def test_each_image_is_asked_for_its_own_class_and_does_not_depend_on_the_others():
    model = small()
    images, classes = torch.randn(3, 3, 8, 8), [2, 0, 3]
    together = grad_cam(model, images, classes, "2")
    for i, label in enumerate(classes):
        alone = grad_cam(model, images[i : i + 1], [label], "2")
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)
    assert np.abs(grad_cam(model, images, [0, 0, 0], "2")[0] - together[0]).max() > 0.1


@pytest.mark.parametrize("layer", [LAYER, "layer2", "layer3.res_block.1.conv"])
def test_layers_of_the_network_have_maps_between_0_and_1(layer):
    torch.manual_seed(0)
    heat = grad_cam(CustomResNet(), torch.randn(1, 3, 32, 32), [1], layer)
    assert heat.shape == (1, 32, 32)
    assert heat.min() >= 0 and heat.max() <= 1 and np.isfinite(heat).all()


@pytest.mark.parametrize("frozen", [False, True])
def test_model_mode_gradients_hooks_and_random_numbers_stay_as_they_are(frozen):
    model = small().train().requires_grad_(not frozen)
    model[3].eval()  # a part that is frozen for itself
    if not frozen:
        model[0].weight.grad = torch.ones_like(model[0].weight)
    twin = copy.deepcopy(model)
    images = torch.randn(2, 3, 8, 8)
    kept, state = images.clone(), torch.get_rng_state()
    with torch.no_grad():
        assert grad_cam(model, images, [0, 1], "2").any()
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, kept) and not images.requires_grad
    for (name, value), other in zip(model.state_dict().items(), twin.state_dict().values()):
        assert torch.equal(value, other), name
    for module, other in zip(model.modules(), twin.modules()):
        assert module.training == other.training
        assert not module._forward_hooks and not module._forward_pre_hooks
    for parameter, other in zip(model.parameters(), twin.parameters()):
        assert parameter.requires_grad == other.requires_grad
        assert parameter.grad is None or parameter is model[0].weight
    if not frozen:
        assert (model[0].weight.grad == 1).all()


def test_network_that_works_in_place_gets_the_same_map():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    in_place = copy.deepcopy(plain)
    in_place[1].inplace = True
    images = torch.randn(2, 3, 8, 8)
    np.testing.assert_array_equal(
        grad_cam(in_place, images, [0, 1], "0"), grad_cam(plain, images, [0, 1], "0")
    )


@pytest.mark.parametrize("layer", ["layer4", "", "layer3.conv"])
def test_unknown_layer_is_refused_with_those_that_there_are(layer):
    with pytest.raises(UsageError, match="prep_layer, layer1, layer2, layer3.*prep_layer.conv"):
        grad_cam(CustomResNet(), torch.zeros(1, 3, 32, 32), [0], layer)


def test_layer_without_a_map_is_refused_and_the_model_is_as_before():
    model = CustomResNet().train()
    with pytest.raises(UsageError, match=r"'fc' gives \(1, 10\); Grad-CAM needs .*layer3$"):
        grad_cam(model, torch.zeros(1, 3, 32, 32), [0], "fc")
    assert all(module.training and not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("classes, found", [([4], "4..4"), ([-1], "-1..-1"), ([0, 1], "2,")])
def test_class_that_the_network_does_not_have_is_refused(classes, found):
    with pytest.raises(UsageError, match=found):
        grad_cam(small(), torch.zeros(1, 3, 8, 8), classes, "0")


def test_no_images_give_no_maps():
    assert grad_cam(small(), torch.zeros(0, 3, 8, 8), [], "0").shape == (0, 8, 8)


class Aside(nn.Module):
    """Its last map is not what the scores come from."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, images):
        maps = self.used(images)
        self.unused(maps)
        return self.fc(maps.mean((2, 3)))


def mlp():
    """Its layers bear the names of those of a network with maps."""
    layers = {"flatten": nn.Flatten(), "layer1": nn.Linear(192, 8), "layer3": nn.Linear(8, 4)}
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def no_layer3():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4),
    )  # fmt: skip


@pytest.mark.parametrize(
    "make, size, layer",
    [
        (CustomResNet, 32, LAYER),
        (CustomResNet, 64, LAYER),  # whose last pooling gives a map as well
        (no_layer3, 8, "1"),  # the block, which ends after its parts
        (Aside, 8, "used"),
        (mlp, 8, ""),
    ],
)
def test_default_is_the_last_layer_with_a_map(make, size, layer):
    model = make().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for images in (torch.randn(2, 3, size, size), torch.zeros(0, 3, size, size)):
        assert choose_layer(model, images) == layer
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_of_torchvisions_resnet():
    resnet18 = pytest.importorskip("torchvision.models").resnet18
    model, images = resnet18(num_classes=4), torch.randn(1, 3, 64, 64)
    assert choose_layer(model, images) == "layer4"
    heat = grad_cam(model, images, [1])
    np.testing.assert_array_equal(heat, grad_cam(model, images, [1], "layer4"))
    assert heat.shape == (1, 64, 64)
    assert choose_layer(model, images[..., :16, :16]) == "layer2"  # layer3 is 1x1 there


def test_a_transformer_is_refused_whichever_layer_is_named():
    transformer = pytest.importorskip("torchvision.models").VisionTransformer
    vit = transformer(8, 2, 1, 2, 8, 8, num_classes=4)
    assert choose_layer(vit, torch.zeros(1, 3, 8, 8)) == ""
    for layer in (None, "encoder", "encoder.layers.encoder_layer_0.ln_1"):
        with pytest.raises(UsageError, match="no layer has a map .*transformer"):
            grad_cam(vit, torch.zeros(1, 3, 8, 8), [1], layer)


def test_scores_may_be_the_logits_of_a_dictionary():
    class Wrapped(nn.Sequential):
        def forward(self, images):
            return {"logits": super().forward(images)}

    plain, images = small(), torch.randn(2, 3, 8, 8)
    wrapped = Wrapped(plain)
    assert choose_layer(wrapped, images) == f"0.{choose_layer(plain, images)}"
    np.testing.assert_array_equal(
        grad_cam(wrapped, images, [1, 3]), grad_cam(plain, images, [1, 3])
    )


def errors_of(model, **options):
    """Explained for six images, of which the last two are right."""
    images = torch.randn(6, 3, 8, 8)
    labels, predicted = np.array([0, 1, 2, 3, 0, 1]), np.array([1, 2, 3, 0, 0, 1])
    evaluation = evaluate_predictions(np.eye(4)[predicted], labels, "abcd")
    return explain_errors(model, lambda indices, epoch: images[indices], evaluation, **options)


def test_errors_are_explained_at_the_layer_that_there_is():
    maps = errors_of(no_layer3(), count=3)
    assert maps.layer == "1" and maps.indices.tolist() == [0, 1, 2]
    assert maps.predicted.shape == maps.true.shape == (3, 8, 8)
    assert (maps.predicted != maps.true).any()
    assert errors_of(no_layer3(), layer="0").layer == "0"


def test_network_without_a_map_has_errors_without_maps():
    maps = errors_of(mlp())
    assert (maps.layer, len(maps.indices)) == ("", 0)
    assert maps.predicted.shape == maps.true.shape == (0, 8, 8)
    with pytest.raises(UsageError, match="no layer has a map"):
        grad_cam(mlp(), torch.zeros(1, 3, 8, 8), [0])


def test_named_layer_is_refused_by_its_name_where_a_default_would_do():
    with pytest.raises(UsageError, match="layer is 'layer3'"):
        errors_of(no_layer3(), layer=LAYER)
    with pytest.raises(UsageError, match=r"'layer3' gives \(4, 4\)"):
        errors_of(mlp(), layer=LAYER)
    with pytest.raises(UsageError, match="do not depend on layer 'unused'"):
        grad_cam(Aside(), torch.zeros(1, 3, 8, 8), [0], "unused")
