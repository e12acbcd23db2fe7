"""Shared by all tests: the notebook's smoke switch, no progress bars, the working folder, MNIST in memory."""

import os
from pathlib import Path

import pytest

os.environ |= dict(A6_SMOKE="1", TQDM_DISABLE="1")  # tqdm reads it when it is imported

import utils  # noqa: E402

ROOT = Path(__file__).resolve().parent


def pytest_configure(config):
    """With pytest-xdist, the cells of a notebook stay together, as they need each other."""
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadscope"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The cells of a notebook stay in their order, behind the other tests, if a plugin shuffles."""
    items.sort(key=lambda item: (str(item.path), item.cell_num) if hasattr(item, "cell_num") else ("", 0))


@pytest.fixture(scope="session", autouse=True)
def working_folder():
    """The project's, from wherever the tests are started."""
    os.chdir(ROOT)


@pytest.fixture(scope="session")
def mnist():
    """((train images, train labels), (test images, test labels)) on the CPU."""
    return utils.load_mnist(ROOT / "data", "cpu")


@pytest.fixture(scope="session")
def small(mnist):
    """1,000 real images for training and 500 for testing; the ragged last batch of 128 is meant."""
    (images, labels), (test_images, test_labels) = mnist
    return (images[:1000], labels[:1000]), (test_images[:500], test_labels[:500])
