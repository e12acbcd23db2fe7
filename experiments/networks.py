"""The lab's networks: with fewer parameters, or faster, than the assignment's; deskewing; learning from a teacher."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import Net
from utils import normalize


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
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.SiLU(inplace=True),
    )


def head(in_channels: int, classes: int) -> nn.Sequential:
    """Global average pooling, then a linear layer: one score per class, as log-probabilities."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(in_channels, classes),
        nn.LogSoftmax(dim=1),
    )


class SmallNet(nn.Sequential):
    """Classifier of 28×28 grey images into ten digits with most parameters behind its pooling: 9,710 by default.

    Takes normalised float images [B, 1, 28, 28], returns log-probabilities [B, 10]. `before` and `after` are the
    channels of the 3×3 convolutions before the max-pooling, where images are large, and after it, where they are small
    and a parameter costs a fifth of the time. `ValueError` when there are more than the image has pixels for.
    """

    def __init__(self, before: Sequence[int] = (8, 8), after: Sequence[int] = (16, 24, 19)) -> None:
        if (28 - 2 * len(before)) // 2 - 2 * len(after) < 1:
            raise ValueError(
                f"{len(before)} convolutions before and {len(after)} after the pooling leave no pixel of 28"
            )
        blocks, channels = OrderedDict(), 1
        for width in before:
            blocks[f"conv{len(blocks) + 1}"] = conv_silu(channels, width)
            channels = width
        blocks["pool"] = nn.MaxPool2d(kernel_size=2)
        for width in after:
            blocks[f"conv{len(blocks)}"] = conv_silu(channels, width)
            channels = width
        blocks["last"] = head(channels, 10)
        super().__init__(blocks)


class LargeNet(SmallNet):
    """A large `SmallNet`, to be a teacher: 232,746 parameters; in bfloat16 but for its last block, in half the time."""

    def __init__(self, before: Sequence[int] = (32, 32), after: Sequence[int] = (96, 96, 128)) -> None:
        super().__init__(before, after)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities [B, 10] of float `images` [B, 1, 28, 28]; `ValueError` for any other shape or type."""
        *blocks, last = self
        with torch.autocast(images.device.type, torch.bfloat16):
            for block in blocks:
                images = block(images)
        return last(images.float())


class TinyNet(nn.Sequential):
    """Classifier of 28×28 grey images into ten digits that shares one convolution's weights among its layers: 970.

    Takes normalised float images [B, 1, 28, 28], returns log-probabilities [B, 10]. A 3×3 convolution finds `channels`
    features. Then one depthwise-separable convolution, a 3×3 kernel for each channel and a 1×1 convolution that mixes
    them, is repeated `repeats[0]` times before the second max-pooling and `repeats[1]` times after it: always the same
    weights, each time with batch normalization of its own. Counts of parameters that go through the layers one by one,
    as torchsummary's, count these weights once per repetition.
    Sources: F. Chollet, Xception, CVPR 2017, https://arxiv.org/abs/1610.02357 (separable convolutions); R. Grimov,
    https://github.com/ruslangrimov/mnist-minimal-model/tree/master/1936 (weight sharing)
    """

    def __init__(self, channels: int = 16, repeats: Sequence[int] = (4, 3)) -> None:
        depthwise = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)
        pointwise = nn.Conv2d(channels, channels, kernel_size=1, bias=False)

        def shared() -> nn.Sequential:
            return nn.Sequential(depthwise, pointwise, nn.BatchNorm2d(channels), nn.SiLU(inplace=True))

        super().__init__(
            OrderedDict(
                conv1=conv_silu(1, channels),
                pool1=nn.MaxPool2d(kernel_size=2),
                shared1=nn.Sequential(*[shared() for _ in range(repeats[0])]),
                pool2=nn.MaxPool2d(kernel_size=2),
                shared2=nn.Sequential(*[shared() for _ in range(repeats[1])]),
                last=head(channels, 10),
            )
        )


def conv_pool(in_channels: int, out_channels: int, kernel_size: int, pool: int) -> nn.Sequential:
    """Convolution without padding, max-pooling directly behind it (with `pool` 1 none), batch normalization, ReLU."""
    pooling = [nn.MaxPool2d(pool)] if pool > 1 else []
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, bias=False),
        *pooling,
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class FastNet(nn.Sequential):
    """Classifier of 28×28 grey images into ten digits that pools at once, so that little is computed: 19,450.

    Takes normalised float images [B, 1, 28, 28], returns log-probabilities [B, 10]; `widths` are the channels of its
    four convolutions. Max-pooling comes before batch normalization, which then has a quarter of the work.
    """

    def __init__(self, widths: Sequence[int] = (16, 16, 32, 40)) -> None:
        a, b, c, d = widths
        super().__init__(
            OrderedDict(                        # output of one image
                conv1=conv_pool(1, a, 5, 2),  # [a, 12, 12]
                conv2=conv_pool(a, b, 3, 1),  # [b, 10, 10]
                conv3=conv_pool(b, c, 3, 2),  # [c,  4,  4]
                conv4=conv_pool(c, d, 3, 1),  # [d,  2,  2]
                last=head(d, 10),             # [10]
            )
        )  # fmt: skip


class Deskew(nn.Module):
    """Undoes the slant of digits, moves them to the middle and enlarges them `zoom` times.

    Takes and returns float images [B, 1, 28, 28] of any range; ink is what exceeds an image's smallest value. The slant
    is how far the ink moves aside from one row to the next, covariance(x, y) / variance(y), and is undone by shifting
    the rows, with linear interpolation. An image without ink stays as it is. All this has no parameters.
    Where the ink is `learned`, it is what a 3×3 convolution of ten parameters, which starts at random and is trained
    with the network behind it, makes of the image: a spatial transformer, no preprocessing.
    Sources: Y. LeCun et al., Gradient-Based Learning Applied to Document Recognition, Proceedings of the IEEE 1998,
    http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf ("deslanting", there for classifiers that are not convolutional);
    M. Jaderberg et al., Spatial Transformer Networks, 2015, https://arxiv.org/abs/1506.02025
    """

    def __init__(self, zoom: float = 1.0, learned: bool = False) -> None:
        super().__init__()
        if not zoom > 0:
            raise ValueError(f"zoom must be positive, got {zoom}")
        self.zoom = zoom
        self.ink = nn.Sequential(nn.Conv2d(1, 1, kernel_size=3, padding=1), nn.Softplus()) if learned else None

    def forward(self, images: Tensor) -> Tensor:
        """The deskewed images; `ValueError` for any other shape or type."""
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


def deskewed_net(dropout: float = 0.0) -> nn.Sequential:
    """`Net` behind `Deskew`."""
    return nn.Sequential(OrderedDict(deskew=Deskew(), **dict(Net(dropout).named_children())))


def deskewed_tiny_net(channels: int = 16, repeats: Sequence[int] = (4, 3), zoom: float = 1.0) -> nn.Sequential:
    """`TinyNet` behind `Deskew`."""
    return nn.Sequential(Deskew(zoom), TinyNet(channels, repeats))


def transformed_tiny_net(channels: int = 16, repeats: Sequence[int] = (4, 3), zoom: float = 1.0) -> nn.Sequential:
    """`TinyNet` behind a spatial transformer: `Deskew` with learned ink."""
    return nn.Sequential(Deskew(zoom, learned=True), TinyNet(channels, repeats))


class Distillation:
    """Augmentation and loss of a student that learns from teachers as well as from the labels.

    What the `teachers` say of each augmented batch, the mean of their probabilities, is kept until the student's loss
    on that batch is asked for. The loss is `weight` times the Kullback-Leibler divergence from the teachers' to the
    student's probabilities, both softened by a `temperature`, which shows how the teachers see the wrong classes (times
    its square, which keeps the gradient as large as it was), plus 1 - `weight` times the labels' loss.
    Source: G. Hinton et al., Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531
    """

    def __init__(
        self, teachers: Sequence[nn.Module], augment: Callable[[Tensor], Tensor], temperature: float, weight: float
    ) -> None:
        if not (temperature > 0 and 0 <= weight <= 1):
            raise ValueError(f"temperature must be positive and weight in [0, 1], got {temperature} and {weight}")
        self.teachers, self._augment, self.temperature, self.weight = teachers, augment, temperature, weight
        for teacher in teachers:
            teacher.eval()

    @torch.no_grad()
    def augment(self, images: Tensor) -> Tensor:
        """The augmented images, of which the teachers have been asked."""
        images = self._augment(images)
        x = normalize(images)
        self.targets = torch.stack([teacher(x) for teacher in self.teachers]).logsumexp(0) - math.log(
            len(self.teachers)
        )
        return images

    def loss(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        """The student's loss on the batch that was augmented last: log-probabilities [B, 10], labels [B]."""
        student, teachers = (F.log_softmax(v / self.temperature, dim=1) for v in (log_probabilities, self.targets))
        divergence = F.kl_div(student, teachers, reduction="batchmean", log_target=True)
        loss = F.nll_loss(log_probabilities, labels)
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * divergence
