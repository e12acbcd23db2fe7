"""What is said of a network is what it does: against the reference's table, autograd, and networks that are known."""

import random
import re
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import networks
import utils
from cells import run
from conftest import ROOT
from inspection import feature_maps, receptive_field, requirements, returns_log_probabilities
from model import Net

README = (ROOT / "README.md").read_text(encoding="utf-8")

GAP, LINEAR, NEITHER = "global average pooling", "fully connected layer", "neither"
KNOWN = {  # network: marks of batch normalization and dropout, parameters used, head, the receptive field of its layers
    "Net(0.1)": ("✓✓", 9_768, GAP, [3, 5, 7, 8, 12, 16, 20, 28]),
    "networks.Loop(8, 16, 16)": ("✓✗", 5_098, NEITHER, [3, 4, 8, 10, 18, 22, 38]),
    "networks.Padded()": ("✗✓", 4_610, LINEAR, [3, 7, 11, 13]),
    "networks.Squeezed()": ("✓✗", 457, f"{GAP} and {LINEAR}", [3]),
    "networks.Perceptron()": ("✓✓", 12_762, LINEAR, []),
    "networks.Careless()": ("––", 4_060, NEITHER, [3, 5, 7, 27]),
    "networks.factory(8)": ("✗–", 939, GAP, [5, 9, 25, 29]),
}


def made(text: str) -> nn.Module:
    torch.manual_seed(0)
    return eval(text)


@pytest.mark.parametrize("text", KNOWN)
def test_the_receptive_field_is_known(text):
    table, ending = receptive_field(made(text))
    assert [row["r_out"] for row in table] == KNOWN[text][-1]
    assert ("where another branch begins" in ending) == ("Squeezed" in text) and bool(ending) == ("Squeezed" in text)


@pytest.mark.parametrize("text", KNOWN)
def test_requirements_are_what_a_training_step_does(text):
    marks, parameters, head, _ = KNOWN[text]
    (counted, count), (normalized, _), (dropped, _), (optional, found) = requirements(made(text))
    assert counted + optional == "✓–" and normalized + dropped == marks
    assert count.startswith(f"parameters: {parameters:,} < 20,000") and found.endswith(f": {head}")
    unused = dict(Perceptron="40 never used (forgotten.weight, forgotten.bias)", Careless="16 never used (norm.")
    assert [name for name, words in unused.items() if words in count] == [name for name in unused if name in text]


def test_requirements_of_a_training_are_those_of_its_history():
    history = dict(test_accuracy=[0.9951, 0.994])
    marked = requirements(Net(), history)
    assert [mark for mark, _ in marked] == ["✗", "✓", "✓", "✓", "–", "–"]
    assert marked[0][1].startswith("test accuracy, final epoch: 99.40% > 99.4%; try ")
    assert requirements(Net(), dict(test_accuracy=20 * [0.9941]))[2] == ("✗", "epochs: 20 < 20; try EPOCHS = 19")
    assert requirements(nn.Sequential(nn.Flatten(), nn.Linear(784, 30), nn.Linear(30, 10)))[0][0] == "✗"
    with pytest.raises(ValueError, match="has not ended"):
        requirements(Net(), {})


class Scaled(nn.Module):
    """Weights that go through the same functions as the images."""

    def __init__(self):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(1, 10, 3), nn.Parameter(torch.ones(10, 1, 1))

    def forward(self, x):
        return (self.conv(x).relu() * self.scale.relu()).mean((2, 3))


def test_calls_on_weights_alone_are_no_part_of_the_images_way():
    assert requirements(Scaled())[0] == ("✓", "parameters: 110 < 20,000")
    assert [row["r_out"] for row in receptive_field(Scaled())[0]] == [3]


class Careful(nn.Module):
    """Batch normalization by hand; a part that training skips; softmax in prediction only."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.last = nn.Conv2d(4, 4, 1), nn.Linear(8, 10)
        self.steps, self.average = 0, torch.zeros(1, 8, 1, 1)
        self.register_buffer("deviation", torch.ones(1, 8, 1, 1))

    def train(self, mode=True):  # returns nothing, as many that freeze a layer do
        super().train(mode)

    def forward(self, x):
        self.steps += 1
        x = self.first(x)
        if self.training:
            self.average = 0.9 * self.average + 0.1 * x.mean((0, 2, 3), keepdim=True).detach()
            self.deviation = 0.9 * self.deviation + 0.1 * x.std((0, 2, 3), keepdim=True).detach()
        x = F.relu((x - self.average) / self.deviation)
        x = x if self.training else x + self.second(x)
        y = torch.zeros_like(x)
        y[:, :4], y[:, 4:] = self.third(x[:, :4]), x[:, 4:]
        x = self.last(y.mean((2, 3)))
        return x if self.training else F.softmax(x, 1)


def test_parts_used_only_in_training_or_only_in_prediction_count():
    network = Careful()
    assert requirements(network)[0] == ("✓", f"parameters: {80 + 584 + 20 + 90} < 20,000")
    assert not returns_log_probabilities(network)


def test_layers_in_a_plain_list_are_not_trained_and_it_is_said():
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    hidden = [nn.Linear(10, 10)]
    network.forward = lambda x: hidden[0](network[1](network[0](x)))
    assert requirements(network)[0][0] == "✗" and "nn.ModuleList" in requirements(network)[0][1]


def test_lazy_layers_must_be_called_before_their_seed_is_lost():
    network = nn.Sequential(nn.LazyConv2d(10, 28), nn.LazyBatchNorm2d(), nn.Flatten())
    with pytest.raises(ValueError, match=r"call network\(torch.zeros\(2, 1, 28, 28\)\) once"):
        requirements(network)
    network(torch.zeros(2, 1, 28, 28))
    assert requirements(network)[0] == ("✓", "parameters: 7,870 < 20,000")


@pytest.mark.parametrize("layers, mark", [(1, "✗"), (2, "✓")])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_dropout_between_recurrent_layers_needs_two(kind, layers, mark):
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.out = kind(28, 16, layers, batch_first=True, dropout=0.2), nn.Linear(16, 10)

        def forward(self, x):
            return self.out(self.rows(x[:, 0])[0][:, -1])

    with nullcontext() if layers == 2 else pytest.warns(match="dropout"):
        network = Rows()
    assert requirements(network)[2][0] == mark


@pytest.mark.parametrize("network", [nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Softmax(1)), Careful()])
def test_probabilities_are_no_scores(network):
    assert requirements(network)[-1] == ("✗", "returns probabilities; try F.log_softmax in place of softmax, or scores")


def test_looking_changes_nothing_that_forward_assigns():
    network = Careful()
    network(torch.rand(8, 1, 28, 28))
    before = network.average.clone(), network.deviation.clone()
    requirements(network), receptive_field(network)
    assert network.steps == 1 and network.training
    assert all(map(torch.equal, before, (network.average, network.deviation)))


def test_looking_leaves_the_network_as_it_was():
    network = Net(0.1).train()
    network.conv1.requires_grad_(False).eval()
    prune.l1_unstructured(network.conv2[0], "weight", amount=0.5)
    before, state = {name: value.clone() for name, value in network.state_dict().items()}, torch.get_rng_state()
    assert requirements(network)[0][1].startswith("parameters: 9,768 <")
    receptive_field(network), returns_log_probabilities(network)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    assert not network.conv1.training and network.conv2.training and torch.equal(torch.get_rng_state(), state)
    assert [parameter.requires_grad for parameter in network.parameters()] == 3 * [False] + 19 * [True]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in network.modules()) == 1


WRONG = [
    (nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)), r"fails on images \[64, 1, 28, 28\]: mat1 and mat2"),
    (nn.Conv2d(1, 10, 28), r"\[B, 10\]; for 64 images: \[64, 10, 1, 1\]"),
    (nn.Sequential(nn.Flatten(), nn.Linear(784, 26)), r"for 64 images: \[64, 26\]"),
    (nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10)), "no parameters"),
    (
        torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(784, 10))),
        "cannot be seen|not supported on ScriptModules",
    ),
]


@pytest.mark.parametrize("network, message", WRONG)
def test_what_is_no_network_for_the_assignment_is_said(network, message):
    with pytest.raises(ValueError, match=message):
        requirements(network)


def test_the_receptive_field_of_the_reference_is_its_table():
    header, *printed = re.findall(r"^\| ((?:layer|conv\d|tran\d) \| .*) \|$", README, re.M)
    rows, ending = receptive_field(Net())
    assert [" | ".join(row) for row in rows] == [header] * 8 and ending == ""
    assert [" | ".join(map(str, row.values())) for row in rows] == printed


def test_a_layer_in_several_places_is_named_after_each():
    layer = nn.Conv2d(1, 1, 3)
    rows, _ = receptive_field(nn.Sequential(nn.Sequential(layer, nn.ReLU()), nn.Sequential(layer, nn.ReLU(), layer)))
    assert [(row["layer"], row["r_out"]) for row in rows] == [("0", 3), ("1.0", 5), ("1.0", 7)]


def seen(network: nn.Module, size: int, unit: int) -> tuple[int, int]:
    """First and last input pixel of a row with a non-zero gradient of output `unit` (counted along the same axis)."""
    image = torch.ones(1, 1, size, size, requires_grad=True)
    network(image)[0, 0, unit, unit].backward()
    pixels = image.grad[0, 0].sum(0).nonzero()[:, 0]
    return pixels[0].item(), pixels[-1].item()


@pytest.mark.parametrize("seed", range(20))
def test_the_receptive_field_is_what_autograd_sees(seed):
    """Of random stacks, all weights one and averages for maxima, so that gradients show every path."""
    draw, layers = random.Random(seed), []
    for _ in range(draw.randint(1, 5)):
        k, s, p = draw.randint(1 if layers else 2, 4), draw.randint(1, 2), draw.randint(0, 1)
        if draw.random() < 0.6:
            padding = draw.choice([p, "same"]) if s == 1 else p
            layers.append(nn.Conv2d(1, 1, k, s, padding, dilation=draw.randint(1, 2), bias=False))
            nn.init.ones_(layers[-1].weight)
        else:
            layers.append(nn.AvgPool2d(k, s, padding=min(p, k // 2), ceil_mode=draw.random() < 0.3))
        layers.append(nn.Identity())
    layers += layers[:2]  # the first one again, with the same weights
    network, size = nn.Sequential(*layers), draw.randint(150, 170)
    row = receptive_field(network, size)[0][-1]
    width = network(torch.ones(1, 1, size, size)).shape[-1]
    first, last = seen(network, size, width // 2)
    step = seen(network, size, width // 2 + 1)[0] - first
    assert (row["n_out"], row["r_out"], row["j_out"]) == (width, last - first + 1, step)


UNKNOWN = {
    "conv2d in 1": nn.Conv2d(1, 1, (3, 5)),
    "adaptive_avg_pool2d in 1": nn.AdaptiveAvgPool2d(5),
    "interpolate in 1": nn.Upsample(scale_factor=2),
    "conv_transpose2d in 1": nn.ConvTranspose2d(1, 1, 2),
    "pad in 1": nn.ZeroPad2d((0, 2, 0, 2)),
}


@pytest.mark.parametrize("place", UNKNOWN)
def test_what_has_no_receptive_field_here_ends_the_table_and_is_named(place):
    rows, ending = receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3), UNKNOWN[place], nn.Conv2d(1, 1, 3)))
    assert len(rows) == 1 and ending == f"the table ends at {place}, whose receptive field is not known here"


@pytest.mark.parametrize("text", KNOWN)
def test_feature_maps_are_those_of_a_real_run(text, small):
    network, x, real = made(text), utils.normalize(small[0][0][:1]), {}
    torch.manual_seed(0)
    maps = feature_maps(network, x)
    for name, layer in network.named_modules():
        layer.register_forward_hook(lambda _, inputs, output, name=name: real.update({name: output[0].clone()}))
    torch.manual_seed(0)
    network(x)
    assert all(torch.equal(maps[name], real[name]) for name in maps) and len(maps) >= 2 * ("Perceptron" not in text)
    assert list(maps) == [name for name in real if name in maps]


@pytest.mark.parametrize("text", [*list(KNOWN)[1:], "nn.DataParallel(Net(DROPOUT))"])
def test_any_network_goes_through_the_notebook(text, mnist, tmp_path, monkeypatch, capsys):
    """Few images; what is said of it is compared above, here it is that every cell runs, with right numbers."""
    (images, labels), (test_images, test_labels) = mnist
    few = (images[:1280], labels[:1280]), (test_images[:300], test_labels[:300])
    monkeypatch.setattr(utils, "load_mnist", lambda *_: few)
    left = run(network=text, networks=networks)
    assert len(left["history"]["test_loss"]) == 1
    torch.testing.assert_close(left["log_probabilities"].exp().sum(1), torch.ones(300))
    assert min(left["history"]["train_loss"] + left["history"]["test_loss"]) > 0
    assert "same predictions: True" in capsys.readouterr().out or text == "networks.Padded()"
