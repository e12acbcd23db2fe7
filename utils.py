"""What is done with the network, in the notebook's order: data, augmentation, batches, training, evaluation."""

import copy
import gzip
import math
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity, download_url
from tqdm.auto import tqdm

import storage

MEAN, STD = 0.1307, 0.3081  # of the 60,000 training images, gray values in [0, 1]; the notebook computes them

History = dict[str, list[float]]  # name of a quantity → its value after each epoch; accuracies are in [0, 1]


# Data -----------------------------------------------------------------------------------------------------------------


def load_mnist(root: str | Path, device: torch.device | str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((train images, train labels), (test images, test labels)): uint8 [N, 28, 28] and int64 [N], on `device`.

    Reads the four gzip files in `root`/MNIST/raw. One that is missing or altered, by torchvision's MD5 sum, is
    downloaded from torchvision's mirrors, and kept where `root` can be written. Raises `RuntimeError` if it cannot be.
    """
    parts = []
    for name, md5 in MNIST.resources:
        content = bytearray(gzip.decompress(_verified(Path(root) / "MNIST" / "raw" / name, md5)))
        images = "images" in name
        values = torch.frombuffer(content, dtype=torch.uint8, offset=16 if images else 8)  # after the IDX header
        parts.append((values.view(-1, 28, 28) if images else values.long()).to(device))
    return (parts[0], parts[1]), (parts[2], parts[3])


def _verified(path: Path, md5: str) -> bytes:
    """The content of the file at `path`, or, if its MD5 sum is wrong, what a mirror has, which then replaces it."""
    if check_integrity(path, md5):
        return path.read_bytes()
    failures, timeout = [], socket.getdefaulttimeout()
    for mirror in MNIST.mirrors:
        with tempfile.TemporaryDirectory() as folder:
            try:
                socket.setdefaulttimeout(20)  # torchvision would wait for a silent mirror forever
                download_url(mirror + path.name, folder, md5=md5)
            except Exception as error:  # whatever a mirror does, the next one is tried
                failures.append(f"{mirror}: {error}")
                continue
            finally:
                socket.setdefaulttimeout(timeout)
            content = Path(folder, path.name).read_bytes()
        with suppress(OSError):  # in a read-only folder, the next run downloads again
            storage.save_bytes(path, content)
        return content
    state = "is corrupt (its MD5 sum is wrong)" if path.exists() else "is missing"
    remedy = "Restore it with `git checkout -- data`, or connect to the internet and try again"
    raise RuntimeError(f"{path} {state} and could not be downloaded. {remedy}. Tried {'; '.join(failures)}")


# Augmentation: uint8 [B, 28, 28] in and out, every image with its own random parameters -------------------------------


def zoom(images: Tensor, chosen: Tensor) -> Tensor:
    """Magnify the middle 22 × 22 pixels of the `chosen` (bool [B]) images to 28 × 28; the others stay as they are.

    Source: torchvision's CenterCrop(22) followed by Resize(28), bilinear.
    """
    middle = images[:, None, 3:25, 3:25].float()
    large = F.interpolate(middle, size=(28, 28), mode="bilinear", align_corners=False)
    return torch.where(chosen[:, None, None], large[:, 0].round().to(torch.uint8), images)


def affine(images: Tensor, matrix: Tensor, mode: str = "nearest", displacement: Tensor | float = 0.0) -> Tensor:
    """Each pixel (x, y) of a result is the one at `matrix` [B, 2, 3] · (x, y, 1) of its image; what lies outside is 0.

    Coordinates are pixels from the center, x to the right, y down; a `displacement` [B, 28, 28, 2] is added to them.
    Takes the nearest pixel, as torchvision's RandomRotation and RandomAffine do, unless `mode` is "bilinear".
    """
    centered = torch.arange(28, device=images.device) - 13.5
    x, y = centered[None, None, :], centered[None, :, None]
    a, b, c, d, e, f = matrix.reshape(-1, 6, 1, 1).unbind(1)
    source = torch.stack([a * x + b * y + c, d * x + e * y + f], dim=3) + displacement
    # grid_sample counts from -1 to 1
    moved = F.grid_sample(images[:, None].float(), source / 14, mode=mode, align_corners=False)
    return moved[:, 0].round().to(torch.uint8)


def rotate(images: Tensor, degrees: Tensor, mode: str = "nearest") -> Tensor:
    """Rotate every image about its center, counter-clockwise by its own angle in `degrees` [B].

    Source: torchvision's RandomRotation.
    """
    angle = torch.deg2rad(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return affine(images, torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3), mode)


def augment(images: Tensor, zoom_probability: float, max_degrees: float, mode: str = "nearest") -> Tensor:
    """A random variant of every image: zoomed with `zoom_probability`, then rotated by uniform ± `max_degrees`."""
    chosen = torch.rand(len(images), device=images.device) < zoom_probability
    degrees = torch.empty(len(images), device=images.device).uniform_(-max_degrees, max_degrees)
    return rotate(zoom(images, chosen), degrees, mode)


def normalize(images: Tensor) -> Tensor:
    """What the network takes: float32 [B, 1, 28, 28] of mean 0 and standard deviation 1, from uint8 [B, 28, 28]."""
    if images.dtype != torch.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(f"images must be uint8 [N, 28, 28], got {images.dtype} {list(images.shape)}")
    return images[:, None].float().sub_(255 * MEAN).div_(255 * STD)


class Loader:
    """Like torch's `DataLoader`, for data that is on the device: batches of all images, once each, in random order.

    A batch is augmented and normalized at once: x float32 [B, 1, 28, 28] and y int64 [B], from uint8 `images`
    [N, 28, 28] and their int64 `labels` [N]. `augment` takes and returns uint8 [B, 28, 28].
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, augment: Callable[[Tensor], Tensor]) -> None:
        if len(images) != len(labels) or len(images) == 0:
            raise ValueError(f"each image needs one label, got {len(images)} images and {len(labels)} labels")
        self.images, self.labels, self.batch_size, self.augment = images, labels, batch_size, augment

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), device=self.images.device)
        for batch in order.split(self.batch_size):
            yield normalize(self.augment(self.images[batch])), self.labels[batch]


# Training and evaluation ----------------------------------------------------------------------------------------------


def train_epoch(
    network: nn.Module,
    loader: Iterable[tuple[Tensor, ...]],
    loss_fn: Callable[..., Tensor],
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
) -> tuple[float, float]:
    """Train on every batch once; return (mean loss, accuracy) over all their images.

    `loss_fn` takes log-probabilities [B, 10] and what the `loader` yields beside x: labels [B], and for distillation a
    teacher's output. The `scheduler`, if any, steps after every batch. `FloatingPointError` if the loss is not finite.
    """
    network.train()
    losses, correct, images = [], [], 0
    for x, y, *teacher in loader:
        # forward
        log_probabilities = network(x)
        loss = loss_fn(log_probabilities, y, *teacher)
        # backward
        optimizer.zero_grad()
        loss.backward()
        # update
        optimizer.step()
        if scheduler:
            scheduler.step()
        # track: stays on the device, so that no batch waits for the one before it
        losses.append(loss.detach() * len(y))
        correct.append((log_probabilities.detach().argmax(1) == y).sum())
        images += len(y)
    loss = sum(torch.stack(losses).tolist()) / images
    if not math.isfinite(loss):
        raise FloatingPointError(f"the training loss became {loss}; a lower learning rate may help")
    return loss, torch.stack(correct).sum().item() / images


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """Log-probabilities [N, 10] of uint8 images [N, 28, 28], in their order, with the network in evaluation mode."""
    network.eval()
    return torch.cat([network(normalize(batch)) for batch in images.split(batch_size)])


def evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """(mean loss, accuracy) over all images, in order, without augmentation."""
    log_probabilities = predict(network, images)
    correct = (log_probabilities.argmax(1) == labels).sum().item()
    return F.nll_loss(log_probabilities, labels).item(), correct / len(images)


class Blocked(nn.Module):
    """A `network` of blocks in a row, in oneDNN's blocked layout: trains faster on a CPU, the same but for rounding.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.Tensor.to_mkldnn.html
    """

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        *blocks, last = self.network
        x = x.to_mkldnn()
        for block in blocks:
            x = block(x)
        return last(x.to_dense())


# The layers that are used in it; oneDNN's PReLU, for one, writes beyond its memory.
BLOCKED = nn.Sequential, nn.Conv2d, nn.ReLU, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d
BLOCKED += nn.Flatten, nn.Linear, nn.LogSoftmax, nn.Dropout, nn.Dropout2d, nn.Identity


def blocked(network: nn.Module, x: Tensor) -> nn.Module:
    """`Blocked(network)` where that works, tried with a copy on a batch x; otherwise the `network` itself."""
    layers = list(network.modules())
    hooks = (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in layers)
    if any(hooks) or torch.nn.modules.module._has_any_global_hook() or torch.is_anomaly_enabled():
        return network
    try:
        assert network.forward.__func__ is nn.Sequential.forward
        assert all(type(layer) in BLOCKED and layer.forward.__func__ is type(layer).forward for layer in layers[1:])
        with torch.random.fork_rng(devices=[]):
            trial = copy.deepcopy(network).train()
            output = Blocked(trial)(x)
            torch.testing.assert_close(output, trial(x), rtol=1e-3, atol=1e-3)
            output.sum().backward()
    except Exception:
        return network
    return Blocked(network)


def _generators() -> dict[str, ModuleType]:
    """The modules that hold random states: that of the CPU, and that of the accelerator, where there is one."""
    accelerator = [torch.accelerator.current_accelerator().type] if torch.accelerator.is_available() else []
    return {"cpu": torch} | {kind: torch.get_device_module(kind) for kind in accelerator}


def resume(checkpoint: str | Path | None, parts: dict) -> History:
    """Load the `checkpoint`, if there is one, into network, optimizer and scheduler; return the history so far."""
    if not checkpoint or not Path(checkpoint).exists():
        names = "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "seconds"
        return {name: [] for name in names}
    snapshot = storage.load(checkpoint)
    for name, part in parts.items():
        part.load_state_dict(snapshot[name])
    for kind, generator in _generators().items():
        if kind in snapshot["random"]:
            generator.set_rng_state(snapshot["random"][kind])
    print(f"{len(snapshot['history']['seconds'])} epochs loaded from {checkpoint}; delete it to train from scratch")
    return snapshot["history"]


def save(checkpoint: str | Path | None, parts: dict, history: History) -> None:
    """Write all that the rest of a training depends on to the file `checkpoint`, if one is wanted."""
    if checkpoint:
        snapshot = {name: part.state_dict() for name, part in parts.items()}
        random = {kind: generator.get_rng_state() for kind, generator in _generators().items()}
        storage.save_checkpoint(checkpoint, snapshot | dict(random=random, history=history))


def fit(
    network: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    loader: Loader,
    test: tuple[Tensor, Tensor],
    epochs: int,
    checkpoint: str | Path | None = None,
    loss_fn: Callable[..., Tensor] = F.nll_loss,
) -> History:
    """Train for `epochs`, evaluate on `test` (images, labels) after each, and print a line; return the history.

    Resumes after the last epoch in the file `checkpoint`, on a CPU to the result of an uninterrupted training.
    """
    parts = dict(network=network, optimizer=optimizer, scheduler=scheduler)
    history = resume(checkpoint, parts)
    fast = blocked(network, normalize(loader.images[:8]))
    plateau = isinstance(scheduler, ReduceLROnPlateau)  # which steps once an epoch, by the training loss
    for epoch in range(len(history["train_loss"]) + 1, epochs + 1):
        start, rate = time.perf_counter(), float(optimizer.param_groups[0]["lr"])
        batches = tqdm(loader, f"epoch {epoch}", leave=False)
        train_loss, train_accuracy = train_epoch(fast, batches, loss_fn, optimizer, None if plateau else scheduler)
        test_loss, test_accuracy = evaluate(network, *test)
        if plateau:
            scheduler.step(train_loss)
        results = train_loss, train_accuracy, test_loss, test_accuracy, rate, time.perf_counter() - start
        for name, value in zip(history, results):
            history[name].append(value)
        save(checkpoint, parts, history)
        print(
            f"epoch {epoch:2d}/{epochs}   train loss {train_loss:.4f}, {train_accuracy:.2%}   "
            f"test loss {test_loss:.4f}, {test_accuracy:.2%}   rate {rate:.3g}   {results[-1]:.1f} s",
        )
    return history
