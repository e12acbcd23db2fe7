"""Checkpoint and resume: a run that is stopped, killed or damaged ends with the same result, or says what to do."""

import json
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

import runs
import storage
import utils
from model import Net
from runs import AUGMENT, EPOCHS

fit = partial(runs.fit, dropout=0.1)  # which draws random numbers, too


@pytest.fixture(scope="module")
def tiny(small):
    return tuple((images[:300], labels[:300]) for images, labels in small)


@pytest.fixture(scope="module")
def whole(tiny):
    """The uninterrupted run."""
    return fit(*tiny, None)


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    """What the checkpoint of the whole run holds."""
    path = tmp_path_factory.mktemp("written") / "run.pt"
    fit(*tiny, path)
    return path.read_bytes()


@pytest.fixture
def finished(written, tmp_path):
    """The file of the whole run's checkpoint."""
    (tmp_path / "run.pt").write_bytes(written)
    return tmp_path / "run.pt"


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


@pytest.mark.parametrize("epoch", range(2, EPOCHS + 1))
def test_an_interrupted_run_keeps_its_epochs_and_resumes_to_the_same_result(
    tiny, whole, tmp_path, monkeypatch, capsys, epoch
):
    path = tmp_path / "run.pt"
    stop_in(epoch, KeyboardInterrupt(), monkeypatch)
    model, history = fit(*tiny, path)
    monkeypatch.undo()
    assert f"stopped: {epoch - 1} of {EPOCHS} epochs were completed" in capsys.readouterr().out
    for name in history.keys() - {"seconds"}:
        assert history[name] == whole[1][name][: epoch - 1], name
    # the network is that of the last completed epoch, so that what follows fits the history
    assert utils.evaluate(model, *tiny[1]) == (history["test_loss"][-1], history["test_accuracy"][-1])
    assert_same(fit(*tiny, path), whole)
    assert f"{epoch - 1} of {EPOCHS} epochs loaded from {path}" in capsys.readouterr().out


def test_a_stop_before_the_first_epoch_is_complete_stops_the_notebook_too(tiny, tmp_path, monkeypatch, capsys):
    stop_in(1, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fit(*tiny, tmp_path / "run.pt")
    assert f"stopped: 0 of {EPOCHS} epochs" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_run_with_another_schedule_and_optimizer_resumes_too(tiny, tmp_path, monkeypatch):
    def one_cycle(path):
        torch.manual_seed(1)
        model = Net()
        optimizer = optim.AdamW(model.parameters(), lr=0.01)
        scheduler = optim.lr_scheduler.OneCycleLR(optimizer, 0.01, 3 * EPOCHS, anneal_strategy="linear")
        return model, utils.fit(utils.Run(model, optimizer, scheduler, AUGMENT, F.nll_loss, EPOCHS, 128), *tiny, path)

    expected = one_cycle(None)
    stop_in(3, KeyboardInterrupt(), monkeypatch)
    one_cycle(tmp_path / "run.pt")
    monkeypatch.undo()
    assert_same(one_cycle(tmp_path / "run.pt"), expected)


def test_a_finished_run_is_loaded_and_not_trained_again(tiny, whole, tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.pt"
    assert_same(fit(*tiny, path), whole)
    monkeypatch.setattr(utils, "train_epoch", None)
    assert_same(fit(*tiny, path), whole)
    assert f"{EPOCHS} of {EPOCHS} epochs loaded from {path}" in capsys.readouterr().out


def test_a_fresh_start_retrains(tiny, whole, tmp_path, capsys):
    path = tmp_path / "run.pt"
    path.write_bytes(b"anything")
    assert_same(fit(*tiny, path, fresh_start=True), whole)
    assert "loaded" not in capsys.readouterr().out
    assert_same(fit(*tiny, path), whole)


class Mirrored(Net):
    """`Net`, as its text has it, but not as it computes."""

    def forward(self, images):
        return super().forward(images.flip(3))

    def __repr__(self):
        return super().__repr__().replace("Mirrored", "Net", 1)


def brighten(factor):
    return lambda images: (images * factor).to(torch.uint8)


@pytest.mark.parametrize(
    "change, part",
    [
        (dict(seed=2), "seed, initial weights"),
        (dict(learning_rate=0.2), "optimizer, schedule"),
        (dict(epochs=EPOCHS + 1), "schedule, number of epochs"),
        (dict(batch_size=64), "batch size"),
        (dict(augment=partial(utils.augment, zoom_probability=0.2, max_degrees=15)), "augmentation"),
        (dict(augment=partial(utils.augment, zoom_probability=0.1001, max_degrees=15)), "augmentation"),
        (dict(augment=partial(utils.shift, pixels=1)), "augmentation"),
        (dict(augment=nn.Identity()), "augmentation"),
        (dict(network=Mirrored), "network's output"),
        (dict(loss_fn=lambda output, labels: 2 * F.nll_loss(output, labels)), "loss"),
        (dict(loss_fn=partial(F.nll_loss, reduction="sum")), "loss"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_of_another_run_is_neither_loaded_nor_overwritten(tiny, written, finished, change, part):
    message = rf"{finished} is a checkpoint of another run: .*{part}.*Delete or rename it"
    with pytest.raises(RuntimeError, match=message):
        fit(*tiny, finished, **change)
    assert finished.read_bytes() == written


@pytest.mark.parametrize(
    "one, other",
    [
        (partial(utils.shift, pixels=1), partial(utils.shift, pixels=2)),
        (partial(lambda pixels, images: images, 5), partial(lambda pixels, images: images, 50)),
        (brighten(0.5), brighten(0.25)),
        (lambda images: images, lambda images: images.flip(2)),
    ],
    ids=["keyword", "position", "closure", "lambda"],
)
def test_what_an_augmentation_computes_is_part_of_the_run(tiny, tmp_path, one, other):
    fit(*tiny, tmp_path / "run.pt", augment=one, epochs=1)
    fit(*tiny, tmp_path / "run.pt", augment=one, epochs=1)
    with pytest.raises(RuntimeError, match="another run: augment"):
        fit(*tiny, tmp_path / "run.pt", augment=other, epochs=1)


def test_the_same_arguments_written_otherwise_are_the_same_run(tiny, whole, finished):
    same = partial(utils.augment, max_degrees=15.0, zoom_probability=0.1)
    assert_same(fit(*tiny, finished, augment=same), whole)


def test_another_lambda_in_the_schedule_is_another_run(tiny, tmp_path):
    for factor, same in ((0.5, True), (0.5, True), (0.25, False)):
        run = runs.start(tiny[0], epochs=1)
        run.scheduler = optim.lr_scheduler.LambdaLR(run.optimizer, lambda step, f=factor: f**step)
        if same:
            utils.fit(run, *tiny, tmp_path / "run.pt")
        else:
            with pytest.raises(RuntimeError, match="another run: schedule"):
                utils.fit(run, *tiny, tmp_path / "run.pt")


def test_two_writers_leave_whole_snapshots_only(tmp_path):
    path, stop = tmp_path / "file.pt", threading.Event()

    def write(value):
        while not stop.is_set():
            storage.save_checkpoint(path, dict(run={}, a=torch.full((2000,), value), b=torch.full((2000,), value)))

    storage.save_checkpoint(path, dict(run={}, a=torch.zeros(2000), b=torch.zeros(2000)))
    writers = [threading.Thread(target=write, args=(value,)) for value in (1.0, 2.0)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(100):
            snapshot = storage.load_checkpoint(path, {})
            assert torch.equal(snapshot["a"], snapshot["b"]) and len(snapshot["a"].unique()) == 1
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert [file.name for file in tmp_path.iterdir()] == ["file.pt"]


def test_other_data_is_another_run(tiny, finished):
    (images, labels), test = tiny
    with pytest.raises(RuntimeError, match="another run: training data differ"):
        fit((images.flip(0), labels.flip(0)), test, finished)


@pytest.mark.parametrize("place", [i / 12 for i in range(13)])
def test_an_altered_byte_in_a_checkpoint_never_yields_another_result(tiny, whole, finished, place):
    content = bytearray(finished.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x55
    finished.write_bytes(content)
    try:
        run = fit(*tiny, finished)
    except RuntimeError as error:
        assert str(finished) in str(error) and "Delete or rename it" in str(error)
        assert finished.read_bytes() == bytes(content), "the damaged file is left as it is"
    else:
        assert_same(run, whole)  # the byte was padding


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_named_and_left_alone(tiny, written, finished, keep):
    content = written[: int(keep * len(written))]
    finished.write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"{finished} is damaged .*Delete or rename it"):
        fit(*tiny, finished)
    assert finished.read_bytes() == content


def test_a_foreign_file_is_named_and_runs_no_code(tiny, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "was here").touch, ())

    path = tmp_path / "run.pt"
    torch.save(Evil(), path)
    with pytest.raises(RuntimeError, match=rf"{path} .*Delete or rename it"):
        fit(*tiny, path)
    assert not (tmp_path / "was here").exists()
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(RuntimeError, match=rf"{path} is no checkpoint of a training run.*Delete or rename it"):
        fit(*tiny, path)


def test_a_disk_that_cannot_be_written_costs_the_checkpoint_not_the_run(tiny, whole, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="could not be written, training continues"):
        assert_same(fit(*tiny, tmp_path / "file" / "run.pt"), whole)


def test_a_loss_that_explodes_leaves_the_good_epochs_in_the_checkpoint(tiny, whole, tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    stop_in(3, FloatingPointError("epoch  3/5: the loss became nan"), monkeypatch)
    with pytest.raises(FloatingPointError, match="epoch  3/5"):
        fit(*tiny, path)
    monkeypatch.undo()
    assert_same(fit(*tiny, path), whole)


def test_twenty_kills_lose_no_epoch(tmp_path):
    """SIGKILL at 16 random moments, before, in and after writing the checkpoint; see kills.py for the count."""
    command = [sys.executable, "-m", "experiments.kills", "--output", str(tmp_path / "kills.json")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    record = json.loads((tmp_path / "kills.json").read_text())
    assert record["kills"] >= 20
    assert record["kills_while_writing"] >= 4
    assert record["lost_epochs"] == 0
    assert record["equal_to_the_uninterrupted_run"] is True
