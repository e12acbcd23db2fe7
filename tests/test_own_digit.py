"""The reader's own digit: MNIST's digits come back from other pictures, and what is no digit is refused."""

import io
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import storage
import utils
from experiments.pasted import KINDS, count
from model import Net
from own_digit import DrawingPad, prepare, read_digit

COUNT = 300


@pytest.fixture(scope="module")
def network():
    return storage.load_weights(Net(), "results/weights.pt")


@pytest.fixture(scope="module")
def digits(mnist):
    return mnist[1][0][:COUNT].numpy(), mnist[1][1][:COUNT]


def accuracy(network, pictures, labels) -> float:
    return np.mean([read_digit(network, picture).digit == label for picture, label in zip(pictures, labels.tolist())])


def test_mnist_digits_are_left_nearly_as_they_are(network, digits):
    images, labels = digits
    prepared = np.stack([prepare(image).numpy() for image in images])
    assert np.abs(prepared.astype(int) - images).mean() < 1.0  # of 255
    _, plain = utils.evaluate(network, torch.from_numpy(images), labels)
    assert accuracy(network, images, labels) >= plain - 0.004


@pytest.mark.parametrize("kind", KINDS)
def test_digits_in_all_kinds_of_pictures_are_read_or_refused(network, digits, kind):
    images, labels = (torch.as_tensor(part[100:120]) for part in digits)
    counts = count(network, images, labels, kind, np.random.default_rng(7))
    assert counts["right"] + counts["refused"] >= 0.9 * len(images)
    assert counts["wrong_and_confident"] <= 1 and counts["right"] >= 0.6 * len(images)
    record = json.loads(Path("results/own_digits.json").read_text())
    recorded, expected = record["kinds"][kind], 0.99 if kind == "clean" else 0.6 if kind == "shadow" else 0.8
    assert recorded["right"] >= expected * record["digits"]
    assert recorded["right"] + recorded["refused"] >= 0.9 * record["digits"]
    assert recorded["wrong_and_confident"] <= 0.03 * record["digits"]


def test_an_empty_page_with_something_around_it_is_refused(network):
    line, table, corners = np.full((240, 200), 230), np.full((240, 200), 230), np.full((397, 103), 230)
    line[:, :3] = line[:3] = 60
    table[:, :30] = table[:30] = 60
    y, x = np.mgrid[:397, :103]
    corners[np.minimum(x + y, x + 397 - y) < 100] = 60  # the paper between them is as slim as a 1
    for page in (line, table, corners):
        for picture in (page, page[:, ::-1], 255 - page):
            with pytest.raises(ValueError, match="no digit to be seen"):
                read_digit(network, picture.astype(np.uint8))


@pytest.fixture(scope="module")
def seven(digits):
    return Image.fromarray(digits[0][0]).resize((112, 112))  # the first test image is a 7, light on dark


def colours(seven):
    yield "dark on light", Image.eval(seven, lambda v: 255 - v)
    yield "16 bits", Image.fromarray(np.asarray(seven).astype(np.uint16) * 257)
    yield "palette", seven.convert("P")
    red = Image.merge("RGB", [Image.new("L", seven.size, 255)] + [Image.eval(seven, lambda v: 255 - v)] * 2)
    yield "red on white", red
    for name, pen in (("black", 0), ("white", 255)):
        pen = Image.new("L", seven.size, pen)
        yield f"{name} on transparent", Image.merge("RGBA", [pen, pen, pen, seven])
    yield "bool array", np.asarray(seven) > 127
    yield "float array", np.asarray(seven) / 255
    yield "premultiplied alpha", Image.merge("RGBA", [Image.new("L", seven.size)] * 3 + [seven]).convert("RGBa")
    yield "grey with premultiplied alpha", Image.merge("LA", [Image.new("L", seven.size), seven]).convert("La")
    green, red = Image.new("RGB", seven.size, (0, 130, 0)), Image.new("RGB", seven.size, (255, 0, 0))
    yield "green on a red of the same brightness", Image.composite(green, red, seven)
    yield "tensor with a gradient", (torch.tensor(np.asarray(seven)) / 255).requires_grad_()
    yield "bfloat16", (torch.tensor(np.asarray(seven)) / 255).bfloat16()
    small = Image.new("L", (1600, 1200), 255)
    small.paste(Image.eval(seven.resize((28, 28)), lambda v: 255 - v), (1400, 90))
    yield "28 pixels on a large page", small
    yield "RGB array", np.repeat(np.asarray(seven)[:, :, None], 3, axis=2)


def test_any_kind_of_picture_is_read(network, seven):
    for name, picture in colours(seven):
        assert read_digit(network, picture).digit == 7, name


def test_files_are_read_and_turned_as_their_camera_says(network, seven, tmp_path):
    for name in ("seven.png", "seven.jpg", "seven.gif"):
        seven.save(tmp_path / name)
        assert read_digit(network, str(tmp_path / name)).digit == 7
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90° to show
    seven.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif)
    assert read_digit(network, tmp_path / "turned.jpg").digit == 7
    with Image.open(tmp_path / "turned.jpg") as opened:
        assert read_digit(network, opened).digit == 7


def test_a_thin_pen_on_a_large_sheet_is_read(network):
    sheet = np.ones((900, 700))
    sheet[200:204, 200:500] = 0  # a 7, 300 pixels wide and 4 thick
    for row in range(200, 700):
        column = 500 - (row - 200) // 3
        sheet[row, column - 4 : column] = 0
    assert read_digit(network, sheet).digit == 7


def test_the_box_is_twenty_pixels_and_the_mass_is_centred(seven):
    wide = Image.new("L", (300, 120), 0)
    wide.paste(seven, (150, 4))
    image = prepare(wide).float()
    rows, columns = image.any(1).nonzero()[:, 0], image.any(0).nonzero()[:, 0]
    assert max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 == 20
    centre = [(image.sum(1 - axis) * torch.arange(28)).sum() / image.sum() for axis in (0, 1)]
    assert all(abs(value - 14) <= 0.5 for value in centre)


def test_reading_has_digit_probabilities_and_what_was_shown(network, seven):
    digit, probabilities, image = read_digit(network, seven)
    assert digit == probabilities.argmax() == 7
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))
    torch.testing.assert_close(utils.predict(network, image[None])[0].exp(), probabilities)


@pytest.mark.parametrize("level", [0, 90, 255])
def test_a_blank_page_is_refused(network, level):
    blank = np.full((200, 200), level, np.uint8)
    noisy = np.clip(blank + np.random.default_rng(0).normal(0, 6, blank.shape), 0, 255).astype(np.uint8)
    for page in (blank, noisy):
        with pytest.raises(ValueError, match="no digit to be seen"):
            read_digit(network, page)


def test_several_digits_are_refused(network, digits):
    first, second, blank = digits[0][0], digits[0][3], np.zeros((28, 28), np.uint8)
    diagonal = np.block([[first, blank, blank], [blank, second, blank], [blank, blank, first]])
    pages = np.concatenate([first, second], 1), np.concatenate([first, second], 0), diagonal, 255 - diagonal[:, ::-1]
    for page, number in zip(pages, (2, 2, 3, 3)):
        with pytest.raises(ValueError, match=f"{number} digits; cut out one"):
            read_digit(network, page)


def test_hardly_any_single_digit_is_taken_for_several(mnist):
    refused = 0
    for image in mnist[0][0][:1000].numpy():
        try:
            prepare(image)
        except ValueError:
            refused += 1
    assert refused <= 2


@pytest.mark.parametrize(
    "picture, message",
    [
        (np.zeros((28, 28, 2), np.uint8), r"\[H, W\], \[H, W, 3\] or \[H, W, 4\], got \[28, 28, 2\]"),
        (np.zeros((0, 28), np.uint8), r"got \[0, 28\]"),
        (np.full((28, 28), 300.0), r"float array must hold values in \[0, 1\]"),
        (np.full((28, 28), np.nan), r"float array must hold values in \[0, 1\]"),
        (np.zeros((28, 28), np.int64), "uint8, bool or float, got int64"),
        (np.zeros((5, 28), np.uint8), "too small"),
        (7, "a path, a PIL image or an array, not int"),
    ],
)
def test_what_is_no_picture_is_named(network, picture, message):
    with pytest.raises(ValueError, match=message):
        read_digit(network, picture)


def test_a_file_that_is_no_image_is_named(network, tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("not an image")
    with pytest.raises(ValueError, match=f"{path} is no image"):
        read_digit(network, path)
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(whole, "PNG")
    path.write_bytes(whole.getvalue()[:200])
    with pytest.raises(ValueError, match=f"{path} is no image"):
        read_digit(network, path)
    (tmp_path / "grey.pgm").write_text("P2 64 64 255 1 2 three")
    with pytest.raises(ValueError, match="grey.pgm is no image"):
        read_digit(network, tmp_path / "grey.pgm")
    with Image.open(io.BytesIO(whole.getvalue()[:2000])) as truncated, pytest.raises(ValueError, match="no image"):
        read_digit(network, truncated)
    with pytest.raises(ValueError, match="too large .*400,000,000 pixels"):
        read_digit(network, Image.new("1", (20_000, 20_000)))
    with pytest.raises(FileNotFoundError):
        read_digit(network, tmp_path / "missing.png")


def test_the_pad_answers_every_drawing_and_explains_blank_ones(network, seven):
    pad, answers = DrawingPad(network), []
    drawing = np.asarray(Image.eval(seven.resize((140, 140)), lambda v: 255 - v))
    with mock.patch.object(pad, "send", answers.append):
        for picture in (drawing, drawing, np.full_like(drawing, 255)):  # the same drawing again, a blank one
            pad._handle_custom_msg(dict(side=140), [memoryview(picture.tobytes())])  # as from the browser
    for answer in answers[:2]:
        assert np.argmax(answer["probabilities"]) == 7 and answer["message"] == "this is a 7"
    assert answers[2]["probabilities"] == [] and "no digit to be seen" in answers[2]["message"]
