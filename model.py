"""The assignment's network: three building blocks, and `Net` made of them."""

from collections import OrderedDict

from torch import nn


def conv(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """3×3 convolution that extracts features; without padding, so it trims one pixel off every side."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(out_channels),
        nn.Dropout2d(dropout),
    )


def transition(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """Max-pooling halves the image, a 1×1 convolution changes the number of channels."""
    return nn.Sequential(
        nn.MaxPool2d(kernel_size=2),
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(out_channels),
        nn.Dropout2d(dropout),
    )


def head(in_channels: int, classes: int, size: int) -> nn.Sequential:
    """One score map per class, averaged over its size × size positions (global average pooling); log-probabilities."""
    return nn.Sequential(
        nn.Conv2d(in_channels, classes, kernel_size=1, bias=False),
        nn.AvgPool2d(size, stride=1),
        nn.Flatten(),
        nn.LogSoftmax(dim=1),
    )


class Net(nn.Sequential):
    """Fully convolutional classifier of 28×28 gray images into ten digits, 9,768 parameters.

    Takes normalized float images [B, 1, 28, 28], returns log-probabilities [B, 10].
    `dropout` is the probability, in [0, 1], with which a whole channel is zeroed in training.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(
            OrderedDict(
                # layer         channels               output of one image
                conv1=conv(      1,  8, dropout),  # [ 8, 26, 26]
                conv2=conv(      8, 16, dropout),  # [16, 24, 24]
                conv3=conv(     16, 16, dropout),  # [16, 22, 22]
                tran1=transition(16, 8, dropout),  # [ 8, 11, 11]
                conv4=conv(      8, 16, dropout),  # [16,  9,  9]
                conv5=conv(     16, 16, dropout),  # [16,  7,  7]
                conv6=conv(     16, 16, dropout),  # [16,  5,  5]
                tran2=head(     16, 10, size=5),   # [10]          log-probabilities
            )
        )  # fmt: skip
