"""The reference solution's training loop and ours, step by step, in turn on this machine; records results/speed.json.

    python -m experiments.speed
    python -m experiments.speed --busy

Every round times each loop on the same few batches; ratios are taken within a round, so that what else the machine does
touches both sides. The reference's loop (a DataLoader that transforms image by image, layers with zero-width replicate
padding) is written anew from its description. The time to a result is that of set-up and of as many epochs, with their
test passes, as its recipe has. Takes about ten minutes; run nothing else meanwhile. Needs Linux, for the peak memory.

The second line records results/busy.json: how long an epoch takes beside other programs, by how OpenMP's threads wait
for each other.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

import storage
import utils
from experiments import ROOT
from experiments.recipes import RECIPES
from model import Net

TRAIN, TEST = 6_400, 5_000  # images per round
NORMALIZE = [transforms.ToTensor(), transforms.Normalize((utils.MEAN,), (utils.STD,))]
SHORTEST = "fast"  # the recipe that reaches the goal soonest
# How OpenMP's threads wait for each other: GNU's default, what `experiments` sets, and no other thread to wait for.
WAITING = "GOMP_SPINCOUNT=300000", f"GOMP_SPINCOUNT={os.environ['GOMP_SPINCOUNT']}", "OMP_NUM_THREADS=1"
COMPANY = "alone", "beside a busy process", "beside another training"


def reference_layers() -> nn.Module:
    """The reference solution's network: `Net` with a padding mode that copies every activation, ReLU not in place."""
    model = Net()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "replicate"
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return model


class Reference:
    """The reference solution's loop."""

    augment = [
        transforms.RandomApply([transforms.CenterCrop(22), transforms.Resize(28)], p=0.1),
        transforms.RandomRotation((-15.0, 15.0), fill=0),
    ]

    def __init__(self, folder: str, device: torch.device) -> None:
        if not Path(folder, "MNIST").exists():  # unpacked once, for the loop that reads it from there
            shutil.copytree(ROOT / "data" / "MNIST", Path(folder, "MNIST"))
            MNIST(folder, download=True)
        train = MNIST(folder, train=True, transform=transforms.Compose(self.augment + NORMALIZE))
        test = MNIST(folder, train=False, transform=transforms.Compose(NORMALIZE))
        self.train_loader = DataLoader(Subset(train, range(TRAIN)), batch_size=128, shuffle=True)
        self.test_loader = DataLoader(Subset(test, range(TEST)), batch_size=128, shuffle=True)
        self.device, self.model = device, reference_layers().to(device)
        self.optimizer = optim.SGD(self.model.parameters(), lr=0.25, momentum=0.9)

    def train(self) -> None:
        self.model.train()
        losses, correct = [], 0
        for data, target in self.train_loader:
            data, target = data.to(self.device), target.to(self.device)
            self.optimizer.zero_grad()
            output = self.model(data)
            loss = F.nll_loss(output, target)
            losses.append(loss.item())
            loss.backward()
            self.optimizer.step()
            correct += output.argmax(dim=1).eq(target).sum().item()

    def test(self) -> None:
        self.model.eval()
        loss, correct = 0.0, 0
        with torch.no_grad():
            for data, target in self.test_loader:
                data, target = data.to(self.device), target.to(self.device)
                output = self.model(data)
                loss += F.nll_loss(output, target, reduction="sum").item()
                correct += output.argmax(dim=1).eq(target).sum().item()


class Ours:
    """`utils.train_epoch` with a recipe, or, on the way there, with another network and optimizer in its place."""

    def __init__(self, folder: str, device: torch.device, recipe="reference", network=None, optimizer=optim.SGD):
        (images, labels), (test_images, test_labels) = utils.load_mnist(ROOT / "data", device)
        self.train_set, self.test_set = (images[:TRAIN], labels[:TRAIN]), (test_images[:TEST], test_labels[:TEST])
        self.run = RECIPES[recipe].build(TRAIN, device)
        if network:
            self.run.model = network().to(device)
            self.run.optimizer = optimizer(self.run.model.parameters(), lr=0.25, momentum=0.9)
            self.run.scheduler = optim.lr_scheduler.ConstantLR(self.run.optimizer, factor=1.0)

    def train(self) -> None:
        batches = utils.batches(*self.train_set, self.run.batch_size, self.run.augment)
        utils.train_epoch(self.run.model, self.run.optimizer, self.run.scheduler, batches, self.run.loss_fn)

    def test(self) -> None:
        utils.evaluate(self.run.model, *self.test_set)


class Autocast(Net):
    """`Net`, whose convolutions compute in bfloat16."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return super().forward(images).float()


def channels_last(network: type[Net] = Net) -> Net:
    return network().to(memory_format=torch.channels_last)


# In the order in which they were tried: name, (what it is, whether it was kept, how to make it).
LOOPS: dict[str, tuple[str, bool, Callable]] = {
    "reference": ("the reference's loop", True, Reference),
    "batched": (
        "images as bytes on the device, a batch augmented at once, metrics read once per epoch",
        True,
        partial(Ours, network=reference_layers),
    ),
    "unpadded": ("no zero-width padding, ReLU in place", True, partial(Ours, network=Net)),
    "channels-last": ("channels-last", True, partial(Ours, network=channels_last)),
    "fused": ("fused optimizer", False, partial(Ours, network=channels_last, optimizer=partial(optim.SGD, fused=True))),
    "compiled": ("torch.compile", False, partial(Ours, network=lambda: torch.compile(channels_last()))),
    "bfloat16": ("bfloat16 autocast", False, partial(Ours, network=partial(channels_last, Autocast))),
    "ours": ("oneDNN's blocked layout (on a CPU)", True, Ours),
    "shortest": (f"recipe {SHORTEST}", False, partial(Ours, recipe=SHORTEST)),
}


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work()` takes, what it left to do on the device included."""
    start = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def child(name: str, rounds: int, *settings: str) -> subprocess.Popen:
    """A process of its own that runs the loop `name`; after every round it prints seconds per epoch and peak memory.

    The `settings` are those of its environment, NAME=value.
    """
    environment = os.environ | dict(setting.split("=") for setting in settings)
    command = [sys.executable, "-m", "experiments.speed", "--child", name, "--rounds", str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def be_child(loop: Reference | Ours, rounds: int, device: torch.device) -> None:
    loop.test()
    for _ in range(rounds + 1):  # the first round warms up
        seconds = timed(loop.train, device) * 60_000 / TRAIN
        # not getrusage's ru_maxrss, which starts at the parent's
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        print(json.dumps(dict(seconds=seconds, memory_mb=round(int(peak[1]) / 1024))), flush=True)


def last_round(process: subprocess.Popen) -> dict[str, float]:
    return json.loads(process.communicate()[0].splitlines()[-1])


@contextlib.contextmanager
def beside(company: str, waiting: str) -> Iterator[None]:
    """While another process computes all the time."""
    if company == "alone":
        yield
        return
    busy = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    training = company == "beside another training"
    process = child("ours", 10**6, waiting) if training else subprocess.Popen(busy, stdout=subprocess.PIPE)
    process.stdout.readline()  # it has begun
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure_busy(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds per training epoch, by the way in which threads wait, and by the company."""
    seconds = {waiting: {company: [] for company in COMPANY} for waiting in WAITING}
    for _ in range(rounds):
        for waiting, row in seconds.items():
            for company, values in row.items():
                with beside(company, waiting):
                    values.append(last_round(child("ours", 1, waiting))["seconds"])
                print(f"{waiting}, {company}: {values[-1]:.1f} s per epoch", flush=True)
    return {waiting: {company: spread(values) for company, values in row.items()} for waiting, row in seconds.items()}


def measure(rounds: int, folder: str, device: torch.device) -> dict[str, dict[str, list[float]]]:
    """Seconds of set-up, a whole training epoch, a whole test pass, and both, of every loop in every round."""
    loops, seconds = {}, {name: {part: [] for part in ("setup", "train", "test", "epoch")} for name in LOOPS}
    for number in range(rounds + 1):
        for name, (_, _, make) in LOOPS.items():
            times = dict(setup=timed(lambda n=name, m=make: loops.update({n: m(folder, device)}), device))
            times["train"] = timed(loops[name].train, device) * 60_000 / TRAIN
            times["test"] = timed(loops[name].test, device) * 10_000 / TEST
            times["epoch"] = times["train"] + times["test"]
            print(f"round {number}/{rounds}, {name}: {times['epoch']:.1f} s per epoch", flush=True)
            for part, value in times.items() if number else ():  # the first round warms up
                seconds[name][part].append(value)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    return dict(median=statistics.median(values), min=min(values), max=max(values))


def ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    return spread([a / b for a, b in zip(theirs, ours)])


def summarise(seconds: dict[str, dict[str, list[float]]]) -> dict:
    """The tables: the reference's loop and ours, every step beside the last one kept, the time to the goal."""
    steps, before = [], "reference"
    for name, (step, kept, _) in list(LOOPS.items())[:-1]:
        gain = ratio(seconds[before]["train"], seconds[name]["train"])
        steps.append(dict(step=step, kept=kept, epoch_seconds=statistics.median(seconds[name]["train"]), gain=gain))
        before = name if kept else before
    to_goal, reference = [], None
    for name, recipe in (("reference", "reference"), ("ours", "reference"), ("shortest", SHORTEST)):
        loop, count = LOOPS["reference"][0] if name == "reference" else "ours", RECIPES[recipe].epochs
        times = [s + count * epoch for s, epoch in zip(seconds[name]["setup"], seconds[name]["epoch"])]
        reference = reference or times
        about = dict(loop=loop, recipe=recipe, epochs=count)
        to_goal.append(about | dict(seconds=spread(times), ratio=ratio(reference, times)))
    parts = ("setup", "train", "test", "epoch")
    return dict(
        seconds={part: {name: spread(seconds[name][part]) for name in ("reference", "ours")} for part in parts},
        ratio={part: ratio(seconds["reference"][part], seconds["ours"][part]) for part in parts},
        steps=steps,
        time_to_goal=to_goal,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s, after one to warm up")
    parser.add_argument("--busy", action="store_true", help="measure a training beside other programs")
    parser.add_argument("--child", choices=LOOPS, help="only run this loop, for another process that measures")
    arguments = parser.parse_args()
    if not Path("/proc/self/status").exists():
        parser.error("peak memory is read from /proc, which only Linux has: run this there")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    torch.manual_seed(1)
    about = dict(rounds=arguments.rounds, command=shlex.join(["python", "-m", "experiments.speed", *sys.argv[1:]]))
    if arguments.busy:
        record = dict(seconds=measure_busy(arguments.rounds)) | about | storage.environment(device)
        storage.save_record(ROOT / "results" / "busy.json", record)
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.child:
            be_child(LOOPS[arguments.child][2](folder, device), arguments.rounds, device)
            return
        record = summarise(measure(arguments.rounds, folder, device)) | about
        record |= dict(
            images_per_round=dict(train=TRAIN, test=TEST),
            peak_memory_mb={name: last_round(child(name, 1))["memory_mb"] for name in ("reference", "ours")},
        )
    storage.save_record(ROOT / "results" / "speed.json", record | storage.environment(device))


if __name__ == "__main__":
    main()
