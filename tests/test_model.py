"""Model: the reference's network to the last parameter, and its receptive field against autograd."""

import random
import re

import pytest
import torch
from torch import nn
from torchsummary import summary

from conftest import ROOT
from model import Net, receptive_field

README = (ROOT / "README.md").read_text(encoding="utf-8")  # holds what the reference solution printed


def test_summary_is_the_references(capsys):
    summary(Net(), (1, 28, 28), device="cpu")
    assert f"```text\n{capsys.readouterr().out}```" in README


def test_dropout_is_the_argument_and_zeroes_whole_channels():
    assert [layer.p for layer in Net(0.25).modules() if isinstance(layer, nn.Dropout2d)] == [0.25] * 7
    torch.manual_seed(0)
    dead = (Net(0.5).conv2(torch.randn(64, 8, 12, 12)) == 0).flatten(2).all(2).float().mean()
    assert 0.4 < dead < 0.6


def test_receptive_field_table_is_the_references():
    header, *printed = re.findall(r"^\| ((?:layer|conv\d|tran\d) \| .*) \|$", README, re.M)
    rows = receptive_field(Net())
    assert [" | ".join(row) for row in rows] == [header] * 8
    assert [" | ".join(map(str, row.values())) for row in rows] == printed


def seen(network: nn.Module, size: int, unit: int) -> tuple[int, int]:
    """First and last input pixel of a row with a non-zero gradient of output `unit` (counted along the same axis)."""
    image = torch.ones(1, 1, size, size, requires_grad=True)
    network(image)[0, 0, unit, unit].backward()
    pixels = image.grad[0, 0].sum(0).nonzero()[:, 0]
    return pixels[0].item(), pixels[-1].item()


@pytest.mark.parametrize("seed", range(20))
def test_receptive_field_is_what_autograd_sees(seed):
    """Of random stacks, all weights one and averages for maxima, so that gradients show every path."""
    draw, layers = random.Random(seed), []
    for _ in range(draw.randint(1, 5)):
        k, s, p = draw.randint(1 if layers else 2, 4), draw.randint(1, 2), draw.randint(0, 1)
        if draw.random() < 0.6:
            layers.append(nn.Conv2d(1, 1, k, s, p, dilation=draw.randint(1, 2), bias=False))
            nn.init.ones_(layers[-1].weight)
        else:
            layers.append(nn.AvgPool2d(k, s, padding=min(p, k // 2)))
        layers.append(nn.Identity())
    layers += layers[:2]  # the first one again, with the same weights
    network, size = nn.Sequential(*layers), draw.randint(150, 170)
    row = receptive_field(network, size)[-1]
    width = network(torch.ones(1, 1, size, size)).shape[-1]
    first, last = seen(network, size, width // 2)
    step = seen(network, size, width // 2 + 1)[0] - first
    assert (row["n_out"], row["r_out"], row["j_out"]) == (width, last - first + 1, step)


REFUSED = nn.Conv2d(1, 1, (3, 5)), nn.Conv2d(1, 1, 3, padding="same"), nn.MaxPool2d(2, ceil_mode=True), nn.Linear(2, 2)


@pytest.mark.parametrize("layer", REFUSED, ids=lambda layer: type(layer).__name__)
def test_what_has_no_receptive_field_here_is_named(layer):
    with pytest.raises(ValueError, match=type(layer).__name__):
        receptive_field(nn.Sequential(nn.ReLU(), layer))
