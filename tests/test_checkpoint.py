"""Nothing lost: a run that is stopped, killed or damaged goes on to the same result, or says what to do."""

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import optim

import utils
from model import Net

EPOCHS = 5
AUGMENT = partial(utils.augment, zoom_probability=0.1, max_degrees=15)


def start(train, seed=1, learning_rate=0.1):
    torch.manual_seed(seed)
    model = Net(dropout=0.1).to(memory_format=torch.channels_last)
    optimizer = optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 3 * math.ceil(len(train[0]) / 128), gamma=0.1)
    return model, optimizer, scheduler


def fit(small, path, augment=AUGMENT, epochs=EPOCHS, batch_size=128, fresh_start=False, teacher=None, **options):
    model, *rest = start(small[0], **options)
    history = utils.fit(model, *rest, *small, epochs, batch_size, augment, path, fresh_start, teacher)
    return model, history


@pytest.fixture(scope="module")
def tiny(small):
    return tuple((images[:300], labels[:300]) for images, labels in small)


@pytest.fixture(scope="module")
def whole(tiny):
    """The uninterrupted run."""
    return fit(tiny, None)


def assert_same(run, whole):
    (model, history), (expected, expected_history) = run, whole
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    for name in expected_history.keys() - {"seconds"}:
        assert history[name] == expected_history[name], name


def stop_in(epoch, error, monkeypatch):
    """Let the second of the three training batches of `epoch` raise `error`."""
    normalize, calls = utils.normalize, iter(range(10_000))

    def stopping(images):
        if next(calls) == (3 + 2) * (epoch - 1) + 1:  # an epoch normalises three training and two test batches
            raise error
        return normalize(images)

    monkeypatch.setattr(utils, "normalize", stopping)


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_an_interrupted_run_keeps_its_epochs_and_goes_on_to_the_same_result(
    tiny, whole, tmp_path, monkeypatch, capsys, epoch
):
    path = tmp_path / "run.pt"
    stop_in(epoch, KeyboardInterrupt(), monkeypatch)
    model, history = fit(tiny, path)
    monkeypatch.undo()
    assert f"stopped: {epoch - 1} of {EPOCHS} epochs were completed" in capsys.readouterr().out
    assert path.exists() == (epoch > 1)
    for name in history.keys() - {"seconds"}:
        assert history[name] == whole[1][name][: epoch - 1], name
    if epoch > 1:  # the network is that of the last completed epoch, so that what follows fits the history
        assert utils.evaluate(model, *tiny[1]) == (history["test_loss"][-1], history["test_accuracy"][-1])
    assert_same(fit(tiny, path), whole)
    if epoch > 1:
        assert f"{epoch - 1} of {EPOCHS} epochs loaded from {path}, going on" in capsys.readouterr().out


def test_a_run_with_another_schedule_and_optimizer_goes_on_too(tiny, tmp_path, monkeypatch):
    def one_cycle(path):
        torch.manual_seed(1)
        model = Net()
        optimizer = optim.AdamW(model.parameters(), lr=0.01)
        scheduler = optim.lr_scheduler.OneCycleLR(optimizer, 0.01, 3 * EPOCHS, anneal_strategy="linear")
        return model, utils.fit(model, optimizer, scheduler, *tiny, EPOCHS, 128, AUGMENT, checkpoint=path)

    expected = one_cycle(None)
    stop_in(3, KeyboardInterrupt(), monkeypatch)
    one_cycle(tmp_path / "run.pt")
    monkeypatch.undo()
    assert_same(one_cycle(tmp_path / "run.pt"), expected)


def test_a_finished_run_is_loaded_and_not_trained_again(tiny, whole, tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.pt"
    assert_same(fit(tiny, path), whole)
    monkeypatch.setattr(utils, "train_epoch", None)
    assert_same(fit(tiny, path), whole)
    assert f"{EPOCHS} of {EPOCHS} epochs loaded from {path}, nothing to train" in capsys.readouterr().out


def test_a_fresh_start_trains_anew(tiny, whole, tmp_path, capsys):
    path = tmp_path / "run.pt"
    path.write_bytes(b"anything")
    assert_same(fit(tiny, path, fresh_start=True), whole)
    assert "loaded" not in capsys.readouterr().out
    assert_same(fit(tiny, path), whole)


@pytest.mark.parametrize(
    "change, part",
    [
        (dict(seed=2), "seed, initial weights"),
        (dict(learning_rate=0.2), "optimizer"),
        (dict(epochs=EPOCHS + 1), "number of epochs"),
        (dict(batch_size=64), "batch size"),
        (dict(augment=partial(utils.augment, zoom_probability=0.2, max_degrees=15)), "augmentation"),
        (dict(teacher=Net()), "teacher"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_of_another_run_is_neither_loaded_nor_overwritten(tiny, tmp_path, change, part):
    path = tmp_path / "run.pt"
    fit(tiny, path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match=rf"{path} is a checkpoint of another run: {part}.* fresh_start=True"):
        fit(tiny, path, **change)
    assert path.read_bytes() == before


def test_other_data_is_another_run(tiny, tmp_path):
    path = tmp_path / "run.pt"
    fit(tiny, path)
    (images, labels), test = tiny
    with pytest.raises(RuntimeError, match="another run: training data differ"):
        fit(((images.flip(0), labels.flip(0)), test), path)


@pytest.mark.parametrize("place", [i / 12 for i in range(13)])
def test_an_altered_byte_in_a_checkpoint_never_yields_another_result(tiny, whole, tmp_path, place):
    path = tmp_path / "run.pt"
    fit(tiny, path)
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x55
    path.write_bytes(content)
    try:
        run = fit(tiny, path)
    except RuntimeError as error:
        assert str(path) in str(error) and "fresh_start=True" in str(error)
        assert path.read_bytes() == bytes(content), "the damaged file is left as it is"
    else:
        assert_same(run, whole)  # the byte was padding


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_named_and_left_alone(tiny, tmp_path, keep):
    path = tmp_path / "run.pt"
    fit(tiny, path)
    content = path.read_bytes()[: int(keep * path.stat().st_size)]
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"{path} is damaged .*fresh_start=True"):
        fit(tiny, path)
    assert path.read_bytes() == content


def test_a_foreign_file_is_named_and_runs_no_code(tiny, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "was here").touch, ())

    path = tmp_path / "run.pt"
    torch.save(Evil(), path)
    with pytest.raises(RuntimeError, match=rf"{path} .*fresh_start=True"):
        fit(tiny, path)
    assert not (tmp_path / "was here").exists()
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(RuntimeError, match=rf"{path} is no checkpoint of a training run.*fresh_start=True"):
        fit(tiny, path)


def test_a_disk_that_cannot_be_written_costs_the_checkpoint_not_the_run(tiny, whole, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="could not be written, training goes on"):
        assert_same(fit(tiny, tmp_path / "file" / "run.pt"), whole)


def test_a_loss_that_explodes_leaves_the_good_epochs_in_the_checkpoint(tiny, whole, tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    stop_in(3, FloatingPointError("epoch  3/5: the loss became nan"), monkeypatch)
    with pytest.raises(FloatingPointError, match="epoch  3/5"):
        fit(tiny, path)
    monkeypatch.undo()
    assert_same(fit(tiny, path), whole)


def test_twenty_kills_lose_no_epoch(tmp_path):
    """SIGKILL at 16 random moments, before, in and after writing the checkpoint; see kills.py for the count."""
    command = [sys.executable, "experiments/kills.py", "--output", str(tmp_path / "kills.json")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    record = json.loads((tmp_path / "kills.json").read_text())
    assert record["kills"] >= 20
    assert record["kills_while_writing"] >= 4
    assert record["lost_epochs"] == 0
    assert record["equal_to_the_uninterrupted_run"] is True
