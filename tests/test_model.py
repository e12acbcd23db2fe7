"""Model: the reference's network to the last parameter."""

import torch
from torch import nn
from torchsummary import summary

from conftest import ROOT
from model import Net

README = (ROOT / "README.md").read_text(encoding="utf-8")  # holds what the reference solution printed


def test_summary_is_the_references(capsys):
    summary(Net(), (1, 28, 28), device="cpu")
    assert f"```text\n{capsys.readouterr().out}```" in README


def test_dropout_is_the_argument_and_zeroes_whole_channels():
    assert [layer.p for layer in Net(0.25).modules() if isinstance(layer, nn.Dropout2d)] == [0.25] * 7
    torch.manual_seed(0)
    dead = (Net(0.5).conv2(torch.randn(64, 8, 12, 12)) == 0).flatten(2).all(2).float().mean()
    assert 0.4 < dead < 0.6
