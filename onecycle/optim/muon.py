"""The speedrun recipe: the same network, initialised from the images and trained with Muon.

It needs fewer epochs. Loop, schedule, loss and files of a training stay the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onecycle.errors import UsageError
from onecycle.optim.orthogonal import orthogonalise

WHITENING_IMAGES = 2000
"""Images at most that the covariance of the patches is computed from: 1.8 million patches."""


def prepare_network(
    model: nn.Module,
    images: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    output_scale: float = 1 / 8,
    bn_momentum: float = 0.4,
) -> None:
    """Initialise a network, in place, as the fastest published trainings do.

    The first convolution whitens patches and is frozen (:func:`whiten_`); the others start as
    identities (:func:`dirac_`). The scales of batch norm are frozen at 1. The biases of the
    convolutions are frozen at 0: the batch norm after each convolution cancels them. The last
    layer is scaled down. Names, shapes and number of the parameters stay the same, so the plain
    network loads the weights.

    Args:
        model: convolutions, each followed by batch norm, and a linear layer at the end; on any
            device.
        images: (N, H, W, 3) uint8 training images; 2,000 at most are used.
        mean: of each channel, 0..1, as the network's input is normalised.
        std: of each channel, 0..1.
        output_scale: factor of the last layer's weights, above 0. With small weights the first
            predictions are near uniform.
        bn_momentum: weight of a batch in the running statistics of batch norm, 0..1; a short
            training has few batches.

    Raises:
        UsageError: the first convolution has too few filters, see :func:`whiten_`.

    Source:
        Page, "How to Train Your ResNet 8: Bag of Tricks" (2019): whitening, frozen scales, scaled
        output. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024): identities.
    """
    whiten_network(model, images, mean, std).requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias).requires_grad_(False)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight).requires_grad_(False)
            layer.momentum = bn_momentum
        elif isinstance(layer, nn.Linear):
            with torch.no_grad():
                layer.weight.mul_(output_scale)
                layer.bias.mul_(output_scale)


def whiten_network(
    model: nn.Module, images: np.ndarray, mean: Sequence[float], std: Sequence[float]
) -> nn.Parameter:
    """Let the first convolution whiten patches and the others start as identities, in place.

    Args:
        model: with convolutions, on any device.
        images: (N, H, W, 3) uint8 training images; 2,000 at most are used.
        mean: of each channel, 0..1, as the network's input is normalised.
        std: of each channel, 0..1.

    Returns:
        The filters of the first convolution.

    Raises:
        UsageError: there is no convolution, or the first has too few filters, see :func:`whiten_`.
    """
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    if not convolutions:
        raise UsageError("the network has no convolution to whiten patches; leave out start")
    device = convolutions[0].weight.device
    # From everywhere: those of a folder are in the order of their classes.
    some = images[:: -(-len(images) // WHITENING_IMAGES)]
    pixels = torch.tensor(some, device=device).permute(0, 3, 1, 2) / 255
    shift, scale = (torch.tensor(three, device=device).view(3, 1, 1) for three in (mean, std))
    whiten_(convolutions[0], (pixels - shift) / scale)
    for layer in convolutions[1:]:
        dirac_(layer)
    return convolutions[0].weight


@torch.no_grad()
def whiten_(layer: nn.Conv2d, images: Tensor) -> None:
    """Give a layer filters, in place, whose outputs are uncorrelated and have variance 1.

    The first filters are the eigenvectors of the patches' covariance, divided by the square roots
    of their eigenvalues. The next ones are the same with the opposite sign, because ReLU would
    drop the negative outputs of the first. All further filters stay as they are.

    Args:
        layer: C input channels, h x w, with P = C * h * w filters or more.
        images: (N, C, H, W) float, normalised as the layer's input.

    Raises:
        UsageError: the layer has fewer than P filters.

    Source:
        Page, "How to Train Your ResNet 8: Bag of Tricks" (2019).
    """
    filters, *shape = layer.weight.shape
    size = math.prod(shape)
    if filters < size:
        raise UsageError(
            f"{filters} filters cannot whiten patches of {size} numbers; have {size} or more"
        )
    patches = F.unfold(images, layer.kernel_size).transpose(0, 1).flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(patches).cpu().double())
    # The largest first; a flat image set has eigenvalues of 0.
    white = (vectors / (values + 1e-6).sqrt()).T.flip(0).view(size, *shape)
    both = torch.cat([white, -white])[:filters]
    layer.weight[: len(both)] = both.to(layer.weight)


@torch.no_grad()
def dirac_(layer: nn.Conv2d) -> None:
    """Let the first filters pass one input channel each unchanged, in place; the rest stay random.

    Args:
        layer: any convolution.
    """
    weight = layer.weight[: layer.in_channels]
    channels = torch.arange(min(weight.shape[:2]), device=weight.device)
    middle = [size // 2 for size in weight.shape[2:]]
    weight.zero_()
    weight[channels, channels, *middle] = 1  # all at once, where nn.init.dirac_ launches one by one


def get_speedrun_optimizer(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    bias_rate: float = 0.1,
    head_rate: float = 0.02,
    compiled: bool = False,
) -> Muon:
    """:class:`Muon` for the filters of a prepared network, Adam for its biases and last layer.

    Args:
        model: see :func:`prepare_network`; frozen parameters are left out.
        lr: learning rate of the filters, above 0.
        betas: decay of the running means of the gradient (filters too) and of its square, 0..1.
        bias_rate: learning rate of biases and batch norm, as a share of ``lr``.
        head_rate: learning rate of the last layer's weights, as a share of ``lr``.
        compiled: see :class:`Muon`.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 2], "orthogonal": True},
        {"params": [p for p in parameters if p.ndim == 2], "lr_scale": head_rate},
        {"params": [p for p in parameters if p.ndim < 2], "lr_scale": bias_rate},
    ]
    return Muon(groups, lr=lr, betas=betas, compiled=compiled)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, each step orthogonalised over a layer's filters; Adam for the rest.

    Filters are kept at the norm of an orthogonal matrix, so the learning rate is relative to the
    weights. No weight decay is needed, because the batch norm after the layer cancels their scale.

    Args:
        groups: parameter groups. With ``orthogonal`` set, parameters have two dimensions or more,
            of which the first counts the filters. Adam updates the other groups, with the learning
            rate ``lr * lr_scale``.
        lr: learning rate, above 0.
        betas: decay of the running means of the gradient and, in Adam's groups, of its square,
            0..1.
        compiled: whether the iteration is compiled, see ``compute.get_compile_mode``.

    Source:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the norm of
        the filters and no decay: Jordan, airbench94_muon (2024).
    """

    _compiled = None
    """On the class, because a copy has the state only: it runs without the compiler."""

    def __init__(
        self,
        groups: list[dict],
        *,
        lr: float,
        betas: tuple[float, float],
        compiled: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "lr_scale": 1.0, "orthogonal": False}
        super().__init__(groups, defaults)
        if compiled:
            # Without CUDA graphs: those of the training step would reuse their memory.
            self._compiled = torch.compile(_directions, dynamic=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update the parameters.

        Args:
            closure: computes the loss again, with gradients; None: the gradients are there.

        Returns:
            The loss of ``closure``, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                if group["orthogonal"]:
                    _muon_step(self.state, parameters, group, self._compiled or _directions)
                else:
                    _adam_step(self.state, parameters, group)
        return loss


# A few kernel launches for all parameters together: with one per parameter, a fast GPU would wait.


def _muon_step(state, parameters, group, directions) -> None:
    momentum, _ = group["betas"]
    gradients, means = [p.grad for p in parameters], _averages(state, parameters, "mean")
    torch._foreach_lerp_(means, gradients, 1 - momentum)
    updates = directions(torch._foreach_lerp(gradients, means, momentum))  # Nesterov's
    norms = torch._foreach_norm(parameters)
    torch._foreach_div_(norms, [len(p) ** 0.5 for p in parameters])
    torch._foreach_div_(parameters, norms)
    torch._foreach_add_(parameters, updates, alpha=-group["lr"])


def _directions(gradients: list[Tensor]) -> list[Tensor]:
    """Each gradient orthogonalised over its filters."""
    shapes, directions = {}, {}  # layers of one shape go through the iteration together
    for index, gradient in enumerate(gradients):
        shapes.setdefault(gradient.shape, []).append(index)
    for shape, indices in shapes.items():
        updates = orthogonalise(torch.stack([gradients[index].flatten(1) for index in indices]))
        for index, update in zip(indices, updates):
            # In the gradient's memory format, so that one launch adds them all.
            directions[index] = torch.empty_like(gradients[index]).copy_(update.view(shape))
    return [directions[index] for index in range(len(gradients))]


def _adam_step(state, parameters, group) -> None:
    beta1, beta2 = group["betas"]
    gradients = [p.grad for p in parameters]
    means, squares = (_averages(state, parameters, name) for name in ("mean", "square"))
    for p in parameters:
        state[p]["step"] = state[p].get("step", 0) + 1
    step = state[parameters[0]]["step"]
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, (1 - beta2**step) ** 0.5)
    torch._foreach_add_(roots, 1e-8)
    rate = group["lr"] * group["lr_scale"] / (1 - beta1**step)
    torch._foreach_addcdiv_(parameters, means, roots, -rate)


def _averages(state, parameters, name: str) -> list[Tensor]:
    """The running mean of each parameter under a name, zeros at first."""
    for p in parameters:
        if name not in state[p]:
            state[p][name] = torch.zeros_like(p)
    return [state[p][name] for p in parameters]
