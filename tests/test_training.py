"""Training and evaluation: against sums by hand, and against themselves with the same seed."""

import copy
import math
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import onednn
import storage
import utils
from conftest import ROOT
from model import Net
from trainings import AUGMENT, fit, start


def test_the_loop_gives_the_numbers_that_it_always_gave(small):
    """Written down, at a rate so low that another rounding changes little."""
    network, history = fit(*small, epochs=3, learning_rate=0.003)
    assert history["train_loss"] == pytest.approx([2.2841, 2.2190, 2.1570], rel=1e-3)
    assert history["test_loss"] == pytest.approx([2.3005, 2.2976, 2.2776], rel=1e-3)
    assert history["train_accuracy"] == pytest.approx([0.136, 0.264, 0.330], abs=0.02)
    assert sum(parameter.abs().sum().item() for parameter in network.parameters()) == pytest.approx(568.06, rel=1e-4)


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


class Scores(Net):
    """Scores that are far from log-probabilities."""

    def forward(self, x):
        return 3 * super().forward(x) + 5


def test_scores_are_evaluated_as_the_log_probabilities_that_they_mean(small):
    (images, labels), network = small[1], Scores()
    log_probabilities = utils.predict(network, images)
    torch.testing.assert_close(log_probabilities, network(utils.normalize(images)).log_softmax(1))
    assert torch.equal(utils.predict(Net(), images).exp().sum(1).round(decimals=5), torch.ones(500))
    loss, _ = utils.evaluate(network, images, labels)
    assert loss == pytest.approx(F.nll_loss(log_probabilities, labels).item(), rel=1e-5)


def test_the_test_loss_is_of_the_training_losss_kind(small):
    smooth = nn.CrossEntropyLoss(label_smoothing=0.5)
    _, history = fit(*small, epochs=1, network=Scores(), loss_fn=smooth)
    floor = -(0.55 * math.log(0.55) + 9 * 0.05 * math.log(0.05))  # of a perfect prediction
    assert min(history["train_loss"] + history["test_loss"]) > floor


def test_any_loss_of_what_the_network_returns_is_evaluated(small):
    images, labels = small[1]

    def squared(output, y):
        return F.mse_loss(output, F.one_hot(y, 10).float())

    network = Scores().eval()
    expected = (network(utils.normalize(images)) - F.one_hot(labels, 10)).square().mean().item()
    assert utils.evaluate(network, images, labels, squared)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rate, network", [(0.1, Scores()), (1e38, Net())], ids=["scores", "a rate too high"])
def test_a_loss_that_is_none_ends_the_first_epoch(small, rate, network):
    with pytest.raises(FloatingPointError, match="take F.cross_entropy in place of F.nll_loss; else .* lower learning"):
        fit(*small, epochs=9, learning_rate=rate, network=network)


def test_images_without_labels_and_trainings_without_epochs_are_errors(small):
    with pytest.raises(ValueError, match="each image needs one label"):
        utils.Loader(small[0][0], small[1][1], 32, AUGMENT)
    with pytest.raises(ValueError, match="at least one epoch, got 0"):
        fit(*small, epochs=0)


SCHEDULERS = {  # of a rate of 0.1, with eight batches an epoch: the rates at the start of three epochs
    "StepLR": (lambda o: lr_scheduler.StepLR(o, 1, 0.1), [0.1, 0.01, 0.001]),
    "LambdaLR": (lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)), [0.1, 0.05, 0.1 / 3]),
    "OneCycleLR": (lambda o: lr_scheduler.OneCycleLR(o, 1.0, 25, None, None, 9 / 25, "linear"), [0.04, 1.0, 0.5]),
    "CyclicLR": (lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.9, step_size_up=8), [0.1, 0.9, 0.1]),
    "None": (lambda o: None, [0.1, 0.1, 0.1]),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_step_after_every_epoch_or_after_every_batch(small, name):
    make, rates = SCHEDULERS[name]
    network, optimizer, _, loader = start(small[0])
    history = utils.fit(network, optimizer, make(optimizer), loader, small[1], 3)
    assert history["learning_rate"] == pytest.approx(rates, abs=0.003)


@pytest.mark.parametrize("mode, falls", [("min", True), ("max", False)])
def test_a_plateau_is_one_of_training_loss_or_accuracy(small, monkeypatch, mode, falls):
    """The loss stays, the accuracy rises."""
    results = iter([(1.0, 0.1), (1.0, 0.2), (1.0, 0.3)])
    monkeypatch.setattr(utils, "train_epoch", lambda *_: next(results))
    network, optimizer, _, loader = start(small[0])
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, mode, patience=0)
    history = utils.fit(network, optimizer, scheduler, loader, small[1], 3)
    assert history["learning_rate"] == pytest.approx([0.1, 0.1, 0.01 if falls else 0.1])


def test_any_iterable_of_batches_is_a_loader(small):
    images, labels = small[0]
    network, optimizer, scheduler, _ = start(small[0])
    x = utils.normalize(images)
    iterations = []

    class Counted(DataLoader):
        def __iter__(self):
            iterations.append(len(self))
            return super().__iter__()

    batches = Counted(TensorDataset(x, labels), batch_size=128)
    history = utils.fit(network, optimizer, scheduler, batches, small[1], 1)
    assert len(iterations) == 1
    network, optimizer, scheduler, _ = start(small[0])
    expected = utils.fit(network, optimizer, scheduler, list(zip(x.split(128), labels.split(128))), small[1], 1)
    assert history["train_loss"] == expected["train_loss"] and history["train_loss"][0] < 2.3


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
    state = torch.get_rng_state()
    assert isinstance(utils.blocked(network), onednn.Blocked) == (network in FAST)
    assert torch.equal(torch.get_rng_state(), state)
    plain = copy.deepcopy(network)
    _, history = fit(*small, epochs=1, network=network, learning_rate=0.001)
    monkeypatch.setattr(utils, "blocked", lambda network: network)
    _, expected = fit(*small, epochs=1, network=plain, learning_rate=0.001)
    assert history["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
    for ours, theirs in zip(network.parameters(), plain.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


def test_no_more_threads_are_used_than_there_are_cores(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    utils.blocked(Net())
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)


def test_nothing_rests_on_asserts():
    """Under `python -O` there are none."""
    code = "from torch import nn; import onednn; print(onednn.blocked(nn.Sequential(nn.Conv2d(1, 2, 3), nn.PReLU(2))))"
    command = [sys.executable, "-O", "-c", code]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.startswith("Sequential(")


NEEDS_DRIVER = torch.__version__ < "2.7" and not torch.cuda.is_available()


@pytest.mark.skipif(NEEDS_DRIVER, reason="torch 2.6 needs a driver even for fake tensors")
def test_all_stays_on_the_device_of_the_images():
    """No GPU is needed: fake tensors know their device, and mixing two fails as it would there."""
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        images, labels = torch.zeros(256, 28, 28, dtype=torch.uint8), torch.zeros(256, dtype=torch.int64)
        network = Net()
        for x, y in utils.Loader(images, labels, 128, AUGMENT):
            loss = F.nll_loss(network(x), y)
            assert x.device.type == y.device.type == loss.device.type == "cuda"


def test_weights_of_a_wrapped_network_are_those_of_the_network(tmp_path):
    network = Net()
    for wrap in (nn.DataParallel, partial(torch.compile, backend="eager")):
        storage.save_weights(wrap(network), tmp_path / "weights.pt")
        for other in (Net(), wrap(Net())):
            weights = storage.unwrapped(storage.load_weights(other, tmp_path / "weights.pt")).state_dict()
            assert all(map(torch.equal, weights.values(), network.state_dict().values()))


def test_weights_that_fit_only_in_part_are_refused_and_leave_the_network_as_it_was(tmp_path):
    network = Net()
    before = copy.deepcopy(network.state_dict())
    torch.save(Net().state_dict() | {"conv6.0.weight": torch.ones(1, 1, 3, 3)}, tmp_path / "weights.pt")
    with pytest.raises(RuntimeError):
        storage.load_weights(network, tmp_path / "weights.pt")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
