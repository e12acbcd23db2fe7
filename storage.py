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
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

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


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write the network's weights to `path`; `load_weights` reads them back."""
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    save_bytes(path, buffer.getvalue())


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Fill `network` with the weights in `path`; `RuntimeError` if they do not fit, and it stays as it was."""
    weights = load(path)
    copy.deepcopy(network).load_state_dict(weights)
    network.load_state_dict(weights)
    return network


def checkpoint_path(folder: str | Path, name: str, settings: dict, *parts: object) -> Path:
    """`folder`/<name>-<8 hex digits>.pt, the digits a hash of what decides the run: another run is another file.

    That is the `settings` (plain numbers and strings), the texts of `parts` such as the network, model.py and utils.py.
    """
    identity = hashlib.sha256(json.dumps([settings, *map(str, parts)], sort_keys=True).encode())
    for module in ("model.py", "utils.py"):
        identity.update((CODE / module).read_bytes())
    return Path(folder) / f"{name}-{identity.hexdigest()[:8]}.pt"


def save_checkpoint(path: str | Path, snapshot: dict) -> None:
    """Write `snapshot` to `path`; `TypeError` if it could not be read back. On a full or read-only disk only warn."""
    buffer = io.BytesIO()
    torch.save(snapshot, buffer)
    try:
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        save_bytes(path, buffer.getvalue())
    except pickle.UnpicklingError as error:
        raise TypeError("a checkpoint holds tensors and plain values; make numpy's numbers int or float") from error
    except OSError as error:
        warnings.warn(f"the checkpoint {path} could not be written, training continues: {error}", stacklevel=3)


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
        command = ["git", "-C", str(CODE), "describe", "--always", "--dirty", "--abbrev=12"]
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or commit
    return dict(commit=commit, torch=torch.__version__, device=kind, hardware=hardware, threads=torch.get_num_threads())
