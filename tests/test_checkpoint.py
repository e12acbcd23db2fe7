"""Checkpoint and resume: a stopped or killed training ends with the same result; another one is another file."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import storage
import utils
from conftest import ROOT
from model import Net
from trainings import assert_same, fit

EPOCHS = 5


@pytest.fixture(scope="module")
def tiny(small):
    return tuple((images[:300], labels[:300]) for images, labels in small)


@pytest.fixture(scope="module", params=[0.0, 0.1], ids=["blocked", "with dropout"])
def dropout(request):
    return request.param


@pytest.fixture(scope="module")
def whole(tiny, dropout):
    """The uninterrupted training; dropout draws random numbers, too, and is trained in another layout."""
    return fit(*tiny, EPOCHS, dropout=dropout)


@pytest.mark.parametrize("epoch", [1, 3, EPOCHS])
def test_a_stopped_training_resumes_to_the_same_result(tiny, whole, dropout, tmp_path, monkeypatch, epoch):
    path, normalize, calls = tmp_path / "run.pt", utils.normalize, iter(range(10_000))

    def stopping(images):
        if next(calls) == 1 + (3 + 2) * (epoch - 1) + 1:  # one trial, then three training and two test batches an epoch
            raise KeyboardInterrupt
        return normalize(images)

    monkeypatch.setattr(utils, "normalize", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit(*tiny, EPOCHS, path, dropout=dropout)
    monkeypatch.undo()
    assert path.exists() == (epoch > 1)
    assert_same(fit(*tiny, EPOCHS, path, dropout=dropout), whole)


def test_a_finished_training_is_loaded_and_not_trained_again(tiny, whole, dropout, tmp_path, monkeypatch):
    fit(*tiny, EPOCHS, tmp_path / "run.pt", dropout=dropout)
    monkeypatch.setattr(utils, "train_epoch", None)
    assert_same(fit(*tiny, EPOCHS, tmp_path / "run.pt", dropout=dropout), whole)


CHILD = """
import sys, torch, utils
from trainings import fit
torch.set_num_threads(1)
parts = utils.load_mnist("data", "cpu")
fit(*(tuple(part[:300] for part in pair) for pair in parts), int(sys.argv[1]), sys.argv[2], dropout=0.1)
"""


def test_a_killed_training_loses_no_epoch(tiny, tmp_path):
    """SIGKILL again and again; what is there at any moment is a whole checkpoint, and the end is the same."""
    path, epochs = tmp_path / "run.pt", 40
    environment = os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    done = 0
    for _ in range(4):
        command = [sys.executable, "-c", CHILD, str(epochs), str(path)]
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for line in child.stdout:
            if line.startswith("epoch"):
                break
        time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        before, done = done, len(storage.load(path)["history"]["seconds"])
        assert before < done < epochs
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert_same(fit(*tiny, done + 1, path, dropout=0.1), fit(*tiny, done + 1, dropout=0.1))
    torch.set_num_threads(threads)


SETTINGS = dict(learning_rate=0.25, epochs=19, mode="nearest")


@pytest.mark.parametrize(
    "name, settings, network, images",
    [
        ("other", SETTINGS, Net(), 60_000),
        ("run", SETTINGS | dict(learning_rate=0.2500001), Net(), 60_000),
        ("run", SETTINGS | dict(seed=1), Net(), 60_000),
        ("run", SETTINGS, Net(0.1), 60_000),
        ("run", SETTINGS, Net(), 50_000),
    ],
)
def test_another_training_has_another_file(name, settings, network, images):
    usual = storage.checkpoint_path("runs", "run", SETTINGS, Net(), 60_000)
    same = storage.checkpoint_path("runs", "run", dict(reversed(SETTINGS.items())), Net(), 60_000)
    assert usual == same and usual.name.startswith("run-") and len(usual.stem) == len("run-") + 8
    assert storage.checkpoint_path("runs", name, settings, network, images) != usual


def test_other_code_has_another_file(tmp_path, monkeypatch):
    for module in ("model.py", "utils.py"):
        (tmp_path / module).write_bytes((ROOT / module).read_bytes())
    usual = storage.checkpoint_path("runs", "run", SETTINGS, Net(), 60_000)
    monkeypatch.setattr(storage, "CODE", tmp_path)
    assert storage.checkpoint_path("runs", "run", SETTINGS, Net(), 60_000) == usual
    with open(tmp_path / "utils.py", "a", encoding="utf-8") as file:
        file.write("# edited\n")
    assert storage.checkpoint_path("runs", "run", SETTINGS, Net(), 60_000) != usual


@pytest.mark.parametrize("number", [np.float32(0.1), np.float64(0.1)])
def test_a_checkpoint_that_could_not_be_read_back_is_an_error_at_the_first_epoch(tiny, tmp_path, number):
    with pytest.raises(TypeError, match="numpy"):
        fit(*tiny, EPOCHS, tmp_path / "run.pt", learning_rate=number)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_costs_the_checkpoint_not_the_training(
    tiny, whole, dropout, tmp_path, monkeypatch, code
):
    def full(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="could not be written, training continues"):
        assert_same(fit(*tiny, EPOCHS, tmp_path / "run.pt", dropout=dropout), whole)
    assert not list(tmp_path.iterdir())


def test_a_drive_without_fsync_keeps_checkpoints(tiny, tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    fit(*tiny, 1, tmp_path / "run.pt")
    assert storage.load(tmp_path / "run.pt")["history"]["seconds"]


class Evil:
    def __reduce__(self):
        return (print, ("code in a checkpoint ran",))


@pytest.mark.parametrize("damage", ["empty", "truncated", "altered", "code"])
def test_a_damaged_checkpoint_is_named_and_left_alone(tiny, tmp_path, capsys, damage):
    path = tmp_path / "run.pt"
    fit(*tiny, 1, path)
    content = bytearray(path.read_bytes())
    content[20_000] ^= 0x55  # in a tensor
    path.write_bytes(dict(empty=b"", truncated=content[: len(content) // 2], altered=content).get(damage, b""))
    if damage == "code":
        torch.save(Evil(), path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match=f"{path} is damaged or not safe to load: delete it"):
        fit(*tiny, 2, path)
    assert path.read_bytes() == before and "ran" not in capsys.readouterr().out


def test_two_writers_leave_whole_files_only(tmp_path):
    path, stop = tmp_path / "file.pt", threading.Event()

    def write(value):
        while not stop.is_set():
            storage.save_checkpoint(path, dict(a=torch.full((2000,), value), b=torch.full((2000,), value)))

    storage.save_checkpoint(path, dict(a=torch.zeros(2000), b=torch.zeros(2000)))
    writers = [threading.Thread(target=write, args=(value,)) for value in (1.0, 2.0)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(100):
            snapshot = storage.load(path)
            assert torch.equal(snapshot["a"], snapshot["b"]) and len(snapshot["a"].unique()) == 1
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert [file.name for file in tmp_path.iterdir()] == ["file.pt"]
