"""What goes to disk: files written whole or not at all, weights, checkpoints, records, and where they were made."""

import copy
import hashlib
import io
import json
import os
import pickle
import platform
import re
import secrets
import subprocess
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from numbers import Real
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

CODE = Path(__file__).parent


def save_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to a temporary file of its own beside `path`, then rename it: readers see old or new content."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            with suppress(OSError):  # some network drives have no fsync
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    save_bytes(path, text.encode())


def writable_folder(folder: str | Path) -> Path:
    """`folder`, or, where nothing can be written there, as on a full or read-only disk, a temporary one; says so."""
    probe = Path(folder, f".{secrets.token_hex(8)}.partial")
    try:
        save_bytes(probe, bytes(1_000_000))
        probe.unlink()
        return Path(folder)
    except OSError as error:
        temporary = Path(tempfile.mkdtemp())
        print(f"{folder} cannot be written ({error}); in its place, this run uses {temporary}")
        return temporary


def load(path: str | Path) -> dict:
    """What `torch.save` wrote to `path`; `RuntimeError` if it is damaged, or more than tensors and plain values."""
    content = io.BytesIO(Path(path).read_bytes())  # read once: the file may be replaced meanwhile
    try:
        with zipfile.ZipFile(content) as archive:  # torch.load does not compare checksums
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content.seek(0)
        return torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and pickle raise nearly anything on damaged bytes
        raise RuntimeError(f"{path} is damaged or not safe to load: delete it, or restore it with git") from error


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside what `torch.compile` or `nn.DataParallel` returns; any other as it is."""
    network = getattr(network, "_orig_mod", network)
    return network.module if isinstance(network, nn.DataParallel) else network


@contextmanager
def borrowed(network: nn.Module, training: bool) -> Iterator[nn.Module]:
    """The unwrapped network in training or evaluation mode, with fixed random numbers; all is put back afterwards.

    A copy would need none of that, but weights that are computed, as by pruning, cannot be copied. `ValueError` for
    lazy layers, whose first call draws their weights: the fixed random numbers would make them the same for every seed.
    """
    network = unwrapped(network)
    if any(is_lazy(tensor) for tensor in [*network.parameters(), *network.buffers()]):
        raise ValueError("lazy layers have no weights yet: call network(torch.zeros(2, 1, 28, 28)) once")
    attributes = [(layer, dict(vars(layer))) for layer in network.modules()]
    buffers = [
        (layer, name, buffer, buffer.clone())
        for layer in network.modules()
        for name, buffer in layer.named_buffers(recurse=False)
    ]
    states = [(generator, generator.get_rng_state()) for generator in _generators().values()]
    torch.manual_seed(0)
    try:
        network.train(training)
        yield network
    finally:
        for layer, before in attributes:
            vars(layer).update(before)  # the mode, and what `forward` assigned, as batch normalization by hand does
        for layer, name, buffer, values in buffers:
            setattr(layer, name, buffer.copy_(values))
        for generator, state in states:
            generator.set_rng_state(state)


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write the network's weights to `path`; `load_weights` reads them back."""
    buffer = io.BytesIO()
    torch.save(unwrapped(network).state_dict(), buffer)
    save_bytes(path, buffer.getvalue())


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Fill `network` with the weights in `path`; `RuntimeError` if they do not fit, and it stays as it was."""
    weights, before = load(path), copy.deepcopy(unwrapped(network).state_dict())
    try:
        unwrapped(network).load_state_dict(weights)
    except RuntimeError:
        unwrapped(network).load_state_dict(before)
        raise
    return network


def hyperparameters(names: dict[str, object]) -> dict[str, int | float | str]:
    """The numbers and strings among a notebook's `names` in upper case, by the names in lower case.

    `TypeError` for a number that is a string, as papermill makes one of 1e-1.
    """
    found = {}
    for name, value in names.items():
        if not name.isupper() or not isinstance(value, Real | str):
            continue
        if isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value, re.IGNORECASE):
            raise TypeError(f"{name} must be a number, not {value!r}; write 0.1 in place of 1e-1")
        found[name.lower()] = value.item() if hasattr(value, "item") else value  # numpy's become Python's
    return found


# Checkpoints ----------------------------------------------------------------------------------------------------------


def checkpoint_path(
    path: str | Path,
    settings: dict,
    network: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    loader: Iterable[tuple[Tensor, Tensor]],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
) -> Path:
    """`path`-<8 hex digits>.pt, the digits a hash of what decides the run: another run is another file.

    That is the `settings` (plain values), network, optimizer and scheduler as they say what they are, the lesson's
    code, and loss, gradient and prediction for the first batch under a fixed seed, which tell another `forward`,
    initialization, augmentation or loss from this one.
    """
    with borrowed(network, training=True) as trial:
        x, y = next(iter(loader))
        loss = loss_fn(trial(x), y)
        trained = [parameter for parameter in trial.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        trial.eval()
        predicted = trial(x).norm().item()
    size = sum(gradient.norm().item() for gradient in gradients if gradient is not None)
    numbers = f"{loss.item():.5g} {size:.4g} {predicted:.4g}"
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]
    parts = [settings, str(network), str(optimizer), groups, scheduler, numbers]
    identity = hashlib.sha256(json.dumps(parts, sort_keys=True, default=_as_plain_value).encode())
    for module in ("model.py", "utils.py", "onednn.py"):
        identity.update((CODE / module).read_bytes())
    return Path(f"{path}-{identity.hexdigest()[:8]}.pt")


def _as_plain_value(part: object) -> object:
    """A scheduler by its attributes, a function of the epoch by its values, anything else by its class."""
    if isinstance(part, LRScheduler):
        return vars(part)
    if callable(part):
        with suppress(Exception):  # it may take something else
            return [float(part(epoch)) for epoch in range(20)]
    return type(part).__name__


def resume(checkpoint: str | Path | None, *parts: nn.Module | Optimizer | LRScheduler | None) -> dict:
    """Load the `checkpoint`, if there is one, into the `parts` of a training; return the history so far."""
    if not checkpoint or not Path(checkpoint).exists():
        names = "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate", "seconds"
        return {name: [] for name in names}
    snapshot = load(checkpoint)
    for part, state in zip(parts, snapshot["parts"]):
        if part is not None:
            part.load_state_dict(state)
    for kind, generator in _generators().items():
        if kind in snapshot["random"]:
            generator.set_rng_state(snapshot["random"][kind])
    print(f"{len(snapshot['history']['seconds'])} epochs loaded from {checkpoint}; delete it to train from scratch")
    return snapshot["history"]


def save(checkpoint: str | Path | None, history: dict, *parts: nn.Module | Optimizer | LRScheduler | None) -> None:
    """Write all that the rest of a training depends on to the file `checkpoint`, if one is wanted.

    `TypeError` if it could not be read back; on a full or read-only disk it only warns.
    """
    if not checkpoint:
        return
    states = [part.state_dict() if part is not None else None for part in parts]
    random = {kind: generator.get_rng_state() for kind, generator in _generators().items()}
    buffer = io.BytesIO()
    torch.save(dict(parts=states, random=random, history=history), buffer)
    try:
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        save_bytes(checkpoint, buffer.getvalue())
    except pickle.UnpicklingError as error:
        raise TypeError("a checkpoint holds tensors and plain values; make numpy's numbers int or float") from error
    except OSError as error:
        warnings.warn(f"{checkpoint} could not be written, training continues: {error}", stacklevel=3)


def _generators() -> dict[str, ModuleType]:
    """The modules that hold random states: that of the CPU, and that of the accelerator, where there is one."""
    accelerator = [torch.accelerator.current_accelerator().type] if torch.accelerator.is_available() else []
    return {"cpu": torch} | {kind: torch.get_device_module(kind) for kind in accelerator}


# Records --------------------------------------------------------------------------------------------------------------


def save_record(path: str | Path, record: dict) -> None:
    """Write `record` to `path` as JSON."""
    save_text(path, json.dumps(record, indent=1) + "\n")


def load_record(path: str | Path) -> dict:
    """The record in `path`; `ValueError` naming the file if it is not one."""
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a readable record: {error}. Delete it, or restore it with git") from error


def load_records(folder: str | Path) -> list[dict]:
    """The records of one recipe, `folder`/<seed>.json, by seed."""
    return [load_record(path) for path in sorted(Path(folder).glob("*.json"), key=lambda path: int(path.stem))]


def environment(device: torch.device | str) -> dict[str, str | int]:
    """Where a record is made: commit, torch version, hardware, threads."""
    kind, cpu, commit = torch.device(device).type, Path("/proc/cpuinfo"), "unknown"
    names = re.findall(r"^model name\s*: (.+)$", cpu.read_text(encoding="utf-8"), re.M) if cpu.exists() else []
    hardware = names[0] if names else platform.processor() or platform.machine()
    if kind == "cuda":
        hardware = torch.cuda.get_device_name(device)
    with suppress(OSError):  # there may be no git
        command = ["git", "-c", "safe.directory=*", "-C", str(CODE), "describe", "--always", "--dirty", "--abbrev=12"]
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or commit
    about = dict(commit=commit, torch=torch.__version__, device=kind, hardware=hardware)
    return about | dict(instructions=torch.backends.cpu.get_cpu_capability(), threads=torch.get_num_threads())
