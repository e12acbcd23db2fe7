"""The lab's networks: the teachers' weights, deskewing against digits turned by hand and by torchvision."""

import pytest
import torch
import torch.nn.functional as F
from torchvision import transforms

import storage
import utils
from conftest import ROOT
from experiments.networks import Deskew
from experiments.recipes import RECIPES, build, make_network
from model import Net
from onednn import blocked


@pytest.mark.parametrize("path", sorted((ROOT / "results/teachers").glob("*.pt")), ids=lambda path: path.stem)
def test_the_teachers_weights_fit_and_classify(path, mnist):
    recipe = path.stem.rsplit("-", 2)[0]
    network = storage.load_weights(make_network(RECIPES[recipe]), path)
    images, labels = (part[:50] for part in mnist[1])
    assert utils.evaluate(network, images, labels)[1] > 0.95


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


def test_learned_ink_is_trained_with_the_network_behind_it(mnist):
    torch.manual_seed(1)
    ink = Deskew(1.2, learned=True).state_dict()
    torch.manual_seed(1)
    transformer, network = make_network(RECIPES["tiny-980"])
    assert all(map(torch.equal, ink.values(), transformer.state_dict().values()))  # drawn first, as in the records
    network(transformer(utils.normalize(mnist[1][0][:20]))).square().sum().backward()
    assert sum(parameter.numel() for parameter in transformer.parameters() if parameter.grad.abs().max() > 0) == 10


def test_shifts_are_averaged_in_evaluation_and_training_is_that_of_the_network(small):
    averaged, network = build(RECIPES["one-cycle-elastic"], small[0])["network"], Net()
    storage.load_weights(network, ROOT / "results/weights.pt")
    averaged.load_state_dict(dict(zip(averaged.state_dict(), network.state_dict().values())))
    images, labels = utils.normalize(small[1][0][:20]), small[1][1][:20]
    shifted = [images, *(images.roll(step, axis) for step in (-1, 1) for axis in (2, 3))]  # their edges are black
    answers = torch.stack([network.eval()(view) for view in shifted]).mean(0)
    torch.testing.assert_close(averaged.eval()(images), answers.log_softmax(1), rtol=1e-3, atol=1e-3)
    for model in (blocked(network.train()), averaged.train()):
        F.nll_loss(model(images), labels).backward()
    for ours, expected in zip(averaged.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours.grad, expected.grad)
