"""The assignment's network: three building blocks, `Net` made of them, and the receptive field of its layers."""

from collections import OrderedDict

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
    """Transition: max-pooling halves the image, a 1×1 convolution reduces the number of channels."""
    return nn.Sequential(
        nn.MaxPool2d(kernel_size=2),
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(out_channels),
        nn.Dropout2d(dropout),
    )


def last(in_channels: int, classes: int, size: int) -> nn.Sequential:
    """One score map per class, averaged over its size × size positions (global average pooling); log-probabilities."""
    return nn.Sequential(
        nn.Conv2d(in_channels, classes, kernel_size=1, bias=False),
        nn.AvgPool2d(size, stride=1),
        nn.Flatten(),
        nn.LogSoftmax(dim=1),
    )


def check_input(network: nn.Module, images: Tensor) -> None:
    """Raise `ValueError` unless `images`, the input of `network`, are float [B, 1, 28, 28]."""
    if images.ndim != 4 or images.shape[1:] != (1, 28, 28) or not images.is_floating_point():
        raise ValueError(
            f"{type(network).__name__} takes float images [B, 1, 28, 28], got {images.dtype} {list(images.shape)}; "
            "utils.normalize makes them from uint8 [B, 28, 28]"
        )


class Classifier(nn.Sequential):
    """Layers in a row that turn normalised float images [B, 1, 28, 28] into log-probabilities [B, 10]."""

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities [B, 10] of float `images` [B, 1, 28, 28]; `ValueError` for any other shape or type."""
        check_input(self, images)
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


# Layers that compute every output pixel from the same input pixel, and so leave the receptive field as it is.
POINTWISE = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.LogSoftmax),
    *(nn.BatchNorm2d, nn.Dropout, nn.Dropout2d, nn.Identity),
)


def receptive_field(model: nn.Sequential, size: int = 28) -> list[dict[str, str | int]]:
    """Receptive field of every layer that sees more than one pixel, in the order of `model`'s layers.

    Counts along one axis of a square image of `size` pixels, through a stack of square `Conv2d`, `MaxPool2d`,
    `AvgPool2d` and adaptive poolings to one pixel, with any stride, padding and dilation; a layer that the stack holds
    several times counts each time. 1×1 convolutions of stride 1 change nothing and get no row, and what follows an
    `nn.Flatten` sees the whole image. A row is named after the model's direct child that holds the layer (after the
    layer's full name, where the child holds several), and has, with k kernel extent (dilation included), s stride and
    p padding,

        n_out = ⌊(n_in + 2p − k) / s⌋ + 1   size of the output, pixels (⌈…⌉ with `ceil_mode`)
        r_out = r_in + (k − 1) · j_in       receptive field, pixels of the input image
        j_out = j_in · s                    jump: distance between neighbouring outputs, pixels of the input image

    Raises `ValueError` for a layer that is not square, whose output would be empty, or that is none of these.
    Source: A. Araujo et al., Computing Receptive Fields of Convolutional Neural Networks, Distill 2019,
    https://distill.pub/2019/computing-receptive-fields
    """
    rows: list[dict[str, str | int]] = []
    r, n, j = 1, size, 1
    for name, layer in model.named_modules(remove_duplicate=False):
        if isinstance(layer, nn.Flatten):
            break
        if isinstance(layer, (nn.Sequential, *POINTWISE)):
            continue
        k, s, p, n_out = _geometry(name, layer, n)
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


def _geometry(name: str, layer: nn.Module, n: int) -> tuple[int, int, int, int]:
    """(kernel extent, stride, padding, output size) of one layer for n input pixels; `ValueError` if it has none."""
    if isinstance(layer, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) and layer.output_size in (1, (1, 1)):
        return n, n, 0, 1
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        raise ValueError(
            f"layer {name or 'itself'}: the receptive field of {layer} is not known; "
            "only stacks of convolutions, poolings and layers that act on single pixels have one here"
        )
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
