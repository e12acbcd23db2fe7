"""Model: the reference's network to the last parameter, and its receptive field against autograd."""

import random
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torchsummary import summary

from model import Net, receptive_field

README = Path("README.md").read_text()  # holds what the reference solution printed


def test_summary_is_the_references(capsys):
    summary(Net(), (1, 28, 28), device="cpu")
    assert f"```text\n{capsys.readouterr().out}```" in README


def test_dropout_is_the_argument_and_zeroes_whole_channels():
    assert {layer.p for layer in Net().modules() if isinstance(layer, nn.Dropout2d)} == {0.0}
    layers = [layer for layer in Net(0.25).modules() if isinstance(layer, nn.Dropout2d)]
    assert len(layers) == 7 and {layer.p for layer in layers} == {0.25}
    torch.manual_seed(0)
    features = Net(0.5).conv2(torch.randn(64, 8, 12, 12))
    dead = (features == 0).flatten(2).all(2).float().mean().item()
    assert 0.4 < dead < 0.6


def test_output_is_log_probabilities():
    torch.manual_seed(0)
    probabilities = Net()(torch.randn(7, 1, 28, 28)).exp()
    assert probabilities.shape == (7, 10)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(7))


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 28, 28),
        torch.zeros(2, 3, 28, 28),
        torch.zeros(2, 1, 32, 32),
        torch.zeros(2, 1, 28, 28, dtype=torch.uint8),
    ],
    ids=["no channel", "colour", "32 pixels", "bytes"],
)
def test_wrong_input_is_named(images):
    with pytest.raises(ValueError, match=r"^Net takes float images \[B, 1, 28, 28\], got .*normalize"):
        Net()(images)


def test_receptive_field_table_is_the_references():
    header, *printed = re.findall(r"^\| ((?:layer|conv\d|tran\d) \| .*) \|$", README, re.M)
    rows = receptive_field(Net())
    assert [" | ".join(row) for row in rows] == [header] * 8
    assert [" | ".join(map(str, row.values())) for row in rows] == printed


def linear_part(model: nn.Module) -> nn.Sequential:
    """A model's convolutions and poolings, all weights one, averages for maxima: gradients show every path."""
    layers = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer = nn.Conv2d(1, 1, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False)
            nn.init.ones_(layer.weight)
        elif isinstance(layer, nn.MaxPool2d) and layer.dilation == 1:
            layer = nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
        elif not isinstance(layer, nn.AvgPool2d):
            continue
        layers.append(layer)
    return nn.Sequential(*layers)


def seen(model: nn.Module, size: int, unit: int) -> tuple[int, int]:
    """First and last input pixel of a row with a non-zero gradient of output `unit` (counted along the same axis)."""
    image = torch.ones(1, 1, size, size, requires_grad=True)
    out = model(image)
    out[0, 0, unit, unit].backward()
    pixels = image.grad[0, 0].sum(0).nonzero()[:, 0]
    return pixels[0].item(), pixels[-1].item()


def test_receptive_field_of_every_layer_is_what_autograd_sees():
    layers = linear_part(Net())
    rows = iter(receptive_field(Net()))
    for depth, layer in enumerate(layers, start=1):
        if layer.kernel_size in (1, (1, 1)):
            continue
        row = next(rows)
        first, last = seen(layers[:depth], 28, row["n_out"] // 2)
        assert last - first + 1 == row["r_out"]
        assert layers[:depth](torch.ones(1, 1, 28, 28)).shape[-1] == row["n_out"]
        if row["n_out"] > 1:
            assert seen(layers[:depth], 28, row["n_out"] // 2 - 1)[0] == first - row["j_out"]
    assert next(rows, None) is None


@pytest.mark.parametrize("seed", range(40))
def test_receptive_field_of_random_stacks_is_what_autograd_sees(seed):
    draw = random.Random(seed)
    layers = []
    for _ in range(draw.randint(1, 5)):
        k, s = draw.randint(1, 4), draw.randint(1, 2)
        if draw.random() < 0.6:
            dilation = draw.randint(1, 2)
            padding = draw.choice([0, 1, 2, "same"] if s == 1 and k % 2 else [0, 1, 2])
            layers.append(nn.Conv2d(1, 1, k, s, padding, dilation))
        else:
            kind = draw.choice([nn.MaxPool2d, nn.AvgPool2d])
            layers.append(kind(k, s, padding=draw.randint(0, k // 2), ceil_mode=draw.random() < 0.5))
    size = draw.randint(150, 170)
    model = linear_part(nn.Sequential(*layers))
    table = receptive_field(nn.Sequential(*layers), size)
    width = model(torch.ones(1, 1, size, size)).shape[-1]
    first, last = seen(model, size, width // 2)
    if not table:
        assert (first, last, width) == (width // 2, width // 2, size)
        return
    assert table[-1]["n_out"] == width
    assert table[-1]["j_out"] == seen(model, size, width // 2 + 1)[0] - first
    # gaps between strides or dilations can leave the outermost pixels out of the sum, never add any
    assert table[-1]["r_out"] == last - first + 1


def test_receptive_field_stops_where_the_image_is_flattened():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    assert [(row["layer"], row["r_out"], row["n_out"]) for row in receptive_field(model)] == [
        ("0", 3, 26),
        ("1", 28, 1),
    ]


@pytest.mark.parametrize(
    "layer, message",
    [
        (nn.Conv2d(1, 1, (3, 5)), r"kernel_size \(3, 5\) is not square"),
        (nn.Conv2d(1, 1, 30), "a kernel of 30 does not fit into 28 pixels"),
        (nn.Conv2d(1, 1, 2, padding="same"), "even kernel"),
        *[
            (layer, type(layer).__name__)
            for layer in (
                *(nn.AdaptiveAvgPool2d(3), nn.ConvTranspose2d(1, 1, 2), nn.LPPool2d(2, 2), nn.ZeroPad2d(1)),
                *(nn.FractionalMaxPool2d(2, output_size=14), nn.PixelShuffle(2), nn.Unfold(3), nn.Conv1d(1, 1, 3)),
                *(
                    nn.Conv3d(1, 1, 3),
                    nn.Upsample(scale_factor=2),
                    nn.ReflectionPad2d(1),
                    nn.Softmax2d(),
                    nn.Linear(2, 2),
                ),
            )
        ],
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_receptive_field_is_named(layer, message):
    with pytest.raises(ValueError, match=message):
        receptive_field(nn.Sequential(layer))


def test_a_network_that_is_no_stack_has_no_receptive_field():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x):
            return x + self.conv(x)

    with pytest.raises(ValueError, match="Residual"):
        receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3), Residual()))
