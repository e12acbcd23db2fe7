"""What goes to disk: files written whole or not at all, weights, checkpoints, records, and where they were made."""

import copy
import io
import json
import os
import pickle
import platform
import re
import secrets
import subprocess
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: readers see the old content or the new.

    The temporary name is used by nobody else, so that two writers do not mix. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _load(path: Path) -> object:
    """What `torch.save` wrote to `path`, after comparing its checksums, which `torch.load` does not."""
    content = io.BytesIO(path.read_bytes())  # read once: the file may be replaced meanwhile
    try:
        with zipfile.ZipFile(content) as archive:
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content.seek(0)
        return torch.load(content, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to load it anyway
        raise RuntimeError(f"{path} holds more than tensors and plain values and was not loaded, for safety") from error
    except Exception as error:  # zipfile and pickle raise nearly anything on damaged bytes
        raise RuntimeError(f"{path} is damaged or was not written by PyTorch: {error}") from error


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the network's weights to `path`; `load_weights` reads them back."""
    write_atomically(path, lambda file: torch.save(model.state_dict(), file))


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Fill `model` with the weights in `path` and return it.

    Raises `RuntimeError` for weights that are damaged, another network's, or not finite; `model` then stays as it was.
    """
    weights = _load(Path(path))
    try:
        copy.deepcopy(model).load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise RuntimeError(f"{path} does not hold weights of this network: {error}") from error
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise RuntimeError(f"{path} holds weights that are not finite numbers: {', '.join(broken)}")
    model.load_state_dict(weights)
    return model


def save_checkpoint(path: str | Path, snapshot: dict) -> None:
    """Write `snapshot` to `path`; on a full or read-only disk warn and let the training go on."""
    try:
        write_atomically(path, lambda file: torch.save(snapshot, file))
    except OSError as error:
        warnings.warn(f"the checkpoint {path} could not be written, training continues: {error}", stacklevel=3)


def load_checkpoint(path: str | Path, run: dict[str, str | Tensor]) -> dict:
    """The snapshot in `path`, if it is whole and its "run" is described like this `run`; otherwise `RuntimeError`."""
    remedy = "Delete or rename it, or choose another file name, to train from scratch"
    try:
        snapshot = _load(Path(path))
    except RuntimeError as error:
        raise RuntimeError(f"{error}. {remedy}") from error
    if not isinstance(snapshot, dict) or not isinstance(snapshot.get("run"), dict):
        raise RuntimeError(f"{path} is no checkpoint of a training run. {remedy}")
    different = [part for part in run if not _same(snapshot["run"].get(part), run[part])]
    if different:
        named = [part for part in different if isinstance(run[part], str)] or different
        raise RuntimeError(f"{path} is a checkpoint of another run: {', '.join(named)} differ. {remedy}")
    return snapshot


def _same(saved: object, value: str | Tensor) -> bool:
    """Equal texts, or tensors that agree but for what another machine may compute otherwise in the last digits."""
    if isinstance(value, str) or not isinstance(saved, Tensor) or saved.shape != value.shape:
        return isinstance(value, str) and saved == value
    return bool((saved - value).abs().mean() <= 1e-3 * value.abs().mean())


def save_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path`."""
    write_atomically(path, lambda file: file.write(content))


def save_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in UTF-8."""
    save_bytes(path, text.encode())


def save_record(path: str | Path, record: dict) -> None:
    """Write `record` to `path` as JSON."""
    save_text(path, json.dumps(record, indent=1) + "\n")


def load_record(path: str | Path) -> dict:
    """The record in `path`; `ValueError` naming the file if it is not one."""
    try:
        record = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable record: {error}. Delete it, or restore it with git") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is not a record but a JSON {type(record).__name__}")
    return record


def record_paths(folder: str | Path) -> list[Path]:
    """The files of one recipe's records, `folder`/<seed>.json, by seed; `ValueError` for none, or a foreign file."""
    paths = [path for path in Path(folder).glob("*") if path.suffix != ".partial"]
    if not paths:
        raise ValueError(f"{folder} holds no records; `python -m experiments.study` writes them")
    for path in paths:
        if not re.fullmatch(r"\d+\.json", path.name):
            raise ValueError(f"{path} is no record of a seed, <seed>.json; move it away")
    return sorted(paths, key=lambda path: int(path.stem))


def load_records(folder: str | Path) -> list[dict]:
    """The records of one recipe, by seed; `ValueError` as `record_paths`, or if one is unreadable."""
    return [load_record(path) for path in record_paths(folder)]


def environment(device: torch.device | str) -> dict[str, str | int]:
    """Where a record was made: commit, torch version, hardware, threads."""
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
