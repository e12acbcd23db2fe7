"""Training and evaluation: against sums by hand, and against themselves with the same seed."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import optim

import utils
from model import Net

AUGMENT = partial(utils.augment, zoom_probability=0.1, max_degrees=15)


def start(train, seed=1, learning_rate=0.1, dropout=0.0):
    torch.manual_seed(seed)
    model = Net(dropout).to(memory_format=torch.channels_last)
    optimizer = optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 2 * math.ceil(len(train[0]) / 128), gamma=0.1)
    return model, optimizer, scheduler


def fit(train, test, epochs=3, **options):
    model, *rest = start(train, **options)
    history = utils.fit(model, *rest, train, test, epochs, 128, AUGMENT)
    return model, history


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
    model, optimizer, scheduler = start(small[0], learning_rate=0.0)
    torch.manual_seed(3)
    loss, accuracy = utils.train_epoch(model, optimizer, scheduler, images, labels, 128, lambda x: x, "epoch 1/1")

    fresh = start(small[0])[0].train()
    torch.manual_seed(3)
    total, hits = 0.0, 0
    for batch in torch.randperm(1000).split(128):
        out = fresh(utils.normalize(images[batch]))
        total += F.nll_loss(out, labels[batch], reduction="sum").item()
        hits += (out.argmax(1) == labels[batch]).sum().item()
    assert loss == pytest.approx(total / 1000, rel=1e-5)
    assert accuracy == hits / 1000


def test_each_image_is_shown_once_an_epoch(small):
    images = torch.arange(200, dtype=torch.uint8)[:, None, None].expand(200, 28, 28)
    labels = torch.arange(200) % 10
    shown = []
    model, optimizer, scheduler = start((images, labels))

    def watch(batch):
        shown.extend(batch[:, 0, 0].tolist())
        return batch

    utils.train_epoch(model, optimizer, scheduler, images, labels, 32, watch, "epoch 1/1")
    assert shown != sorted(shown) and sorted(shown) == list(range(200))


def test_distillation_loss_is_hintons():
    torch.manual_seed(1)
    ours, theirs = (F.log_softmax(3 * torch.randn(5, 10), dim=1) for _ in range(2))
    softened = (torch.distributions.Categorical(logits=values / 2) for values in (theirs, ours))
    divergence = torch.distributions.kl_divergence(*softened).mean()
    torch.testing.assert_close(utils.distillation_loss(torch.tensor(2.0), ours, theirs), 0.2 + 0.9 * 4 * divergence)


def test_a_teacher_steers_the_student_and_stays_as_it_is(small):
    images, labels = (part[:100] for part in small[0])
    teacher = start(small[0], seed=2)[0]
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    model, optimizer, scheduler = start(small[0])
    model_alone, *rest = start(small[0])
    torch.manual_seed(3)
    one = utils.train_epoch(model, optimizer, scheduler, images, labels, 100, lambda x: x, "epoch 1/1", teacher)
    torch.manual_seed(3)
    assert utils.train_epoch(model_alone, *rest, images, labels, 100, lambda x: x, "epoch 1/1") == one

    by_hand = start(small[0])[0].train()
    torch.manual_seed(3)
    order = torch.randperm(100)
    x = utils.normalize(images[order])
    out, taught = by_hand(x), teacher.eval()(x).detach()
    loss = utils.distillation_loss(F.nll_loss(out, labels[order]), out, taught)
    gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
    for trained, fresh, gradient in zip(model.parameters(), by_hand.parameters(), gradients):
        torch.testing.assert_close(trained, fresh - 0.1 * gradient)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_evaluation_is_in_order_and_over_all_samples(small):
    model = start(small[0])[0]
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
    model = start(small[0])[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    utils.evaluate(model, *small[1])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_history_has_one_entry_an_epoch_and_ends_with_the_trained_network(small):
    model, history = fit(*small, epochs=2)
    assert {len(values) for values in history.values()} == {2}
    assert (history["test_loss"][-1], history["test_accuracy"][-1]) == utils.evaluate(model, *small[1])


def test_a_loss_that_explodes_is_named_with_epoch_batch_and_learning_rate(small):
    with pytest.raises(
        FloatingPointError, match=r"epoch  1/3: the loss became (nan|inf) in batch \d of 8, at .* 1e\+30"
    ):
        fit(*small, learning_rate=1e30)


@pytest.mark.parametrize("epochs, batch_size", [(0, 128), (3, 0)])
def test_nothing_to_do_is_an_error(small, epochs, batch_size):
    with pytest.raises(ValueError, match="at least 1"):
        utils.fit(*start(small[0]), *small, epochs, batch_size, AUGMENT)


def test_bad_training_and_test_data_are_named_before_training(small):
    (images, labels), test = small
    with pytest.raises(ValueError, match="1000 images but 999 labels"):
        fit((images, labels[:-1]), test)
    with pytest.raises(ValueError, match="empty"):
        fit((images, labels), (test[0][:0], test[1][:0]))
    with pytest.raises(ValueError, match="from 0 to 10"):
        utils.train_epoch(*start((images, labels)), images, labels + (labels == 9), 128, AUGMENT, "epoch 1/1")
    with pytest.raises(ValueError, match="no images"):
        utils.predict(start(small[0])[0], images[:0])


def test_weights_come_back(small, tmp_path):
    model, _ = fit(*small, epochs=1)
    utils.save_weights(model, tmp_path / "weights.pt")
    other = Net().to(memory_format=torch.channels_last)
    utils.load_weights(other, tmp_path / "weights.pt")
    assert torch.equal(utils.predict(other, small[1][0]), utils.predict(model, small[1][0]))


def test_foreign_or_damaged_weights_are_named(tmp_path):
    path = tmp_path / "weights.pt"
    utils.save_weights(torch.nn.Linear(2, 2), path)
    with pytest.raises(RuntimeError, match="weights.pt does not hold weights of this network"):
        utils.load_weights(Net(), path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(RuntimeError, match="weights.pt"):
        utils.load_weights(Net(), path)
    torch.save([1, 2], path)
    with pytest.raises(RuntimeError, match="weights.pt does not hold weights of this network"):
        utils.load_weights(Net(), path)
