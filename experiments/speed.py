"""Time whole trainings with the reference solution's loop, with ours, and with the fastest recipe: results/speed.json.

    python -m experiments.speed

Each is a process of its own, with all of its set-up, epochs and test passes. They take turns, an epoch at a time, while
the others wait, so that what else the machine does touches all of them; the ratio of two epochs is taken within a turn.
The reference's loop (a DataLoader that transforms image by image, layers with zero-width replicate padding) is written
anew from its description. Takes over twenty minutes; run nothing else meanwhile. Needs Linux, for the peak memory.
"""

import argparse
import multiprocessing
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

import storage
import utils
from experiments import RESULTS, ROOT
from experiments.recipes import RECIPES
from model import Net

DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
NORMALIZE = [transforms.ToTensor(), transforms.Normalize((utils.MEAN,), (utils.STD,))]
ZOOM = transforms.RandomApply([transforms.CenterCrop(22), transforms.Resize(28)], p=0.1)
AUGMENT = [ZOOM, transforms.RandomRotation((-15.0, 15.0), fill=0)]
PROGRAMS = ("the reference's", "reference"), ("ours", "reference"), ("ours", "fast")  # loop, recipe


def reference_test(network: nn.Module, loader: DataLoader) -> float:
    """The reference solution's test pass: the accuracy."""
    network.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for data, target in loader:
            data, target = data.to(DEVICE), target.to(DEVICE)
            output = network(data)
            loss += F.nll_loss(output, target, reduction="sum").item()
            correct += output.argmax(dim=1).eq(target).sum().item()
    return correct / len(loader.dataset)


def reference_training(images: int) -> Iterator[float | None]:
    """The reference solution's training: yields None after the set-up, then the accuracy after every epoch."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "data" / "MNIST", Path(folder, "MNIST"))
        MNIST(folder, download=True)  # unpacks
        train = MNIST(folder, train=True, transform=transforms.Compose(AUGMENT + NORMALIZE))
        test = MNIST(folder, train=False, transform=transforms.Compose(NORMALIZE))
    train, test = (Subset(part, range(min(images, len(part)))) for part in (train, test))
    train_loader, test_loader = (DataLoader(part, batch_size=128, shuffle=True) for part in (train, test))
    network = Net().to(DEVICE)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "replicate"  # copies every activation
    optimizer = optim.SGD(network.parameters(), lr=0.25, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.1)
    yield None
    while True:
        network.train()
        losses, correct = [], 0
        for data, target in train_loader:
            data, target = data.to(DEVICE), target.to(DEVICE)
            optimizer.zero_grad()
            output = network(data)
            loss = F.nll_loss(output, target)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            correct += output.argmax(dim=1).eq(target).sum().item()
        scheduler.step()
        yield reference_test(network, test_loader)


def our_training(recipe: str, images: int) -> Iterator[float | None]:
    """The same with `utils.fit`, called for one epoch after the other, and a recipe of the lab."""
    train, test = (tuple(part[:images] for part in pair) for pair in utils.load_mnist(ROOT / "data", DEVICE))
    parts = RECIPES[recipe].build(train) | dict(epochs=1)
    yield None
    while True:
        yield utils.fit(**parts, test=test)["test_accuracy"][-1]


def begin(loop: str, recipe: str, images: int) -> None:
    """Make a process that of one training, which `step` goes on with."""
    global training
    torch.manual_seed(1)
    training = our_training(recipe, images) if loop == "ours" else reference_training(images)


def step() -> tuple[float, float | None, int]:
    """The process's training goes on: seconds, what it yields, and the peak memory until now (MB)."""
    start = time.perf_counter()
    accuracy = next(training)  # read on the host, so the device has finished, too
    seconds = time.perf_counter() - start
    # not getrusage's ru_maxrss, which starts at the parent's
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return seconds, accuracy, round(int(peak[1]) / 1024)


def measure(images: int, most_epochs: int) -> list[dict]:
    """All trainings, taking turns: loop, recipe, seconds, test accuracies and peak memory of each."""
    runs, steps, new = [], {program: [] for program in PROGRAMS}, multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = {p: stack.enter_context(ProcessPoolExecutor(1, new, begin, (*p, images))) for p in PROGRAMS}
        for turn in range(1 + most_epochs):  # the first one is the set-up
            for loop, recipe in (program for program in PROGRAMS if turn <= RECIPES[program[1]].epochs):
                steps[loop, recipe].append(pools[loop, recipe].submit(step).result())
                print(f"epoch {turn}, {loop} loop, {recipe}: {steps[loop, recipe][-1][0]:.1f} s", flush=True)
    for loop, recipe in PROGRAMS:
        seconds, accuracies, memory = zip(*steps[loop, recipe])
        times = dict(setup_seconds=seconds[0], epoch_seconds=seconds[1:], seconds=sum(seconds))
        runs.append(dict(loop=loop, recipe=recipe, **times, test_accuracy=accuracies[1:], peak_memory_mb=memory[-1]))
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000, help="use only so many, for a quick try, not recorded")
    parser.add_argument("--epochs", type=int, default=19, help="end the longer trainings after so many, on record, too")
    arguments = parser.parse_args()
    about = storage.environment(DEVICE)
    runs = measure(arguments.images, arguments.epochs)
    if arguments.images == 60_000:
        command = shlex.join(["python", "-m", "experiments.speed", *sys.argv[1:]])
        storage.save_record(RESULTS / "speed.json", dict(runs=runs, seed=1, command=command) | about)


if __name__ == "__main__":
    main()
