"""Augmentation: batched results against torchvision's transforms of one image at a time."""

import pytest
import torch
from torchvision import transforms
from torchvision.transforms import functional as tv
from torchvision.transforms.functional import to_pil_image

import utils

DEGREES = torch.tensor([-15.0, -14.3, -7.77, -1.0, 0.0, 0.4, 3.3, 9.99, 12.5, 15.0])


@pytest.fixture(scope="module")
def images(mnist):
    return mnist[0][0][:10]


def differing(ours, theirs):
    """Share of pixels that differ by more than one gray value."""
    return ((ours.int() - torch.cat(theirs).int()).abs() > 1).float().mean().item()


def test_rotation_is_torchvisions(images):
    """Pixels halfway between two may go either way."""
    pairs = list(zip(images, DEGREES.tolist()))
    assert differing(utils.rotate(images, DEGREES), [tv.rotate(image[None], angle) for image, angle in pairs]) < 0.001
    bilinear = [tv.rotate(image[None], angle, transforms.InterpolationMode.BILINEAR) for image, angle in pairs]
    assert differing(utils.rotate(images, DEGREES, mode="bilinear"), bilinear) == 0


def test_augment_zooms_as_center_crop_and_resize_do_then_rotates(images):
    torch.manual_seed(5)
    ours = utils.augment(images, zoom_probability=0.5, max_degrees=15)
    torch.manual_seed(5)
    chosen, degrees = torch.rand(10) < 0.5, torch.empty(10).uniform_(-15, 15)
    zoom = transforms.Compose([transforms.CenterCrop(22), transforms.Resize(28)])
    pil = [zoom(to_pil_image(image)) if zoomed else to_pil_image(image) for image, zoomed in zip(images, chosen)]
    theirs = [tv.rotate(tv.pil_to_tensor(image), angle) for image, angle in zip(pil, degrees.tolist())]
    assert chosen.any() and not chosen.all() and differing(ours, theirs) < 0.001


def test_normalize_is_to_tensor_and_normalize(images, mnist):
    pipeline = transforms.Compose([transforms.ToTensor(), transforms.Normalize(utils.MEAN, utils.STD)])
    theirs = torch.stack([pipeline(to_pil_image(image)) for image in images])
    torch.testing.assert_close(utils.normalize(images), theirs)
    pixels = mnist[0][0].double() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (utils.MEAN, utils.STD)


@pytest.mark.parametrize("wrong", [lambda x: x.float(), lambda x: x[:, None], lambda x: x[:, :27], lambda x: x[0]])
def test_wrong_images_are_named(images, wrong):
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, 28, 28\], got torch"):
        utils.normalize(wrong(images))
