"""The recipes are their records'; what each setting does, against torchvision, torch and numbers computed by hand."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import functional as tv

import storage
import utils
from conftest import ROOT
from experiments.recipes import RECIPES, TAUGHT, build, make_loss, make_network
from experiments.study import change, size
from experiments.training import TaughtLoader, fading, random_affine, sgd, zoom_and_rotation
from model import Net

BLANK = torch.zeros(600, 28, 28, dtype=torch.uint8), torch.zeros(600, dtype=torch.int64)


def test_every_record_has_the_settings_and_the_size_of_its_recipe_and_every_recipe_has_records():
    notebook, found = storage.load_record(ROOT / "results/notebook.json")["hyperparameters"], set()
    assert notebook.items() <= (RECIPES["reference"] | dict(seed=notebook["seed"], training_images=60_000)).items()
    for path in ROOT.glob("results/*/*/*.json"):
        name, *changes = path.parent.name.split("+")
        settings, record = RECIPES[name] | dict(map(change, changes)), storage.load_record(path)
        assert record["hyperparameters"] == settings and record["parameters"] == size(make_network(settings)), path
        found.add(name)
    assert found == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains(name):
    settings = {key: value for key, value in RECIPES[name].items() if key not in TAUGHT}
    training = build(settings, BLANK)
    x, y = next(iter(training["loader"]))
    assert x.shape == (settings["batch_size"], 1, 28, 28) and training["loss_fn"](training["network"](x), y).isfinite()


def test_a_setting_that_nothing_takes_is_refused():
    wrong = [("reference", "learning_rat"), ("reference", "fade_to"), ("one-cycle", "stride")]
    for name, unused in [*wrong, ("small-9710", "temperature"), ("tiny-970", "learned_ink")]:
        with pytest.raises(ValueError, match=f"nothing takes {unused} in"):
            build(RECIPES[name] | {unused: 1}, BLANK)
    with pytest.raises(ValueError, match="there is no network Nett"):
        build(RECIPES["reference"] | dict(network="Nett"), BLANK)


def test_weight_decay_is_for_kernels_and_no_parameter_is_left_out():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    network.scale = nn.Parameter(torch.tensor(1.0))
    kernels, others = sgd(network.parameters(), 0.1, 0.9, False, 0.5).param_groups
    assert [parameter.ndim for parameter in kernels["params"]] == [4] and kernels["weight_decay"] == 0.5
    assert sorted(parameter.ndim for parameter in others["params"]) == [0, 1, 1, 1] and others["weight_decay"] == 0


def test_learning_rates_are_those_of_the_settings():
    """Steps of the schedule are epochs in `reference`, batches in `one-cycle`: ten of 60 images in each of 5 epochs."""
    rates = []
    for name, changes, steps in (("reference", {}, 19), ("one-cycle", dict(epochs=5, batch_size=60), 50)):
        training = build(RECIPES[name] | changes, BLANK)
        for _ in range(steps):
            rates.append(training["optimizer"].param_groups[0]["lr"])
            training["optimizer"].step()
            training["scheduler"].step()
    rise, fall = torch.linspace(0.004, 0.4, 10), torch.linspace(0.4, 0, 41)
    expected = torch.cat([torch.full([10], 0.25), torch.full([9], 0.025), rise, fall[1:]])
    torch.testing.assert_close(torch.tensor(rates), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_zoom_and_rotation_are_the_lessons_with_a_choice_of_interpolation(mnist, monkeypatch, mode):
    torch.manual_seed(1)
    ours = zoom_and_rotation(mnist[0][0][:10], 0.5, 15, mode)
    monkeypatch.setattr(utils, "rotate", partial(utils.rotate, mode=mode))
    torch.manual_seed(1)
    assert torch.equal(ours, utils.augment(mnist[0][0][:10], 0.5, 15))


def test_random_affine_is_torchvisions(mnist, monkeypatch):
    """Each amount alone, against `affine` of one image with the same numbers."""
    images = mnist[0][0][:10]
    draws = torch.linspace(-1, 1, 60).view(6, 10).roll(7, 1)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda tensor, low, high: draws)

    draws[3] = draws[2]  # torchvision scales both axes alike
    changes = [
        ("max_degrees", 10, [dict(angle=-degrees) for degrees in (10 * draws[0]).tolist()]),
        ("max_shear", 0.3, [dict(shear=[angle, 0.0]) for angle in torch.atan(0.3 * draws[1]).rad2deg().tolist()]),
        ("max_scale", 0.2, [dict(scale=scale) for scale in (1 + 0.2 * draws[2]).tolist()]),
        ("max_shift", 2, [dict(translate=[-x, -y]) for x, y in (2 * draws[4:]).round().int().T.tolist()]),
    ]
    usual = dict(angle=0, translate=[0, 0], scale=1, shear=[0.0])
    for name, amount, arguments in changes:
        ours = random_affine(images, **(dict(max_degrees=0, max_shift=0, max_scale=0, max_shear=0) | {name: amount}))
        theirs = torch.cat([tv.affine(image[None], **(usual | change)) for image, change in zip(images, arguments)])
        assert ((ours.int() - theirs.int()).abs() > 1).float().mean() < 0.001


def test_elastic_variants_are_torchvisions(mnist):
    images, still = mnist[0][0][:10], dict(max_degrees=0, max_shift=0, max_scale=0, max_shear=0)
    torch.manual_seed(1)
    ours = random_affine(images, **still, elastic=1.5)
    torch.manual_seed(1)
    torch.empty(6, 10).uniform_(-1, 1)  # drawn first, for the affine part
    pixels = F.interpolate(1.5 * torch.randn(10, 2, 6, 6), size=(28, 28), mode="bicubic", align_corners=True)
    for image, result, (x, y) in zip(images, ours, pixels / 28 * 2):  # torchvision counts from -1 to 1
        expected = tv.elastic_transform(image[None], torch.stack([x, y], dim=2)[None], tv.InterpolationMode.NEAREST)
        assert ((result.int() - expected[0].int()).abs() > 1).float().mean() < 0.01
    assert (ours != images).float().mean() > 0.1


def test_fading_augmentation_falls_linearly_to_its_end():
    cycle = SimpleNamespace(total_steps=40)  # batches
    faded = fading(partial(lambda images, amount: amount, amount=10.0), cycle, fade_from=0.5, fade_to=0.3)
    for cycle.last_epoch, amount in ((0, 10.0), (20, 10.0), (30, 6.5), (40, 3.0)):
        assert faded(None) == pytest.approx(amount)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_is_torchs_and_for_training_only(smoothing):
    scores, labels = torch.randn(7, 10, requires_grad=True), torch.randint(10, (7,))
    loss_fn = build(RECIPES["reference"] | dict(label_smoothing=smoothing), BLANK)["loss_fn"]
    expected = partial(F.cross_entropy, scores, labels)
    torch.testing.assert_close(loss_fn(scores.log_softmax(1), labels), expected(label_smoothing=smoothing))
    torch.testing.assert_close(loss_fn(scores.log_softmax(1).detach(), labels), expected().detach())


def test_distillation_loss_is_hintons_and_for_training_only(small):
    torch.manual_seed(1)
    teachers, (images, labels) = [Net(), Net()], (part[:5] for part in small[0])
    loader = TaughtLoader(images, labels, 5, lambda batch: batch.flip(2), teachers=teachers)
    ((x, y),) = loader
    expected = sum(teacher.eval()(x).exp() for teacher in teachers).div(2).log().detach()
    torch.testing.assert_close(loader.soft_targets, expected)
    student = F.log_softmax(3 * torch.randn(5, 10, requires_grad=True), dim=1)
    softened = (torch.distributions.Categorical(logits=values / 2) for values in (expected, student))
    divergence = torch.distributions.kl_divergence(*softened).mean()
    loss_fn = make_loss(RECIPES["one-cycle-taught"], loader)  # temperature 2, weight 0.9
    torch.testing.assert_close(loss_fn(student, y), 0.1 * F.cross_entropy(student, y) + 0.9 * 4 * divergence)
    torch.testing.assert_close(loss_fn(student.detach(), y), F.cross_entropy(student.detach(), y))
