"""Kill a training with SIGKILL again and again, resume it each time, compare with the run that nobody killed.

    python -m experiments.kills

Trains on 512 real images for 12 epochs. Every child resumes from the checkpoint that its killed predecessor left: 18
are killed at random moments, 6 while they write the checkpoint (before its first byte, half-way, just before it is
moved into place). Records the counts in results/kills.json. Takes about a minute.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

import storage
import utils
from experiments import ROOT
from experiments.recipes import REFERENCE

EPOCHS = 12
RANDOM_KILLS, WRITING_KILLS = 18, 6


def train(path: Path | None, data: tuple) -> tuple[torch.nn.Module, utils.History]:
    torch.manual_seed(1)
    run = REFERENCE.changed("", epochs=EPOCHS, step_size=8, learning_rate=0.1, dropout=0.1).build(len(data[0][0]))
    return run.model, utils.fit(run, *data, checkpoint=path)


def die_while_writing(moment: str) -> None:
    """Make this process kill itself the next time it writes a checkpoint."""

    def kill(*_) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def kill_half_way(snapshot: dict, file, save=torch.save) -> None:
        save(snapshot, file)
        file.truncate(file.tell() // 2)
        kill()

    if moment == "before the move":
        os.replace = kill
    else:
        torch.save = kill if moment == "before" else kill_half_way


def completed(path: Path) -> int:
    """Epochs in the checkpoint, read as any reader would."""
    return len(torch.load(path, weights_only=True)["history"]["seconds"]) if path.exists() else 0


def kill(path: Path, data: tuple, moment: str, seconds: float) -> None:
    """Train in a child, which is killed while it writes, or, at the `moment` "random", after so many `seconds`."""
    child = os.fork()
    if child == 0:
        if moment != "random":
            die_while_writing(moment)
        train(path, data)
        os._exit(0)
    if moment == "random":
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child was to be killed, but it ended by itself"


def finishes_like(unkilled: tuple, path: Path, data: tuple) -> bool:
    """Whether the run in `path`, resumed, ends with the history and the weights of the one that nobody killed."""
    (model, history), (resumed, resumed_history) = unkilled, train(path, data)
    path.unlink()
    pairs = zip(model.state_dict().values(), resumed.state_dict().values())
    histories = all(history[name] == resumed_history[name] for name in history if name != "seconds")
    return histories and all(torch.equal(a, b) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=ROOT / "results/kills.json", help="for the record; default: %(default)s")
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # the children's bars would overwrite each other
    tqdm.monitor_interval = 0  # a process with threads, tqdm's among them, must not fork
    torch.set_num_threads(1)
    (images, labels), (test_images, test_labels) = utils.load_mnist(ROOT / "data", "cpu")
    data = (images[:512], labels[:512]), (test_images[:200], test_labels[:200])

    start = time.perf_counter()
    unkilled = train(None, data)
    epoch_seconds = (time.perf_counter() - start) / EPOCHS

    draw = random.Random(0)
    kills = ["random"] * RANDOM_KILLS + ["before", "half-way", "before the move"] * (WRITING_KILLS // 3)
    draw.shuffle(kills)
    lost, comparisons = 0, []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.pt"
        for number, moment in enumerate(kills, start=1):
            if completed(path) >= EPOCHS - 2:  # nearly finished: compare its end, then start the next run
                comparisons.append(finishes_like(unkilled, path, data))
            before = completed(path)
            kill(path, data, moment, seconds=draw.uniform(0, 2) * epoch_seconds)
            after = completed(path)
            lost += max(before - after, 0)
            print(f"kill {number:2d}/{len(kills)}, {moment}: {before} epochs before, {after} after", flush=True)
        comparisons.append(finishes_like(unkilled, path, data))
    record = dict(
        kills=len(kills),
        kills_while_writing=WRITING_KILLS,
        lost_epochs=lost,
        runs_compared=len(comparisons),
        equal_to_the_uninterrupted_run=all(comparisons),
        seed=1,
        command="python -m experiments.kills",
    )
    storage.save_record(arguments.output, record | storage.environment("cpu"))
    print(f"{len(kills)} kills, {lost} lost epochs, equal to the uninterrupted run: {all(comparisons)}")


if __name__ == "__main__":
    main()
