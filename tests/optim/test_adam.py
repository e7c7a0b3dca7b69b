import torch
from torch import nn

from onecycle.optim.adam import get_optimizer


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
