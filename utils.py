"""What is done with the network, in the notebook's order: data, augmentation, training, evaluation, records.

Images are uint8 [N, 28, 28] on the device until the moment a batch goes into the network. The pictures are in plots.py.
"""

import copy
import hashlib
import json
import math
import os
import pickle
import platform
import re
import shutil
import subprocess
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchvision.datasets import MNIST
from torchvision.datasets.utils import check_integrity, download_url
from tqdm.auto import tqdm

MEAN, STD = 0.1307, 0.3081  # of the 60,000 training images, grey values in [0, 1]; the notebook computes them

History = dict[str, list[float]]


# Data -----------------------------------------------------------------------------------------------------------------


def load_mnist(root: str | Path, device: torch.device | str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((train images, train labels), (test images, test labels)): uint8 [N, 28, 28] and int64 [N], on `device`.

    Reads the four gzip files in `root`/MNIST/raw after comparing each with the MD5 sum that torchvision knows. One that
    is missing or altered is downloaded from torchvision's mirrors, and kept where `root` can be written. `MNIST` then
    unpacks them in a temporary folder, so no half-written unpacked file can outlive a killed process.
    Raises `RuntimeError` naming the file and the remedy when a file can be neither verified nor downloaded.
    """
    raw = Path(root) / "MNIST" / "raw"
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = Path(scratch) / "MNIST" / "raw"
        unpacked.mkdir(parents=True)
        try:
            for name, md5 in MNIST.resources:
                _fetch(raw / name, unpacked / name, md5)
            train, test = (MNIST(scratch, train=train, download=True) for train in (True, False))
        except OSError as error:
            raise RuntimeError(
                f"MNIST could not be unpacked in {scratch}: {error}. It takes 70 MB there; free them, "
                "or set the environment variable TMPDIR to a folder that has them"
            ) from error
    return (train.data.to(device), train.targets.to(device)), (test.data.to(device), test.targets.to(device))


def _fetch(original: Path, verified: Path, md5: str) -> None:
    """Copy the gzip file `original` to `verified`, or, if it is not whole, download it there and repair `original`."""
    if check_integrity(original, md5):
        shutil.copyfile(original, verified)
        return
    state = "is corrupt (its MD5 sum is wrong)" if original.exists() else "is missing"
    failures = []
    for mirror in MNIST.mirrors:
        try:  # a mirror that answers with an HTML page fails its MD5 sum, and the next one is asked
            download_url(mirror + verified.name, str(verified.parent), verified.name, md5)
            break
        except (OSError, RuntimeError) as error:
            verified.unlink(missing_ok=True)
            failures.append(f"{mirror}: {error}")
    else:
        raise RuntimeError(
            f"{original} {state} and could not be downloaded. Restore it with `git checkout -- data`, "
            f"or connect to the internet and try again. Tried {'; '.join(failures)}"
        )
    try:
        original.parent.mkdir(parents=True, exist_ok=True)
        _move_into_place(original, lambda file: file.write(verified.read_bytes()))
    except OSError:
        pass  # a read-only folder: the next run downloads again


def _move_into_place(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: `path` holds the old content or the new."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"images must be uint8 [N, 28, 28], got {images.dtype} {list(images.shape)}; load_mnist returns them so"
        )


# Augmentation: uint8 [B, 28, 28] in and out, every image with its own draw --------------------------------------------


def zoom(images: Tensor, chosen: Tensor) -> Tensor:
    """Magnify the middle 22 × 22 pixels of the `chosen` (bool [B]) images to 28 × 28; the others stay as they are.

    Source: torchvision's CenterCrop(22) followed by Resize(28), bilinear.
    """
    _check_images(images)
    middle = images[:, None, 3:25, 3:25].float()
    large = F.interpolate(middle, size=(28, 28), mode="bilinear", align_corners=False)
    return torch.where(chosen[:, None, None], large[:, 0].round().to(torch.uint8), images)


def warp(images: Tensor, matrix: Tensor) -> Tensor:
    """Each pixel (x, y) of a result is the one at `matrix` [B, 2, 3] · (x, y, 1) of its image; what lies outside is 0.

    Coordinates are pixels from the centre, x to the right, y down. Takes the nearest pixel, as torchvision's
    RandomRotation and RandomAffine do: interpolating would blur every training image and no test image.
    """
    _check_images(images)
    centred = torch.arange(28, device=images.device) - 13.5
    x, y = centred[None, None, :], centred[None, :, None]
    a, b, c, d, e, f = matrix.reshape(-1, 6, 1, 1).unbind(1)
    source = torch.stack([a * x + b * y + c, d * x + e * y + f], dim=3) / 14  # grid_sample counts from -1 to 1
    warped = F.grid_sample(images[:, None].float(), source, mode="nearest", align_corners=False)
    return warped[:, 0].to(torch.uint8)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn every image about its centre, counter-clockwise by its own angle in `degrees` [B].

    Source: torchvision's RandomRotation.
    """
    angle = torch.deg2rad(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return warp(images, torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3))


def augment(images: Tensor, zoom_probability: float, max_degrees: float) -> Tensor:
    """A random variant of every image: zoomed with `zoom_probability`, then turned by uniform ± `max_degrees`."""
    chosen = torch.rand(len(images), device=images.device) < zoom_probability
    degrees = torch.empty(len(images), device=images.device).uniform_(-max_degrees, max_degrees)
    return rotate(zoom(images, chosen), degrees)


def jitter(images: Tensor, max_degrees: float, max_shift: float, max_scale: float, max_shear: float) -> Tensor:
    """A random affine variant of every image, each amount uniform between ± its maximum.

    Rotation in degrees, shift along both axes in pixels, change of size along both axes and shear as fractions.
    """
    draws = torch.empty(6, len(images), device=images.device).uniform_(-1, 1)
    angle = torch.deg2rad(max_degrees * draws[0])
    cos, sin, shear = angle.cos(), angle.sin(), max_shear * draws[1]
    across, down = 1 / (1 + max_scale * draws[2]), 1 / (1 + max_scale * draws[3])
    columns = [across * cos, down * (shear * cos - sin), max_shift * draws[4]]
    columns += [across * sin, down * (shear * sin + cos), max_shift * draws[5]]
    return warp(images, torch.stack(columns, dim=1).view(-1, 2, 3))


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


# Training and evaluation ----------------------------------------------------------------------------------------------


def train_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    transform: Callable[[Tensor], Tensor],
    title: str,
    teacher: nn.Module | None = None,
) -> tuple[float, float]:
    """Show the network every image once, in random order; return (mean loss, accuracy) over all of them.

    `transform` takes and returns uint8 [B, 28, 28]. The `scheduler` steps after every batch. `title` names the progress
    bar and, in the `FloatingPointError` raised when the loss is no longer finite, the epoch. With a `teacher`, a
    trained network, what is minimised is `distillation_loss`; the mean loss returned is still that of the labels alone.
    """
    check_data(images, labels)
    model.train()
    if teacher is not None:
        teacher.eval()
    losses, hits, rates = [], [], []
    order = torch.randperm(len(images), device=images.device)
    quiet = "TQDM_DISABLE" in os.environ  # which tqdm's notebook bar does not look at by itself
    for batch in tqdm(order.split(batch_size), desc=title, unit="batch", leave=False, disable=quiet):
        x, y = normalize(transform(images[batch])), labels[batch]
        # forward
        log_probabilities = model(x)
        loss = objective = F.nll_loss(log_probabilities, y)
        if teacher is not None:
            with torch.no_grad():
                taught = teacher(x)
            objective = distillation_loss(loss, log_probabilities, taught)
        # backward
        optimizer.zero_grad()
        objective.backward()
        # update
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
        # track: stays on the device, so that no batch waits for the one before it
        losses.append(loss.detach() * len(y))
        hits.append((log_probabilities.detach().argmax(1) == y).sum())
    losses = torch.stack(losses).tolist()
    for number, (loss, rate) in enumerate(zip(losses, rates), start=1):
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"{title}: the loss became {loss} in batch {number} of {len(losses)}, at learning rate {rate:g}; "
                "a lower learning rate may help"
            )
    return sum(losses) / len(images), torch.stack(hits).sum().item() / len(images)


def distillation_loss(loss: Tensor, log_probabilities: Tensor, taught: Tensor) -> Tensor:
    """A tenth of the labels' `loss`, nine tenths of how far `log_probabilities` are from `taught`, both [B, 10].

    That is the Kullback-Leibler divergence from a teacher's log-probabilities, averaged over the batch. Both are
    softened by a temperature of 2, which shows how the teacher sees the wrong classes; the temperature's square keeps
    the gradient as large as it was.
    Source: G. Hinton et al., Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531
    """
    student, teacher = (F.log_softmax(values / 2, dim=1) for values in (log_probabilities, taught))
    return 0.1 * loss + 0.9 * 2**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """Log-probabilities [N, 10] of uint8 images [N, 28, 28], in their order, with the network in evaluation mode."""
    if len(images) == 0:
        raise ValueError("there are no images to predict")
    model.eval()
    return torch.cat([model(normalize(batch)) for batch in images.split(batch_size)])


def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """(mean loss, accuracy) over all images, in order, without augmentation."""
    check_data(images, labels)
    log_probabilities = predict(model, images)
    hits = (log_probabilities.argmax(1) == labels).sum()
    return F.nll_loss(log_probabilities, labels).item(), hits.item() / len(images)


@torch.inference_mode()
def activations(model: nn.Sequential, image: Tensor) -> dict[str, Tensor]:
    """What every block of `model` makes of one uint8 `image` [28, 28]: block name → channels [C, H, W]."""
    model.eval()
    x, maps = normalize(image[None]), {}
    for name, block in model.named_children():
        x = block(x)
        if x.ndim == 4:
            maps[name] = x[0]
    return maps


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    epochs: int,
    batch_size: int,
    transform: Callable[[Tensor], Tensor],
    checkpoint: str | Path | None = None,
    fresh_start: bool = False,
    teacher: nn.Module | None = None,
) -> History:
    """Train for `epochs`, evaluate after each, print one line an epoch; return the history.

    `model`, `optimizer` and `scheduler` are freshly made, after `torch.manual_seed`. `train` and `test` are (uint8
    images [N, 28, 28], int64 labels [N]). The history has one entry an epoch in each of train_loss, train_accuracy,
    test_loss, test_accuracy (fractions in [0, 1]), learning_rate (the epoch's first) and seconds.

    With a `checkpoint` file, the run is saved there after every epoch; where the file already holds completed epochs of
    the same run, they are loaded and training goes on behind them, to the same result as without the interruption.
    `fresh_start` ignores and replaces the file. Interrupting the kernel ends training with the last completed epoch.
    A `teacher` is handed to `train_epoch`.

    Raises `ValueError` for bad data, `FloatingPointError` when the loss is no longer finite, and `RuntimeError` for a
    checkpoint that is damaged or belongs to another run; that file is left as it is.
    """
    check_data(*train)
    check_data(*test)
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}")
    device = train[0].device
    run = {}
    if checkpoint:  # it reads all the data, which nobody needs without a file to compare with
        run = _describe_run(model, optimizer, scheduler, train, test, epochs, batch_size, transform, teacher)
    history: History = {}
    if checkpoint and Path(checkpoint).exists() and not fresh_start:
        saved = _load_checkpoint(Path(checkpoint), run)
        history = _restore(saved, model, optimizer, scheduler, device)
        done = len(history["seconds"])
        rest = "nothing to train" if done == epochs else "going on from there"
        print(f"{done} of {epochs} epochs loaded from {checkpoint}, {rest} (fresh_start=True would train anew)")
    last_good = _snapshot(run, model, optimizer, scheduler, device, history)
    try:
        for epoch in range(len(history.get("seconds", [])) + 1, epochs + 1):
            start, rate = time.perf_counter(), scheduler.get_last_lr()[0]
            title = f"epoch {epoch:2d}/{epochs}"
            train_loss, train_accuracy = train_epoch(
                model, optimizer, scheduler, *train, batch_size, transform, title, teacher
            )
            test_loss, test_accuracy = evaluate(model, *test)
            results = dict(
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                test_loss=test_loss,
                test_accuracy=test_accuracy,
                learning_rate=rate,
                seconds=time.perf_counter() - start,
            )
            history = {name: [*history.get(name, []), value] for name, value in results.items()}
            last_good = _snapshot(run, model, optimizer, scheduler, device, history)
            if checkpoint:
                _save_checkpoint(Path(checkpoint), last_good)
            print(
                f"{title}  learning rate {rate:<7.3g} "
                f"train: loss {train_loss:.4f}, accuracy {train_accuracy:7.2%}   "
                f"test: loss {test_loss:.4f}, accuracy {test_accuracy:7.2%}   {results['seconds']:.1f} s",
                flush=True,
            )
    except KeyboardInterrupt:
        history = _restore(last_good, model, optimizer, scheduler, device)
        done = len(history.get("seconds", []))
        if checkpoint and done:
            _save_checkpoint(Path(checkpoint), last_good)
        again = "goes on from there" if checkpoint else "starts anew: no checkpoint was asked for"
        print(f"stopped: {done} of {epochs} epochs were completed and are kept; running this again {again}", flush=True)
    return history


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the network's weights to `path`; `load_weights` reads them back."""
    _move_into_place(Path(path), lambda file: torch.save(model.state_dict(), file))


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Fill `model` with the weights in `path`, return it; `RuntimeError` if they are damaged or another network's."""
    try:
        model.load_state_dict(_load(Path(path)))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise RuntimeError(f"{path} does not hold weights of this network: {error}") from error
    return model


def _describe_run(model, optimizer, scheduler, train, test, epochs, batch_size, transform, teacher) -> dict[str, str]:
    """What makes this run this run, part by part: two runs with equal descriptions have equal results."""
    function, options = getattr(transform, "func", transform), getattr(transform, "keywords", {})
    return {
        "network": str(model),
        "optimizer": str(optimizer),
        "scheduler": f"{type(scheduler).__name__} {scheduler.state_dict()}",
        "number of epochs": str(epochs),
        "batch size": str(batch_size),
        "augmentation": f"{function.__name__} {options}",
        "seed": str(torch.initial_seed()),
        "initial weights": _digest(model.state_dict().values()),
        "training data": _digest(train),
        "test data": _digest(test),
        "teacher": _digest(teacher.state_dict().values()) if teacher is not None else "none",
    }


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


def _snapshot(run, model, optimizer, scheduler, device, history) -> dict:
    """A copy of all that the rest of the run depends on."""
    parts = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict())
    random = dict(cpu=torch.get_rng_state())
    if device.type != "cpu":
        random["device"] = torch.get_device_module(device).get_rng_state()
    return copy.deepcopy(dict(run=run, **parts, random=random, history=history))


def _restore(snapshot: dict, model, optimizer, scheduler, device) -> History:
    model.load_state_dict(snapshot["model"])
    optimizer.load_state_dict(snapshot["optimizer"])
    scheduler.load_state_dict(snapshot["scheduler"])
    torch.set_rng_state(snapshot["random"]["cpu"])
    if device.type != "cpu" and "device" in snapshot["random"]:
        torch.get_device_module(device).set_rng_state(snapshot["random"]["device"])
    return snapshot["history"]


def _save_checkpoint(path: Path, snapshot: dict) -> None:
    """Write `snapshot` to `path`; on a full or read-only disk warn and let the training go on."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _move_into_place(path, lambda file: torch.save(snapshot, file))
    except OSError as error:
        warnings.warn(f"the checkpoint {path} could not be written, training goes on without: {error}", stacklevel=3)


def _load_checkpoint(path: Path, run: dict[str, str]) -> dict:
    """The snapshot in `path`, if it is whole and of this `run`; otherwise `RuntimeError`."""
    remedy = "Move it away, give another file name, or pass fresh_start=True to replace it"
    try:
        snapshot = _load(path)
    except RuntimeError as error:
        raise RuntimeError(f"{error}. {remedy}") from error
    if not isinstance(snapshot, dict) or "run" not in snapshot:
        raise RuntimeError(f"{path} is no checkpoint of a training run. {remedy}")
    different = [part for part in run if snapshot["run"].get(part) != run[part]]
    if different:
        raise RuntimeError(f"{path} is a checkpoint of another run: {', '.join(different)} differ. {remedy}")
    return snapshot


def _load(path: Path) -> object:
    """What `torch.save` wrote to `path`, after comparing its checksums, which `torch.load` does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:  # torch's own message advises to load it anyway
        raise RuntimeError(f"{path} holds more than tensors and plain values and was not loaded, for safety") from error
    except Exception as error:  # zipfile and pickle raise nearly anything on damaged bytes
        raise RuntimeError(f"{path} is damaged or was not written by PyTorch: {error}") from error


# Records --------------------------------------------------------------------------------------------------------------


def save_record(path: str | Path, record: dict) -> None:
    """Write `record` to `path` as JSON."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    _move_into_place(Path(path), lambda file: file.write(text.encode()))


def load_records(folder: str | Path) -> list[dict]:
    """The records of one recipe, `folder`/<seed>.json, by seed; `ValueError` if there are none."""
    paths = sorted(Path(folder).glob("*.json"), key=lambda path: int(path.stem))
    if not paths:
        raise ValueError(f"{folder} holds no records; experiments/study.py writes them")
    return [json.loads(path.read_text()) for path in paths]


def environment(device: torch.device | str) -> dict[str, str | int]:
    """What a record says about where it was made: commit, torch version, hardware, threads."""
    hardware = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        hardware = names[0] if names else hardware
    if torch.device(device).type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "commit": commit,
        "torch": torch.__version__,
        "device": torch.device(device).type,
        "hardware": hardware,
        "threads": torch.get_num_threads(),
    }
