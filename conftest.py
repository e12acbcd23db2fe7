"""Shared by all tests: the notebook's smoke switch, no progress bars, MNIST in memory, short trainings."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch

os.environ |= dict(A6_SMOKE="1", TQDM_DISABLE="1")  # tqdm reads it when it is imported

import utils  # noqa: E402
from model import Net  # noqa: E402

ROOT = Path(__file__).parent
AUGMENT = partial(utils.augment, zoom_probability=0.1, max_degrees=15)


@pytest.fixture(scope="session")
def mnist():
    """((train images, train labels), (test images, test labels)) on the CPU."""
    return utils.load_mnist(ROOT / "data", "cpu")


@pytest.fixture(scope="session")
def small(mnist):
    """1,000 real images for training and 500 for testing; the ragged last batch of 128 is meant."""
    (images, labels), (test_images, test_labels) = mnist
    return (images[:1000], labels[:1000]), (test_images[:500], test_labels[:500])


def start(train, seed=1, learning_rate=0.1, dropout=0.0, network=None, augment=AUGMENT) -> tuple:
    """Network, optimizer, scheduler and loader of a new training, whose learning rate falls after two epochs."""
    torch.manual_seed(seed)
    network = network or Net(dropout)
    loader = utils.Loader(*train, 128, augment)
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9)
    return network, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2 * len(loader), gamma=0.1), loader


def fit(train, test, epochs, checkpoint=None, **options) -> tuple:
    """The network and the history of a training."""
    parts = start(train, **options)
    return parts[0], utils.fit(*parts, test, epochs, checkpoint)
