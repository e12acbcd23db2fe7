"""The networks: building blocks, `Net`, `SmallNet` and `TinyNet` of them, `Upright`, and layers' receptive fields."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """3×3 convolution that extracts features; without padding, so it trims one pixel off every side."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, bias=False),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(out_channels),
        nn.Dropout2d(dropout),
    )


def tran(in_channels: int, out_channels: int, dropout: float) -> nn.Sequential:
    """Transition: max-pooling halves the image, a 1×1 convolution mixes the channels down to fewer."""
    return nn.Sequential(
        nn.MaxPool2d(kernel_size=2),
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(out_channels),
        nn.Dropout2d(dropout),
    )


def last(in_channels: int, classes: int, size: int) -> nn.Sequential:
    """One score map a class, averaged over its size × size positions (global average pooling), as log-probabilities."""
    return nn.Sequential(
        nn.Conv2d(in_channels, classes, kernel_size=1, bias=False),
        nn.AvgPool2d(size, stride=1),
        nn.Flatten(),
        nn.LogSoftmax(dim=1),
    )


def _check(network: nn.Module, images: Tensor) -> None:
    """`ValueError` unless `images`, which `network` is given, are float [B, 1, 28, 28]."""
    if images.ndim != 4 or images.shape[1:] != (1, 28, 28) or not images.is_floating_point():
        raise ValueError(
            f"{type(network).__name__} takes float images [B, 1, 28, 28], got {images.dtype} {list(images.shape)}; "
            "utils.normalize makes them from uint8 [B, 28, 28]"
        )


class Classifier(nn.Sequential):
    """Layers in a row that turn normalised float images [B, 1, 28, 28] into log-probabilities [B, 10]."""

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities [B, 10] of float `images` [B, 1, 28, 28]; `ValueError` for any other shape or type."""
        _check(self, images)
        return super().forward(images)


class Net(Classifier):
    """Fully convolutional classifier of 28×28 grey images into ten digits, 9,768 parameters.

    Takes normalised float images [B, 1, 28, 28], returns log-probabilities [B, 10].
    `dropout` is the probability, in [0, 1], with which a whole channel is zeroed in training.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(
            OrderedDict(
                # layer   channels               output of one image
                conv1=conv( 1,  8, dropout),  # [ 8, 26, 26]  edges and gradients
                conv2=conv( 8, 16, dropout),  # [16, 24, 24]
                conv3=conv(16, 16, dropout),  # [16, 22, 22]
                tran1=tran(16,  8, dropout),  # [ 8, 11, 11]
                conv4=conv( 8, 16, dropout),  # [16,  9,  9]  parts of digits
                conv5=conv(16, 16, dropout),  # [16,  7,  7]
                conv6=conv(16, 16, dropout),  # [16,  5,  5]
                tran2=last(16, 10, size=5),   # [10]          log-probabilities
            )
        )  # fmt: skip


def conv_silu(in_channels: int, out_channels: int) -> nn.Sequential:
    """3×3 convolution without padding, batch normalization, and SiLU, x · sigmoid(x), which has no flat side."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.SiLU(inplace=True),
    )


def head(in_channels: int, classes: int) -> nn.Sequential:
    """Global average pooling, then a linear layer: one score a class, as log-probabilities."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(in_channels, classes),
        nn.LogSoftmax(dim=1),
    )


class SmallNet(Classifier):
    """Classifier of 28×28 grey images into ten digits whose parameters are where they pay: 9,710, as it stands.

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


class TinyNet(Classifier):
    """Classifier of 28×28 grey images into ten digits, 970 parameters: it uses one convolution many times.

    Takes normalised float images [B, 1, 28, 28], returns log-probabilities [B, 10]. A 3×3 convolution finds `channels`
    features. Then one depthwise-separable convolution, a 3×3 kernel for each channel and a 1×1 convolution that mixes
    them, is used `uses[0]` times before the second max-pooling and `uses[1]` times after it: always the same weights,
    each time with batch normalization of its own. Counts of parameters that go through the layers one by one, as
    torchsummary's, take these weights once for every use.
    Sources: F. Chollet, Xception, CVPR 2017, https://arxiv.org/abs/1610.02357 (separable convolutions); R. Grimov,
    https://github.com/ruslangrimov/mnist-minimal-model/tree/master/1936 (the same one several times)
    """

    def __init__(self, channels: int = 16, uses: tuple[int, int] = (4, 3)) -> None:
        depthwise = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)
        pointwise = nn.Conv2d(channels, channels, kernel_size=1, bias=False)

        def use() -> nn.Sequential:
            return nn.Sequential(depthwise, pointwise, nn.BatchNorm2d(channels), nn.SiLU(inplace=True))

        super().__init__(
            OrderedDict(
                conv1=conv_silu(1, channels),
                pool1=nn.MaxPool2d(kernel_size=2),
                uses1=nn.Sequential(*[use() for _ in range(uses[0])]),
                pool2=nn.MaxPool2d(kernel_size=2),
                uses2=nn.Sequential(*[use() for _ in range(uses[1])]),
                last=head(channels, 10),
            )
        )


class Upright(nn.Module):
    """Sets slanted digits upright, moves them to the middle and enlarges them `zoom` times; has no parameters.

    Takes and returns float images [B, 1, 28, 28] of any range; ink is what exceeds an image's smallest value. The slant
    is how far the ink moves aside from one row to the next, covariance(x, y) / variance(y), and is undone by shifting
    the rows, with linear interpolation. An image without ink stays as it is.
    Source: Y. LeCun et al., Gradient-Based Learning Applied to Document Recognition, Proceedings of the IEEE 1998,
    http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf ("deslanting", there for classifiers that are not convolutional)
    """

    def __init__(self, zoom: float = 1.0) -> None:
        super().__init__()
        self.zoom = zoom

    def forward(self, images: Tensor) -> Tensor:
        """Images as upright as their ink can be; `ValueError` for any other shape or type."""
        _check(self, images)
        # The middles of 28 rows or columns, from -1 to 1.
        place = (torch.arange(28, dtype=images.dtype, device=images.device) - 13.5) / 14
        lightest = images.amin((1, 2, 3), keepdim=True)
        ink = images - lightest
        share = ink[:, 0] / ink.sum((2, 3)).clamp(min=1e-6).unsqueeze(2)
        rows, columns = share.sum(2), share.sum(1)
        x, y = columns @ place, rows @ place
        slant = (share @ place @ place - x * y) / (rows @ place.square() - y.square()).clamp(min=1e-6)
        step, zero = torch.full_like(x, 1 / self.zoom), torch.zeros_like(x)
        matrix = torch.stack([step, step * slant, x, zero, step, y], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
        return F.grid_sample(ink, grid, align_corners=False) + lightest


def receptive_field(model: nn.Module, size: int = 28) -> list[dict[str, str | int]]:
    """Receptive field of every layer that looks at more than one pixel, in the order in which `model` lists its layers.

    Counts along one axis of a square image of `size` pixels, through any stack of square 2-d convolutions and poolings;
    1×1 convolutions of stride 1 change nothing and get no row, and what follows an `nn.Flatten` sees the whole image.
    A row is named after the model's direct child that holds the layer (after the layer's full name, where the child
    holds several), and has, with k kernel extent (dilation included), s stride and p padding,

        n_out = ⌊(n_in + 2p − k) / s⌋ + 1   size of the output, pixels (⌈…⌉ with `ceil_mode`)
        r_out = r_in + (k − 1) · j_in       receptive field, pixels of the input image
        j_out = j_in · s                    jump: distance between neighbouring outputs, pixels of the input image

    Raises `ValueError` for a layer that is not square, whose output would be empty, or that the formulas do not cover.
    Source: A. Araujo et al., Computing Receptive Fields of Convolutional Neural Networks, Distill 2019,
    https://distill.pub/2019/computing-receptive-fields
    """
    rows: list[dict[str, str | int]] = []
    r, n, j = 1, size, 1
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, nn.Flatten):
            break
        geometry = _geometry(name, layer, n)
        if geometry is None:
            continue
        k, s, p, n_out = geometry
        if n_out < 1:
            raise ValueError(f"layer {name}: a kernel of {k} does not fit into {n} pixels with padding {p}")
        if k > 1 or s > 1 or p > 0:
            row = dict(r_in=r, n_in=n, j_in=j, k=k, s=s, p=p, r_out=r + (k - 1) * j, n_out=n_out, j_out=j * s)
            rows.append({"layer": name, **row})
        r, n, j = r + (k - 1) * j, n_out, j * s
    children = [str(row["layer"]).split(".")[0] for row in rows]
    for row, child in zip(rows, children):
        if children.count(child) == 1:
            row["layer"] = child
    return rows


def _geometry(name: str, layer: nn.Module, n: int) -> tuple[int, int, int, int] | None:
    """(kernel extent, stride, padding, output size) of one layer for n input pixels; None if it keeps the grid."""
    if isinstance(layer, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        if layer.output_size not in (1, (1, 1)):
            raise ValueError(f"layer {name}: only adaptive pooling to one pixel has a single receptive field")
        return n, n, 0, 1
    if isinstance(layer, nn.ConvTranspose2d | nn.Upsample):
        raise ValueError(f"layer {name}: {type(layer).__name__} enlarges its input, which this table does not cover")
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return None
    k, s, p, d = (_square(name, layer, field) for field in ("kernel_size", "stride", "padding", "dilation"))
    k = d * (k - 1) + 1
    steps, rest = divmod(n + 2 * p - k, s)
    if rest and getattr(layer, "ceil_mode", False) and (steps + 1) * s < n + p:
        steps += 1  # PyTorch drops a window that would start beyond the image and its left padding
    return k, s, p, steps + 1


def _square(name: str, layer: nn.Module, field: str) -> int:
    value = getattr(layer, field, 1)  # AvgPool2d has no dilation
    if value == "valid":
        return 0
    if value == "same":
        extent = _square(name, layer, "dilation") * (_square(name, layer, "kernel_size") - 1)
        if extent % 2:
            raise ValueError(f"layer {name}: 'same' padding of an even kernel is lopsided")
        return extent // 2
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if pair[0] != pair[1]:
        raise ValueError(f"layer {name}: {field} {pair} is not square")
    return pair[0]
