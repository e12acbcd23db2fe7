"""Shared by all tests: the notebook's smoke switch, no progress bars, MNIST in memory."""

import os
from pathlib import Path

import pytest

os.environ |= dict(A6_SMOKE="1", TQDM_DISABLE="1")  # tqdm reads it when it is imported

import utils  # noqa: E402

ROOT = Path(__file__).parent


@pytest.fixture(scope="session")
def mnist():
    """((train images, train labels), (test images, test labels)) on the CPU."""
    return utils.load_mnist(ROOT / "data", "cpu")


@pytest.fixture(scope="session")
def small(mnist):
    """1,000 real images for training and 500 for testing; the ragged last batch of 128 is meant."""
    (images, labels), (test_images, test_labels) = mnist
    return (images[:1000], labels[:1000]), (test_images[:500], test_labels[:500])
