"""What is done with the network, in the notebook's order: data, augmentation, batches, training, evaluation."""

import gzip
import math
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from operator import length_hint
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity, download_url
from tqdm.auto import tqdm

import storage
from onednn import blocked

MEAN, STD = 0.1307, 0.3081  # of the 60,000 training images, gray values in [0, 1]; the notebook computes them

Batches = Iterable[tuple[Tensor, Tensor]]  # images float32 [B, 1, 28, 28], labels int64 [B]
Loss = Callable[[Tensor, Tensor], Tensor]  # of what the network returns [B, 10] and labels [B]
History = dict[str, list[float]]  # name of a quantity → its value after each epoch; accuracies are in [0, 1]
RESULTS = (  # of an epoch, as they are printed
    "train loss {train_loss:.4f}, {train_accuracy:.2%}   "
    "test loss {test_loss:.4f}, {test_accuracy:.2%}   lr {learning_rate:.3g}   {seconds:.1f} s"
)
EVERY_BATCH = OneCycleLR, CyclicLR  # the schedulers that step after every batch; all others step after every epoch


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


def positions(matrix: Tensor) -> Tensor:
    """Where each pixel of 28 × 28 comes from: `matrix` [B, 2, 3] · (x, y, 1), for every pixel (x, y) [B, 28, 28, 2].

    Coordinates are pixels from the center, x to the right, y down.
    """
    centered = torch.arange(28, device=matrix.device) - 13.5
    x, y = centered[None, None, :], centered[None, :, None]
    a, b, c, d, e, f = matrix.reshape(-1, 6, 1, 1).unbind(1)
    return torch.stack([a * x + b * y + c, d * x + e * y + f], dim=3)


def sample(images: Tensor, source: Tensor, mode: str = "nearest") -> Tensor:
    """Images made of the pixels at the `source` positions [B, 28, 28, 2] of `images`; what lies outside is 0.

    Takes the nearest pixel, as torchvision's RandomRotation and RandomAffine do, unless `mode` is "bilinear".
    """
    # grid_sample counts from -1 to 1
    moved = F.grid_sample(images[:, None].float(), source / 14, mode=mode, align_corners=False)
    return moved[:, 0].round().to(torch.uint8)


def rotate(images: Tensor, degrees: Tensor, mode: str = "nearest") -> Tensor:
    """Rotate every image about its center, counter-clockwise by its own angle in `degrees` [B].

    Source: torchvision's RandomRotation.
    """
    angle = torch.deg2rad(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1)
    return sample(images, positions(matrix), mode)


def augment(images: Tensor, zoom_probability: float, max_degrees: float) -> Tensor:
    """A random variant of every image: zoomed with `zoom_probability`, then rotated by uniform ± `max_degrees`."""
    chosen = torch.rand(len(images), device=images.device) < zoom_probability
    degrees = torch.empty(len(images), device=images.device).uniform_(-max_degrees, max_degrees)
    return rotate(zoom(images, chosen), degrees)


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
    network: nn.Module, loader: Batches, loss_fn: Loss, optimizer: Optimizer, scheduler: LRScheduler | None = None
) -> tuple[float, float]:
    """Train on every batch once; return (mean loss, accuracy) over all images."""
    network.train()
    losses, correct, count = [], [], 0
    for x, y in loader:
        # forward
        output = network(x)
        loss = loss_fn(output, y)
        # backward
        optimizer.zero_grad()
        loss.backward()
        # update
        optimizer.step()
        if isinstance(scheduler, EVERY_BATCH):
            scheduler.step()
        # track: on the device, so that no batch waits for the one before it
        losses.append(loss.detach() * len(y))
        correct.append((output.detach().argmax(1) == y).sum())
        count += len(y)
    return mean_loss(losses, count), sum(torch.stack(correct).tolist()) / count


def mean_loss(losses: list[Tensor], count: int) -> float:
    """The sum of `losses` over `count`; `FloatingPointError` where it is not finite or, as no cross entropy is, < 0."""
    mean = sum(torch.stack(losses).tolist()) / count
    if not 0 <= mean < math.inf:
        scores = "if the network returns scores, not log-probabilities, take F.cross_entropy in place of F.nll_loss"
        raise FloatingPointError(f"the training loss became {mean:.4g}: {scores}; else try a lower learning rate")
    return mean


def step_epoch(scheduler: LRScheduler | None, loss: float, accuracy: float) -> None:
    """Step a scheduler that steps once an epoch, on a plateau by the training loss or, with mode "max", accuracy."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(accuracy if scheduler.mode == "max" else loss)
    elif scheduler and not isinstance(scheduler, EVERY_BATCH):
        scheduler.step()


@torch.no_grad()
def outputs(network: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """What the network returns in evaluation mode, [N, 10], for uint8 images [N, 28, 28], in their order."""
    network.eval()
    return torch.cat([network(normalize(batch)) for batch in images.split(batch_size)])


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Log-probabilities [N, 10] of uint8 images [N, 28, 28]: log-softmax makes them of scores, or leaves them."""
    return F.log_softmax(outputs(network, images).float(), dim=1)


def evaluate(
    network: nn.Module, images: Tensor, labels: Tensor, loss_fn: Loss = F.cross_entropy
) -> tuple[float, float]:
    """(loss, accuracy) over all images, without augmentation."""
    output = outputs(network, images)
    return loss_fn(output, labels).item(), (output.argmax(1) == labels).sum().item() / len(images)


def fit(
    network: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    loader: Batches,
    test: tuple[Tensor, Tensor],
    epochs: int,
    checkpoint: str | Path | None = None,
    loss_fn: Loss = F.nll_loss,
) -> History:
    """Train for `epochs`, evaluate on `test` (images, labels) after each, and print a line; return the history.

    Resumes after the last epoch in the file `checkpoint`, on a CPU to the result of an uninterrupted training.
    """
    if epochs < 1:
        raise ValueError(f"there must be at least one epoch, got {epochs}")
    history = storage.resume(checkpoint, network, optimizer, scheduler)
    for epoch in range(len(history["seconds"]) + 1, epochs + 1):
        start, results = time.perf_counter(), dict(learning_rate=float(optimizer.param_groups[0]["lr"]))
        batches = tqdm(iter(loader), f"epoch {epoch}", length_hint(loader) or None, leave=False)
        train_loss, train_accuracy = train_epoch(blocked(network), batches, loss_fn, optimizer, scheduler)
        step_epoch(scheduler, train_loss, train_accuracy)
        test_loss, test_accuracy = evaluate(network, *test, loss_fn)
        results |= dict(train_loss=train_loss, train_accuracy=train_accuracy)
        results |= dict(test_loss=test_loss, test_accuracy=test_accuracy, seconds=time.perf_counter() - start)
        for name, value in results.items():
            history[name].append(value)
        storage.save(checkpoint, history, network, optimizer, scheduler)
        print(f"epoch {epoch:2}/{epochs}   {RESULTS.format(**results)}")
    return history
