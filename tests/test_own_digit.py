"""The reader's own digit: MNIST's digits come back from other pictures, and what is no digit is refused."""

import io
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import storage
import utils
from experiments.pasted import KINDS, count
from model import Net
from own_digit import DrawingPad, prepare, read_digit


@pytest.fixture(scope="module")
def network():
    return storage.load_weights(Net(), "results/weights.pt")


@pytest.fixture(scope="module")
def digits(mnist):
    return mnist[1][0][:100].numpy(), mnist[1][1][:100]


@pytest.fixture(scope="module")
def seven(digits):
    return Image.fromarray(digits[0][0]).resize((112, 112))  # the first test image is a 7, light on dark


def test_mnist_digits_are_left_nearly_as_they_are(network, digits):
    images, labels = digits
    prepared = torch.stack([prepare(image) for image in images])
    assert np.abs(prepared.numpy().astype(int) - images).mean() < 10  # of 255
    assert utils.evaluate(network, prepared, labels)[1] >= 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_digits_in_all_kinds_of_pictures_are_read_or_refused(network, digits, kind):
    images, labels = (torch.as_tensor(part[50:62]) for part in digits)
    counts = count(network, images, labels, kind, np.random.default_rng(7))
    assert counts["right"] >= 10 and counts["wrong_and_confident"] <= 1
    record = json.loads(Path("results/own_digits.json").read_text(encoding="utf-8"))
    recorded = record["kinds"][kind]
    assert recorded["right"] + recorded["refused"] >= 0.9 * record["digits"]
    assert recorded["wrong_and_confident"] <= 0.03 * record["digits"]


def drawn(size: tuple[int, int], lines: list, arcs: list = (), width: int = 3, pen="black", paper="white", ground=None):
    """A picture with `lines` of points and `arcs` of (left, top, right, bottom), start and end in degrees."""
    picture = ground.copy() if ground else Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(picture)
    for line in lines:
        draw.line(line, fill=pen, width=width)
    for box, start, end in arcs:
        draw.arc(box, start, end, fill=pen, width=width)
    return picture


def faults():
    nine = drawn((60, 118), [[(56, 2), (56, 117)]], [((0, 0, 58, 58), 0, 360)], width=7)
    yield "the stem of a 9 is as long as the picture", 9, nine
    yield "the same with a margin", 9, drawn((100, 160), [[(76, 22), (76, 140)]], [((20, 20, 78, 78), 0, 360)], width=7)
    four = [[(10, 0), (6, 50), (79, 50)], [(55, 0), (55, 99)]]
    yield "a 4 with a stem as long as the picture", 4, drawn((80, 100), four, width=7)
    two = drawn((80, 100), [[(72, 38), (4, 95), (79, 95)]], [((6, 3, 74, 64), 180, 380)], width=9)
    yield "a 2 that stands on the picture's edge", 2, two
    yield "an 0 of 8 pixels", 0, drawn((40, 40), [], [((16, 14, 22, 22), 0, 360)], width=1)
    bar = [[(58, 1), (14, 1), (12, 40)]]
    yield "a 5 whose bar lies on the edge", 5, drawn((80, 100), bar, [((0, 34, 64, 90), 215, 500)], width=9)
    foot = [[(30, 36), (52, 12), (52, 76)], [(26, 88), (80, 88)]]
    yield "a 1 whose foot is apart", 1, drawn((100, 100), foot, width=5)
    bold = Image.new("RGB", (60, 80), "white")
    bold.paste("black", (14, 8, 46, 72))
    bold.paste("white", (25, 18, 35, 30))
    bold.paste("white", (24, 44, 36, 60))
    yield "an 8 that fills most of its box", 8, bold
    rectangle = [(30, 15), (70, 15), (70, 105), (30, 105), (30, 12)]
    yield "a rectangular 0", 0, drawn((100, 120), [rectangle], width=6)
    patch = Image.new("RGB", (120, 120), "cyan")
    ImageDraw.Draw(patch).polygon([(0, 0), (24, 0), (80, 120), (56, 120)], fill="gold")
    tail = [[(84, 38), (80, 92), (66, 102)]]
    yield "blue on cyan and yellow", 9, drawn((120, 120), tail, [((46, 18, 86, 60), 0, 360)], 6, "blue", ground=patch)
    dashes = [((30, 15, 80, 105), start, start + 30) for start in range(0, 360, 45)]
    yield "a dashed 0", 0, drawn((110, 120), [], dashes, width=3, pen="gray")
    table = drawn((160, 180), [[(150, 0), (150, 180)]], width=20, pen="gray", paper="tan")
    three = [((40, 30, 100, 85), 190, 450), ((35, 82, 105, 150), 270, 530)]
    yield "a thin 3 beside a table", 3, drawn((160, 180), [], three, 3, ground=table)


def test_what_real_pictures_have_is_read(network):
    for name, digit, picture in faults():
        for shown in (picture, Image.eval(picture, lambda value: 255 - value)):
            assert read_digit(network, shown).digit == digit, name


def test_the_example_is_read_surely(network):
    digit, probabilities, _ = read_digit(network, Path("own_digit/example.jpg"))
    assert digit == 3 and probabilities[3] > 0.95


def formats(seven):
    inverse, gray = Image.eval(seven, lambda value: 255 - value), np.asarray(seven)
    yield "dark on light", inverse
    yield "16 bits", Image.fromarray(gray.astype(np.uint16) * 257)
    yield "palette", seven.convert("P")
    yield "CMYK", inverse.convert("RGB").convert("CMYK")
    for name, pen in (("black", 0), ("white", 255)):
        pen = Image.new("L", seven.size, pen)
        yield f"{name} on transparent", Image.merge("RGBA", [pen, pen, pen, seven])
    yield "premultiplied alpha", Image.merge("RGBA", [Image.new("L", seven.size)] * 3 + [seven]).convert("RGBa")
    yield "bool array", gray > 127
    yield "RGB array", np.repeat(gray[:, :, None], 3, axis=2)
    yield "tensor with a gradient", (torch.tensor(gray) / 255).requires_grad_()
    green, red = Image.new("RGB", seven.size, (0, 130, 0)), Image.new("RGB", seven.size, (255, 0, 0))
    yield "green on a red of the same brightness", Image.composite(green, red, seven)
    small = Image.new("L", (1600, 1200), 255)
    small.paste(inverse.resize((28, 28)), (1400, 90))
    yield "28 pixels on a large page", small


def test_any_kind_of_picture_is_read(network, seven):
    for name, picture in formats(seven):
        assert read_digit(network, picture).digit == 7, name


def test_files_are_read_and_turned_as_their_camera_says(network, seven, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90° to show
    seven.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif)
    seven.save(tmp_path / "moving.gif", save_all=True, append_images=[seven])
    for name in ("turned.jpg", "moving.gif"):
        assert read_digit(network, str(tmp_path / name)).digit == 7


def test_the_mass_is_centered_and_what_was_shown_comes_back(network, seven):
    wide = Image.new("L", (300, 120), 0)
    wide.paste(seven, (150, 4))
    digit, probabilities, image = read_digit(network, wide)
    rows, columns = image.any(1).nonzero()[:, 0], image.any(0).nonzero()[:, 0]
    assert max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 == 20
    center = [(image.float().sum(1 - axis) * torch.arange(28)).sum() / image.sum() for axis in (0, 1)]
    assert all(abs(value - 14) <= 0.5 for value in center)
    torch.testing.assert_close(utils.predict(network, image[None])[0].exp(), probabilities)
    assert digit == probabilities.argmax() == 7


def test_blank_pages_and_several_digits_are_refused(network, digits):
    draw = np.random.default_rng(0)
    for level in (0, 90, 255):
        blank = np.full((200, 200), level, np.uint8)
        for page in (blank, np.clip(blank + draw.normal(0, 6, blank.shape), 0, 255).astype(np.uint8)):
            with pytest.raises(ValueError, match="no digit to be seen"):
                read_digit(network, page)
    first, second = digits[0][0], digits[0][3]
    for axis in (0, 1):
        with pytest.raises(ValueError, match="2 digits; cut out one"):
            read_digit(network, np.concatenate([first, second], axis))


@pytest.mark.filterwarnings("error")
def test_no_array_makes_it_fail_otherwise(network):
    draw = np.random.default_rng(0)
    for shape in ((1, 1), (1, 90), (90, 1), (3, 3), (2, 400), (40, 30, 3), (30, 40, 4), (600, 5)):
        noise = draw.integers(0, 256, shape, np.uint8)
        for array in (noise, noise // 128 * 255, np.full(shape, 7, np.uint8), noise / 255, np.sort(noise, 0)):
            try:
                image = read_digit(network, array).image
            except ValueError:
                continue
            assert image.shape == (28, 28) and image.max() > 0


@pytest.mark.parametrize(
    "picture, message",
    [
        (np.zeros((28, 28, 2), np.uint8), r"\[H, W\], \[H, W, 3\] or \[H, W, 4\], got \[28, 28, 2\]"),
        (np.zeros((0, 28), np.uint8), r"got \[0, 28\]"),
        (np.full((28, 28), np.nan), r"float array must hold values in \[0, 1\]"),
        (np.zeros((28, 28), np.int64), "uint8, bool or float, got int64"),
        (7, "a path, a PIL image or an array, not int"),
        (Image.new("1", (20_000, 20_000)), "too large .*400,000,000 pixels"),
    ],
)
def test_what_is_no_picture_is_named(network, picture, message):
    with pytest.raises(ValueError, match=message):
        read_digit(network, picture)


def test_a_file_that_is_no_image_is_named(network, seven, tmp_path):
    whole = io.BytesIO()
    seven.save(whole, "PNG")
    damaged = {"a.png": b"not an image", "b.png": whole.getvalue()[:200], "c.pgm": b"P2 9 9 255 1 two"}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is no image"):
            read_digit(network, tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_digit(network, tmp_path / "missing.png")


def test_the_pad_answers_every_drawing_and_every_error(network, seven):
    pad, answers = DrawingPad(network), []
    drawing = np.asarray(Image.eval(seven.resize((140, 140)), lambda value: 255 - value))
    with mock.patch.object(pad, "send", answers.append):
        for number, content in enumerate((drawing, np.full_like(drawing, 255), drawing[1:])):  # good, blank, damaged
            pad._handle_custom_msg(dict(side=140, number=number), [memoryview(content.tobytes())])  # as the browser
        with mock.patch("own_digit.read_digit", side_effect=MemoryError("full")):
            pad._handle_custom_msg(dict(side=140, number=3), [memoryview(drawing.tobytes())])
    assert np.argmax(answers[0]["probabilities"]) == 7 and answers[0]["message"] == "this is a 7"
    assert [answer["number"] for answer in answers] == [0, 1, 2, 3] and not any(a["probabilities"] for a in answers[1:])
    assert "no digit to be seen" in answers[1]["message"] and answers[3]["message"] == "MemoryError: full"
