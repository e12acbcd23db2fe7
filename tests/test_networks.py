"""The lab's networks and deskewing, computed by hand with torch's functions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import transforms

import storage
import utils
from experiments.networks import Deskew, FastNet, LargeNet, SmallNet, TinyNet
from experiments.recipes import RECIPES, TEACHERS
from model import Net, receptive_field


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith(("small-", "tiny-"))])
def test_small_recipes_are_named_after_their_parameters(name):
    assert parameters(RECIPES[name].make_network()) == int(name.split("-")[1])


@pytest.mark.parametrize("path", sorted(TEACHERS.glob("*.pt")), ids=lambda path: path.stem)
def test_the_teachers_weights_fit_and_classify(path, mnist):
    recipe = path.stem.rsplit("-", 2)[0]
    network = storage.load_weights(RECIPES[recipe].make_network(), path)
    images, labels = (part[:300] for part in mnist[1])
    assert utils.evaluate(network, images, labels)[1] > 0.98


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
    large, x = LargeNet().eval(), torch.randn(5, 1, 28, 28)
    small = SmallNet((32, 32), (96, 96, 128)).eval()
    small.load_state_dict(large.state_dict())
    output = large(x)
    assert output.dtype == torch.float32 and not torch.equal(output, small(x))
    torch.testing.assert_close(output, small(x), atol=0.01, rtol=0.01)


@pytest.mark.parametrize(("before", "after"), [((8, 8), (16, 24, 19)), ((3,), (5,)), ((2, 3, 4), ())])
def test_small_networks_widths_are_its_arguments(before, after):
    network = SmallNet(before, after)
    widths = [1, *before, *after]
    kernels = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in kernels] == list(zip(widths, widths[1:]))
    expected = sum(9 * i * o + 2 * o for i, o in zip(widths, widths[1:])) + 10 * widths[-1] + 10
    assert parameters(network) == expected
    names = [row["layer"] for row in receptive_field(network)]
    assert names[len(before)] == "pool" and receptive_field(network)[-1]["r_out"] == 28


@pytest.mark.parametrize(("channels", "repeats"), [(16, (4, 3)), (5, (1, 2)), (3, (2, 0))])
def test_tiny_network_shares_one_convolutions_weights(channels, repeats):
    network = TinyNet(channels, repeats).eval()
    c, times = channels, sum(repeats)
    assert parameters(network) == (9 * c + 2 * c) + (9 * c + c * c) + times * 2 * c + (10 * c + 10)
    depthwise, pointwise, *_ = network.shared1[0]
    for index, layer in enumerate(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)):
        nn.init.constant_(layer.weight, 1 + index / 10)
        nn.init.constant_(layer.running_mean, index / 10)
    torch.manual_seed(0)
    images = torch.randn(4, 1, 28, 28)
    norms = iter(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    x = F.max_pool2d(F.silu(next(norms)(network.conv1[0](images))), 2)
    for use in range(times):
        x = F.max_pool2d(x, 2) if use == repeats[0] else x
        x = F.silu(next(norms)(F.conv2d(F.conv2d(x, depthwise.weight, padding=1, groups=c), pointwise.weight)))
    x = x if repeats[1] else F.max_pool2d(x, 2)
    scores = x.mean((2, 3)) @ network.last[2].weight.T + network.last[2].bias
    torch.testing.assert_close(network(images), scores.log_softmax(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deskewing_makes_a_diagonal_vertical(dtype):
    images = torch.full((1, 1, 28, 28), -0.4, dtype=dtype)
    for row in range(9, 19):
        images[0, 0, row, row + 3 : row + 5] = 2.0
    expected = torch.full((28, 28), -0.4, dtype=dtype)
    expected[9:19, 13:15] = 2.0
    torch.testing.assert_close(Deskew()(images)[0, 0], expected)


def test_deskewed_digits_have_no_slant_and_are_centered(mnist):
    ink = Deskew()(utils.normalize(mnist[1][0][:100])).numpy() * utils.STD + utils.MEAN
    row, column = np.mgrid[:28, :28]
    for image in ink[:, 0]:
        y, x = np.average(row, weights=image), np.average(column, weights=image)
        (_, covariance), (_, variance) = np.cov(np.stack([column, row]).reshape(2, -1), aweights=image.ravel())
        assert abs(x - 13.5) < 0.25 and abs(y - 13.5) < 0.25
        assert abs(covariance / variance) < 0.05


def test_deskewing_enlarges_as_torchvision_does_and_leaves_an_empty_image_empty():
    images = torch.zeros(1, 1, 28, 28)
    images[0, 0, 8:20, 12:16] = 1.0
    bilinear = transforms.InterpolationMode.BILINEAR
    expected = transforms.functional.affine(images, 0, [0, 0], 1.2, [0, 0], interpolation=bilinear)
    torch.testing.assert_close(Deskew(1.2)(images), expected)
    empty = torch.full((2, 1, 28, 28), -0.4)
    assert torch.equal(Deskew(1.2)(empty), empty)


def test_deskewed_network_is_the_assignments_behind_deskewing(mnist):
    torch.manual_seed(0)
    plain, images = Net().eval(), utils.normalize(mnist[1][0][:20])
    deskewed = RECIPES["one-cycle-deskewed"].make_network().eval()
    deskewed[1].load_state_dict(plain.state_dict())
    torch.testing.assert_close(deskewed(images), plain(Deskew()(images)))


def test_learned_ink_is_trained_and_deskews_as_what_exceeds_the_ground_does(mnist):
    images = utils.normalize(mnist[1][0][:20])
    torch.manual_seed(0)
    transformer = Deskew(1.2, learned=True)
    transformer(images).square().sum().backward()
    assert sum(parameter.numel() for parameter in transformer.parameters() if parameter.grad.abs().max() > 0) == 10
    kernel = transformer.ink[0]
    nn.init.dirac_(kernel.weight)
    with torch.no_grad():
        kernel.weight *= 1e4  # softplus leaves large values as they are ...
        kernel.bias.fill_(-1e4 * images.min() - 20)  # ... and the ground is nothing
        torch.testing.assert_close(transformer(images), Deskew(1.2)(images), atol=1e-2, rtol=0)


def test_receptive_field_counts_a_shared_layer_each_time():
    rows = receptive_field(TinyNet(4, (2, 1)))
    assert [(row["layer"], row["r_out"], row["n_out"]) for row in rows] == [
        ("conv1", 3, 26),
        ("pool1", 4, 13),
        ("shared1.0.0", 8, 13),
        ("shared1.1.0", 12, 13),
        ("pool2", 14, 6),
        ("shared2", 22, 6),
        ("last", 42, 1),
    ]
