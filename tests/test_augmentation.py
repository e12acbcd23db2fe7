"""Augmentation: batched results against torchvision's transforms of one image at a time."""

import pytest
import torch
from torchvision import transforms
from torchvision.transforms import functional as tv
from torchvision.transforms.functional import to_pil_image

import utils
from experiments.recipes import affine, random_affine, zoom_and_rotation

DEGREES = torch.tensor([-15.0, -14.3, -7.77, -1.0, 0.0, 0.4, 3.3, 9.99, 12.5, 15.0])


@pytest.fixture(scope="module")
def images(mnist):
    return mnist[0][0][:10]


def differing(ours, theirs):
    """Share of pixels that differ by more than one grey value."""
    return ((ours.int() - theirs.int()).abs() > 1).float().mean().item()


def test_rotation_is_torchvisions(images):
    ours = utils.rotate(images, DEGREES)
    theirs = torch.stack([tv.rotate(image[None], angle)[0] for image, angle in zip(images, DEGREES.tolist())])
    assert differing(ours, theirs) < 0.001  # pixels halfway between two may go either way


def test_rotation_is_that_of_the_pil_pipeline(images):
    ours = utils.rotate(images, DEGREES)
    theirs = torch.stack(
        [tv.pil_to_tensor(tv.rotate(to_pil_image(image), angle))[0] for image, angle in zip(images, DEGREES.tolist())]
    )
    assert differing(ours, theirs) < 0.01
    assert differing(utils.rotate(images, -DEGREES), theirs) > 0.05, "the wrong direction would be noticed"


def test_rotation_invents_no_grey(images):
    turned = utils.rotate(images, DEGREES)
    for before, after in zip(images, turned):
        assert set(after.unique().tolist()) <= set(before.unique().tolist()) | {0}


def test_rotation_by_nothing_changes_nothing(images):
    assert torch.equal(utils.rotate(images, torch.zeros(10)), images)


def test_zoom_is_center_crop_and_resize(images):
    ours = utils.zoom(images, torch.ones(10, dtype=torch.bool))
    pipeline = transforms.Compose([transforms.CenterCrop(22), transforms.Resize(28), transforms.PILToTensor()])
    theirs = torch.stack([pipeline(to_pil_image(image))[0] for image in images])
    assert (ours.int() - theirs.int()).abs().max() <= 1  # PIL rounds after each axis


def test_zoom_leaves_the_others_alone(images):
    chosen = torch.arange(10) % 3 == 0
    zoomed = utils.zoom(images, chosen)
    assert torch.equal(zoomed[~chosen], images[~chosen])
    assert not torch.equal(zoomed[chosen], images[chosen])


def test_every_image_has_its_own_draw_with_the_given_probability_and_range(images, monkeypatch):
    drawn = {}
    monkeypatch.setattr(utils, "zoom", lambda batch, chosen: drawn.update(chosen=chosen) or batch)
    monkeypatch.setattr(utils, "rotate", lambda batch, degrees, mode: drawn.update(degrees=degrees) or batch)
    torch.manual_seed(0)
    utils.augment(images[:1].expand(20_000, 28, 28), zoom_probability=0.1, max_degrees=15)
    share, degrees = drawn["chosen"].float().mean(), drawn["degrees"].sort().values
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / 20_000) ** 0.5
    uniform = torch.linspace(-15, 15, 20_000)
    assert (degrees - uniform).abs().max() / 30 < 1.63 / 20_000**0.5  # Kolmogorov and Smirnov, 1 %


def test_augment_applies_zoom_then_rotation(images):
    torch.manual_seed(5)
    ours = utils.augment(images, zoom_probability=0.5, max_degrees=15)
    torch.manual_seed(5)
    chosen = torch.rand(10) < 0.5
    degrees = torch.empty(10).uniform_(-15, 15)
    assert chosen.any() and not chosen.all()
    theirs = [tv.resize(tv.center_crop(i[None], 22), [28, 28]) if c else i[None] for i, c in zip(images, chosen)]
    theirs = torch.stack([tv.rotate(image, angle)[0] for image, angle in zip(theirs, degrees.tolist())])
    assert differing(ours, theirs) < 0.001


def test_normalize_is_to_tensor_and_normalize(images):
    pipeline = transforms.Compose([transforms.ToTensor(), transforms.Normalize(utils.MEAN, utils.STD)])
    theirs = torch.stack([pipeline(to_pil_image(image)) for image in images])
    torch.testing.assert_close(utils.normalize(images), theirs)


@pytest.mark.parametrize("wrong", [torch.float32, "channel", "size"])
def test_wrong_images_are_named(images, wrong):
    bad = {"channel": images[:, None], "size": images[:, :27]}.get(wrong, images.float())
    everything = torch.ones(10, dtype=torch.bool)
    functions = [utils.normalize, lambda x: utils.zoom(x, everything), lambda x: utils.rotate(x, DEGREES)]
    for function in functions:
        with pytest.raises(ValueError, match=r"images must be uint8 \[N, 28, 28\], got torch"):
            function(bad)


def test_mean_and_deviation_are_those_of_the_training_images(mnist):
    pixels = mnist[0][0].double() / 255
    assert round(pixels.mean().item(), 4) == utils.MEAN
    assert round(pixels.std().item(), 4) == utils.STD


def test_shift_moves_and_fills_with_zero(images):
    right = utils.shift(images, 3)
    assert torch.equal(right[:, :, 3:], images[:, :, :-3]) and not right[:, :, :3].any()
    left = utils.shift(images, -2)
    assert torch.equal(left[:, :, :-2], images[:, :, 2:]) and not left[:, :, -2:].any()


def test_noise_has_the_given_deviation():
    torch.manual_seed(0)
    grey = torch.full((50, 28, 28), 128, dtype=torch.uint8)
    noisy = utils.add_noise(grey, 20.0).double()
    assert abs(noisy.mean() - 128) < 0.5 and abs(noisy.std() - 20) < 0.5
    assert utils.add_noise(torch.full_like(grey, 250), 100.0).dtype == torch.uint8


def test_random_affine_is_torchvisions(images, monkeypatch):
    """Each amount alone, and shear after rotation, against `affine` of one image with the same numbers."""
    draws = torch.linspace(-1, 1, 60).view(6, 10).roll(7, 1)

    def fixed(tensor, low, high):
        assert (low, high, tensor.shape) == (-1, 1, draws.shape)
        return draws

    monkeypatch.setattr(torch.Tensor, "uniform_", fixed)
    turned = random_affine(images, max_degrees=10, max_shift=0, max_scale=0, max_shear=0)
    assert torch.equal(turned, utils.rotate(images, 10 * draws[0]))
    moved = random_affine(images, max_degrees=0, max_shift=2, max_scale=0, max_shear=0)
    for image, ours, x, y in zip(images, moved, (2 * draws[4]).round().int(), (2 * draws[5]).round().int()):
        theirs = tv.affine(image[None], angle=0, translate=[-x.item(), -y.item()], scale=1, shear=[0.0])[0]
        assert differing(ours, theirs) < 0.001
    sheared = random_affine(images, max_degrees=0, max_shift=0, max_scale=0, max_shear=0.3)
    for image, ours, amount in zip(images, sheared, 0.3 * draws[1]):
        angle = torch.atan(amount).rad2deg().item()
        theirs = tv.affine(image[None], angle=0, translate=[0, 0], scale=1, shear=[angle, 0.0])[0]
        assert differing(ours, theirs) < 0.001
    draws[3] = draws[2]  # torchvision scales both axes alike
    scaled = random_affine(images, max_degrees=0, max_shift=0, max_scale=0.2, max_shear=0)
    for image, ours, amount in zip(images, scaled, 0.2 * draws[2]):
        theirs = tv.affine(image[None], angle=0, translate=[0, 0], scale=1 + amount.item(), shear=[0.0])[0]
        assert differing(ours, theirs) < 0.001


def test_bilinear_rotation_is_torchvisions(images):
    bilinear = transforms.InterpolationMode.BILINEAR
    ours = utils.rotate(images, DEGREES, mode="bilinear")
    theirs = [tv.rotate(image[None], angle, bilinear)[0] for image, angle in zip(images, DEGREES.tolist())]
    assert (ours.int() - torch.stack(theirs).int()).abs().max() <= 1
    augmented = zoom_and_rotation(lambda: 0.0, zoom_probability=0.0, max_degrees=15, mode="bilinear")(images)
    assert len(augmented.unique()) > len(images.unique())


def test_fading_augmentation_falls_linearly_to_its_end(monkeypatch):
    monkeypatch.setattr(utils, "warp", lambda images, matrix: matrix)
    amounts = dict(max_degrees=0, max_shift=2.0, max_scale=0, max_shear=0)
    for progress, share in ((0.0, 1.0), (0.5, 1.0), (0.75, 0.65), (1.0, 0.3)):
        augment = affine(lambda p=progress: p, **amounts, fade_from=0.5, fade_to=0.3)
        torch.manual_seed(1)
        shifts = augment(torch.zeros(5000, 28, 28, dtype=torch.uint8))[:, :, 2]
        assert shifts.abs().max().item() == pytest.approx(2 * share, rel=1e-2)


@pytest.mark.parametrize(
    "wrong", [dict(zoom_probability=2), dict(zoom_probability=-0.1), dict(max_degrees=float("nan"))]
)
def test_amounts_out_of_range_are_named(images, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}"):
        utils.augment(images, **(dict(zoom_probability=0.1, max_degrees=15) | wrong))


@pytest.mark.parametrize(
    "amounts", [(10, 1, 1.0, 0), (float("inf"), 1, 0, 0), (10, float("nan"), 0, 0), (0, 0, 0.1, 1e999)]
)
def test_affine_amounts_out_of_range_are_named(images, amounts):
    with pytest.raises(ValueError, match="max_scale must be in"):
        random_affine(images, *amounts)
