"""Time whole trainings with the reference solution's loop, with ours, and with the fastest recipe: results/speed.json.

    python -m experiments.speed

Each runs in a process of its own, one after the other, with all of its set-up, epochs and test passes. The reference's
loop (a DataLoader that transforms image by image, 3×3 convolutions with zero-width replicate padding) is written anew
from its description. Takes over twenty minutes; run nothing else meanwhile. Needs Linux, for the peak memory.
"""

import argparse
import multiprocessing
import re
import shlex
import shutil
import sys
import tempfile
import time
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
from experiments.recipes import RECIPES, build
from model import Net

DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
NORMALIZE = [transforms.ToTensor(), transforms.Normalize((utils.MEAN,), (utils.STD,))]
ZOOM = transforms.RandomApply([transforms.CenterCrop(22), transforms.Resize(28)], p=0.1)
AUGMENT = [ZOOM, transforms.RandomRotation((-15.0, 15.0), fill=0)]
PROGRAMS = ("the reference's", "reference"), ("ours", "reference"), ("ours", "fast-strided")  # loop, recipe


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


def reference_training(image_count: int) -> dict[str, list[float]]:
    """The reference solution's training: seconds and test accuracy of every epoch."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "data" / "MNIST", Path(folder, "MNIST"))
        MNIST(folder, download=True)  # unpacks
        train = MNIST(folder, train=True, transform=transforms.Compose(AUGMENT + NORMALIZE))
        test = MNIST(folder, train=False, transform=transforms.Compose(NORMALIZE))
    train, test = (Subset(part, range(min(image_count, len(part)))) for part in (train, test))
    train_loader, test_loader = (DataLoader(part, batch_size=128, shuffle=True) for part in (train, test))
    network = Net().to(DEVICE)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.padding_mode = "replicate"  # copies every activation
    optimizer = optim.SGD(network.parameters(), lr=0.25, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.1)
    history = dict(seconds=[], test_accuracy=[])
    for epoch in range(1, 20):
        start = time.perf_counter()
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
        history["test_accuracy"].append(reference_test(network, test_loader))
        history["seconds"].append(time.perf_counter() - start)
        print(f"epoch {epoch}   test {history['test_accuracy'][-1]:.2%}   {history['seconds'][-1]:.1f} s")
    return history


def our_training(recipe: str, image_count: int) -> utils.History:
    """The same with `utils.fit` and a recipe of the lab."""
    (images, labels), (test_images, test_labels) = utils.load_mnist(ROOT / "data", DEVICE)
    training = build(RECIPES[recipe], (images[:image_count], labels[:image_count]))
    return utils.fit(**training, test=(test_images[:image_count], test_labels[:image_count]))


def measure(loop: str, recipe: str, image_count: int) -> dict:
    """One training: seconds, test accuracies and peak memory."""
    torch.manual_seed(1)
    start = time.perf_counter()
    history = our_training(recipe, image_count) if loop == "ours" else reference_training(image_count)
    run = dict(loop=loop, recipe=recipe, seconds=time.perf_counter() - start, epoch_seconds=history["seconds"])
    # not getrusage's ru_maxrss, which starts at the parent's
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return run | dict(test_accuracy=history["test_accuracy"], peak_memory_mb=round(int(peak[1]) / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000, help="use only so many, for a quick try, not recorded")
    arguments = parser.parse_args()
    about = storage.environment(DEVICE)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        programs = [(*program, arguments.images) for program in PROGRAMS]
        runs = pool.starmap(measure, programs, chunksize=1)
    if arguments.images == 60_000:
        command = shlex.join(["python", "-m", "experiments.speed", *sys.argv[1:]])
        storage.save_record(RESULTS / "speed.json", dict(runs=runs, seed=1, command=command) | about)


if __name__ == "__main__":
    main()
