"""The reference's training loop and ours, in turn, on this machine; records results/benchmark.json.

    python experiments/benchmark.py

Each round times one part of an epoch of each loop: the reference's (a DataLoader that transforms image by image, its
layers with their zero-width replicate padding, its bookkeeping), ours (utils.train_epoch), ours with the shortest
recipe of experiments/study.py, and, as a known yardstick, PyTorch's own MNIST example
(https://github.com/pytorch/examples/tree/main/mnist). Ratios are taken within a round, so that what else the machine
does touches both sides. The time to a result is that of set-up and as many epochs as its recipe has. Takes about six
minutes; run nothing else meanwhile.
"""

import argparse
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["TQDM_DISABLE"] = "1"

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn, optim  # noqa: E402
from torch.utils.data import DataLoader, Subset  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.datasets import MNIST  # noqa: E402

import utils  # noqa: E402
from model import Net  # noqa: E402
from study import RECIPES, build  # noqa: E402

TRAIN, TEST, EXAMPLE = 12_800, 5_000, 3_200  # images a round
NORMALIZE = [transforms.ToTensor(), transforms.Normalize((utils.MEAN,), (utils.STD,))]


def reference_layers() -> nn.Module:
    """The reference solution's network: `Net` with a padding mode that copies every activation, ReLU not in place."""
    model = Net()
    for block in model:
        for place, layer in enumerate(block):
            if isinstance(layer, nn.Conv2d):
                arguments = (layer.in_channels, layer.out_channels, layer.kernel_size)
                block[place] = nn.Conv2d(*arguments, padding=0, padding_mode="replicate", bias=False)
            if isinstance(layer, nn.ReLU):
                block[place] = nn.ReLU()
    return model


class Reference:
    """The reference solution's loop, written anew from its description."""

    recipe = "reference"
    augment = [
        transforms.RandomApply([transforms.CenterCrop(22), transforms.Resize(28)], p=0.1),
        transforms.RandomRotation((-15.0, 15.0), fill=0),
    ]

    def __init__(self, folder: str, device: torch.device) -> None:
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
    """The notebook's loop with a recipe of experiments/study.py."""

    recipe = "reference"

    def __init__(self, folder: str, device: torch.device) -> None:
        (images, labels), (test_images, test_labels) = utils.load_mnist(ROOT / "data", device)
        self.train_set, self.test_set = (images[:TRAIN], labels[:TRAIN]), (test_images[:TEST], test_labels[:TEST])
        self.batch_size = RECIPES[self.recipe]["batch_size"]
        self.model, *self.rest, self.augment = build(RECIPES[self.recipe], math.ceil(TRAIN / self.batch_size))
        self.model.to(device)

    def train(self) -> None:
        utils.train_epoch(self.model, *self.rest, *self.train_set, self.batch_size, self.augment, "")

    def test(self) -> None:
        utils.evaluate(self.model, *self.test_set)


class Short(Ours):
    """The shortest recipe whose seeds all end above 99.4 %."""

    recipe = "small-9710-short"


class Example:
    """PyTorch's own MNIST example: network, optimizer and loop."""

    def __init__(self, folder: str, device: torch.device) -> None:
        train, test = (MNIST(folder, train=t, transform=transforms.Compose(NORMALIZE)) for t in (True, False))
        self.train_loader = DataLoader(Subset(train, range(EXAMPLE)), batch_size=64, shuffle=True)
        self.test_loader = DataLoader(Subset(test, range(TEST)), batch_size=1000)
        features = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)]
        classifier = [nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)]
        self.device, self.model = device, nn.Sequential(*features, *classifier, nn.LogSoftmax(dim=1)).to(device)
        self.optimizer = optim.Adadelta(self.model.parameters(), lr=1.0)

    train = Reference.train
    test = Reference.test


LOOPS = dict(reference=Reference, ours=Ours, short=Short, example=Example)
SHARE = dict(reference=TRAIN, ours=TRAIN, short=TRAIN, example=EXAMPLE)


def unpack(folder: str) -> None:
    """MNIST, unpacked in `folder` for the loops that read it from there."""
    raw = Path(folder) / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (ROOT / "data" / "MNIST" / "raw").glob("*.gz"):
        (raw / path.name).write_bytes(path.read_bytes())
    MNIST(folder, download=True)


def timed(work, device: torch.device) -> float:
    """Seconds that `work()` takes, what it left to do on the device included."""
    start = time.perf_counter()
    work()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def peak_memory(name: str) -> float:
    """Most memory, MB, that a process of its own needs for one round of the loop `name`."""
    command = [sys.executable, __file__, "--memory", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def matrix_peak(device: torch.device) -> float:
    """The fastest float32 matrix product of this machine, GFLOP/s."""
    a = torch.randn(2048, 2048, device=device)
    times = [timed(lambda: a @ a, device) for _ in range(20)]
    return 2 * 2048**3 / min(times) / 1e9


def epoch_flops() -> int:
    """Floating-point operations of one training epoch of 60,000 images: convolutions, forward and backward."""
    model = Net()
    with FlopCounterMode(display=False) as counter:
        F.nll_loss(model(torch.randn(100, 1, 28, 28)), torch.zeros(100, dtype=torch.int64)).backward()
    return counter.get_total_flops() * 600


def spread(values: list[float]) -> dict[str, float]:
    return dict(median=statistics.median(values), min=min(values), max=max(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s, after one to warm up")
    parser.add_argument("--memory", choices=LOOPS, help="only run one round of this loop and print its peak memory, MB")
    arguments = parser.parse_args()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    torch.manual_seed(1)

    with tempfile.TemporaryDirectory() as folder:
        unpack(folder)
        if arguments.memory:
            loop = LOOPS[arguments.memory](folder, device)
            loop.train()
            loop.test()
            # not getrusage's ru_maxrss, which starts at the parent's
            status = Path("/proc/self/status").read_text()
            print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)
            return
        loops, seconds = {}, {name: dict(setup=[], train=[], test=[]) for name in LOOPS}
        for number in range(arguments.rounds + 1):
            for name, loop in LOOPS.items():
                times = dict(setup=timed(lambda n=name, c=loop: loops.update({n: c(folder, device)}), device))
                times |= dict(train=timed(loops[name].train, device), test=timed(loops[name].test, device))
                if number > 0:
                    for part, value in times.items():
                        seconds[name][part].append(value)
                print(f"round {number}/{arguments.rounds}, {name:9}: training {times['train']:6.2f} s", flush=True)

    epoch = {name: [value * 60_000 / SHARE[name] for value in seconds[name]["train"]] for name in LOOPS}

    def whole(name: str) -> list[float]:
        """Seconds of a whole epoch, training and test, in every round."""
        return [train + test * 10_000 / TEST for train, test in zip(epoch[name], seconds[name]["test"])]

    epochs = {name: RECIPES[LOOPS[name].recipe]["epochs"] for name in ("reference", "ours", "short")}
    to_goal = {
        name: [setup + count * time for setup, time in zip(seconds[name]["setup"], whole(name))]
        for name, count in epochs.items()
    }
    peak, flops = matrix_peak(device), epoch_flops()
    record = dict(
        rounds=arguments.rounds,
        images_a_round=dict(train=TRAIN, test=TEST, example=EXAMPLE),
        ratio={
            part: spread([r / o for r, o in zip(seconds["reference"][part], seconds["ours"][part])])
            for part in ("train", "test", "setup")
        },
        example_ratio=spread([e / o for e, o in zip(epoch["example"], epoch["ours"])]),
        epoch_ratio=spread([r / o for r, o in zip(whole("reference"), whole("ours"))]),
        time_to_goal=[
            dict(
                loop=name,
                recipe=LOOPS[name].recipe,
                epochs=count,
                seconds=spread(to_goal[name]),
                ratio=spread([r / o for r, o in zip(to_goal["reference"], to_goal[name])]),
            )
            for name, count in epochs.items()
        ],
        train_seconds={name: spread(values) for name, values in epoch.items()},
        test_seconds={name: spread([value * 10_000 / TEST for value in seconds[name]["test"]]) for name in LOOPS},
        setup_seconds={name: spread(seconds[name]["setup"]) for name in LOOPS},
        images_a_second={name: round(60_000 / statistics.median(values)) for name, values in epoch.items()},
        peak_memory_mb={name: round(peak_memory(name)) for name in LOOPS},
        matrix_peak_gflops=round(peak, 1),
        epoch_tflop=round(flops / 1e12, 3),
        share_of_matrix_peak=round(flops / statistics.median(epoch["ours"]) / 1e9 / peak, 3),
        command=shlex.join(["python", "experiments/benchmark.py", *sys.argv[1:]]),
    )
    utils.save_record(ROOT / "results" / "benchmark.json", record | utils.environment(device))
    for part, ratio in record["ratio"].items():
        print(
            f"{part}: {ratio['median']:.2f} times as fast as the reference ({ratio['min']:.2f} to {ratio['max']:.2f})"
        )
    print(f"{record['share_of_matrix_peak']:.0%} of the matrix product's {peak:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
