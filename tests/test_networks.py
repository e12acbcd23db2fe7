"""The lab's networks and deskewing, computed by hand with torch's functions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import transforms

import storage
import utils
from conftest import ROOT
from experiments.networks import Deskew, FastNet, LargeNet, SmallNet, TinyNet, fully_connected, without_batch_norm
from experiments.recipes import RECIPES
from model import Net, receptive_field


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith(("small-", "tiny-"))])
def test_small_recipes_are_named_after_their_parameters(name):
    assert parameters(RECIPES[name].make_network()) == int(name.split("-")[1])


@pytest.mark.parametrize("path", sorted((ROOT / "results/teachers").glob("*.pt")), ids=lambda path: path.stem)
def test_the_teachers_weights_fit_and_classify(path, mnist):
    recipe = path.stem.rsplit("-", 2)[0]
    network = storage.load_weights(RECIPES[recipe].make_network(), path)
    images, labels = (part[:300] for part in mnist[1])
    assert utils.evaluate(network, images, labels)[1] > 0.98


def test_ablated_networks_lack_what_their_names_say():
    norms = sum(parameter.numel() for parameter in Net().parameters() if parameter.ndim == 1)
    assert parameters(without_batch_norm()) == 9_768 - norms
    assert parameters(fully_connected()) == 9_768 + 250 * 10 + 10


def test_fast_network_pools_before_batch_norm():
    torch.manual_seed(0)
    network, x = FastNet().eval(), torch.randn(3, 1, 28, 28)
    images = x
    for block, pool in zip((network.conv1, network.conv2, network.conv3, network.conv4), (2, 1, 2, 1)):
        nn.init.normal_(block[-2].bias)
        x = F.relu(block[-2](F.max_pool2d(F.conv2d(x, block[0].weight), pool)))
    scores = x.mean((2, 3)) @ network.last[2].weight.T + network.last[2].bias
    torch.testing.assert_close(network(images), scores.log_softmax(1))
    assert parameters(network) == 19_450


def test_large_network_computes_like_a_small_one_up_to_bfloat16():
    torch.manual_seed(0)
    large, small, x = LargeNet().eval(), SmallNet().eval(), torch.randn(5, 1, 28, 28)
    small.load_state_dict(large.state_dict())
    output = large(x)
    assert output.dtype == torch.float32 and not torch.equal(output, small(x))
    torch.testing.assert_close(output, small(x), atol=0.01, rtol=0.01)


def test_small_networks_widths_are_its_arguments():
    network = SmallNet((2, 3, 4), (5,))
    kernels = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in kernels] == [(1, 2), (2, 3), (3, 4), (4, 5)]
    assert parameters(network) == 9 * (2 + 6 + 12 + 20) + 2 * (2 + 3 + 4 + 5) + 50 + 10
    assert [row["layer"] for row in receptive_field(network)] == ["conv1", "conv2", "conv3", "pool", "conv4", "last"]


def test_tiny_network_shares_one_convolutions_weights():
    torch.manual_seed(0)
    network, images = TinyNet(5, (1, 2)).eval(), torch.randn(4, 1, 28, 28)
    assert parameters(network) == (9 + 2) * 5 + (9 + 5) * 5 + 3 * 2 * 5 + (5 + 1) * 10
    depthwise, pointwise, *_ = network.shared1[0]
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for index, layer in enumerate(norms):
        nn.init.constant_(layer.weight, 1 + index / 10)
        nn.init.constant_(layer.running_mean, index / 10)
    x = F.max_pool2d(F.silu(norms[0](network.conv1[0](images))), 2)
    for use, norm in enumerate(norms[1:]):
        x = F.max_pool2d(x, 2) if use == 1 else x
        x = F.silu(norm(F.conv2d(F.conv2d(x, depthwise.weight, padding=1, groups=5), pointwise.weight)))
    scores = x.mean((2, 3)) @ network.last[2].weight.T + network.last[2].bias
    torch.testing.assert_close(network(images), scores.log_softmax(1))


def test_deskewing_makes_a_diagonal_vertical():
    images = torch.full((1, 1, 28, 28), -0.4)
    for row in range(9, 19):
        images[0, 0, row, row + 3 : row + 5] = 2.0
    expected = torch.full((28, 28), -0.4)
    expected[9:19, 13:15] = 2.0
    torch.testing.assert_close(Deskew()(images)[0, 0], expected)


def test_deskewing_enlarges_as_torchvision_does_and_leaves_an_empty_image_empty():
    images = torch.zeros(1, 1, 28, 28)
    images[0, 0, 8:20, 12:16] = 1.0
    bilinear = transforms.InterpolationMode.BILINEAR
    expected = transforms.functional.affine(images, 0, [0, 0], 1.2, [0, 0], interpolation=bilinear)
    torch.testing.assert_close(Deskew(1.2)(images), expected)
    empty = torch.full((2, 1, 28, 28), -0.4)
    assert torch.equal(Deskew(1.2)(empty), empty)


def test_learned_ink_is_trained_and_deskews_as_what_exceeds_the_ground_does(mnist):
    images = utils.normalize(mnist[1][0][:20])
    torch.manual_seed(0)
    transformer, network = RECIPES["tiny-980"].make_network()
    network(transformer(images)).square().sum().backward()
    assert sum(parameter.numel() for parameter in transformer.parameters() if parameter.grad.abs().max() > 0) == 10
    kernel = transformer.ink[0]
    nn.init.dirac_(kernel.weight)
    with torch.no_grad():
        kernel.weight *= 1e4  # softplus leaves large values as they are ...
        kernel.bias.fill_(-1e4 * images.min() - 20)  # ... and the ground is nothing
        torch.testing.assert_close(transformer(images), Deskew(1.2)(images), atol=1e-2, rtol=0)
