"""Training and evaluation: against sums by hand, and against themselves with the same seed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch._subclasses.fake_tensor import FakeTensorMode

import storage
import utils
from model import Net
from trainings import AUGMENT, fit, start


def test_loss_falls_and_digits_are_learnt(mnist):
    (images, labels), (test_images, test_labels) = mnist
    _, history = fit((images[:5000], labels[:5000]), (test_images[:1000], test_labels[:1000]), epochs=3)
    assert history["train_loss"] == sorted(history["train_loss"], reverse=True) and history["test_accuracy"][-1] > 0.9
    assert history["learning_rate"] == pytest.approx([0.1, 0.1, 0.01])


def test_mean_loss_and_accuracy_are_over_all_images_each_once_with_its_label(small):
    images, labels = small[0]  # 1,000 images: seven batches of 128 and one of 104
    network, optimizer, scheduler, loader = start(small[0], learning_rate=0.0, augment=lambda images: images)
    fresh = copy.deepcopy(network).train()
    torch.manual_seed(3)
    loss, accuracy = utils.train_epoch(network, loader, F.nll_loss, optimizer, scheduler)
    torch.manual_seed(3)
    total, correct = 0.0, 0
    for batch in torch.randperm(1000).split(128):
        out = fresh(utils.normalize(images[batch]))
        total += F.nll_loss(out, labels[batch], reduction="sum").item()
        correct += (out.argmax(1) == labels[batch]).sum().item()
    assert loss == pytest.approx(total / 1000, rel=1e-5) and accuracy == correct / 1000 and len(loader) == 8


def test_evaluation_is_of_all_images_in_evaluation_mode(small):
    (images, labels), network = small[1], Net(0.5).train()
    out = copy.deepcopy(network).eval()(utils.normalize(images))
    expected = F.nll_loss(out, labels).item(), (out.argmax(1) == labels).sum().item() / 500
    assert utils.evaluate(network, images, labels) == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_explodes_and_images_without_labels_are_errors(small):
    with pytest.raises(FloatingPointError, match="a lower learning rate may help"):
        fit(*small, epochs=1, learning_rate=1e38)
    with pytest.raises(ValueError, match="each image needs one label"):
        utils.Loader(small[0][0], small[1][1], 32, AUGMENT)


def layers(*middle: nn.Module) -> nn.Sequential:
    last = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10), nn.LogSoftmax(1))
    return nn.Sequential(nn.Conv2d(1, 4, 3), *middle, last)


class Keeping(Net):
    def forward(self, images):
        self.kept = super().forward(images)
        return self.kept


HOOKED = Net()
HOOKED.conv2.register_forward_hook(lambda *_: None)
SHARED = nn.ReLU()  # a layer in two places
FAST = Net(), layers(nn.ReLU(inplace=True)), layers(SHARED, nn.MaxPool2d(2), nn.BatchNorm2d(4), SHARED)
REFUSED = [Net(0.1), HOOKED, Keeping(), layers(nn.SiLU()), layers(nn.PReLU(4)), layers(nn.GELU("tanh"))]
REFUSED += [layers(nn.BatchNorm2d(4, affine=False)), layers(nn.MaxPool2d(2, dilation=2))]
REFUSED += [layers(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
@pytest.mark.parametrize("network", [*FAST, *REFUSED], ids=lambda network: repr(network[1])[:60])
def test_the_blocked_layout_trains_like_the_network_itself_or_is_not_used(small, monkeypatch, network):
    fast = utils.blocked(network, utils.normalize(small[0][0][:8]))
    assert isinstance(fast, utils.Blocked) == (network in FAST)
    plain = copy.deepcopy(network)
    _, history = fit(*small, epochs=1, network=network, learning_rate=0.001)
    monkeypatch.setattr(utils, "blocked", lambda network, _: network)
    _, expected = fit(*small, epochs=1, network=plain, learning_rate=0.001)
    assert history["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
    for ours, theirs in zip(network.parameters(), plain.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


def test_a_plateau_lowers_the_rate(small):
    network, optimizer, _, loader = start(small[0], learning_rate=1e-9)
    scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5, eps=0)
    history = utils.fit(network, optimizer, scheduler, loader, small[1], 3)
    assert history["learning_rate"] == pytest.approx([1e-9, 1e-9, 1e-10])


def test_all_stays_on_the_device_of_the_images():
    """No GPU is needed: fake tensors know their device, and mixing two fails as it would there."""
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        images, labels = torch.zeros(256, 28, 28, dtype=torch.uint8), torch.zeros(256, dtype=torch.int64)
        network = Net()
        for x, y in utils.Loader(images, labels, 128, AUGMENT):
            loss = F.nll_loss(network(x), y)
            assert x.device.type == y.device.type == loss.device.type == "cuda"


def test_weights_that_fit_only_in_part_are_refused_and_leave_the_network_as_it_was(tmp_path):
    network = Net()
    before = copy.deepcopy(network.state_dict())
    torch.save(Net().state_dict() | {"conv6.0.weight": torch.ones(1, 1, 3, 3)}, tmp_path / "weights.pt")
    with pytest.raises(RuntimeError):
        storage.load_weights(network, tmp_path / "weights.pt")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
