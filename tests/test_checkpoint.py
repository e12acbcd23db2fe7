"""Checkpoint and resume: a stopped or killed training ends with the same result; another one is another file."""

import copy
import errno
import json
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, StepLR

import storage
import utils
from model import Net
from trainings import AUGMENT, fit


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


def path(
    seed=1,
    settings=(("epochs", 19),),
    augment=AUGMENT,
    loss_fn=F.nll_loss,
    make=Net,
    schedule=None,
    trained=Net.parameters,
) -> Path:
    """The checkpoint of a training on ten images, all of whose parts are made anew."""
    torch.manual_seed(seed)
    network = make()
    loader = utils.Loader(IMAGES, torch.arange(10), 10, augment)
    optimizer = torch.optim.SGD(trained(network), lr=0.1)
    schedule = schedule or (lambda optimizer: StepLR(optimizer, 5))
    return storage.checkpoint_path("runs/run", dict(settings), network, optimizer, schedule(optimizer), loader, loss_fn)


class Quieter(Net):
    def forward(self, x):
        return super().forward(0.9 * x)


class Shifted(Net):
    """Averages over a shift, but only in prediction."""

    def forward(self, x):
        return super().forward(x) if self.training else super().forward((x + x.roll(1, 3)) / 2)


def otherwise_initialized() -> Net:
    """Only the scale differs, which batch normalization hides from the output."""
    network = Net()
    with torch.no_grad():
        network.conv1[0].weight *= 2
    return network


def partly_frozen() -> Net:
    network = Net()
    network.conv1.requires_grad_(False)
    return network


def falling(rate: float):
    return lambda optimizer: LambdaLR(optimizer, lambda epoch: sum(rate**n for n in range(epoch + 1)))


IMAGES = torch.arange(7840).mul(7).remainder(256).to(torch.uint8).view(10, 28, 28)
SAME = [dict(augment=lambda images: utils.augment(images, 0.1, 15)), dict(loss_fn=lambda *both: F.nll_loss(*both))]
OTHER = [
    dict(seed=2),
    dict(settings=[("epochs", 20)]),
    dict(loss_fn=partial(F.cross_entropy, label_smoothing=0.1)),
    dict(make=Quieter),
    dict(make=Shifted),
    dict(make=otherwise_initialized),
    dict(make=partly_frozen),
    dict(make=lambda: Net(0.1)),
    dict(augment=partial(utils.augment, zoom_probability=0.1, max_degrees=16)),
    dict(augment=lambda images: images.flip(2)),
    dict(trained=lambda network: network.conv2.parameters()),
    dict(trained=lambda network: network.conv3.parameters()),
    dict(schedule=lambda optimizer: StepLR(optimizer, 6)),
    dict(schedule=lambda optimizer: ExponentialLR(optimizer, 0.9)),
    dict(schedule=falling(0.5)),
    dict(schedule=falling(0.4)),
]


def test_another_training_has_another_file_and_the_same_one_its_own(tmp_path, monkeypatch):
    usual = path()
    assert len({usual, *(path(**other) for other in OTHER)}) == len(OTHER) + 1
    assert [path(**same) for same in SAME] == 2 * [usual]
    assert path(schedule=falling(0.4)) == path(**OTHER[-1]) and usual.match("runs/run-????????.pt")
    for module in ("model.py", "utils.py", "onednn.py"):
        (tmp_path / module).write_text("# edited", encoding="utf-8")
    monkeypatch.setattr(storage, "CODE", tmp_path)
    assert path() != usual


def test_hyperparameters_are_the_numbers_in_upper_case():
    names = dict(SEED=1, RATE=np.float64(0.1), COUNT=np.int64(7), NORM="bn", RUNS=Path("runs"), device="cpu", Net=Net)
    assert json.dumps(storage.hyperparameters(names)) == '{"seed": 1, "rate": 0.1, "count": 7, "norm": "bn"}'
    with pytest.raises(TypeError, match="RATE must be a number, not '1e-1'"):
        storage.hyperparameters(dict(RATE="1e-1"))


def test_naming_a_checkpoint_changes_nothing():
    torch.manual_seed(1)
    network, state = Net(), torch.get_rng_state()
    before = copy.deepcopy(network.state_dict())
    path(make=lambda: network)
    torch.manual_seed(1)
    Net()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, before.values(), network.state_dict().values()))


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


def test_a_folder_that_cannot_be_written_is_replaced_and_named(tmp_path, capsys):
    assert storage.writable_folder(tmp_path / "new") == tmp_path / "new" and not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert storage.writable_folder(tmp_path / "file").is_dir()
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'file'} cannot be written")


@pytest.mark.parametrize("damage", ["empty", "truncated", "altered", "code"])
def test_a_damaged_checkpoint_is_named_and_left_alone(tiny, tmp_path, damage):
    path = tmp_path / "run.pt"
    network, _ = fit(*tiny, 1, path)
    content = bytearray(path.read_bytes())
    content[content.find(network.conv3[0].weight.detach().numpy().tobytes())] ^= 0x55
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
