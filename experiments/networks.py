"""The lab's networks: with fewer parameters, or faster, than the assignment's, and deskewing.

All take normalized float images [B, 1, 28, 28] and return log-probabilities [B, 10].
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import Net


def without_batch_norm(dropout: float = 0.0) -> Net:
    """`Net` without its batch normalizations."""
    network = Net(dropout)
    for block in network:
        for place, layer in enumerate(block):
            if isinstance(layer, nn.BatchNorm2d):
                block[place] = nn.Identity()
    return network


def fully_connected(dropout: float = 0.0) -> Net:
    """`Net` with a fully connected layer in place of global average pooling."""
    network = Net(dropout)
    network.tran2 = nn.Sequential(network.tran2[0], nn.Flatten(), nn.Linear(250, 10), nn.LogSoftmax(dim=1))
    return network


def conv_silu(in_channels: int, out_channels: int) -> nn.Sequential:
    """3×3 convolution without padding, batch normalization, and SiLU, x · sigmoid(x), which has no flat side."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.SiLU())


def linear_head(channels: int) -> nn.Sequential:
    """Global average pooling, then a linear layer: log-probabilities of the ten digits."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10), nn.LogSoftmax(dim=1))


class SmallNet(nn.Sequential):
    """Most parameters behind the pooling, where images are small and a parameter costs fewer multiplications.

    `before` and `after` are the channels of the 3×3 convolutions before and after the max-pooling; 9,710 parameters by
    default.
    """

    def __init__(self, before: Sequence[int] = (8, 8), after: Sequence[int] = (16, 24, 19)) -> None:
        channels = [1, *before, *after]
        blocks = [(f"conv{i + 1}", conv_silu(*channels[i : i + 2])) for i in range(len(channels) - 1)]
        blocks.insert(len(before), ("pool", nn.MaxPool2d(kernel_size=2)))
        super().__init__(OrderedDict([*blocks, ("last", linear_head(channels[-1]))]))


class LargeNet(SmallNet):
    """A `SmallNet`, to be made large and a teacher: in bfloat16, to save time, but for its last block."""

    def forward(self, images: Tensor) -> Tensor:
        *blocks, last = self
        with torch.autocast(images.device.type, torch.bfloat16):
            images = nn.Sequential(*blocks)(images)
        return last(images.float())


class TinyNet(nn.Sequential):
    """One convolution's weights are shared among the layers: 970 parameters by default.

    A 3×3 convolution finds `channels` features. Then one depthwise-separable convolution, a 3×3 kernel for each channel
    and a 1×1 convolution that mixes them, is repeated, `repeats` times before and after the second max-pooling: the
    same weights, which torchsummary counts each time, with batch normalizations of their own.
    Sources: F. Chollet, Xception, CVPR 2017, https://arxiv.org/abs/1610.02357 (separable convolutions); R. Grimov,
    https://github.com/ruslangrimov/mnist-minimal-model/tree/master/1936 (weight sharing)
    """

    def __init__(self, channels: int = 16, repeats: Sequence[int] = (4, 3)) -> None:
        depthwise = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)
        pointwise = nn.Conv2d(channels, channels, kernel_size=1, bias=False)

        def shared() -> nn.Sequential:
            return nn.Sequential(depthwise, pointwise, nn.BatchNorm2d(channels), nn.SiLU())

        super().__init__(
            OrderedDict(
                conv1=conv_silu(1, channels),
                pool1=nn.MaxPool2d(kernel_size=2),
                shared1=nn.Sequential(*(shared() for _ in range(repeats[0]))),
                pool2=nn.MaxPool2d(kernel_size=2),
                shared2=nn.Sequential(*(shared() for _ in range(repeats[1]))),
                last=linear_head(channels),
            )
        )


def conv_pool(in_channels: int, out_channels: int, kernel_size: int, pool: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution without padding, max-pooling directly behind it (with `pool` 1 none), batch normalization, ReLU."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, bias=False)
    pooling = [nn.MaxPool2d(pool)] if pool > 1 else []
    return nn.Sequential(convolution, *pooling, nn.BatchNorm2d(out_channels), nn.ReLU())


class FastNet(nn.Sequential):
    """Halves the image at once, so that little is computed: 19,450 parameters by default.

    `widths` are the channels of its four convolutions. The first one is followed by max-pooling, before batch
    normalization, which then has a quarter of the work, or has a `stride` of 2.
    """

    def __init__(self, widths: Sequence[int] = (16, 16, 32, 40), stride: int = 1) -> None:
        a, b, c, d = widths
        super().__init__(
            OrderedDict(                                        # output of one image
                conv1=conv_pool(1, a, 5, 2 // stride, stride),  # [a, 12, 12]
                conv2=conv_pool(a, b, 3),                       # [b, 10, 10]
                conv3=conv_pool(b, c, 3, 2),                    # [c,  4,  4]
                conv4=conv_pool(c, d, 3),                       # [d,  2,  2]
                last=linear_head(d),                            # [10]
            )
        )  # fmt: skip


class Deskew(nn.Module):
    """Undoes the slant of digits, moves them to the middle and enlarges them `zoom` times.

    Takes and returns float images [B, 1, 28, 28] of any range; ink is what exceeds an image's smallest value. The slant
    is how far it moves aside from one row to the next, covariance(x, y) / variance(y); rows are shifted back, with
    linear interpolation. This has no parameters. Where the ink is `learned`, it is what a 3×3 convolution of ten
    parameters, trained with the network behind it, makes of the image, in the spirit of spatial transformers.
    Sources: Y. LeCun et al., Gradient-Based Learning Applied to Document Recognition, Proceedings of the IEEE 1998,
    http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf ("deslanting", there for classifiers that are not convolutional);
    M. Jaderberg et al., Spatial Transformer Networks, 2015, https://arxiv.org/abs/1506.02025
    """

    def __init__(self, zoom: float = 1.0, learned: bool = False) -> None:
        super().__init__()
        self.zoom = zoom
        self.ink = nn.Sequential(nn.Conv2d(1, 1, kernel_size=3, padding=1), nn.Softplus()) if learned else None

    def forward(self, images: Tensor) -> Tensor:
        # The middles of 28 rows or columns, from -1 to 1.
        place = (torch.arange(28, dtype=images.dtype, device=images.device) - 13.5) / 14
        lightest = images.amin((1, 2, 3), keepdim=True)
        excess = images - lightest
        ink = self.ink(images) if self.ink else excess
        share = ink[:, 0] / ink.sum((2, 3)).clamp(min=1e-6).unsqueeze(2)
        rows, columns = share.sum(2), share.sum(1)
        x, y = columns @ place, rows @ place
        slant = (share @ place @ place - x * y) / (rows @ place.square() - y.square()).clamp(min=1e-6)
        step, zero = torch.full_like(x, 1 / self.zoom), torch.zeros_like(x)
        matrix = torch.stack([step, step * slant, x, zero, step, y], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(excess, grid, align_corners=False) + lightest


class ShiftAverage(nn.Module):
    """In evaluation, `network`'s answer to an image and to the four that are shifted by one pixel, averaged.

    The mean of the five log-probabilities [B, 10], normalized; in training, the answer to the image [B, 1, 28, 28].
    Source: A. Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural Networks, NeurIPS 2012, there
    for ten crops
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            return self.network(images)
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        places = (1, 1), (0, 1), (2, 1), (1, 0), (1, 2)  # of the upper left corner
        views = [padded[..., y : y + 28, x : x + 28] for y, x in places]
        return F.log_softmax(sum(self.network(view) for view in views) / len(views), dim=1)
