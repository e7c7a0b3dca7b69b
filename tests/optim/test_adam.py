import torch
from torch import nn

from onecycle.modules import scale_head
from onecycle.optim.adam import get_optimizer


def test_a_rate_of_the_head_is_a_factor_of_its_scores():
    # In float64, where Adam's steps hardly depend on the size of the gradient.
    torch.manual_seed(0)
    images, labels = torch.randn(16, 6).double(), torch.arange(16) % 3
    bodies = [nn.Linear(6, 5).double() for _ in range(2)]
    heads = [nn.Linear(5, 3).double() for _ in range(2)]
    bodies[1].load_state_dict(bodies[0].state_dict())
    heads[1].load_state_dict(heads[0].state_dict())
    factor, options = 0.25, {"lr": 0.01, "weight_decay": 0.3, "betas": (0.9, 0.99)}
    scaled, plain = (nn.Sequential(*pair) for pair in zip(bodies, heads))
    scale_head(scaled, factor)
    optimizers = [
        get_optimizer(scaled, head_rate=factor, **options),
        get_optimizer(plain, **options),
    ]
    for _ in range(20):
        outputs = scaled(images), factor * plain(images)
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
        for optimizer, output in zip(optimizers, outputs):
            optimizer.zero_grad()
            nn.functional.cross_entropy(output, labels).backward()
            optimizer.step()


def test_vectors_have_a_rate_and_a_decay_of_their_own():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4))
    options = {"lr": 0.5, "betas": (0.9, 0.99), "vector_rate": 0.25, "vector_decay": True}
    optimizer = get_optimizer(model, weight_decay=0.1, **options)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    factors = {"0.weight": 0.95, "0.bias": 0.9875, "1.weight": 0.9875, "1.bias": 0.9875,
               "2.weight": 0.95, "2.bias": 1.0}  # fmt: skip
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * factors[name])


def test_biases_and_bn_are_not_decayed():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 4))
    optimizer = get_optimizer(model, lr=0.5, weight_decay=0.1, betas=(0.9, 0.99))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.95 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)
