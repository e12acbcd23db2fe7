"""The recipes: each holds the callables that make its network, optimizer, learning rate, augmentation and loss.

An ablation is one entry of `ABLATIONS`, a network a class in networks.py and its entry in `RECIPES`.
"""

import difflib
import inspect
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

import storage
import utils
from experiments import ROOT
from experiments.networks import (
    Distillation,
    FastNet,
    LargeNet,
    SmallNet,
    TinyNet,
    deskewed_net,
    deskewed_tiny_net,
    fully_connected,
    transformed_tiny_net,
    without_batch_norm,
)
from model import Net

TEACHERS = ROOT / "results" / "teachers"


def sgd(network: nn.Module, learning_rate: float, momentum: float, nesterov: bool = False, weight_decay: float = 0.0):
    """Stochastic gradient descent; weight decay is for kernels, not for batch normalization and biases."""
    kernels = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    groups = [dict(params=kernels, weight_decay=weight_decay), dict(params=others)]
    return optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov)


def step_lr(optimizer: optim.Optimizer, steps_per_epoch: int, epochs: int, step_size: int, gamma: float):
    """The learning rate times `gamma` after every `step_size` epochs."""
    if step_size < 1 or not 0 < gamma <= 1:
        raise ValueError(f"step_size must be at least 1 and gamma in (0, 1], got {step_size} and {gamma}")
    return optim.lr_scheduler.StepLR(optimizer, step_size * steps_per_epoch, gamma)


def one_cycle(optimizer: optim.Optimizer, steps_per_epoch: int, epochs: int, pct_start: float):
    """The learning rate rises linearly from a hundredth over a share `pct_start` of all steps, then falls to zero.

    Source: L. Smith, N. Topin, Super-Convergence, 2018, https://arxiv.org/abs/1708.07120
    """
    peak, steps = optimizer.defaults["lr"], epochs * steps_per_epoch
    if pct_start * steps < 2:
        raise ValueError(f"one cycle cannot rise within {pct_start} of {steps} steps; train on more images or epochs")
    shape = dict(anneal_strategy="linear", cycle_momentum=False, div_factor=100, final_div_factor=1e4)
    return optim.lr_scheduler.OneCycleLR(optimizer, peak, steps, pct_start=pct_start, **shape)


Augmentation = Callable[[Tensor], Tensor]


def zoom_and_rotation(
    progress: Callable[[], float], zoom_probability: float, max_degrees: float, mode: str = "nearest"
) -> Augmentation:
    """The reference solution's augmentation, the same at any `progress` of training."""
    return partial(utils.augment, zoom_probability=zoom_probability, max_degrees=max_degrees, mode=mode)


def affine(
    progress: Callable[[], float],
    max_degrees: float,
    max_shift: float,
    max_scale: float,
    max_shear: float,
    fade_from: float = 1.0,
    fade_to: float = 1.0,
) -> Augmentation:
    """`random_affine`, its amounts falling linearly to `fade_to` of themselves from the share `fade_from` of it all."""

    def augment(images: Tensor) -> Tensor:
        faded = max(progress() - fade_from, 0) / max(1 - fade_from, 1e-9)
        share = 1 + faded * (fade_to - 1)
        return random_affine(images, *(share * amount for amount in (max_degrees, max_shift, max_scale, max_shear)))

    return augment


def random_affine(images: Tensor, max_degrees: float, max_shift: float, max_scale: float, max_shear: float) -> Tensor:
    """A random affine variant of every image, each amount uniform between ± its maximum.

    Rotation in degrees, shift along both axes in pixels, change of size along both axes and shear as fractions.
    Source: torchvision's RandomAffine, there with one change of size for both axes
    """
    if not (0 <= max_scale < 1 and all(map(math.isfinite, (max_degrees, max_shift, max_shear)))):
        raise ValueError(f"max_scale must be in [0, 1), got {max_scale}; the other amounts must be finite")
    draws = torch.empty(6, len(images), device=images.device).uniform_(-1, 1)
    angle = torch.deg2rad(max_degrees * draws[0])
    cos, sin, shear = angle.cos(), angle.sin(), max_shear * draws[1]
    across, down = 1 / (1 + max_scale * draws[2]), 1 / (1 + max_scale * draws[3])
    columns = [across * cos, down * (shear * cos - sin), max_shift * draws[4]]
    columns += [across * sin, down * (shear * sin + cos), max_shift * draws[5]]
    return utils.affine(images, torch.stack(columns, dim=1).view(-1, 2, 3))


def cross_entropy(augment: Augmentation, load_teacher: Callable[[str, int], nn.Module]):
    """Augmentation and loss that learn from the labels alone."""
    return augment, F.nll_loss


def distillation(
    augment: Augmentation,
    load_teacher: Callable[[str, int], nn.Module],
    teacher: str,
    teachers: int,
    temperature: float = 2.0,
    weight: float = 0.9,
):
    """Augmentation and loss that learn from the networks of the first seeds of the recipe `teacher`."""
    networks = [load_teacher(teacher, seed) for seed in range(1, teachers + 1)]
    student = Distillation(networks, augment, temperature, weight)
    return student.augment, student.loss


def teacher_path(folder: Path, recipe: str, images: int, seed: int) -> Path:
    """Where the weights of a `recipe` that teaches are kept, by what they were trained on."""
    return folder / f"{recipe}-{images}-{seed}.pt"


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. The arguments of its callables, and the numbers, are its settings."""

    title: str
    network: partial  # () → network
    optimizer: partial  # (network) → optimizer
    scheduler: partial  # (optimizer, steps per epoch, epochs) → learning rate scheduler
    augment: partial  # (share of the training that is done) → function of images
    epochs: int
    batch_size: int
    loss: partial = partial(cross_entropy)  # (augmentation, function that loads a teacher) → augmentation, loss
    teaches: bool = False  # others learn from its networks, so they are kept

    def build(self, images: int, device: torch.device | str = "cpu", folder: Path = TEACHERS) -> tuple:
        """A new run on so many `images`, to be called after `torch.manual_seed`; `folder` holds the teachers."""

        def load_teacher(recipe: str, seed: int) -> nn.Module:
            path = teacher_path(folder, recipe, images, seed)
            if not path.exists():
                raise ValueError(
                    f"the teacher {path} is missing: run {recipe}, seed {seed}, with the same options first"
                )
            return storage.load_weights(RECIPES[recipe].network().to(device), path)

        network = self.network().to(device)
        optimizer = self.optimizer(network)
        steps_per_epoch = math.ceil(images / self.batch_size)
        scheduler = self.scheduler(optimizer, steps_per_epoch, self.epochs)
        augment = self.augment(lambda: scheduler.last_epoch / (self.epochs * steps_per_epoch))
        augment, loss_fn = self.loss(augment, load_teacher)
        return network, optimizer, scheduler, augment, loss_fn

    def settings(self) -> dict:
        """What decides a run, but for seed and data, as JSON knows it: names of functions and all their arguments."""
        settings = dict(epochs=self.epochs, batch_size=self.batch_size)
        for part in PARTS:
            function = getattr(self, part)
            settings |= {part: function.func.__name__} | {p.name: p.default for p in _settings(function)}
        return json.loads(json.dumps(settings))

    def changed(self, title: str, **changes: object) -> "Recipe":
        """This recipe with other settings; `ValueError` for a name that it has not, or a value of another type."""
        recipe = replace(self, title=title)
        for name, value in changes.items():
            known = dict(epochs=("", int), batch_size=("", int))
            known |= {p.name: (part, p.annotation) for part in PARTS for p in _settings(getattr(recipe, part))}
            if name not in known:
                (near,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                raise ValueError(f"{name} is no setting of this recipe; the nearest is {near}")
            part, kind = known[name]
            value = float(value) if kind is float and type(value) is int else value
            numbers = kind == Sequence[int] and isinstance(value, list | tuple) and {type(v) for v in value} == {int}
            if not numbers and type(value) is not kind:
                raise ValueError(f"{name} must be {getattr(kind, '__name__', kind)}, got {value!r}")
            if kind is int and value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
            change = {part: partial(getattr(recipe, part), **{name: value})} if part else {name: value}
            recipe = replace(recipe, **change)
        return recipe


PARTS = "network", "optimizer", "scheduler", "augment", "loss"


def _settings(function: partial) -> list[inspect.Parameter]:
    """The parameters of `function` that are set, or have a default."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter for parameter in parameters if parameter.default is not inspect.Parameter.empty]


# The reference recipe's numbers are those of the notebook's run.
_run = storage.load_record(ROOT / "results" / "notebook.json")["hyperparameters"]


def _numbers(*names: str) -> dict:
    return {name: _run[name] for name in names}


REFERENCE = Recipe(
    title="reference recipe",
    network=partial(Net, **_numbers("dropout")),
    optimizer=partial(sgd, **_numbers("learning_rate", "momentum")),
    scheduler=partial(step_lr, **_numbers("step_size", "gamma")),
    augment=partial(zoom_and_rotation, **_numbers("zoom_probability", "max_degrees")),
    **_numbers("epochs", "batch_size"),
)

ABLATIONS = {  # the reference recipe with one ingredient changed
    "reference-dropout-0.05": REFERENCE.changed("dropout 0.05", dropout=0.05),
    "reference-dropout-0.1": REFERENCE.changed("dropout 0.1", dropout=0.1),
    "reference-bilinear": REFERENCE.changed("bilinear interpolation", mode="bilinear"),
    "reference-constant-rate": REFERENCE.changed("constant learning rate", gamma=1.0),
    "reference-no-augmentation": REFERENCE.changed("no augmentation", zoom_probability=0.0, max_degrees=0),
    "reference-fully-connected": replace(REFERENCE, title="fully connected layer", network=partial(fully_connected)),
    "reference-no-batch-norm": replace(REFERENCE, network=partial(without_batch_norm)).changed(
        "no batch normalization, learning rate 0.01", learning_rate=0.01
    ),
}

AMOUNTS = dict(
    max_degrees=10.0,  # rotation, either way
    max_shift=1.0,  # pixels along both axes
    max_scale=0.05,  # change of size along both axes
    max_shear=0.05,
)

ONE_CYCLE = Recipe(
    title="Net, one cycle",
    network=partial(Net),
    optimizer=partial(sgd, learning_rate=0.4, momentum=0.9, nesterov=True, weight_decay=1e-4),
    scheduler=partial(one_cycle, pct_start=0.2),
    augment=partial(affine, **AMOUNTS),
    epochs=19,
    batch_size=64,
)


def _amounts(share: float) -> dict[str, float]:
    """A share of the augmentation: the smaller a network, the less of it can it learn besides the digits."""
    return {name: share * amount for name, amount in AMOUNTS.items()}


SMALL = replace(ONE_CYCLE, title="SmallNet, one cycle", network=partial(SmallNet))
STRONG = dict(max_degrees=15.0, max_shift=1.5, max_scale=0.1, max_shear=0.1)  # for networks with room for more variety
LARGE = replace(ONE_CYCLE, network=partial(LargeNet), teaches=True).changed(
    "LargeNet, a teacher", learning_rate=0.2, **STRONG
)
FAST = replace(ONE_CYCLE, network=partial(FastNet), batch_size=256, epochs=5).changed(
    "FastNet, fading augmentation", learning_rate=0.8, weight_decay=3e-4, fade_from=0.5, fade_to=0.3
)
TINY = replace(ONE_CYCLE, title="TinyNet", network=partial(TinyNet))
TRANSFORMED = replace(TINY, network=partial(transformed_tiny_net, zoom=1.2)).changed(
    "TinyNet, spatial transformer", **_amounts(0.25)
)
TAUGHT = partial(distillation, teacher="large", teachers=1)
TRANSFORMED_TAUGHT = replace(TRANSFORMED, title=f"{TRANSFORMED.title}, with a large teacher", loss=TAUGHT)
NET_TAUGHT = replace(ONE_CYCLE, loss=TAUGHT).changed(
    "Net, with a large teacher, fading augmentation", **STRONG, fade_from=0.6, fade_to=0.33
)
SMALL_TAUGHT = replace(
    NET_TAUGHT, title="SmallNet, with a large teacher, fading augmentation", network=partial(SmallNet)
)

RECIPES: dict[str, Recipe] = {
    "reference": REFERENCE,
    **ABLATIONS,
    "one-cycle": ONE_CYCLE,
    "one-cycle-deskewed": replace(ONE_CYCLE, title="Net, one cycle, digits deskewed", network=partial(deskewed_net)),
    "one-cycle-taught": NET_TAUGHT,
    "one-cycle-deskewed-taught": replace(
        NET_TAUGHT, title="Net, with a large teacher, digits deskewed", network=partial(deskewed_net)
    ),
    # other networks, by their number of parameters; the largest ones only teach the others
    "large": LARGE,
    "small-37986": replace(SMALL, teaches=True).changed(
        "SmallNet, the teacher", learning_rate=0.2, before=[16, 16], after=[32, 48, 38]
    ),
    "small-19778": SMALL_TAUGHT.changed(SMALL_TAUGHT.title, before=[12, 12], after=[24, 32, 29]),
    "fast": FAST,
    "small-9710": SMALL,
    "small-9710-short": SMALL.changed("SmallNet, 6 epochs", epochs=6),
    "small-9710-taught": SMALL_TAUGHT,
    "small-4962": replace(SMALL, loss=partial(TAUGHT, teacher="small-37986")).changed(
        "SmallNet, with a teacher", before=[8, 8], after=[8, 16, 16]
    ),
    "tiny-2890": TINY.changed("TinyNet", **_amounts(0.6), channels=36),
    "tiny-2442": TINY.changed("TinyNet", **_amounts(0.7), channels=32, repeats=[2, 5]),
    "tiny-1937": TRANSFORMED_TAUGHT.changed(TRANSFORMED_TAUGHT.title, **_amounts(0.6), channels=27),
    "tiny-1927": replace(TINY, loss=TAUGHT).changed("TinyNet, with a large teacher", **_amounts(0.6), channels=27),
    "tiny-1652": TRANSFORMED_TAUGHT.changed(TRANSFORMED_TAUGHT.title, **_amounts(0.6), channels=24),
    "tiny-1642": TINY.changed("TinyNet", **_amounts(0.5), channels=24),
    "tiny-980": TRANSFORMED,
    "tiny-980-taught": TRANSFORMED_TAUGHT,
    "tiny-980-batches-of-32": TRANSFORMED.changed(
        f"{TRANSFORMED.title}, batches of 32", batch_size=32, learning_rate=0.2
    ),
    "tiny-970": TINY.changed("TinyNet", **_amounts(0.25)),
    "tiny-970-deskewed": replace(TINY, network=partial(deskewed_tiny_net, zoom=1.2)).changed(
        "TinyNet, digits deskewed", **_amounts(0.25)
    ),
}
