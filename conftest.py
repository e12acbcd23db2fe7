"""Shared by all tests: the notebook's smoke switch, no progress bars, MNIST in memory."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import experiments
import utils

os.environ |= dict(A6_SMOKE="1", TQDM_DISABLE="1")


@pytest.fixture(scope="session")
def mnist():
    """((train images, train labels), (test images, test labels)) on the CPU."""
    return utils.load_mnist(experiments.ROOT / "data", "cpu")


@pytest.fixture(scope="session")
def small(mnist):
    """1,000 real images for training and 500 for testing; the ragged last batch of 128 is meant."""
    (images, labels), (test_images, test_labels) = mnist
    return (images[:1000], labels[:1000]), (test_images[:500], test_labels[:500])


@pytest.fixture(scope="session")
def copy_project():
    """A function that copies the files under version control, as they are now, into a new folder."""

    def copy(target: Path) -> None:
        tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
        for name in filter(os.path.exists, tracked):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, target / name)

    return copy
