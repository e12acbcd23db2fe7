"""Time whole trainings with the reference solution's loop, with ours, and with the fastest recipe: results/speed.json.

    python -m experiments.speed

Each is a process of its own, with all of its set-up, epochs and test passes. They take turns, an epoch at a time, while
the others wait, so that what else the machine does touches all of them; the ratio of two epochs is taken within a turn.
The reference's loop (a DataLoader that transforms image by image, layers with zero-width replicate padding) is written
anew from its description. Takes about ten minutes; run nothing else meanwhile. Needs Linux, for the peak memory.
"""

import argparse
import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

import storage
import utils
from experiments import ROOT
from experiments.recipes import RECIPES
from model import Net

NORMALIZE = [transforms.ToTensor(), transforms.Normalize((utils.MEAN,), (utils.STD,))]
AUGMENT = [
    transforms.RandomApply([transforms.CenterCrop(22), transforms.Resize(28)], p=0.1),
    transforms.RandomRotation((-15.0, 15.0), fill=0),
]
PROGRAMS = {  # name → (loop, recipe)
    "reference": ("the reference's", "reference"),
    "ours": ("ours", "reference"),
    "fast": ("ours", "fast"),
}


def reference_network() -> nn.Module:
    """The reference solution's network: `Net` with a padding mode that copies every activation."""
    network = Net()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "replicate"
    return network


def reference_test(network: nn.Module, loader: DataLoader, device: torch.device) -> float:
    """The reference solution's test pass: the accuracy."""
    network.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for data, target in loader:
            data, target = data.to(device), target.to(device)
            output = network(data)
            loss += F.nll_loss(output, target, reduction="sum").item()
            correct += output.argmax(dim=1).eq(target).sum().item()
    return correct / len(loader.dataset)


def reference_training(device: torch.device, images: int) -> Iterator[float | None]:
    """The reference solution's training: yields None after the set-up, then the accuracy after every epoch."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "data" / "MNIST", Path(folder, "MNIST"))
        MNIST(folder, download=True)  # unpacks
        train = MNIST(folder, train=True, transform=transforms.Compose(AUGMENT + NORMALIZE))
        test = MNIST(folder, train=False, transform=transforms.Compose(NORMALIZE))
    train, test = (Subset(part, range(min(images, len(part)))) for part in (train, test))
    train_loader, test_loader = (DataLoader(part, batch_size=128, shuffle=True) for part in (train, test))
    network = reference_network().to(device)
    optimizer = optim.SGD(network.parameters(), lr=0.25, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.1)
    yield None
    while True:
        network.train()
        losses, correct = [], 0
        for data, target in train_loader:
            data, target = data.to(device), target.to(device)
            optimizer.zero_grad()
            output = network(data)
            loss = F.nll_loss(output, target)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            correct += output.argmax(dim=1).eq(target).sum().item()
        scheduler.step()
        yield reference_test(network, test_loader, device)


def our_training(recipe: str, device: torch.device, images: int) -> Iterator[float | None]:
    """The same with `utils.fit`, called for one epoch after the other, and a recipe of the lab."""
    train, test = (tuple(part[:images] for part in pair) for pair in utils.load_mnist(ROOT / "data", device))
    parts = RECIPES[recipe].build(train) | dict(epochs=1)
    yield None
    while True:
        yield utils.fit(**parts, test=test)["test_accuracy"][-1]


def train_in_turn(program: str, images: int) -> None:
    """What a child does: a step of its training for every line that it reads, and a line of JSON about each."""
    torch.manual_seed(1)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    loop, recipe = PROGRAMS[program]
    training = our_training(recipe, device, images) if loop == "ours" else reference_training(device, images)
    for _ in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            start = time.perf_counter()
            accuracy = next(training)  # read on the host, so the device has finished, too
            seconds = time.perf_counter() - start
        # not getrusage's ru_maxrss, which starts at the parent's
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        print(json.dumps(dict(seconds=seconds, accuracy=accuracy, memory=round(int(peak[1]) / 1024))), flush=True)


def measure(images: int, most_epochs: int) -> list[dict]:
    """All trainings, taking turns: loop, recipe, seconds, test accuracies and peak memory of each."""
    command, pipe = [sys.executable, "-m", "experiments.speed", "--images", str(images), "--child"], subprocess.PIPE
    children, steps = {}, {program: [] for program in PROGRAMS}
    epochs = {program: min(RECIPES[recipe].epochs, most_epochs) for program, (_, recipe) in PROGRAMS.items()}
    with contextlib.ExitStack() as stack:  # ends them all, which closes their input: then they finish
        for program in PROGRAMS:
            child = subprocess.Popen([*command, program], cwd=ROOT, stdin=pipe, stdout=pipe, text=True, bufsize=1)
            children[program] = stack.enter_context(child)
        for turn in range(1 + max(epochs.values())):  # the first one is the set-up
            for program in (program for program in PROGRAMS if turn <= epochs[program]):
                children[program].stdin.write("\n")
                steps[program].append(json.loads(children[program].stdout.readline()))
                print(f"epoch {turn}, {program}: {steps[program][-1]['seconds']:.1f} s", flush=True)
    return [
        dict(
            loop=loop,
            recipe=recipe,
            setup_seconds=steps[program][0]["seconds"],
            epoch_seconds=[step["seconds"] for step in steps[program][1:]],
            seconds=sum(step["seconds"] for step in steps[program]),
            test_accuracy=[step["accuracy"] for step in steps[program][1:]],
            peak_memory_mb=steps[program][-1]["memory"],
        )
        for program, (loop, recipe) in PROGRAMS.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000, help="use only so many, for a quick try, not recorded")
    parser.add_argument(
        "--epochs", type=int, default=19, help="end the longer trainings after so many, in the record, too"
    )
    parser.add_argument("--child", choices=PROGRAMS, help="only train, for another process that measures")
    arguments = parser.parse_args()
    if arguments.child:
        train_in_turn(arguments.child, arguments.images)
        return
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    about = storage.environment(device)
    runs = measure(arguments.images, arguments.epochs)
    if arguments.images == 60_000:
        command = shlex.join(["python", "-m", "experiments.speed", *sys.argv[1:]])
        storage.save_record(ROOT / "results" / "speed.json", dict(runs=runs, seed=1, command=command) | about)


if __name__ == "__main__":
    main()
