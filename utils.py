"""What is done with the network, in the notebook's order: data, augmentation, batches, training, evaluation.

Images are uint8 [N, 28, 28] on the device until the moment a batch goes into the network.
"""

import copy
import gzip
import hashlib
import inspect
import math
import os
import re
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import dropwhile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchvision.datasets import MNIST
from tqdm.auto import tqdm

from storage import load_checkpoint, save_bytes, save_checkpoint

MEAN, STD = 0.1307, 0.3081  # of the 60,000 training images, grey values in [0, 1]; the notebook computes them

History = dict[str, list[float]]  # a value per epoch in each of these, accuracies in [0, 1]:
HISTORY = "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "seconds"
LINE = (
    "learning rate {learning_rate:<7.3g} train: loss {train_loss:.4f}, accuracy {train_accuracy:7.2%}   "
    "test: loss {test_loss:.4f}, accuracy {test_accuracy:7.2%}   {seconds:.1f} s"
)


# Data -----------------------------------------------------------------------------------------------------------------


def load_mnist(root: str | Path, device: torch.device | str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((train images, train labels), (test images, test labels)): uint8 [N, 28, 28] and int64 [N], on `device`.

    Reads the four gzip files in `root`/MNIST/raw after comparing each with the MD5 sum that torchvision knows. One that
    is missing or altered is downloaded from torchvision's mirrors, and kept where `root` can be written. They are
    unpacked in memory, so that no killed process leaves a truncated file behind.
    Raises `RuntimeError` naming the file and the remedy when a file can be neither verified nor downloaded.
    """
    parts = []
    for name, md5 in MNIST.resources:
        content = bytearray(gzip.decompress(_fetch(Path(root) / "MNIST" / "raw" / name, md5)))
        images = "images" in name
        values = torch.frombuffer(content, dtype=torch.uint8, offset=16 if images else 8)  # behind the IDX header
        parts.append((values.view(-1, 28, 28) if images else values.long()).to(device))
    return (parts[0], parts[1]), (parts[2], parts[3])


def _fetch(path: Path, md5: str) -> bytes:
    """The content of the file at `path`, or, if its MD5 sum is wrong, what a mirror has, which then replaces it."""
    content = path.read_bytes() if path.exists() else b""
    if hashlib.md5(content).hexdigest() == md5:
        return content
    failures = []
    for mirror in MNIST.mirrors:
        try:
            with urllib.request.urlopen(mirror + path.name, timeout=60) as response:
                download = response.read()
        except OSError as error:
            failures.append(f"{mirror}: {error}")
            continue
        if hashlib.md5(download).hexdigest() != md5:  # such as a page that asks to log in
            failures.append(f"{mirror}: not the file")
            continue
        try:
            save_bytes(path, download)
        except OSError:
            pass  # a read-only folder: the next run downloads again
        return download
    state = "is corrupt (its MD5 sum is wrong)" if path.exists() else "is missing"
    raise RuntimeError(
        f"{path} {state} and could not be downloaded. Restore it with `git checkout -- data`, "
        f"or connect to the internet and try again. Tried {'; '.join(failures)}"
    )


def check_data(images: Tensor, labels: Tensor) -> None:
    """Raise `ValueError` unless `images` are uint8 [N, 28, 28] and `labels` int64 [N] in 0–9, with N ≥ 1."""
    _check_images(images)
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(f"labels must be int64 [N], got {labels.dtype} {list(labels.shape)}")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images but {len(labels)} labels; each image needs one label")
    if len(images) == 0:
        raise ValueError("the data set is empty; it needs at least one image")
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"labels must be digits 0–9, got values from {labels.min()} to {labels.max()}")


def _check_images(images: Tensor, source: str = "load_mnist returns them so") -> None:
    if images.dtype != torch.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(f"images must be uint8 [N, 28, 28], got {images.dtype} {list(images.shape)}; {source}")


# Augmentation: uint8 [B, 28, 28] in and out, every image with its own draw --------------------------------------------


def zoom(images: Tensor, chosen: Tensor) -> Tensor:
    """Magnify the middle 22 × 22 pixels of the `chosen` (bool [B]) images to 28 × 28; the others stay as they are.

    Source: torchvision's CenterCrop(22) followed by Resize(28), bilinear.
    """
    _check_images(images)
    middle = images[:, None, 3:25, 3:25].float()
    large = F.interpolate(middle, size=(28, 28), mode="bilinear", align_corners=False)
    return torch.where(chosen[:, None, None], large[:, 0].round().to(torch.uint8), images)


def warp(images: Tensor, matrix: Tensor, mode: str = "nearest") -> Tensor:
    """Each pixel (x, y) of a result is the one at `matrix` [B, 2, 3] · (x, y, 1) of its image; what lies outside is 0.

    Coordinates are pixels from the centre, x to the right, y down. Takes the nearest pixel, as torchvision's
    RandomRotation and RandomAffine do, unless `mode` is "bilinear".
    """
    _check_images(images)
    centred = torch.arange(28, device=images.device) - 13.5
    x, y = centred[None, None, :], centred[None, :, None]
    a, b, c, d, e, f = matrix.reshape(-1, 6, 1, 1).unbind(1)
    source = torch.stack([a * x + b * y + c, d * x + e * y + f], dim=3) / 14  # grid_sample counts from -1 to 1
    warped = F.grid_sample(images[:, None].float(), source, mode=mode, align_corners=False)
    return warped[:, 0].round().to(torch.uint8)


def rotate(images: Tensor, degrees: Tensor, mode: str = "nearest") -> Tensor:
    """Rotate every image about its centre, counter-clockwise by its own angle in `degrees` [B].

    Source: torchvision's RandomRotation.
    """
    angle = torch.deg2rad(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return warp(images, torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3), mode)


def augment(images: Tensor, zoom_probability: float, max_degrees: float, mode: str = "nearest") -> Tensor:
    """A random variant of every image: zoomed with `zoom_probability`, then rotated by uniform ± `max_degrees`."""
    if not 0 <= zoom_probability <= 1 or not math.isfinite(max_degrees):
        raise ValueError(f"zoom_probability must be in [0, 1], max_degrees finite: {zoom_probability}, {max_degrees}")
    chosen = torch.rand(len(images), device=images.device) < zoom_probability
    degrees = torch.empty(len(images), device=images.device).uniform_(-max_degrees, max_degrees)
    return rotate(zoom(images, chosen), degrees, mode)


def shift(images: Tensor, pixels: int) -> Tensor:
    """Move all images right by `pixels` (left, if negative); what leaves is lost, what comes in is 0."""
    return F.pad(images, (pixels, -pixels))


def add_noise(images: Tensor, deviation: float) -> Tensor:
    """Add normally distributed noise of standard `deviation` (grey values of 255) to every pixel."""
    return (images + deviation * torch.randn(images.shape, device=images.device)).round().clamp(0, 255).to(torch.uint8)


def normalize(images: Tensor) -> Tensor:
    """What the network takes: float32 [B, 1, 28, 28] of mean 0 and standard deviation 1, from uint8 [B, 28, 28]."""
    _check_images(images)
    return images[:, None].float().sub_(255 * MEAN).div_(255 * STD)


def batches(
    images: Tensor, labels: Tensor, batch_size: int, augment: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in random order, augmented and normalised: x float32 [B, 1, 28, 28] and y int64 [B]."""
    order = torch.randperm(len(images), device=images.device)
    for batch in order.split(batch_size):
        x = augment(images[batch])
        _check_images(x, "that is what the augmentation returned")
        yield normalize(x), labels[batch]


# Training and evaluation ----------------------------------------------------------------------------------------------


def to_device(model: nn.Sequential, device: torch.device | str) -> nn.Sequential:
    """Move `model` to `device` and into the memory layout in which it trains fastest there; return it.

    That is channels-last, and on a CPU oneDNN's blocked layout for the activations from the first block with a
    convolution to the last block, where its layers have one: batch normalization then takes a third of the time. On
    Apple's MPS the layout stays as it is, because convolutions of channels-last tensors have been wrong there.
    Sources: https://docs.pytorch.org/docs/stable/generated/torch.Tensor.to_mkldnn.html,
    https://github.com/pytorch/pytorch/issues/180984
    """
    kind = torch.device(device).type
    model = model.to(device, memory_format=torch.preserve_format if kind == "mps" else torch.channels_last)
    *blocks, last = dropwhile(lambda block: not any(isinstance(layer, nn.Conv2d) for layer in block.modules()), model)
    layers = [layer for block in blocks for layer in block.modules() if getattr(layer, "p", 1) != 0]
    blocked = nn.Sequential, nn.Conv2d, nn.ReLU, nn.GELU, nn.BatchNorm2d, nn.MaxPool2d
    available = kind == "cpu" and torch.backends.mkldnn.is_available()
    if available and blocks and all(isinstance(layer, blocked) for layer in layers):
        blocks[0].register_forward_pre_hook(_to_blocked)
        last.register_forward_pre_hook(lambda _, inputs: inputs[0].to_dense() if inputs[0].is_mkldnn else inputs[0])
    return model


def _to_blocked(block: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """The input of `block` in the blocked layout, where that exists: float32 on a CPU, gradients in training only."""
    (x,) = inputs
    exists = x.device.type == "cpu" and x.dtype == torch.float32 and not x.is_mkldnn
    return x.to_mkldnn() if exists and (block.training or not torch.is_grad_enabled()) else x


def train_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
) -> tuple[float, float]:
    """Train on every batch once; return (mean loss, accuracy) over all their images.

    The `scheduler` steps after every batch. Raises `FloatingPointError` when the loss is no longer finite.
    """
    model.train()
    losses, correct, images = [], [], 0
    for x, y in batches:
        # forward
        log_probabilities = model(x)
        loss = loss_fn(log_probabilities, y)
        # backward
        optimizer.zero_grad()
        loss.backward()
        # update
        optimizer.step()
        scheduler.step()
        # track: stays on the device, so that no batch waits for the one before it
        losses.append(loss.detach() * len(y))
        correct.append((log_probabilities.detach().argmax(1) == y).sum())
        images += len(y)
    loss = sum(torch.stack(losses).tolist()) / images
    if not math.isfinite(loss):
        raise FloatingPointError(f"the training loss became {loss}; a lower learning rate may help")
    return loss, torch.stack(correct).sum().item() / images


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """Log-probabilities [N, 10] of uint8 images [N, 28, 28], in their order, with the network in evaluation mode."""
    if len(images) == 0 or batch_size < 1:
        raise ValueError(f"predict needs images and a batch_size of at least 1, got {len(images)} and {batch_size}")
    model.eval()
    return torch.cat([model(normalize(batch)) for batch in images.split(batch_size)])


def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """(mean loss, accuracy) over all images, in order, without augmentation; `FloatingPointError` if not finite."""
    check_data(images, labels)
    log_probabilities = predict(model, images)
    loss, correct = F.nll_loss(log_probabilities, labels).item(), (log_probabilities.argmax(1) == labels).sum().item()
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss on images that were not trained on is {loss}; a lower learning rate may help"
        )
    return loss, correct / len(images)


@torch.inference_mode()
def activations(model: nn.Sequential, image: Tensor) -> dict[str, Tensor]:
    """The feature maps of every block of `model` for one uint8 `image` [28, 28]: block name → channels [C, H, W]."""
    model.eval()
    x, feature_maps = normalize(image[None]), {}
    for name, block in model.named_children():
        x = block(x)
        if x.ndim == 4:
            feature_maps[name] = (x.to_dense() if x.is_mkldnn else x)[0]
    return feature_maps


@dataclass
class Run:
    """A training run: freshly made, after `torch.manual_seed`, and handed to `fit`.

    `augment` takes and returns uint8 [B, 28, 28]; `loss_fn` takes log-probabilities [B, 10] and labels [B].
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    augment: Callable[[Tensor], Tensor]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    epochs: int
    batch_size: int

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {getattr(self, name)}")

    def describe(self, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, str | Tensor]:
        """What decides the result, part by part: arguments, learning rates, data, and what a first batch becomes."""
        seed, before = torch.initial_seed(), self._random_state()
        torch.manual_seed(0)
        with torch.no_grad():
            x, y = next(batches(train[0][:32], train[1][:32], 32, self.augment))
            output = copy.deepcopy(self.model).train()(x)
            loss = self.loss_fn(output, y)
        self._set_random_state(before)
        return {
            "network": str(self.model),
            "optimizer": str(self.optimizer),
            "schedule": f"{type(self.scheduler).__name__} {self._learning_rates(len(train[0]))}",
            "number of epochs": str(self.epochs),
            "batch size": str(self.batch_size),
            "augmentation": _describe_function(self.augment),
            "loss": _describe_function(self.loss_fn),
            "seed": str(seed),
            "initial weights": _digest(self.model.state_dict().values()),
            "training data": _digest(train),
            "test data": _digest(test),
            "augmented images": x.cpu(),
            "network's output": output.cpu(),
            "first loss": loss.cpu()[None],
        }

    def _learning_rates(self, images: int) -> str:
        """A digest of the learning rates of all steps, taken from a copy of the scheduler."""
        scheduler, rates = copy.deepcopy(self.scheduler), []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no optimizer steps along with it
            for _ in range(self.epochs * math.ceil(images / self.batch_size)):
                rates.append(scheduler.get_last_lr())
                scheduler.step()
        return hashlib.sha256(str(rates).encode()).hexdigest()

    def _random_state(self) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        state = dict(cpu=torch.get_rng_state())
        return state if device.type == "cpu" else state | {device.type: torch.get_device_module(device).get_rng_state()}

    def _set_random_state(self, state: dict[str, Tensor]) -> None:
        device = next(self.model.parameters()).device
        torch.set_rng_state(state["cpu"])
        if device.type != "cpu" and device.type in state:
            torch.get_device_module(device).set_rng_state(state[device.type])

    def snapshot(self, history: History) -> dict:
        """A copy of all that the rest of the run depends on."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scheduler")}
        return copy.deepcopy(dict(parts, random=self._random_state(), history=history))

    def restore(self, snapshot: dict) -> History:
        """Go back to a `snapshot`; return its history."""
        for name in ("model", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(snapshot[name])
        self._set_random_state(snapshot["random"])
        return copy.deepcopy(snapshot["history"])


def _describe_function(function: Callable) -> str:
    """The source of `function`, the arguments of a `functools.partial`, and what it takes from around it."""
    if isinstance(function, partial):
        arguments = [*enumerate(function.args), *sorted(function.keywords.items())]
        numbers = {name: float(value) if type(value) in (int, float) else value for name, value in arguments}
        text = f"{_describe_function(function.func)} {numbers}"
    elif inspect.isfunction(function) or inspect.ismethod(function):
        text = f"{inspect.getsource(function)} {inspect.getclosurevars(function).nonlocals}"
    else:
        text = str(function)
    return re.sub(r" at 0x[0-9a-f]+", "", text)  # addresses change with every start


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


def fit(
    run: Run,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    checkpoint: str | Path | None = None,
    fresh_start: bool = False,
) -> History:
    """Train for `run.epochs` on `train`, evaluate on `test` after each, print a line per epoch; return the history.

    Both are (uint8 images [N, 28, 28], int64 labels [N]). A `checkpoint` file is written after every epoch; one of the
    same run is loaded first, and training resumes after its last epoch, to the same result, unless `fresh_start`.
    Raises `ValueError` for bad data, `RuntimeError` for a checkpoint that is damaged or of another run,
    `FloatingPointError` for a loss that is not finite, `KeyboardInterrupt` when stopped before an epoch is complete.
    """
    check_data(*train)
    check_data(*test)
    description = run.describe(train, test) if checkpoint else {}
    history: History = {name: [] for name in HISTORY}
    if checkpoint and Path(checkpoint).exists() and not fresh_start:
        history = run.restore(load_checkpoint(checkpoint, description))
        print(f"{len(history['seconds'])} of {run.epochs} epochs loaded from {checkpoint}, fresh_start=True retrains")
    completed = run.snapshot(history)
    try:
        for epoch in range(len(history["seconds"]) + 1, run.epochs + 1):
            start, rate = time.perf_counter(), run.scheduler.get_last_lr()[0]
            data, steps = batches(*train, run.batch_size, run.augment), math.ceil(len(train[0]) / run.batch_size)
            data = tqdm(data, f"epoch {epoch}", steps, leave=False, disable="TQDM_DISABLE" in os.environ)
            train_results = train_epoch(run.model, run.optimizer, run.scheduler, data, run.loss_fn)
            test_results = evaluate(run.model, *test)
            results = dict(zip(HISTORY, (*train_results, *test_results, rate, time.perf_counter() - start)))
            history = {name: [*values, results[name]] for name, values in history.items()}
            completed = run.snapshot(history)
            if checkpoint:
                save_checkpoint(checkpoint, completed | dict(run=description))
            print(f"epoch {epoch:2d}/{run.epochs}  {LINE.format(**results)}", flush=True)
    except KeyboardInterrupt:
        history = run.restore(completed)
        print(f"stopped: {len(history['seconds'])} of {run.epochs} epochs were completed and are kept", flush=True)
        if not history["seconds"]:
            raise
    return history
