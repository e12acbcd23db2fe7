"""The recipes: what each setting does, against torchvision, torch's own functions and numbers computed by hand."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import functional as tv

import storage
import utils
from conftest import ROOT
from experiments.recipes import (
    ABLATIONS,
    ONE_CYCLE,
    RECIPES,
    REFERENCE,
    TaughtLoader,
    cross_entropy,
    distillation,
    random_affine,
    sgd,
)
from model import Net


def differing(ours, theirs):
    """Share of pixels that differ by more than one gray value."""
    return ((ours.int() - theirs.int()).abs() > 1).float().mean().item()


def test_the_reference_recipe_is_the_notebooks():
    notebook = storage.load_record(ROOT / "results/notebook.json")["hyperparameters"]
    settings = REFERENCE.settings()
    assert {name: settings[name] for name in notebook if name != "seed"} == {
        name: value for name, value in notebook.items() if name != "seed"
    }


@pytest.mark.parametrize("name", RECIPES)
def test_settings_survive_json_and_make_the_recipe_again(name):
    recipe = RECIPES[name]
    settings = json.loads(json.dumps(recipe.settings()))
    assert type(recipe)(title=recipe.title, **settings) == recipe
    images = torch.zeros(600, 28, 28, dtype=torch.uint8)
    parts = replace(recipe, teacher=None).build((images, torch.zeros(600, dtype=torch.int64)))
    optimized = sum(len(group["params"]) for group in parts["optimizer"].param_groups)
    assert optimized == len(list(parts["network"].parameters())) and len(parts["loader"]) * recipe.batch_size >= 600
    x, y = next(iter(parts["loader"]))
    assert x.shape == (recipe.batch_size, 1, 28, 28) and parts["loss_fn"](parts["network"](x), y).isfinite()


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_ablation_changes_what_it_says(name):
    usual, changed = REFERENCE.settings(), RECIPES[name].settings()
    differences = {setting for setting in usual | changed if usual.get(setting) != changed.get(setting)}
    expected = {
        "no-batch-norm": {"network", "learning_rate"},
        "dropout-0.05": {"dropout"},
        "dropout-0.1": {"dropout"},
        "no-augmentation": {"zoom_probability", "max_degrees"},
        "fully-connected": {"network"},
        "constant-rate": {"gamma"},
        "bilinear": {"mode"},
    }
    assert differences == expected[name.removeprefix("reference-")]
    layers = [type(layer) for layer in RECIPES[name].make_network().modules()]
    assert (nn.BatchNorm2d in layers) == (name != "reference-no-batch-norm")
    assert (nn.Linear in layers) == (name == "reference-fully-connected")


def test_weight_decay_is_for_kernels_and_no_parameter_is_left_out():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    network.scale = nn.Parameter(torch.tensor(1.0))
    kernels, others = sgd(network, 0.1, 0.9, False, 0.5).param_groups
    assert [parameter.ndim for parameter in kernels["params"]] == [4] and kernels["weight_decay"] == 0.5
    assert sorted(parameter.ndim for parameter in others["params"]) == [0, 1, 1, 1] and others["weight_decay"] == 0


def learning_rates(recipe) -> list[float]:
    train = torch.zeros(10 * recipe.batch_size, 28, 28, dtype=torch.uint8), torch.zeros(10 * recipe.batch_size).long()
    parts, rates = recipe.build(train), []
    for _ in range(10 * recipe.epochs):
        rates.append(parts["optimizer"].param_groups[0]["lr"])
        parts["optimizer"].step()
        parts["scheduler"].step()
    return rates


def test_learning_rates_are_those_of_the_settings():
    assert learning_rates(REFERENCE) == pytest.approx([0.25] * 100 + [0.025] * 90)
    rates = learning_rates(replace(ONE_CYCLE, epochs=5, pct_start=0.2))
    peak = rates.index(max(rates))
    assert rates[0] == pytest.approx(0.004) and rates[peak] == pytest.approx(0.4) and peak == 9
    rise, fall = (torch.tensor(part).diff() for part in (rates[: peak + 1], rates[peak:]))
    torch.testing.assert_close(rise, torch.full_like(rise, (0.4 - 0.004) / peak))
    torch.testing.assert_close(fall, torch.full_like(fall, -0.4 / 40), rtol=1e-3, atol=1e-5)


def test_random_affine_is_torchvisions(mnist, monkeypatch):
    """Each amount alone, and shear after rotation, against `affine` of one image with the same numbers."""
    images = mnist[0][0][:10]
    draws = torch.linspace(-1, 1, 60).view(6, 10).roll(7, 1)

    def fixed(tensor, low, high):
        assert (low, high, tensor.shape) == (-1, 1, draws.shape)
        return draws

    def compare(ours, arguments):
        for image, moved, change in zip(images, ours, arguments):
            usual = dict(angle=0, translate=[0, 0], scale=1, shear=[0.0])
            assert differing(moved, tv.affine(image[None], **(usual | change))[0]) < 0.001

    monkeypatch.setattr(torch.Tensor, "uniform_", fixed)
    nothing = dict(max_degrees=0, max_shift=0, max_scale=0, max_shear=0)
    assert torch.equal(random_affine(images, **(nothing | dict(max_degrees=10))), utils.rotate(images, 10 * draws[0]))
    shifts = (2 * draws[4:]).round().int().T.tolist()
    compare(random_affine(images, **(nothing | dict(max_shift=2))), [dict(translate=[-x, -y]) for x, y in shifts])
    angles = torch.atan(0.3 * draws[1]).rad2deg().tolist()
    compare(random_affine(images, **(nothing | dict(max_shear=0.3))), [dict(shear=[angle, 0.0]) for angle in angles])
    draws[3] = draws[2]  # torchvision scales both axes alike
    scales = (1 + 0.2 * draws[2]).tolist()
    compare(random_affine(images, **(nothing | dict(max_scale=0.2))), [dict(scale=scale) for scale in scales])


def test_bilinear_recipe_blends_gray_values(mnist):
    images, labels = mnist[0][0][:50] // 128 * 255, mnist[0][1][:50]
    for mode, many in (("nearest", False), ("bilinear", True)):
        loader = replace(REFERENCE, mode=mode, zoom_probability=0.0).build((images, labels))["loader"]
        assert (len(next(iter(loader))[0].unique()) > 2) == many


def test_fading_augmentation_falls_linearly_to_its_end():
    recipe = replace(ONE_CYCLE, fade_from=0.5, fade_to=0.3)
    for done, share in ((0.0, 1.0), (0.5, 1.0), (0.75, 0.65), (1.0, 0.3)):
        usual = dict(max_degrees=10.0, max_shift=1.0, max_scale=0.05, max_shear=0.05)
        assert recipe.amounts(done) == pytest.approx({name: share * amount for name, amount in usual.items()})
    assert REFERENCE.amounts(1.0) == dict(zoom_probability=0.1, max_degrees=15.0, mode="nearest")


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_torchs(smoothing):
    torch.manual_seed(0)
    scores, labels = torch.randn(7, 10), torch.randint(10, (7,))
    expected = F.cross_entropy(scores, labels, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(scores.log_softmax(1), labels, smoothing), expected)


def test_distillation_loss_is_hintons(small):
    torch.manual_seed(1)
    teachers, (images, labels) = [Net(), Net()], (part[:5] for part in small[0])
    loader = TaughtLoader(utils.Loader(images, labels, 5, lambda batch: batch.flip(2)), teachers)
    ((x, y, said),) = loader
    expected = sum(teacher(x).exp() for teacher in teachers).div(2).log().detach()
    torch.testing.assert_close(said, expected)
    assert len(loader) == 1 and not said.requires_grad and not any(teacher.training for teacher in teachers)
    student = F.log_softmax(3 * torch.randn(5, 10), dim=1)
    softened = (torch.distributions.Categorical(logits=values / 2) for values in (said, student))
    divergence = torch.distributions.kl_divergence(*softened).mean()
    loss = distillation(student, y, said, temperature=2.0, weight=0.9, label_smoothing=0.1)
    torch.testing.assert_close(loss, 0.1 * F.cross_entropy(student, y, label_smoothing=0.1) + 0.9 * 4 * divergence)


def test_a_teacher_steers_the_student_and_stays_as_it_is(small, tmp_path):
    images, labels = (part[:100] for part in small[0])
    torch.manual_seed(2)
    teacher = RECIPES["small-37986"].make_network()
    storage.save_weights(teacher, tmp_path / "small-37986-100-1.pt")
    recipe = replace(RECIPES["small-4962"], epochs=30, batch_size=100)
    parts = recipe.build((images, labels), teachers=tmp_path)
    (own,) = parts["loader"].teachers
    utils.fit(**(parts | dict(epochs=1)), test=small[1])
    before, after = teacher.state_dict(), own.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(FileNotFoundError, match="small-37986-50-1.pt"):
        recipe.build((images[:50], labels[:50]), teachers=tmp_path)
