"""The recipes: how each network is trained, as plain settings that a record holds as they are.

An ablation is one entry of `ABLATIONS`; a network is a class in networks.py, with the settings it takes as fields of
`Recipe`, and an entry of `RECIPES`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

import storage
import utils
from experiments import RESULTS, networks


def sgd(network: nn.Module, learning_rate: float, momentum: float, nesterov: bool, weight_decay: float) -> optim.SGD:
    """Stochastic gradient descent; weight decay is for kernels, not for batch normalization and biases."""
    kernels, others = ([p for p in network.parameters() if (p.ndim > 1) is many] for many in (True, False))
    groups = [dict(params=kernels, weight_decay=weight_decay), dict(params=others)]
    return optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov)


def step_lr(optimizer: optim.Optimizer, epochs: int, batches: int, step_size: int, gamma: float):
    """The learning rate times `gamma` after every `step_size` epochs of so many `batches`."""
    return optim.lr_scheduler.StepLR(optimizer, step_size * batches, gamma)


def one_cycle(optimizer: optim.Optimizer, epochs: int, batches: int, pct_start: float, anneal_strategy: str = "linear"):
    """The learning rate rises from a hundredth over a share `pct_start` of all steps, then falls to zero.

    Both linearly, or, where `anneal_strategy` is "cos", along a cosine.
    Source: L. Smith, N. Topin, Super-Convergence, 2018, https://arxiv.org/abs/1708.07120
    """
    shape = dict(pct_start=pct_start, anneal_strategy=anneal_strategy, div_factor=100, final_div_factor=1e4)
    peak = optimizer.defaults["lr"]
    return optim.lr_scheduler.OneCycleLR(optimizer, peak, epochs * batches, cycle_momentum=False, **shape)


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
    displacement = 0.0
    if elastic:
        points = elastic * torch.randn(len(images), 2, 6, 6, device=images.device)
        pixels = F.interpolate(points, size=(28, 28), mode="bicubic", align_corners=True)
        displacement = pixels.permute(0, 2, 3, 1)
    matrix = torch.stack(columns, dim=1).view(-1, 2, 3)
    return utils.affine(images, matrix, displacement=displacement)


SCHEDULERS = {"step_lr": step_lr, "one_cycle": one_cycle}
AUGMENTATIONS = {"zoom_and_rotation": utils.augment, "random_affine": random_affine}


def distillation(
    log_probabilities: Tensor, labels: Tensor, teacher: Tensor, temperature: float, weight: float, loss_fn: Callable
) -> Tensor:
    """Loss of a student that learns from the log-probabilities of a `teacher` as well as from the labels.

    `weight` times the Kullback-Leibler divergence from the teacher's to the student's probabilities, both softened by
    a `temperature` (times its square, which keeps the gradient's size), plus 1 - `weight` times the labels' `loss_fn`.
    Source: G. Hinton et al., Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531
    """
    student, soft = (F.log_softmax(values / temperature, dim=1) for values in (log_probabilities, teacher))
    divergence = F.kl_div(student, soft, reduction="batchmean", log_target=True)
    return (1 - weight) * loss_fn(log_probabilities, labels) + weight * temperature**2 * divergence


class TaughtLoader(utils.Loader):
    """A loader that yields with each batch what the `teachers` say of it: log-probabilities [B, 10].

    Several teachers speak with one voice, the mean of their probabilities.
    """

    def __init__(self, *arguments: object, teachers: Sequence[nn.Module]) -> None:
        super().__init__(*arguments)
        self.teachers = [teacher.eval() for teacher in teachers]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for x, y in super().__iter__():
            with torch.no_grad():
                said = torch.stack([teacher(x) for teacher in self.teachers])
            yield x, y, said.logsumexp(0) - math.log(len(self.teachers))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained, in plain values; None is what does not apply."""

    title: str
    epochs: int
    batch_size: int
    network: str  # a name in networks.py, and its arguments
    dropout: float | None = None
    before: list | None = None  # channels
    after: list | None = None  # channels
    channels: int | None = None
    repeats: list | None = None
    widths: list | None = None  # channels
    stride: int | None = None  # of the first convolution
    deskew: float | None = None  # enlargement by `Deskew` in front of the network
    learned_ink: bool | None = None
    average_shifts: bool | None = None  # in evaluation, `ShiftAverage`
    learning_rate: float  # of `sgd`, with what follows
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    scheduler: str  # a name in `SCHEDULERS`, and its arguments
    step_size: int | None = None  # epochs
    gamma: float | None = None
    pct_start: float | None = None
    anneal_strategy: str | None = None
    augment: str  # a name in `AUGMENTATIONS`, and its arguments
    zoom_probability: float | None = None
    max_degrees: float | None = None
    mode: str | None = None
    max_shift: float | None = None  # pixels
    max_scale: float | None = None
    max_shear: float | None = None
    elastic: float | None = None  # pixels
    fade_from: float | None = None  # from this share of the training on, the amounts fall linearly ...
    fade_to: float | None = None  # ... to this share of themselves
    label_smoothing: float = 0.0
    teacher: str | None = None  # the recipe of the networks from which this one learns, too, ...
    teachers: int | None = None  # ... those of its first so many seeds
    temperature: float | None = None
    weight: float | None = None

    def settings(self) -> dict:
        """What decides a run, but for seed and data."""
        return {name: value for name, value in asdict(self).items() if name != "title" and value is not None}

    def _given(self, *names: str) -> dict:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def make_network(self) -> nn.Sequential:
        """A network with fresh weights."""
        arguments = self._given("dropout", "before", "after", "channels", "repeats", "widths", "stride")
        front = networks.Deskew(self.deskew, bool(self.learned_ink)) if self.deskew else None  # draws its weights first
        network = getattr(networks, self.network)(**arguments)
        if self.average_shifts:
            network = networks.ShiftAverage(network)
        return nn.Sequential(front, network) if front else network

    def amounts(self, done: float) -> dict:
        """The arguments of the augmentation after a share `done`, in [0, 1], of the training."""
        arguments = self._given(
            "zoom_probability", "max_degrees", "mode", "max_shift", "max_scale", "max_shear", "elastic"
        )
        if self.fade_from is None:
            return arguments
        faded = max(done - self.fade_from, 0) / max(1 - self.fade_from, 1e-9)
        share = 1 + faded * (self.fade_to - 1)
        return {name: share * amount for name, amount in arguments.items()}

    def build(self, train: tuple[Tensor, Tensor], teachers: Path = RESULTS / "teachers") -> dict:
        """What `utils.fit` takes beside test data and checkpoint; `train` (images, labels) are on the device to use."""
        images, labels = train
        network = on_device(self.make_network(), images.device)
        optimizer = sgd(network, self.learning_rate, self.momentum, self.nesterov, self.weight_decay)
        batches = math.ceil(len(images) / self.batch_size)
        shape = self._given("step_size", "gamma", "pct_start", "anneal_strategy")
        scheduler = SCHEDULERS[self.scheduler](optimizer, self.epochs, batches, **shape)

        def augment(batch: Tensor) -> Tensor:
            done = scheduler.last_epoch / (self.epochs * batches)  # the scheduler counts batches
            return AUGMENTATIONS[self.augment](batch, **self.amounts(done))

        data = images, labels, self.batch_size, augment
        smooth = partial(F.cross_entropy, label_smoothing=self.label_smoothing)  # of log-probabilities as of scores
        loader, loss_fn = utils.Loader(*data), smooth if self.label_smoothing else F.nll_loss
        if self.teacher:
            paths = [teacher_path(teachers, self.teacher, len(images), seed) for seed in range(1, self.teachers + 1)]
            fresh = RECIPES[self.teacher].make_network
            loaded = [on_device(storage.load_weights(fresh(), path), images.device) for path in paths]
            loader = TaughtLoader(*data, teachers=loaded)
            loss_fn = partial(distillation, temperature=self.temperature, weight=self.weight, loss_fn=loss_fn)
        parts = dict(network=network, optimizer=optimizer, scheduler=scheduler, loader=loader)
        return parts | dict(epochs=self.epochs, loss_fn=loss_fn)


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """The `network` on the `device`; on a CPU channels-last, if it has SiLU, which oneDNN does not block."""
    faster = device.type == "cpu" and any(isinstance(layer, nn.SiLU) for layer in network.modules())
    return network.to(device, memory_format=torch.channels_last if faster else torch.preserve_format)


def teacher_path(folder: Path, recipe: str, images: int, seed: int) -> Path:
    """Where the weights of a `recipe` that others learn from are kept, by what they were trained on."""
    return folder / f"{recipe}-{images}-{seed}.pt"


NET = dict(epochs=19, network="Net", dropout=0.0)
STEPS = dict(batch_size=128, learning_rate=0.25, momentum=0.9, scheduler="step_lr", step_size=10, gamma=0.1)
ZOOM = dict(augment="zoom_and_rotation", zoom_probability=0.1, max_degrees=15.0, mode="nearest")
REFERENCE = Recipe(title="reference recipe", **NET, **STEPS, **ZOOM)  # with the numbers of A6.ipynb

ABLATIONS = {  # the reference recipe with one ingredient changed
    "reference-dropout-0.05": replace(REFERENCE, title="dropout 0.05", dropout=0.05),
    "reference-dropout-0.1": replace(REFERENCE, title="dropout 0.1", dropout=0.1),
    "reference-bilinear": replace(REFERENCE, title="bilinear interpolation", mode="bilinear"),
    "reference-constant-rate": replace(REFERENCE, title="constant learning rate", gamma=1.0),
    "reference-no-augmentation": replace(REFERENCE, title="no augmentation", zoom_probability=0.0, max_degrees=0.0),
    "reference-fully-connected": replace(REFERENCE, title="fully connected layer", network="fully_connected"),
    "reference-no-batch-norm": replace(
        REFERENCE, title="no batch normalization, learning rate 0.05", network="without_batch_norm", learning_rate=0.05
    ),
}

# Maxima of the random changes: rotation in degrees, shift in pixels, change of size and shear as fractions.
AMOUNTS = dict(max_degrees=10.0, max_shift=1.0, max_scale=0.05, max_shear=0.05)
STRONG = dict(max_degrees=15.0, max_shift=1.5, max_scale=0.1, max_shear=0.1)  # for networks with room for more variety
RANDOM = dict(augment="random_affine", **AMOUNTS, fade_from=1.0, fade_to=1.0)


def _amounts(share: float) -> dict[str, float]:
    """A share of the augmentation: the smaller a network, the less of it can it learn besides the digits."""
    return {name: share * amount for name, amount in AMOUNTS.items()}


# What recipes have in common: the rate, a teacher, the network, what is done to the digits.
CYCLE = dict(batch_size=64, learning_rate=0.4, nesterov=True, weight_decay=1e-4, scheduler="one_cycle", pct_start=0.2)
SHORT = dict(epochs=5, batch_size=256, learning_rate=0.8, weight_decay=3e-4, fade_from=0.5, fade_to=0.3)
STRIDED = dict(epochs=3, batch_size=128, learning_rate=0.6, label_smoothing=0.05, stride=2)
TAUGHT = dict(teacher="large", teachers=1, temperature=2.0, weight=0.9)
FADING = dict(**STRONG, fade_from=0.6, fade_to=0.33)
ELASTIC = dict(elastic=0.7, fade_from=0.5, fade_to=0.2, anneal_strategy="cos")
LARGE_NET = dict(network="LargeNet", dropout=None, before=[32, 32], after=[96, 96, 128])
FAST_NET = dict(network="FastNet", dropout=None, widths=[16, 16, 32, 40])
SMALL_NET = dict(network="SmallNet", dropout=None, before=[8, 8], after=[16, 24, 19])
TINY_NET = dict(network="TinyNet", dropout=None, channels=16, repeats=[4, 3])
DESKEWED = dict(deskew=1.0, learned_ink=False)

ONE_CYCLE = Recipe(title="Net, one cycle", **NET, **CYCLE, **RANDOM)
NET_TAUGHT = replace(ONE_CYCLE, title="Net, with a large teacher, fading augmentation", **TAUGHT, **FADING)
LARGE = replace(ONE_CYCLE, title="LargeNet, a teacher", learning_rate=0.2, **LARGE_NET, **STRONG)
SMALL = replace(ONE_CYCLE, title="SmallNet, one cycle", **SMALL_NET)
SMALL_TAUGHT = replace(SMALL, title="SmallNet, with a large teacher, fading augmentation", **TAUGHT, **FADING)
SMALL_19778 = replace(SMALL_TAUGHT, before=[12, 12], after=[24, 32, 29])
TINY = replace(ONE_CYCLE, title="TinyNet", **TINY_NET)
TRANSFORMED = replace(TINY, title="TinyNet, learned weighting", deskew=1.2, learned_ink=True, **_amounts(0.25))
TRANSFORMED_TAUGHT = replace(TRANSFORMED, title=f"{TRANSFORMED.title}, with a large teacher", **TAUGHT)
TINY_1652 = replace(TRANSFORMED_TAUGHT, **_amounts(0.6), channels=24)
BATCHES_OF_32 = dict(batch_size=32, learning_rate=0.2)
SMALL_BATCHES = replace(TRANSFORMED, title=f"{TRANSFORMED.title}, batches of 32", **BATCHES_OF_32)

RECIPES: dict[str, Recipe] = {
    "reference": REFERENCE,
    **ABLATIONS,
    "one-cycle": ONE_CYCLE,
    "one-cycle-elastic": replace(
        ONE_CYCLE, title="Net, one cycle, elastic distortion, shifts averaged", **ELASTIC, average_shifts=True
    ),
    "one-cycle-deskewed": replace(ONE_CYCLE, title="Net, one cycle, digits deskewed", **DESKEWED),
    "one-cycle-taught": NET_TAUGHT,
    "one-cycle-deskewed-taught": replace(NET_TAUGHT, title=f"{NET_TAUGHT.title}, deskewed", **DESKEWED),
    # where trials of other sizes begin
    "small": SMALL,
    "tiny": TINY,
    # other networks, by their number of parameters; the largest ones only teach the others
    "large": LARGE,
    "large-elastic": replace(LARGE, title="LargeNet, elastic distortion", **ELASTIC),
    "small-37986": replace(
        SMALL, title="SmallNet, the teacher", learning_rate=0.2, before=[16, 16], after=[32, 48, 38]
    ),
    "small-19778": SMALL_19778,
    "small-19778-elastic": replace(
        SMALL_19778,
        title="SmallNet, with a large teacher, elastic distortion, shifts averaged",
        **(ELASTIC | FADING),
        average_shifts=True,
    ),
    "fast": replace(ONE_CYCLE, title="FastNet, fading augmentation", **FAST_NET, **SHORT),
    "fast-strided": replace(ONE_CYCLE, title="FastNet with a stride, three epochs", **FAST_NET, **(SHORT | STRIDED)),
    "small-9710": SMALL,
    "small-9710-short": replace(SMALL, title="SmallNet, 6 epochs", epochs=6),
    "small-9710-taught": SMALL_TAUGHT,
    "small-4962": replace(
        SMALL, title="SmallNet, with a teacher", after=[8, 16, 16], **(TAUGHT | dict(teacher="small-37986"))
    ),
    "tiny-2890": replace(TINY, **_amounts(0.6), channels=36),
    "tiny-2442": replace(TINY, **_amounts(0.7), channels=32, repeats=[2, 5]),
    "tiny-1937": replace(TRANSFORMED_TAUGHT, **_amounts(0.6), channels=27),
    "tiny-1927": replace(TINY, title="TinyNet, with a large teacher", **TAUGHT, **_amounts(0.6), channels=27),
    "tiny-1652": TINY_1652,
    "tiny-1652-shifts": replace(
        TINY_1652, title=f"{TINY_1652.title}, batches of 32, shifts averaged", **BATCHES_OF_32, average_shifts=True
    ),
    "tiny-1642": replace(TINY, **_amounts(0.5), channels=24),
    "tiny-980": TRANSFORMED,
    "tiny-980-taught": TRANSFORMED_TAUGHT,
    "tiny-980-batches-of-32": SMALL_BATCHES,
    "tiny-980-shifts": replace(SMALL_BATCHES, title=f"{SMALL_BATCHES.title}, shifts averaged", average_shifts=True),
    "tiny-970": replace(TINY, **_amounts(0.25)),
    "tiny-970-deskewed": replace(
        TINY, title="TinyNet, digits deskewed", deskew=1.2, learned_ink=False, **_amounts(0.25)
    ),
}
