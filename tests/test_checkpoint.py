"""Checkpoint and resume: a stopped or killed training ends with the same result; another one is another file."""

import errno
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import storage
import utils
from model import Net
from trainings import fit


def assert_same(one, other) -> None:
    """Two trainings ended with the same weights and the same history, bit for bit."""
    (network, history), (expected, expected_history) = one, other
    assert all(map(torch.equal, network.state_dict().values(), expected.state_dict().values()))
    assert history | dict(seconds=[]) == expected_history | dict(seconds=[])


@pytest.fixture(scope="module")
def tiny(small):
    return tuple((images[:300], labels[:300]) for images, labels in small)


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["blocked", "with dropout"])
def test_a_stopped_training_resumes_to_the_same_result_and_ends_once(tiny, tmp_path, monkeypatch, dropout):
    """Dropout draws random numbers, and is trained in another layout."""
    path, whole = tmp_path / "run.pt", fit(*tiny, 5, dropout=dropout)
    fit(*tiny, 3, path, dropout=dropout)
    assert_same(fit(*tiny, 5, path, dropout=dropout), whole)
    monkeypatch.setattr(utils, "train_epoch", None)
    assert_same(fit(*tiny, 5, path, dropout=dropout), whole)


def test_a_killed_training_loses_no_epoch(tiny, tmp_path):
    path, epochs = tmp_path / "run.pt", 40
    child = multiprocessing.get_context("spawn").Process(target=fit, args=(*tiny, epochs, path))
    child.start()
    while child.is_alive() and not path.exists():
        time.sleep(0.01)
    child.kill()
    child.join()
    done = len(storage.load(path)["history"]["seconds"])
    assert 0 < done < epochs
    assert_same(fit(*tiny, done + 1, path), fit(*tiny, done + 1))


def test_another_training_has_another_file(tmp_path, monkeypatch):
    usual = "run", dict(learning_rate=0.25, epochs=19), Net(), 60_000
    others = [("other", *usual[1:]), (*usual[:3], 50_000), (*usual[:2], Net(0.1), 60_000)]
    others += [("run", usual[1] | change, Net(), 60_000) for change in (dict(learning_rate=0.2500001), dict(seed=1))]
    path = storage.checkpoint_path("runs", *usual)
    assert len({path, *(storage.checkpoint_path("runs", *other) for other in others)}) == 6
    assert storage.checkpoint_path("runs", "run", dict(epochs=19, learning_rate=0.25), Net(), 60_000) == path
    for module in ("model.py", "utils.py"):
        (tmp_path / module).write_text("# edited", encoding="utf-8")
    monkeypatch.setattr(storage, "CODE", tmp_path)
    assert storage.checkpoint_path("runs", *usual) != path


def test_a_checkpoint_that_could_not_be_read_back_is_an_error_at_the_first_epoch(tiny, tmp_path):
    with pytest.raises(TypeError, match="numpy"):
        fit(*tiny, 1, tmp_path / "run.pt", learning_rate=np.float64(0.1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function, code", [("replace", errno.ENOSPC), ("fsync", errno.EINVAL)])
def test_a_full_disk_costs_the_checkpoint_a_drive_without_fsync_nothing(tiny, tmp_path, monkeypatch, function, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, function, fail)
    with nullcontext() if function == "fsync" else pytest.warns(match="could not be written, training continues"):
        _, history = fit(*tiny, 2, tmp_path / "run.pt")
    assert len(history["seconds"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == (["run.pt"] if function == "fsync" else [])


@pytest.mark.parametrize("damage", ["empty", "truncated", "altered", "code"])
def test_a_damaged_checkpoint_is_named_and_left_alone(tiny, tmp_path, damage):
    path = tmp_path / "run.pt"
    fit(*tiny, 1, path)
    content = bytearray(path.read_bytes())
    content[20_000] ^= 0x55  # in a tensor
    path.write_bytes(dict(empty=b"", truncated=content[: len(content) // 2]).get(damage, content))
    if damage == "code":
        torch.save(print, path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match=f"{path} is damaged or not safe to load: delete it"):
        fit(*tiny, 2, path)
    assert path.read_bytes() == before


def test_two_writers_leave_whole_files_only(tmp_path):
    path, contents = tmp_path / "file", [bytes([value]) * 100_000 for value in (1, 2)]
    storage.save_bytes(path, contents[0])
    with ThreadPoolExecutor() as pool:
        writing = [pool.submit(storage.save_bytes, path, content) for content in 200 * contents]
        while not all(each.done() for each in writing):
            assert path.read_bytes() in contents
    assert not any(each.exception() for each in writing) and list(tmp_path.iterdir()) == [path]
