"""How the lab trains: optimizer, schedule, augmentation, and what is learned from teachers."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import OneCycleLR

import utils

# Optimizer and schedule -----------------------------------------------------------------------------------------------


def sgd(
    parameters: Iterable[nn.Parameter], learning_rate: float, momentum: float, nesterov: bool, weight_decay: float
) -> optim.SGD:
    """Stochastic gradient descent; weight decay is for kernels, not for batch normalization and biases."""
    parameters = list(parameters)
    kernels = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [dict(params=kernels, weight_decay=weight_decay), dict(params=others)]
    return optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov)


def one_cycle(
    optimizer: optim.Optimizer, total_steps: int, pct_start: float, anneal_strategy: str = "linear"
) -> OneCycleLR:
    """The learning rate rises from a hundredth over a share `pct_start` of all steps, then falls to zero.

    Both linearly, or, where `anneal_strategy` is "cos", along a cosine.
    Source: L. Smith, N. Topin, Super-Convergence, 2018, https://arxiv.org/abs/1708.07120
    """
    shape = dict(pct_start=pct_start, anneal_strategy=anneal_strategy, div_factor=100, final_div_factor=1e4)
    return OneCycleLR(optimizer, optimizer.defaults["lr"], total_steps, cycle_momentum=False, **shape)


# Augmentation: uint8 [B, 28, 28] in and out, every image with its own random parameters -------------------------------


def zoom_and_rotation(images: Tensor, zoom_probability: float, max_degrees: float, mode: str) -> Tensor:
    """The lesson's `utils.augment`, with a choice of interpolation: `mode` is "nearest" or "bilinear"."""
    chosen = torch.rand(len(images), device=images.device) < zoom_probability
    degrees = torch.empty(len(images), device=images.device).uniform_(-max_degrees, max_degrees)
    return utils.rotate(utils.zoom(images, chosen), degrees, mode)


def random_affine(
    images: Tensor, max_degrees: float, max_shift: float, max_scale: float, max_shear: float, elastic: float = 0.0
) -> Tensor:
    """A random variant of every image: affine, and elastic where `elastic` is not 0.

    The affine amounts, in degrees, pixels, and fractions, are uniform between ± their maxima. `elastic` is the standard
    deviation, in pixels, of the displacements at 6 × 6 points, between which those of all pixels are interpolated.
    Sources: torchvision's RandomAffine, there with one change of size for both axes; P. Simard et al., Best Practices
    for Convolutional Neural Networks, ICDAR 2003, there with displacements that are smoothed by a Gaussian filter
    """
    draws = torch.empty(6, len(images), device=images.device).uniform_(-1, 1)
    angle = torch.deg2rad(max_degrees * draws[0])
    cos, sin, shear = angle.cos(), angle.sin(), max_shear * draws[1]
    across, down = 1 / (1 + max_scale * draws[2]), 1 / (1 + max_scale * draws[3])
    columns = [across * cos, down * (shear * cos - sin), max_shift * draws[4]]
    columns += [across * sin, down * (shear * sin + cos), max_shift * draws[5]]
    source = utils.positions(torch.stack(columns, dim=1).view(-1, 2, 3))
    if elastic:
        points = elastic * torch.randn(len(images), 2, 6, 6, device=images.device)
        displacement = F.interpolate(points, size=(28, 28), mode="bicubic", align_corners=True)
        source = source + displacement.permute(0, 2, 3, 1)
    return utils.sample(images, source)


def fading(usual: partial, cycle: OneCycleLR, fade_from: float, fade_to: float) -> Callable[[Tensor], Tensor]:
    """The `usual` augmentation, whose amounts fall linearly in the course of the training.

    They begin to fall after a share `fade_from` of the steps of the scheduler, `cycle`, and end at `fade_to` times what
    they were.
    """

    def faded(images: Tensor) -> Tensor:
        done = cycle.last_epoch / cycle.total_steps  # it counts batches
        share = 1 + max(done - fade_from, 0) / max(1 - fade_from, 1e-9) * (fade_to - 1)
        return usual(images, **{name: share * amount for name, amount in usual.keywords.items()})

    return faded


# Teachers -------------------------------------------------------------------------------------------------------------


def distillation(
    output: Tensor, labels: Tensor, soft_targets: Tensor, loss_fn: utils.Loss, temperature: float, weight: float
) -> Tensor:
    """Loss of a student's log-probabilities, `output`, by its teachers', `soft_targets`, as well as by the labels.

    `weight` times the Kullback-Leibler divergence from the teachers' to the student's probabilities, both softened by
    a `temperature` (times its square, which keeps the gradient's size), plus 1 - `weight` times the labels' `loss_fn`.
    Source: G. Hinton et al., Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531
    """
    student = F.log_softmax(output / temperature, dim=1)
    teacher = F.log_softmax(soft_targets / temperature, dim=1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return (1 - weight) * loss_fn(output, labels) + weight * temperature**2 * divergence


class TaughtLoader(utils.Loader):
    """A loader that keeps what the `teachers` say of the batch at hand, log-probabilities [B, 10], as `soft_targets`.

    Several teachers speak with one voice, the mean of their probabilities.
    """

    def __init__(self, *arguments: object, teachers: Sequence[nn.Module]) -> None:
        super().__init__(*arguments)
        self.teachers = [teacher.eval() for teacher in teachers]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in super().__iter__():
            with torch.no_grad():
                answers = torch.stack([teacher(x) for teacher in self.teachers])
            self.soft_targets = answers.logsumexp(0) - math.log(len(self.teachers))
            yield x, y
