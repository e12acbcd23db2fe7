"""The recipes: how each network is trained, as plain settings that a record holds as they are.

A recipe is a flat dictionary. Its keys are the names of the parameters that take its values, in networks.py, in
training.py and in PyTorch; `build` makes of them what `utils.fit` takes.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

import storage
import utils
from experiments import RESULTS, networks
from experiments.training import TaughtLoader, distillation, fading, one_cycle, random_affine, sgd, zoom_and_rotation
from onednn import blocked

# Blocks of settings that recipes have in common ----------------------------------------------------------------------

REFERENCE = dict(  # the numbers of A6.ipynb; `step_size` in epochs
    network="Net", dropout=0.0, epochs=19, batch_size=128, label_smoothing=0.0,
    learning_rate=0.25, momentum=0.9, nesterov=False, weight_decay=0.0, scheduler="step_lr", step_size=10, gamma=0.1,
    augment="zoom_and_rotation", zoom_probability=0.1, max_degrees=15.0, mode="nearest",
)  # fmt: skip
CYCLE = dict(  # what all other recipes change or add to
    epochs=19, batch_size=64, label_smoothing=0.0,
    learning_rate=0.4, momentum=0.9, nesterov=True, weight_decay=1e-4, scheduler="one_cycle", pct_start=0.2,
    augment="random_affine", max_degrees=10.0, max_shift=1.0, max_scale=0.05, max_shear=0.05, fade_from=1.0,
    fade_to=1.0,
)  # fmt: skip
SHORT = dict(epochs=5, batch_size=256, learning_rate=0.8, weight_decay=3e-4, fade_from=0.5, fade_to=0.3)
STRIDED = dict(epochs=3, batch_size=128, learning_rate=0.6, label_smoothing=0.05, stride=2)
BATCHES_OF_32 = dict(batch_size=32, learning_rate=0.2)

# Networks, with their numbers of channels, and what is done before and after them.
NET = dict(network="Net", dropout=0.0)
LARGE = dict(network="LargeNet", before=[32, 32], after=[96, 96, 128], learning_rate=0.2)
SMALL = dict(network="SmallNet", before=[8, 8], after=[16, 24, 19])
SMALL_19778 = dict(network="SmallNet", before=[12, 12], after=[24, 32, 29])
SMALL_37986 = dict(network="SmallNet", before=[16, 16], after=[32, 48, 38], learning_rate=0.2)
FAST = dict(network="FastNet", widths=[16, 16, 32, 40])
TINY = dict(network="TinyNet", channels=16, repeats=[4, 3])
DESKEWED = dict(deskew=1.0, learned_ink=False)  # `Deskew`, which enlarges the digits so many times
ENLARGED = dict(deskew=1.2, learned_ink=False)
INK = dict(deskew=1.2, learned_ink=True)
SHIFTS = dict(average_shifts=True)

# Augmentation: the smaller a network, the less of it can it learn besides the digits.
STRONG = dict(max_degrees=15.0, max_shift=1.5, max_scale=0.1, max_shear=0.1)
LESS = dict(max_degrees=6.0, max_shift=0.6, max_scale=0.03, max_shear=0.03)
HALF = dict(max_degrees=5.0, max_shift=0.5, max_scale=0.025, max_shear=0.025)
QUARTER = dict(max_degrees=2.5, max_shift=0.25, max_scale=0.0125, max_shear=0.0125)
TINY_2442 = dict(max_degrees=7.0, max_shift=0.7, max_scale=0.7 * 0.05, max_shear=0.7 * 0.05)
FADING = dict(fade_from=0.6, fade_to=0.33)
ELASTIC = dict(elastic=0.7, fade_from=0.5, fade_to=0.2, anneal_strategy="cos")

TAUGHT = dict(teacher="large", teachers=1, temperature=2.0, weight=0.9)  # by the first seed of `large`

# The recipes: where blocks have a setting in common, the last one's counts --------------------------------------------

RECIPES: dict[str, dict] = {
    "reference": REFERENCE,
    "reference-dropout-0.05": REFERENCE | dict(dropout=0.05),
    "reference-dropout-0.1": REFERENCE | dict(dropout=0.1),
    "reference-bilinear": REFERENCE | dict(mode="bilinear"),
    "reference-constant-rate": REFERENCE | dict(gamma=1.0),
    "reference-no-augmentation": REFERENCE | dict(zoom_probability=0.0, max_degrees=0.0),
    "reference-fully-connected": REFERENCE | dict(network="fully_connected"),
    "reference-no-batch-norm": REFERENCE | dict(network="without_batch_norm", learning_rate=0.05),
    "one-cycle": CYCLE | NET,
    "one-cycle-elastic": CYCLE | NET | ELASTIC | SHIFTS,
    "one-cycle-deskewed": CYCLE | NET | DESKEWED,
    "one-cycle-taught": CYCLE | NET | STRONG | FADING | TAUGHT,
    "one-cycle-deskewed-taught": CYCLE | NET | DESKEWED | STRONG | FADING | TAUGHT,
    # other networks, by their number of parameters; the largest ones only teach the others
    "large": CYCLE | LARGE | STRONG,
    "large-elastic": CYCLE | LARGE | STRONG | ELASTIC,
    "small-37986": CYCLE | SMALL_37986,
    "small-19778": CYCLE | SMALL_19778 | STRONG | FADING | TAUGHT,
    "small-19778-elastic": CYCLE | SMALL_19778 | ELASTIC | STRONG | FADING | TAUGHT | SHIFTS,
    "fast": CYCLE | FAST | SHORT,
    "fast-strided": CYCLE | FAST | SHORT | STRIDED,
    "small-9710": CYCLE | SMALL,
    "small-9710-short": CYCLE | SMALL | dict(epochs=6),
    "small-9710-taught": CYCLE | SMALL | STRONG | FADING | TAUGHT,
    "small-4962": CYCLE | SMALL | TAUGHT | dict(after=[8, 16, 16], teacher="small-37986"),
    "tiny-2890": CYCLE | TINY | LESS | dict(channels=36),
    "tiny-2442": CYCLE | TINY | TINY_2442 | dict(channels=32, repeats=[2, 5]),
    "tiny-1937": CYCLE | TINY | INK | LESS | TAUGHT | dict(channels=27),
    "tiny-1927": CYCLE | TINY | LESS | TAUGHT | dict(channels=27),
    "tiny-1652": CYCLE | TINY | INK | LESS | TAUGHT | dict(channels=24),
    "tiny-1652-shifts": CYCLE | TINY | INK | LESS | TAUGHT | BATCHES_OF_32 | SHIFTS | dict(channels=24),
    "tiny-1642": CYCLE | TINY | HALF | dict(channels=24),
    "tiny-980": CYCLE | TINY | INK | QUARTER,
    "tiny-980-taught": CYCLE | TINY | INK | QUARTER | TAUGHT,
    "tiny-980-batches-of-32": CYCLE | TINY | INK | QUARTER | BATCHES_OF_32,
    "tiny-980-shifts": CYCLE | TINY | INK | QUARTER | BATCHES_OF_32 | SHIFTS,
    "tiny-970": CYCLE | TINY | QUARTER,
    "tiny-970-deskewed": CYCLE | TINY | ENLARGED | QUARTER,
}

ABLATIONS = {  # what is changed of the reference recipe
    "reference-dropout-0.05": "dropout 0.05",
    "reference-dropout-0.1": "dropout 0.1",
    "reference-bilinear": "bilinear interpolation",
    "reference-constant-rate": "constant learning rate",
    "reference-no-augmentation": "no augmentation",
    "reference-fully-connected": "fully connected layer",
    "reference-no-batch-norm": "no batch normalization, learning rate 0.05",
}
SECOND_LOOKS = {  # whose ideas came after recipes like them had been judged on the test set
    "one-cycle", "one-cycle-elastic", "one-cycle-deskewed-taught", "small-19778", "small-19778-elastic",
    "small-9710-short", "small-9710-taught", "small-4962", "fast", "fast-strided", "tiny-2890", "tiny-1937",
    "tiny-1652-shifts", "tiny-980-batches-of-32", "tiny-980-shifts", "tiny-970-deskewed",
}  # fmt: skip

# From settings to a training ------------------------------------------------------------------------------------------

CHOICES = dict(  # what recipes name
    network=vars(networks),
    scheduler=dict(step_lr=StepLR, one_cycle=one_cycle),
    augment=dict(zoom_and_rotation=zoom_and_rotation, random_affine=random_affine),
)
TYPES = {name: type(value) for settings in RECIPES.values() for name, value in settings.items()}
# Settings that a recipe may have, and those that then come with them.
COMPANIONS = dict(deskew=["learned_ink"], fade_from=["fade_to"], teacher=["teachers", "temperature", "weight"])


def take(function: Callable, settings: dict) -> partial:
    """The `function` with those of the `settings` filled in that its signature names."""
    names = inspect.signature(function).parameters
    return partial(function, **{name: value for name, value in settings.items() if name in names})


def check(settings: dict) -> None:
    """`ValueError` where the `settings` of a recipe name a function that there is not, or have one that none takes."""
    functions: list[Callable] = [sgd]
    for kind, choices in CHOICES.items():
        if settings[kind] not in choices:
            raise ValueError(f"there is no {kind} {settings[kind]}")
        functions.append(choices[settings[kind]])
    taken = {*CHOICES, "epochs", "batch_size", "average_shifts", "label_smoothing"}
    for function in functions:
        taken.update(inspect.signature(function).parameters)
    for name in settings.keys() & COMPANIONS.keys():
        taken.update([name, *COMPANIONS[name]])
    if unused := sorted(settings.keys() - taken):
        raise ValueError(f"nothing takes {', '.join(unused)} in this recipe for {settings['network']}")


def make_network(settings: dict) -> nn.Module:
    """The network of a recipe, with fresh weights."""
    front = None
    if settings.get("deskew"):  # draws its weights first
        front = networks.Deskew(settings["deskew"], settings["learned_ink"])
    network = take(CHOICES["network"][settings["network"]], settings)()
    if settings.get("average_shifts"):
        network = networks.ShiftAverage(network)
    return nn.Sequential(front, network) if front else network


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """The `network` on the `device`; on a CPU channels-last, if it has SiLU, which oneDNN does not block."""
    faster = device.type == "cpu" and any(isinstance(layer, nn.SiLU) for layer in network.modules())
    return network.to(device, memory_format=torch.channels_last if faster else torch.preserve_format)


def teacher_path(folder: Path, recipe: str, trained_on: int, seed: int) -> Path:
    """Where the weights of a `recipe` that others learn from are kept, by the number of images they were trained on."""
    return folder / f"{recipe}-{trained_on}-{seed}.pt"


def load_teachers(settings: dict, folder: Path, images: Tensor) -> list[nn.Module]:
    """The teachers of a recipe: those of the first seeds that learned from as many `images`, on the same device."""
    recipe, loaded = settings["teacher"], []
    for seed in range(1, settings["teachers"] + 1):
        path = teacher_path(folder, recipe, len(images), seed)
        loaded.append(on_device(storage.load_weights(make_network(RECIPES[recipe]), path), images.device))
    return loaded


def make_loss(settings: dict, loader: utils.Loader) -> utils.Loss:
    """The loss of a recipe, of log-probabilities [B, 10] and labels [B]."""
    smoothing, of_labels = settings["label_smoothing"], F.nll_loss
    if smoothing:
        of_labels = partial(F.cross_entropy, label_smoothing=smoothing)  # of log-probabilities as of scores
    distill = take(distillation, settings)

    def loss_fn(log_probabilities: Tensor, labels: Tensor) -> Tensor:
        if not log_probabilities.requires_grad:  # the test loss, which is the same for all recipes
            return F.nll_loss(log_probabilities, labels)
        if "teacher" in settings:
            return distill(log_probabilities, labels, loader.soft_targets, of_labels)
        return of_labels(log_probabilities, labels)

    return loss_fn


def build(settings: dict, train: tuple[Tensor, Tensor], teachers: Path = RESULTS / "teachers") -> dict:
    """What `utils.fit` takes beside test data and checkpoint, to train as the `settings` of a recipe say.

    `train` (images, labels) are on the device to use; `teachers` is the folder of the teachers' weights. `ValueError`
    for a setting that nothing takes.
    """
    check(settings)
    images, labels = train
    network = on_device(make_network(settings), images.device)
    if isinstance(network, networks.ShiftAverage):
        network.network = blocked(network.network)  # `fit` looks only at the network itself
    optimizer = take(sgd, settings)(network.parameters())
    steps = settings["epochs"] * math.ceil(len(images) / settings["batch_size"])
    scheduler = take(CHOICES["scheduler"][settings["scheduler"]], settings | dict(total_steps=steps))(optimizer)
    augment = take(CHOICES["augment"][settings["augment"]], settings)
    if "fade_from" in settings:
        augment = take(fading, settings)(augment, scheduler)
    data = images, labels, settings["batch_size"], augment
    if "teacher" in settings:
        loader = TaughtLoader(*data, teachers=load_teachers(settings, teachers, images))
    else:
        loader = utils.Loader(*data)
    training = dict(network=network, optimizer=optimizer, scheduler=scheduler, loader=loader)
    return training | dict(epochs=settings["epochs"], loss_fn=make_loss(settings, loader))
