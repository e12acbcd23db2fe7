"""The assignment's network: three building blocks, `Net` made of them, and the receptive field of its layers."""

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

    def __getitem__(self, index: int | slice) -> nn.Module:
        """One block, or, for a slice, a plain `nn.Sequential` of blocks."""
        return nn.Sequential(OrderedDict(self._modules))[index]


# Layers that compute every output pixel from the same input pixel, and so leave the receptive field as it is.
POINTWISE = nn.ReLU, nn.GELU, nn.SiLU, nn.BatchNorm2d, nn.Dropout, nn.Dropout2d, nn.LogSoftmax, nn.Identity


def receptive_field(network: nn.Sequential, size: int = 28) -> list[dict[str, str | int]]:
    """Receptive field of every layer that sees more than one pixel of its input, in the order of the layers.

    Counts along one axis of a square image of `size` pixels, up to the first `nn.Flatten`. A row is named after the
    network's child that holds the layer (after the layer's full name, where the child holds several), and has, with k
    kernel extent (dilation included), s stride and p padding,

        n_out = ⌊(n_in + 2p − k) / s⌋ + 1   size of the output, pixels
        r_out = r_in + (k − 1) · j_in       receptive field, pixels of the input image
        j_out = j_in · s                    jump: distance between neighboring outputs, pixels of the input image

    Raises `ValueError` for a layer that is neither a square convolution or pooling nor acts on single pixels.
    Source: A. Araujo et al., Computing Receptive Fields of Convolutional Neural Networks, Distill 2019,
    https://distill.pub/2019/computing-receptive-fields
    """
    rows: list[dict[str, str | int]] = []
    r, n, j = 1, size, 1
    for name, layer in network.named_modules(remove_duplicate=False):
        if isinstance(layer, nn.Flatten):
            break
        if isinstance(layer, (nn.Sequential, *POINTWISE)):
            continue
        k, s, p = _window(name, layer, n)
        row = dict(layer=name, r_in=r, n_in=n, j_in=j, k=k, s=s, p=p)
        r, n, j = r + (k - 1) * j, (n + 2 * p - k) // s + 1, j * s
        if (k, s, p) != (1, 1, 0):
            rows.append(row | dict(r_out=r, n_out=n, j_out=j))
    children = [str(row["layer"]).split(".")[0] for row in rows]
    for row, child in zip(rows, children):
        if children.count(child) == 1:
            row["layer"] = child
    return rows


def _window(name: str, layer: nn.Module, n: int) -> tuple[int, int, int]:
    """(kernel extent, stride, padding) of a layer with n input pixels; `ValueError` if it has none."""
    if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
        return n, n, 0
    if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and not getattr(layer, "ceil_mode", False):
        fields = (getattr(layer, field, 1) for field in ("kernel_size", "stride", "padding", "dilation"))
        sides = [{field} if isinstance(field, int) else set(field) for field in fields]
        if all(len(side) == 1 for side in sides) and not isinstance(layer.padding, str):
            k, s, p, d = (side.pop() for side in sides)
            return d * (k - 1) + 1, s, p
    raise ValueError(f"the receptive field of {layer} ({name or 'the network itself'}) is not known here")
