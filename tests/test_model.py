"""Model: the reference's network to the last parameter, and its receptive field against autograd."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import COLUMNS, RECEPTIVE_FIELD, SUMMARY
from torch import nn
from torchsummary import summary
from torchvision import transforms

import utils
from model import Net, SmallNet, TinyNet, Upright, receptive_field


def test_summary_is_the_references(capsys):
    summary(Net(), (1, 28, 28), device="cpu")
    assert capsys.readouterr().out == SUMMARY


def test_dropout_is_the_argument_and_zeroes_whole_channels():
    assert {layer.p for layer in Net().modules() if isinstance(layer, nn.Dropout2d)} == {0.0}
    layers = [layer for layer in Net(0.25).modules() if isinstance(layer, nn.Dropout2d)]
    assert len(layers) == 7 and {layer.p for layer in layers} == {0.25}
    torch.manual_seed(0)
    maps = Net(0.5).conv2(torch.randn(64, 8, 12, 12))
    dead = (maps == 0).flatten(2).all(2).float().mean().item()
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
    for network in (Net(), SmallNet(), TinyNet(), Upright()):
        name = type(network).__name__
        with pytest.raises(ValueError, match=rf"^{name} takes float images \[B, 1, 28, 28\], got .*normalize"):
            network(images)


@pytest.mark.parametrize(
    ("before", "after"), [((8, 8), (16, 24, 19)), ((4, 4), (8, 8, 8)), ((3,), (5,)), ((2, 3, 4), ())]
)
def test_small_networks_widths_are_its_arguments(before, after):
    network = SmallNet(before, after)
    widths = [1, *before, *after]
    kernels = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in kernels] == list(zip(widths, widths[1:]))
    expected = sum(9 * i * o + 2 * o for i, o in zip(widths, widths[1:])) + 10 * widths[-1] + 10
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    torch.manual_seed(0)
    probabilities = network(torch.randn(7, 1, 28, 28)).exp()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(7))
    names = [row["layer"] for row in receptive_field(network)]
    assert names[len(before)] == "pool" and receptive_field(network)[-1]["r_out"] == 28


def test_small_network_without_room_is_named():
    with pytest.raises(ValueError, match="7 convolutions before and 4 after the pooling leave no pixel"):
        SmallNet([4] * 7, [4] * 4)


@pytest.mark.parametrize(("channels", "uses"), [(16, (4, 3)), (5, (1, 2)), (3, (2, 0))])
def test_tiny_network_uses_one_convolution_many_times(channels, uses):
    network = TinyNet(channels, uses).eval()
    c, times = channels, sum(uses)
    expected = (9 * c + 2 * c) + (9 * c + c * c) + times * 2 * c + (10 * c + 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    depthwise, pointwise, *_ = network.uses1[0]
    for index, layer in enumerate(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)):
        nn.init.constant_(layer.weight, 1 + index / 10)
        nn.init.constant_(layer.running_mean, index / 10)
    torch.manual_seed(0)
    images = torch.randn(4, 1, 28, 28)
    norms = iter(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    x = F.max_pool2d(F.silu(next(norms)(network.conv1[0](images))), 2)
    for use in range(times):
        if use == uses[0]:
            x = F.max_pool2d(x, 2)
        x = F.silu(next(norms)(F.conv2d(F.conv2d(x, depthwise.weight, padding=1, groups=c), pointwise.weight)))
    if not uses[1]:
        x = F.max_pool2d(x, 2)
    scores = x.mean((2, 3)) @ network.last[2].weight.T + network.last[2].bias
    torch.testing.assert_close(network(images), scores.log_softmax(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_upright_makes_a_diagonal_vertical(dtype):
    images = torch.full((1, 1, 28, 28), -0.4, dtype=dtype)
    for row in range(9, 19):
        images[0, 0, row, row + 3 : row + 5] = 2.0
    expected = torch.full((28, 28), -0.4, dtype=dtype)
    expected[9:19, 13:15] = 2.0
    torch.testing.assert_close(Upright()(images)[0, 0], expected)


def test_upright_digits_lean_no_more_and_stand_in_the_middle():
    images, _ = utils.load_mnist("data", "cpu")[1]
    ink = Upright()(utils.normalize(images[:100])).numpy() * 0.3081 + 0.1307
    row, column = np.mgrid[:28, :28]
    for image in ink[:, 0]:
        y, x = np.average(row, weights=image), np.average(column, weights=image)
        (_, covariance), (_, variance) = np.cov(np.stack([column, row]).reshape(2, -1), aweights=image.ravel())
        assert abs(x - 13.5) < 0.25 and abs(y - 13.5) < 0.25
        assert abs(covariance / variance) < 0.05


def test_upright_enlarges_as_torchvision_does():
    images = torch.zeros(1, 1, 28, 28)
    images[0, 0, 8:20, 12:16] = 1.0
    bilinear = transforms.InterpolationMode.BILINEAR
    expected = transforms.functional.affine(images, 0, [0, 0], 1.2, [0, 0], interpolation=bilinear)
    torch.testing.assert_close(Upright(1.2)(images), expected)


def test_upright_leaves_an_empty_image_empty():
    images = torch.full((2, 1, 28, 28), -0.4)
    assert torch.equal(Upright(1.2)(images), images)


def test_receptive_field_counts_a_layer_as_often_as_it_is_used():
    rows = receptive_field(TinyNet(4, (2, 1)))
    assert [(row["layer"], row["r_out"], row["n_out"]) for row in rows] == [
        ("conv1", 3, 26),
        ("pool1", 4, 13),
        ("uses1.0.0", 8, 13),
        ("uses1.1.0", 12, 13),
        ("pool2", 14, 6),
        ("uses2", 22, 6),
        ("last", 42, 1),
    ]


def test_receptive_field_table_is_the_references():
    assert [list(row) for row in receptive_field(Net())] == [COLUMNS] * 8
    assert [list(row.values()) for row in receptive_field(Net())] == RECEPTIVE_FIELD


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
        (nn.AdaptiveAvgPool2d(3), "only adaptive pooling to one pixel"),
        (nn.ConvTranspose2d(1, 1, 2), "ConvTranspose2d enlarges"),
    ],
)
def test_what_has_no_receptive_field_is_named(layer, message):
    with pytest.raises(ValueError, match=message):
        receptive_field(nn.Sequential(layer))
