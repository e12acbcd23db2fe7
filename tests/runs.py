"""Short training runs of `Net`, as the tests of training and of checkpoints make them."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import optim

import utils
from model import Net

EPOCHS = 5
AUGMENT = partial(utils.augment, zoom_probability=0.1, max_degrees=15)


def start(train, seed=1, learning_rate=0.1, network=Net, dropout=0.0, **options) -> utils.Run:
    """A new run, whose learning rate falls after two epochs of batches of 128."""
    torch.manual_seed(seed)
    model = utils.to_device(network(dropout), "cpu")
    optimizer = optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 2 * math.ceil(len(train[0]) / 128), gamma=0.1)
    usual = dict(augment=AUGMENT, loss_fn=F.nll_loss, epochs=EPOCHS, batch_size=128)
    return utils.Run(model, optimizer, scheduler, **(usual | options))


def fit(train, test, path=None, fresh_start=False, **options):
    """The network and the history of a run."""
    run = start(train, **options)
    return run.model, utils.fit(run, train, test, path, fresh_start)
