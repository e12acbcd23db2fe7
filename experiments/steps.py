"""What each step from the reference's training loop to the notebook's is worth; records results/steps.json.

    python experiments/steps.py

The loops train in turn, a few batches each, in several rounds after one to warm up; a step's gain is the ratio to the
loop it is compared with, taken within a round, so that what else the machine does touches both sides. Takes about ten
minutes, most of them for what was tried and dropped; run nothing else meanwhile.
"""

import argparse
import math
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch import Tensor, nn, optim  # noqa: E402
from torch.utils.data import DataLoader, Subset  # noqa: E402

import utils  # noqa: E402
from benchmark import ROOT, Reference, reference_layers, spread, timed, unpack  # noqa: E402
from model import Net  # noqa: E402

IMAGES = 3_840  # a round: 30 batches


class Loop:
    """utils.train_epoch on the first images, with any network and optimizer."""

    def __init__(self, device: torch.device, model: nn.Module, fused: bool = False) -> None:
        (images, labels), _ = utils.load_mnist(ROOT / "data", device)
        self.images, self.labels, self.model = images[:IMAGES], labels[:IMAGES], model.to(device)
        self.optimizer = optim.SGD(self.model.parameters(), lr=0.25, momentum=0.9, fused=fused)
        self.scheduler = optim.lr_scheduler.StepLR(self.optimizer, 10 * math.ceil(IMAGES / 128))
        self.augment = partial(utils.augment, zoom_probability=0.1, max_degrees=15)

    def train(self) -> None:
        data = (self.images, self.labels)
        utils.train_epoch(self.model, self.optimizer, self.scheduler, *data, 128, self.augment, "")


class Autocast(nn.Module):
    """A network whose convolutions compute in bfloat16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.model(images).float()


def channels_last() -> nn.Module:
    return Net().to(memory_format=torch.channels_last)


def compiled() -> nn.Module:
    model = channels_last()
    model.compile()
    return model


def reference_loop(device: torch.device) -> Reference:
    with tempfile.TemporaryDirectory() as folder:
        unpack(folder)
        loop = Reference(folder, device)
    loop.train_loader = DataLoader(Subset(loop.train_loader.dataset.dataset, range(IMAGES)), 128, shuffle=True)
    return loop


# In the order in which they were tried: (what it is, whether it was kept, how to make it).
STEPS: list[tuple[str, bool, Callable]] = [
    ("the reference's loop", True, reference_loop),
    (
        "images as bytes on the device, a batch augmented at once, metrics read once an epoch",
        True,
        lambda device: Loop(device, reference_layers()),
    ),
    ("no zero-width padding, ReLU in place", True, lambda device: Loop(device, Net())),
    ("channels-last", True, lambda device: Loop(device, channels_last())),
    ("fused optimizer", False, lambda device: Loop(device, channels_last(), fused=True)),
    ("torch.compile", False, lambda device: Loop(device, compiled())),
    ("bfloat16 autocast", False, lambda device: Loop(device, Autocast(channels_last()))),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s, after one to warm up")
    arguments = parser.parse_args()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    torch.manual_seed(1)
    loops = {name: make(device) for name, _, make in STEPS}
    first, seconds = {}, {name: [] for name in loops}
    for number in range(arguments.rounds + 1):
        for name, loop in loops.items():
            time = timed(loop.train, device)
            if number == 0:
                first[name] = time
            else:
                seconds[name].append(time)
            print(f"round {number}/{arguments.rounds}, {name}: {time * 60_000 / IMAGES:.1f} s an epoch", flush=True)

    steps, before = [], STEPS[0][0]
    for name, kept, _ in STEPS:
        median = statistics.median(seconds[name])
        steps.append(
            dict(
                step=name,
                kept=kept,
                compared_with=before,
                epoch_seconds=median * 60_000 / IMAGES,
                gain=spread([theirs / ours for theirs, ours in zip(seconds[before], seconds[name])]),
                start_seconds=round(first[name] - median, 1),
            )
        )
        before = name if kept else before
    command = shlex.join(["python", "experiments/steps.py", *sys.argv[1:]])
    record = dict(steps=steps, rounds=arguments.rounds, images_a_round=IMAGES, command=command)
    utils.save_record(ROOT / "results" / "steps.json", record | utils.environment(device))


if __name__ == "__main__":
    main()
