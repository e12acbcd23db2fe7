"""Short trainings, as the tests of training and of checkpoints make them."""

from functools import partial

import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import StepLR

import utils
from model import Net

AUGMENT = partial(utils.augment, zoom_probability=0.1, max_degrees=15)


def start(train, seed=1, learning_rate=0.1, dropout=0.0, network=None, augment=AUGMENT) -> tuple:
    """Network, optimizer, scheduler and loader of a new training, whose learning rate falls after two epochs."""
    torch.manual_seed(seed)
    network = network or Net(dropout)
    loader = utils.Loader(*train, 128, augment)
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9)
    return network, optimizer, StepLR(optimizer, 2, gamma=0.1), loader


def fit(train, test, epochs, checkpoint=None, loss_fn=F.nll_loss, **options) -> tuple:
    """The network and the history of a training."""
    parts = start(train, **options)
    return parts[0], utils.fit(*parts, test, epochs, checkpoint, loss_fn)
