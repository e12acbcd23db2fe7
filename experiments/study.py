"""Train a recipe for a list of seeds; write one record per run, results/runs/<recipe>/<seed>.json.

    python -m experiments.study reference --seeds 1-10
    python -m experiments.study one-cycle --validate --set learning_rate=0.2 batch_size=128 --seeds 1-3
    python -m experiments.study tiny-970 --images 400 --set epochs=2

The second line is a trial: the last 10,000 training images take the place of the test set, which stays unseen, and the
records go to results/trials/. The third is a quick try: it always runs anew, and its records go to runs/tries/.

To resume a study, repeat the command: recorded seeds are skipped, and one that was begun goes on after its last epoch
(runs/study/). Seeds run side by side, one thread each. On a cluster: start it (`dask scheduler` and `dask worker
tcp://…:8786`) in a clone of this repository on every machine, and add --address tcp://…:8786.
"""

import argparse
import ast
import os
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import joblib
import torch

import storage
import utils
from experiments import RESULTS, ROOT
from experiments.recipes import RECIPES, TYPES, build, teacher_path

COMMIT = storage.environment("cpu")["commit"]  # that of the code which this process has imported
CLEAN = re.compile("[0-9a-f]{7,40}")  # a commit's name without "-dirty"


class Study(NamedTuple):
    """What all seeds of a study share."""

    name: str  # of the recipe
    changes: dict = {}  # its settings that differ
    validate: bool = False
    image_count: int | None = None  # only the first ones, for a quick try
    output: Path | None = None  # in place of results/ and runs/

    @property
    def settings(self) -> dict:
        return RECIPES[self.name] | self.changes

    @property
    def label(self) -> str:
        """The recipe and its changes, as the folder of the records is named."""
        changes = (f"{name}={value}".replace(" ", "") for name, value in sorted(self.changes.items()))
        return "+".join([self.name, *changes])

    @property
    def root(self) -> Path:
        """Where all that is kept is written; what comes from a quick try never where results are."""
        return self.output or (ROOT / "runs" / "tries" if self.image_count else RESULTS)

    @property
    def folder(self) -> Path:
        return self.root / ("trials" if self.validate else "runs") / self.label

    def data(self) -> tuple:
        """((images, labels) to train on, (images, labels) to evaluate on)."""
        (images, labels), test = utils.load_mnist(ROOT / "data", "cpu")
        train = images, labels
        if self.validate:
            train, test = (images[:50_000], labels[:50_000]), (images[50_000:], labels[50_000:])
        first = slice(self.image_count)  # all, where that is None
        return (train[0][first], train[1][first]), (test[0][first], test[1][first])

    def expected(self, seed: int) -> dict:
        """What a record says of the run that it belongs to: it counts for no other."""
        tested_on, count = ("the last 10,000 training images", 50_000) if self.validate else ("the test set", 60_000)
        if self.image_count:
            count, tested_on = min(count, self.image_count), f"{tested_on}, {self.image_count} of them"
        run = dict(recipe=self.name, seed=seed, hyperparameters=self.settings)
        return run | dict(trained_on=count, tested_on=tested_on)

    def is_missing(self, seed: int) -> bool:
        """Whether the record of `seed` is missing; `ValueError` if it is bad."""
        path = self.folder / f"{seed}.json"
        return not path.exists() or not checked(path, any_commit=self.root != RESULTS, **self.expected(seed))


def checked(path: Path, any_commit: bool = False, **expected: object) -> dict:
    """The record in `path`; `ValueError` if it is not as `expected`, is incomplete, or names no commit of the code."""
    record = storage.load_record(path)
    if different := [part for part, value in expected.items() if record.get(part) != value]:
        raise ValueError(f"{path} is a record of another run: {', '.join(different)} differ. Move it away")
    epochs = record.get("hyperparameters", {}).get("epochs")
    lengths = {len(values) for values in record.get("history", {}).values()}
    if epochs and lengths != {epochs}:
        raise ValueError(f"{path} is incomplete: its history does not have every epoch. Delete it")
    if not any_commit and not CLEAN.fullmatch(record.get("commit", "unknown")):
        raise ValueError(f"{path} names no commit ({record.get('commit')}). Run it again from a clean clone")
    return record


def train(study: Study, seed: int) -> dict:
    """One run; returns its record."""
    torch.set_num_threads(1)
    about = storage.environment("cpu") | dict(commit=COMMIT)
    train_set, test_set = study.data()
    torch.manual_seed(seed)
    training = build(study.settings, train_set, study.root / "teachers")
    run, network, epochs = study.expected(seed), training["network"], training.pop("epochs")
    checkpoint = None  # a quick try starts anew
    if not study.image_count:
        path = (study.output or ROOT / "runs") / "study" / f"{study.name}-{seed}"
        checkpoint = storage.checkpoint_path(path, run | dict(commit=COMMIT), **training)
    print(f"{study.label}, seed {seed}", flush=True)
    history = utils.fit(**training, test=test_set, epochs=epochs, checkpoint=checkpoint)
    teaching = {settings.get("teacher") for settings in RECIPES.values()}
    if study.name in teaching and not study.changes:
        storage.save_weights(network, teacher_path(study.root / "teachers", study.name, run["trained_on"], seed))
    return run | dict(parameters=size(network), history=history, seconds=sum(history["seconds"])) | about


def size(network: torch.nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def seeds(text: str) -> list[int]:
    """`1-3,7` → [1, 2, 3, 7]."""
    ranges = [[int(end) for end in part.split("-")] for part in text.split(",")]
    return sorted({seed for first, *last in ranges for seed in range(first, (last or [first])[0] + 1)})


def change(text: str) -> tuple[str, object]:
    """`name=value` → (name, value), of the setting's type; `ArgumentTypeError` for another name or type."""
    name, _, value = text.partition("=")
    with suppress(ValueError, SyntaxError):  # what is no Python value is a string
        value = ast.literal_eval(value)
    if TYPES.get(name) is float and type(value) is int:
        value = float(value)
    if type(value) is not TYPES.get(name):
        names = ", ".join(sorted(TYPES))
        raise argparse.ArgumentTypeError(f"{text} is no setting of a recipe, or not of its type; there are {names}")
    return name, value


def run(study: Study, wanted: list[int], jobs: int, address: str | None) -> None:
    """Train and record what is missing of the `wanted` seeds."""
    missing = [seed for seed in wanted if study.image_count or study.is_missing(seed)]
    print(f"{study.label}: {len(wanted) - len(missing)} of {len(wanted)} seeds are in {study.folder}", flush=True)
    if missing and study.root == RESULTS and not CLEAN.fullmatch(COMMIT):
        raise ValueError(f"a record names the commit that made it, and this is {COMMIT}: commit first, or use --images")
    cluster = dict(backend="dask", scheduler_host=address) if address else dict(backend="loky")
    command = shlex.join(["python", "-m", "experiments.study", *sys.argv[1:]])
    with joblib.parallel_config(**cluster, n_jobs=jobs):
        runs = joblib.Parallel(return_as="generator_unordered")(joblib.delayed(train)(study, s) for s in missing)
        for record in runs:
            storage.save_record(study.folder / f"{record['seed']}.json", record | dict(command=command))
            final, best = record["history"]["test_accuracy"][-1], max(record["history"]["test_accuracy"])
            print(f"{study.label}, seed {record['seed']}: final {final:.2%} (best epoch {best:.2%})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES, metavar="recipe", help="; ".join(RECIPES))
    parser.add_argument("--seeds", type=seeds, default=[1], metavar="1-3,7", help="default: 1")
    parser.add_argument("--set", type=change, nargs="+", default=[], metavar="name=value", help="settings to change")
    parser.add_argument("--validate", action="store_true", help="hold out the last 10,000 training images")
    cores = joblib.cpu_count(only_physical_cores=True)
    parser.add_argument("--jobs", type=int, default=cores, help="runs side by side; default: %(default)s")
    parser.add_argument("--address", metavar="tcp://host:port", help="of a Dask cluster's scheduler")
    parser.add_argument("--images", type=int, help="use only so many images (for a quick try)")
    parser.add_argument("--output", type=Path, help="folder for all that is written, instead of results/ and runs/")
    arguments = parser.parse_args()
    if arguments.set and not (arguments.validate or arguments.images):
        parser.error("--set is for trials, which are not judged on the test set: add --validate")
    recipe = RECIPES[arguments.recipe]
    changes = {name: value for name, value in arguments.set if recipe.get(name) != value}
    study = Study(arguments.recipe, changes, arguments.validate, arguments.images, arguments.output)
    os.environ["TQDM_DISABLE"] = "1"  # in the workers, whose bars would overwrite each other
    try:
        run(study, arguments.seeds, arguments.jobs, arguments.address)
    except (ArithmeticError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise SystemExit(f"study: {error}") from None


if __name__ == "__main__":
    main()
