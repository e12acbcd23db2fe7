"""Training and evaluation: against sums by hand, and against themselves with the same seed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import storage
import utils
from model import Net
from runs import AUGMENT, fit, start


def train_epoch(run, images, labels, batch_size=128, augment=lambda images: images):
    batches = utils.batches(images, labels, batch_size, augment)
    return utils.train_epoch(run.model, run.optimizer, run.scheduler, batches, run.loss_fn)


def test_loss_falls_and_digits_are_learnt(mnist):
    (images, labels), test = mnist
    _, history = fit((images[:5000], labels[:5000]), test, epochs=3)
    assert history["train_loss"] == sorted(history["train_loss"], reverse=True)
    assert history["test_accuracy"][-1] > 0.9
    assert history["learning_rate"] == pytest.approx([0.1, 0.1, 0.01])


def test_one_seed_fixes_the_run_bit_for_bit(small):
    (one, first), (same, again), (other, _) = (fit(*small, epochs=2, dropout=0.1, seed=seed) for seed in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), same.state_dict().values()))
    assert all(first[name] == again[name] for name in first if name != "seconds")
    assert not torch.equal(one.conv1[0].weight, other.conv1[0].weight)


def test_mean_loss_and_accuracy_are_over_all_samples(small):
    images, labels = small[0]  # 1,000 images: seven batches of 128 and one of 104
    run = start(small[0], learning_rate=0.0)
    torch.manual_seed(3)
    loss, accuracy = train_epoch(run, images, labels)

    fresh = start(small[0]).model.train()
    torch.manual_seed(3)
    total, correct = 0.0, 0
    for batch in torch.randperm(1000).split(128):
        out = fresh(utils.normalize(images[batch]))
        total += F.nll_loss(out, labels[batch], reduction="sum").item()
        correct += (out.argmax(1) == labels[batch]).sum().item()
    assert loss == pytest.approx(total / 1000, rel=1e-5)
    assert accuracy == correct / 1000


def test_each_image_is_shown_once_an_epoch(small):
    images = torch.arange(200, dtype=torch.uint8)[:, None, None].expand(200, 28, 28)
    labels = torch.arange(200) % 10
    shown = [value for x, _ in utils.batches(images, labels, 32, lambda x: x) for value in x[:, 0, 0, 0].tolist()]
    expected = utils.normalize(images)[:, 0, 0, 0].tolist()
    assert shown != expected and sorted(shown) == expected


@pytest.mark.parametrize("augment", [lambda x: x.float(), lambda x: x[:, :27], lambda x: x[:, None], nn.Flatten()])
def test_an_augmentation_that_changes_shape_or_type_is_named(small, augment):
    with pytest.raises(ValueError, match="that is what the augmentation returned"):
        next(utils.batches(*small[0], 32, augment))


def test_evaluation_is_in_order_and_over_all_samples(small):
    model = start(small[0]).model
    images, labels = small[1]
    out = model.eval()(utils.normalize(images)).detach()
    model.train()
    predicted = utils.predict(model, images, batch_size=64)
    torch.testing.assert_close(predicted, out)
    assert not predicted.requires_grad
    loss, accuracy = utils.evaluate(model, images, labels)
    assert loss == pytest.approx(-sum(out[i, label].item() for i, label in enumerate(labels)) / 500, rel=1e-5)
    assert accuracy == sum(out[i].argmax().item() == label for i, label in enumerate(labels.tolist())) / 500


def test_evaluation_changes_nothing(small):
    model = start(small[0]).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    utils.evaluate(model, *small[1])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_history_has_one_entry_per_epoch_and_ends_with_the_trained_network(small):
    model, history = fit(*small, epochs=2)
    assert {len(values) for values in history.values()} == {2}
    assert (history["test_loss"][-1], history["test_accuracy"][-1]) == utils.evaluate(model, *small[1])


@pytest.mark.parametrize("learning_rate", [1e30, 1e38, float("nan")])
def test_a_loss_that_explodes_in_any_batch_or_the_test_is_an_error(small, learning_rate, tmp_path):
    (images, labels), test = small
    for count in (128, 1000):  # with one batch, only the test shows it
        run = start((images[:count], labels[:count]), learning_rate=learning_rate)
        with pytest.raises(FloatingPointError, match="a lower learning rate may help"):
            utils.fit(run, (images[:count], labels[:count]), test, tmp_path / "run.pt")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [dict(epochs=0), dict(epochs=1.5), dict(batch_size=0), dict(batch_size=12.5)])
def test_epochs_and_batch_size_are_whole_numbers(small, wrong):
    run = start(small[0])
    parts = {name: getattr(run, name) for name in ("model", "optimizer", "scheduler", "augment", "loss_fn")}
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number of at least 1"):
        utils.Run(**parts, **(dict(epochs=1, batch_size=128) | wrong))


def test_bad_training_and_test_data_are_named_before_training(small):
    (images, labels), test = small
    with pytest.raises(ValueError, match="1000 images but 999 labels"):
        fit((images, labels[:-1]), test)
    with pytest.raises(ValueError, match="empty"):
        fit((images, labels), (test[0][:0], test[1][:0]))
    with pytest.raises(ValueError, match="from 0 to 10"):
        fit((images, labels + (labels == 9)), test)
    for arguments in ((images[:0],), (images, 0)):
        with pytest.raises(ValueError, match="needs images and a batch_size of at least 1"):
            utils.predict(start(small[0]).model, *arguments)


def test_the_fast_layout_computes_what_the_plain_one_does(small):
    """Outputs and gradients against the network as it is made, in double precision."""
    torch.manual_seed(0)
    plain = Net().double()
    fast = utils.to_device(utils.to_device(Net(), "cpu"), "cpu")  # a second time changes nothing
    fast.load_state_dict(plain.state_dict())
    x, y = utils.normalize(small[0][0][:64]), small[0][1][:64]
    for training in (True, False):
        for model, images in ((plain, x.double()), (fast, x)):
            model.zero_grad()
            F.nll_loss(model.train(training)(images), y).backward()
        for ours, theirs in zip(fast.parameters(), plain.parameters()):
            assert F.cosine_similarity(ours.grad.flatten(), theirs.grad.float().flatten(), dim=0) > 0.99
    with torch.no_grad():
        expected = plain(x.double())
        torch.testing.assert_close(fast(x), expected.float(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(fast.double()(x.double()), expected, rtol=1e-3, atol=1e-3)


def test_dropout_which_has_no_fast_layout_trains_too(small):
    _, history = fit(*small, epochs=1, dropout=0.2)
    assert history["train_loss"][0] < 2.3


def test_without_onednn_the_network_trains_in_channels_last(small, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    _, history = fit(*small, epochs=1)
    assert history["train_loss"][0] < 2.3


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="fake tensors of older versions ask for a driver")
def test_a_batch_on_a_gpu_mixes_no_devices():
    """Without hardware: fake tensors know their shape and device, and fail where a real batch would."""
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        images, labels = torch.zeros(256, 28, 28, dtype=torch.uint8), torch.zeros(256, dtype=torch.int64)
        model = Net()
        for x, y in utils.batches(images, labels, 128, AUGMENT):
            loss = F.nll_loss(model(x), y)
            assert x.device.type == y.device.type == loss.device.type == "cuda"


def test_weights_come_back(small, tmp_path):
    model, _ = fit(*small, epochs=1)
    storage.save_weights(model, tmp_path / "weights.pt")
    other = storage.load_weights(utils.to_device(Net(), "cpu"), tmp_path / "weights.pt")
    assert torch.equal(utils.predict(other, small[1][0]), utils.predict(model, small[1][0]))


@pytest.mark.parametrize("kind", ["foreign", "truncated", "list", "partly fitting", "nan"])
def test_wrong_weights_are_named_and_leave_the_network_as_it_was(tmp_path, kind):
    path, network = tmp_path / "weights.pt", Net()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = {name: torch.ones_like(value) for name, value in before.items()}
    if kind == "foreign":
        weights = nn.Linear(2, 2).state_dict()
    if kind == "list":
        weights = [1, 2]
    if kind == "partly fitting":
        weights["conv6.0.weight"] = torch.ones(1, 1, 3, 3)
    if kind == "nan":
        weights["conv6.0.weight"][0] = float("nan")
    torch.save(weights, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(RuntimeError, match="weights.pt"):
        storage.load_weights(network, path)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
