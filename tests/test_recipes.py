"""The recipes: what each setting does, against torchvision, torch's own functions and numbers computed by hand."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import functional as tv

import storage
from conftest import ROOT
from experiments.recipes import ONE_CYCLE, RECIPES, REFERENCE, TaughtLoader, distillation, random_affine, sgd
from model import Net


def test_the_reference_recipe_is_the_notebooks():
    notebook = storage.load_record(ROOT / "results/notebook.json")["hyperparameters"]
    assert notebook.items() <= (REFERENCE.settings() | dict(seed=notebook["seed"], training_images=60_000)).items()


@pytest.mark.parametrize("name", RECIPES)
def test_settings_survive_json_and_make_the_recipe_again(name):
    recipe = RECIPES[name]
    settings = json.loads(json.dumps(recipe.settings()))
    assert type(recipe)(title=recipe.title, **settings) == recipe
    images = torch.zeros(600, 28, 28, dtype=torch.uint8)
    parts = replace(recipe, teacher=None).build((images, torch.zeros(600, dtype=torch.int64)))
    x, y = next(iter(parts["loader"]))
    assert x.shape == (recipe.batch_size, 1, 28, 28) and parts["loss_fn"](parts["network"](x), y).isfinite()


def test_weight_decay_is_for_kernels_and_no_parameter_is_left_out():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    network.scale = nn.Parameter(torch.tensor(1.0))
    kernels, others = sgd(network, 0.1, 0.9, False, 0.5).param_groups
    assert [parameter.ndim for parameter in kernels["params"]] == [4] and kernels["weight_decay"] == 0.5
    assert sorted(parameter.ndim for parameter in others["params"]) == [0, 1, 1, 1] and others["weight_decay"] == 0


def test_learning_rates_are_those_of_the_settings():
    rates, images, labels = [], torch.zeros(1_000, 28, 28, dtype=torch.uint8), torch.zeros(1_000, dtype=torch.int64)
    for recipe in (REFERENCE, replace(ONE_CYCLE, epochs=5)):
        parts = replace(recipe, batch_size=100).build((images, labels))
        for _ in range(10 * recipe.epochs):
            rates.append(parts["optimizer"].param_groups[0]["lr"])
            parts["optimizer"].step()
            parts["scheduler"].step()
    rise, fall = torch.linspace(0.004, 0.4, 10), torch.linspace(0.4, 0, 41)
    expected = torch.cat([torch.full([100], 0.25), torch.full([90], 0.025), rise, fall[1:]])
    torch.testing.assert_close(torch.tensor(rates), expected, rtol=1e-3, atol=1e-5)


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
    recipe = replace(ONE_CYCLE, fade_from=0.5, fade_to=0.3)
    for done, share in ((0.0, 1.0), (0.5, 1.0), (0.75, 0.65), (1.0, 0.3)):
        usual = dict(max_degrees=10.0, max_shift=1.0, max_scale=0.05, max_shear=0.05)
        assert recipe.amounts(done) == pytest.approx({name: share * amount for name, amount in usual.items()})
    assert REFERENCE.amounts(1.0) == dict(zoom_probability=0.1, max_degrees=15.0, mode="nearest")


def test_label_smoothing_is_torchs(small):
    scores, labels = torch.randn(7, 10), torch.randint(10, (7,))
    for smoothing in (0.0, 0.1):
        loss = replace(REFERENCE, label_smoothing=smoothing).build(small[0])["loss_fn"](scores.log_softmax(1), labels)
        torch.testing.assert_close(loss, F.cross_entropy(scores, labels, label_smoothing=smoothing))


def test_distillation_loss_is_hintons(small):
    torch.manual_seed(1)
    teachers, (images, labels) = [Net(), Net()], (part[:5] for part in small[0])
    ((x, y, said),) = TaughtLoader(images, labels, 5, lambda batch: batch.flip(2), teachers=teachers)
    expected = sum(teacher(x).exp() for teacher in teachers).div(2).log().detach()
    torch.testing.assert_close(said, expected)
    assert not said.requires_grad and not any(teacher.training for teacher in teachers)
    student = F.log_softmax(3 * torch.randn(5, 10), dim=1)
    softened = (torch.distributions.Categorical(logits=values / 2) for values in (said, student))
    divergence = torch.distributions.kl_divergence(*softened).mean()
    loss = distillation(student, y, said, temperature=2.0, weight=0.9, loss_fn=F.cross_entropy)
    torch.testing.assert_close(loss, 0.1 * F.cross_entropy(student, y) + 0.9 * 4 * divergence)
