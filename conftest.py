"""Shared by all tests: the notebook's smoke switch, no progress bars, MNIST in memory."""

import os

os.environ["A6_SMOKE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import pytest  # noqa: E402

import utils  # noqa: E402


@pytest.fixture(scope="session")
def mnist():
    """((train images, train labels), (test images, test labels)) on the CPU."""
    return utils.load_mnist("data", "cpu")


@pytest.fixture(scope="session")
def small(mnist):
    """1,000 real images for training and 500 for testing; the ragged last batch of 128 is meant."""
    (images, labels), (test_images, test_labels) = mnist
    return (images[:1000], labels[:1000]), (test_images[:500], test_labels[:500])
