"""Train a recipe for a list of seeds; write one record per run, results/runs/<recipe>/<seed>.json.

    python -m experiments.study reference --seeds 1-10
    python -m experiments.study one-cycle --validate --set learning_rate=0.2 batch_size=128 --seeds 1-3
    python -m experiments.study tiny-970 --images 400 --set epochs=2

The second line is a trial: the last 10,000 training images take the place of the test set, which stays unseen, and the
records go to results/trials/. The third is a quick try, with so few images that its records go to runs/tries/.

A study that was stopped continues: recorded seeds are skipped, a begun one resumes after its last completed epoch
(runs/study/). Seeds run side by side, one thread each. On a cluster: start it (`dask scheduler` and `dask worker
tcp://…:8786`, or `ray start`) in a clone of this repository on every machine, and add --backend dask --address
tcp://…:8786, or --backend ray.
"""

import argparse
import ast
import contextlib
import json
import os
import shlex
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import joblib
import torch

import storage
import utils
from experiments import ROOT
from experiments.recipes import RECIPES, Recipe, teacher_path


class Study(NamedTuple):
    """What all seeds of a study share."""

    name: str  # of the recipe
    changes: dict  # its settings that differ
    images: int | None  # only so many, for a quick try
    validate: bool
    output: Path | None  # in place of results/ and runs/

    @property
    def recipe(self) -> Recipe:
        recipe = RECIPES[self.name]
        return recipe.changed(recipe.title, **self.changes)

    @property
    def label(self) -> str:
        return "+".join([self.name, *(f"{name}={json.dumps(value)}" for name, value in self.changes.items())])

    @property
    def folder(self) -> Path:
        """Where its records are kept; those of a quick try never where results are."""
        kept = ROOT / "runs" / "tries" if self.images else ROOT / "results" / ("trials" if self.validate else "runs")
        return (self.output or kept) / self.label.replace(" ", "").replace('"', "")

    @property
    def teachers(self) -> Path:
        return (self.output or ROOT / "results") / "teachers"

    def is_missing(self, seed: int) -> bool:
        """Whether the record of `seed` is missing, or the weights that others learn from; `ValueError` if damaged."""
        run, path = self.describe(seed), self.folder / f"{seed}.json"
        weights = teacher_path(self.teachers, self.name, run["trained_on"], seed)
        if path.exists():
            check_record(path, run)
        return not path.exists() or (self.teaches and not weights.exists())

    @property
    def teaches(self) -> bool:
        return self.recipe.teaches and not self.changes

    def data(self) -> tuple:
        """((images, labels) to train on, (images, labels) to evaluate on)."""
        train, test = utils.load_mnist(ROOT / "data", "cpu")
        if self.validate:
            train, test = (tuple(part[i] for part in train) for i in (slice(50_000), slice(50_000, None)))
        return tuple(tuple(part[: self.images] for part in pair) for pair in (train, test))

    def describe(self, seed: int) -> dict:
        """What a record says of the run that it belongs to: it counts for no other."""
        count = 50_000 if self.validate else 60_000
        return dict(
            recipe=self.name,
            seed=seed,
            hyperparameters=self.recipe.settings(),
            trained_on=min(count, self.images or count),
            tested_on=("the last 10,000 training images" if self.validate else "the test set")
            + (f", {self.images} of them" if self.images else ""),
        )


def check_record(path: Path, run: dict) -> dict:
    """The record in `path`; `ValueError` if it is one of another run than `run`, incomplete, or damaged."""
    record = storage.load_record(path)
    different = [part for part in run if record.get(part) != run[part]]
    if different:
        raise ValueError(f"{path} is a record of another run: {', '.join(different)} differ. Move it away")
    if len(record.get("history", {}).get("test_accuracy", [])) != run["hyperparameters"]["epochs"]:
        raise ValueError(f"{path} is incomplete: its history does not have every epoch. Delete it")
    return record


class _Prefixed:
    """A stream that marks every line with the run it comes from."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.stream = prefix, sys.stdout

    def write(self, text: str) -> None:
        self.stream.write(f"{self.prefix}: {text}\n" if text.strip() else "")

    def flush(self) -> None:
        self.stream.flush()


def _end_with(parent: int) -> None:
    """End this process when its `parent` is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def train(study: Study, seed: int, parent: int | None) -> dict:
    """One run; returns its record. A worker process of this machine ends with its `parent`."""
    if parent not in (None, os.getpid()):
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    about = storage.environment("cpu")
    train_set, test_set = study.data()
    torch.manual_seed(seed)
    recipe = study.recipe
    network, optimizer, scheduler, augment, loss_fn = recipe.build(len(train_set[0]), folder=study.teachers)
    label = f"{study.label}, seed {seed}"
    loader = utils.Loader(*train_set, recipe.batch_size, augment)
    scratch = (study.output or ROOT / "runs") / "study"
    settings = recipe.settings() | dict(seed=seed, validate=study.validate)
    checkpoint = storage.checkpoint_path(scratch, study.name, settings, network, len(train_set[0]))
    start = time.perf_counter()
    with contextlib.redirect_stdout(_Prefixed(label)):
        history = utils.fit(network, optimizer, scheduler, loader, test_set, recipe.epochs, checkpoint, loss_fn)
    return study.describe(seed) | dict(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        history=history,
        seconds=sum(history["seconds"]),
        wall_seconds=time.perf_counter() - start,
        **about,
    )


def positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def seeds(text: str) -> list[int]:
    """`1-3,7` → [1, 2, 3, 7]."""
    result = []
    for part in text.split(","):
        ends = part.split("-")
        if len(ends) > 2 or not all(end.isascii() and end.isdigit() for end in ends) or int(ends[0]) > int(ends[-1]):
            raise argparse.ArgumentTypeError(f"must be like 1-3,7, got {text!r}")
        result.extend(range(int(ends[0]), int(ends[-1]) + 1))
    return list(dict.fromkeys(result))


def change(text: str) -> tuple[str, object]:
    """`name=value` → (name, value); what is no Python value is a string."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals and value):
        raise argparse.ArgumentTypeError(f"must be name=value, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES, metavar="recipe", help="; ".join(RECIPES))
    parser.add_argument("--seeds", type=seeds, default=[1], metavar="1-3,7", help="default: 1")
    parser.add_argument("--set", type=change, nargs="+", default=[], metavar="name=value", help="settings to change")
    parser.add_argument("--validate", action="store_true", help="hold out the last 10,000 training images")
    parser.add_argument(
        "--jobs", type=positive, default=joblib.cpu_count(only_physical_cores=True), help="runs side by side"
    )
    parser.add_argument("--backend", default="loky", choices=["loky", "dask", "ray"], help="default: %(default)s")
    parser.add_argument("--address", metavar="tcp://host:port", help="of the cluster's scheduler")
    parser.add_argument("--images", type=positive, help="use only so many images (for a quick try)")
    parser.add_argument("--output", type=Path, help="folder for all that is written, instead of results/ and runs/")
    arguments = parser.parse_args()
    if arguments.address and arguments.backend == "loky":
        parser.error("--address is that of a cluster; name its --backend")
    if arguments.set and not (arguments.validate or arguments.images):
        parser.error("--set is for trials, which are not judged on the test set: add --validate")
    results = (ROOT / "results").resolve()
    if arguments.output and (arguments.output.resolve() == results or results in arguments.output.resolve().parents):
        parser.error("--output is for records that are not kept; leave it out to write into results/")
    return arguments


def connect(backend: str, address: str | None):
    """The cluster's client, to be closed at the end; `ValueError` within seconds if there is none."""
    try:
        if address:
            host, _, port = address.rpartition("/")[2].rpartition(":")
            socket.create_connection((host, int(port)), timeout=5).close()
        if backend == "dask":
            from dask.distributed import Client

            return Client(address, timeout=10)
        if backend == "ray":
            import ray
            from ray.util.joblib import register_ray

            register_ray()
            return ray.init(address=address or "auto")
    except ImportError as error:
        install = "pip install ray" if backend == "ray" else "pip install -r experiments/requirements.txt"
        raise ValueError(f"the back end {backend} is not installed ({error}): {install}") from error
    except Exception as error:  # every library has its own
        raise ValueError(f"no {backend} cluster answers at {address or 'this machine'}: {error}") from error
    return contextlib.nullcontext()


def main() -> None:
    arguments = parse()
    study = Study(arguments.recipe, dict(sorted(arguments.set)), arguments.images, arguments.validate, arguments.output)
    command = shlex.join(["python", "-m", "experiments.study", *sys.argv[1:]])
    try:
        missing = [seed for seed in arguments.seeds if study.is_missing(seed)]
        done = len(arguments.seeds) - len(missing)
        print(f"{study.label}: {done} of {len(arguments.seeds)} seeds are recorded in {study.folder}", flush=True)
        with (
            connect(arguments.backend, arguments.address),
            joblib.parallel_config(arguments.backend, n_jobs=arguments.jobs),
        ):
            # Ray's back end can only give all records at the end, the others each as soon as it is finished
            order = "list" if arguments.backend == "ray" else "generator_unordered"
            parent = os.getpid() if arguments.backend == "loky" else None
            runs = joblib.Parallel(return_as=order)(joblib.delayed(train)(study, seed, parent) for seed in missing)
            for record in runs:
                storage.save_record(study.folder / f"{record['seed']}.json", record | dict(command=command))
                final, best = record["history"]["test_accuracy"][-1], max(record["history"]["test_accuracy"])
                print(f"{study.label}, seed {record['seed']}: final {final:.2%} (best epoch {best:.2%})", flush=True)
    except (ArithmeticError, OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"study: {error}") from None


if __name__ == "__main__":
    main()
