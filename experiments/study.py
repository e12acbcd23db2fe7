"""Train a named recipe for a list of seeds; write one record a run, results/runs/<recipe>/<seed>.json.

    python experiments/study.py reference --seeds 1-10
    python experiments/study.py reference-dropout-0.1 --seeds 1-3
    python experiments/study.py reference --validate --set batch_size=64 --seeds 1-3

A study that was stopped goes on where it was: finished runs are skipped, a begun one continues behind its last
completed epoch (runs/study/). Seeds run side by side, one thread each. With --validate the last 10,000 training images
take the place of the test set, which stays unseen; those records go to results/trials/.

On a cluster: start it (`dask scheduler` and `PYTHONPATH=. dask worker tcp://…:8786`, or `ray start`) from a clone of
this repository on every machine, and add --backend dask --address tcp://…:8786, or --backend ray.
"""

import argparse
import ast
import contextlib
import functools
import json
import math
import os
import shlex
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import joblib  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn, optim  # noqa: E402

import utils  # noqa: E402
from model import Net, SmallNet, TinyNet, Upright  # noqa: E402

REFERENCE = dict(
    epochs=19,
    batch_size=128,  # images
    learning_rate=0.25,
    momentum=0.9,
    step_size=10,  # epochs between two drops of the learning rate ...
    gamma=0.1,  # ... to this share of what it was
    dropout=0.0,  # probability of zeroing a channel
    zoom_probability=0.1,
    max_degrees=15,  # rotation, either way
)

JITTER = dict(
    max_degrees=10,  # rotation, either way
    max_shift=1,  # pixels along both axes
    max_scale=0.05,  # change of size along both axes
    max_shear=0.05,
)

ONE_CYCLE = JITTER | dict(
    epochs=19,
    batch_size=64,  # images
    learning_rate=0.4,  # at the peak: the rate rises linearly from 0 and falls linearly back to it
    rise=0.2,  # share of all steps in which it rises
    momentum=0.9,
    nesterov=True,
    weight_decay=1e-4,  # of the kernels; batch normalization and biases have none
    dropout=0.0,
)

SMALL = ONE_CYCLE | dict(before=[8, 8], after=[16, 24, 19])


def jittered(share: float) -> dict[str, float]:
    """A share of the usual augmentation: the smaller a network, the less of it can it learn besides the digits."""
    return {name: share * amount for name, amount in JITTER.items()}


RECIPES: dict[str, dict] = {
    "reference": REFERENCE,
    # one ingredient changed
    "reference-no-batch-norm": REFERENCE | dict(batch_norm=False, learning_rate=0.01),
    "reference-dropout-0.05": REFERENCE | dict(dropout=0.05),
    "reference-dropout-0.1": REFERENCE | dict(dropout=0.1),
    "reference-no-augmentation": REFERENCE | dict(zoom_probability=0.0, max_degrees=0),
    "reference-fully-connected": REFERENCE | dict(pooling=False),
    "reference-constant-rate": REFERENCE | dict(gamma=1.0),
    "reference-bilinear": REFERENCE | dict(rotation="bilinear"),
    # the same network, trained otherwise
    "one-cycle": ONE_CYCLE,
    # other networks, by their number of parameters; the largest one only teaches the others
    "small-37986": SMALL | dict(learning_rate=0.2, before=[16, 16], after=[32, 48, 38]),
    "small-9710": SMALL,
    "small-9710-short": SMALL | dict(epochs=6),
    "small-4962": SMALL | dict(before=[8, 8], after=[8, 16, 16], teacher="small-37986"),
    "tiny-2890": ONE_CYCLE | jittered(0.6) | dict(channels=36, uses=[4, 3]),
    "tiny-2442": ONE_CYCLE | jittered(0.7) | dict(channels=32, uses=[2, 5]),
    "tiny-1642": ONE_CYCLE | jittered(0.5) | dict(channels=24, uses=[4, 3]),
    "tiny-970": ONE_CYCLE | jittered(0.25) | dict(channels=16, uses=[4, 3]),
    "tiny-970-upright": ONE_CYCLE | jittered(0.25) | dict(channels=16, uses=[4, 3], zoom=1.2),
}


def augment_bilinear(images: Tensor, zoom_probability: float, max_degrees: float) -> Tensor:
    """`utils.augment`, but the rotation interpolates between pixels, which blurs."""
    images = utils.zoom(images, torch.rand(len(images)) < zoom_probability)
    angle = torch.deg2rad(torch.empty(len(images)).uniform_(-max_degrees, max_degrees))
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(images), 1, 28, 28], align_corners=False)
    turned = F.grid_sample(images[:, None].float(), grid, mode="bilinear", align_corners=False)
    return turned[:, 0].round().to(torch.uint8)


def build(recipe: dict, steps_per_epoch: int):
    """(network, optimizer, scheduler, augmentation) of a recipe, as the notebook's training cell makes them."""
    if "uses" in recipe:
        network = TinyNet(recipe["channels"], recipe["uses"])
    elif "before" in recipe:
        network = SmallNet(recipe["before"], recipe["after"])
    else:
        network = Net(recipe["dropout"])
    if not recipe.get("batch_norm", True):
        for block in network:
            for place, layer in enumerate(block):
                if isinstance(layer, nn.BatchNorm2d):
                    block[place] = nn.Identity()
    if not recipe.get("pooling", True):
        network.tran2 = nn.Sequential(network.tran2[0], nn.Flatten(), nn.Linear(250, 10), nn.LogSoftmax(dim=1))
    if "zoom" in recipe:
        network = nn.Sequential(Upright(recipe["zoom"]), network)
    network = network.to(memory_format=torch.channels_last)
    kernels = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim == 1]
    groups = [dict(params=kernels, weight_decay=recipe.get("weight_decay", 0)), dict(params=others)]
    rate, nesterov = recipe["learning_rate"], recipe.get("nesterov", False)
    optimizer = optim.SGD(groups, lr=rate, momentum=recipe["momentum"], nesterov=nesterov)
    if "rise" in recipe:
        cycle = dict(pct_start=recipe["rise"], anneal_strategy="linear", cycle_momentum=False)
        steps = recipe["epochs"] * steps_per_epoch
        scheduler = optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, div_factor=100, final_div_factor=1e4, **cycle)
        amounts = {name: recipe[name] for name in JITTER}
        augment = functools.partial(utils.jitter, **amounts)
    else:
        scheduler = optim.lr_scheduler.StepLR(optimizer, recipe["step_size"] * steps_per_epoch, recipe["gamma"])
        amounts = {name: recipe[name] for name in ("zoom_probability", "max_degrees")}
        augment = augment_bilinear if recipe.get("rotation") == "bilinear" else utils.augment
        augment = functools.partial(augment, **amounts)
    return network, optimizer, scheduler, augment


class _Prefixed:
    """A stream that marks every line with the run it comes from."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.stream = prefix, sys.stdout

    def write(self, text: str) -> None:
        self.stream.write(f"{self.prefix}: {text}\n" if text.strip() else "")

    def flush(self) -> None:
        self.stream.flush()


def train(name: str, recipe: dict, seed: int, images: int | None, validate: bool, scratch: Path, weights: Path) -> dict:
    """One run; returns its record. The first seed of a recipe that teaches others leaves its network in `weights`."""
    os.environ["TQDM_DISABLE"] = "1"  # the bars of several runs side by side would overwrite each other
    torch.set_num_threads(1)
    train_set, test_set = utils.load_mnist(ROOT / "data", "cpu")
    if validate:
        train_set, test_set = (tuple(part[i] for part in train_set) for i in (slice(50_000), slice(50_000, None)))
    if images:
        train_set, test_set = (tuple(part[:images] for part in pair) for pair in (train_set, test_set))
    torch.manual_seed(seed)
    network, optimizer, scheduler, augment = build(recipe, math.ceil(len(train_set[0]) / recipe["batch_size"]))
    scratch.mkdir(parents=True, exist_ok=True)
    checkpoint = scratch / f"{name}-{len(train_set[0])}-{seed}.pt"
    teacher = None
    if recipe.get("teacher"):
        path = weights / f"{recipe['teacher']}-{len(train_set[0])}.pt"
        if not path.exists():
            raise RuntimeError(f"{path} is missing: run {recipe['teacher']}, seed 1, with the same options first")
        teacher, *_ = build(RECIPES[recipe["teacher"]], 1)
        utils.load_weights(teacher, path)
    start = time.perf_counter()
    with contextlib.redirect_stdout(_Prefixed(f"{name}, seed {seed}")):
        history = utils.fit(
            network,
            optimizer,
            scheduler,
            train_set,
            test_set,
            recipe["epochs"],
            recipe["batch_size"],
            augment,
            checkpoint=checkpoint,
            teacher=teacher,
        )
    if seed == 1 and name in {recipe.get("teacher") for recipe in RECIPES.values()}:
        weights.mkdir(parents=True, exist_ok=True)
        utils.save_weights(network, weights / f"{name}-{len(train_set[0])}.pt")
    return dict(
        recipe=name,
        seed=seed,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        hyperparameters=recipe,
        trained_on=len(train_set[0]),
        tested_on="the last 10,000 training images" if validate else "the test set",
        history=history,
        seconds=sum(history["seconds"]),
        wall_seconds=time.perf_counter() - start,
    ) | utils.environment("cpu")


def seeds(text: str) -> list[int]:
    """`1-3,7` → [1, 2, 3, 7]."""
    result = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        result.extend(range(int(first), int(last or first) + 1))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES, metavar="recipe", help="; ".join(RECIPES))
    parser.add_argument("--seeds", type=seeds, default=[1], metavar="1-3,7", help="default: 1")
    parser.add_argument("--set", nargs="+", default=[], metavar="name=value", help="hyperparameters to change")
    parser.add_argument("--validate", action="store_true", help="hold out the last 10,000 training images")
    parser.add_argument(
        "--jobs", type=int, default=joblib.cpu_count(only_physical_cores=True), help="runs side by side"
    )
    parser.add_argument("--backend", default="loky", choices=["loky", "dask", "ray"], help="default: %(default)s")
    parser.add_argument("--address", help="of the cluster's scheduler")
    parser.add_argument("--images", type=int, help="use only so many images (for a quick try)")
    parser.add_argument("--epochs", type=int, help="train only so long (for a quick try)")
    parser.add_argument("--output", type=Path, help="folder for the records (default: results/runs or results/trials)")
    arguments = parser.parse_args()

    recipe = RECIPES[arguments.recipe] | {
        name: ast.literal_eval(value) for name, value in (text.split("=") for text in arguments.set)
    }
    if arguments.epochs:
        recipe["epochs"] = arguments.epochs
    name = "+".join([arguments.recipe, *arguments.set])
    folder = (arguments.output or ROOT / "results" / ("trials" if arguments.validate else "runs")) / name
    scratch = (arguments.output or ROOT / "runs") / "study"
    weights = (arguments.output or ROOT / "results") / "teachers"
    command = shlex.join(["python", "experiments/study.py", *sys.argv[1:]])

    missing = []
    for seed in arguments.seeds:
        path = folder / f"{seed}.json"
        if path.exists() and json.loads(path.read_text())["hyperparameters"] != recipe:
            raise SystemExit(f"{path} was made with other hyperparameters; move it away or name another --output")
        if not path.exists():
            missing.append(seed)
    print(f"{name}: {len(arguments.seeds) - len(missing)} of {len(arguments.seeds)} seeds are recorded already")

    with contextlib.ExitStack() as stack:
        if arguments.backend == "dask":
            from dask.distributed import Client

            stack.enter_context(Client(arguments.address))
        elif arguments.backend == "ray":
            import ray
            from ray.util.joblib import register_ray

            ray.init(address=arguments.address or "auto")
            register_ray()
        stack.enter_context(joblib.parallel_config(arguments.backend, n_jobs=arguments.jobs))
        # Ray's back end can only give all records at the end, the others each as soon as it is finished
        runs = joblib.Parallel(return_as="list" if arguments.backend == "ray" else "generator_unordered")(
            joblib.delayed(train)(name, recipe, seed, arguments.images, arguments.validate, scratch, weights)
            for seed in missing
        )
        for record in runs:
            utils.save_record(folder / f"{record['seed']}.json", record | dict(command=command))
            final, best = record["history"]["test_accuracy"][-1], max(record["history"]["test_accuracy"])
            print(f"{name}, seed {record['seed']}: final {final:.2%} (best epoch {best:.2%})", flush=True)


if __name__ == "__main__":
    main()
