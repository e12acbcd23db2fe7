"""The reader's own digit: MNIST's digits come back from other pictures, and what is no digit is refused."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

import storage
import utils
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
    assert np.abs(prepared.numpy().astype(int) - images).mean() < 3  # of 255
    assert utils.evaluate(network, prepared, labels)[1] >= 0.99


def drawn(size: tuple[int, int], lines: list, arcs: list, width: int, pen="black", paper="white"):
    """A picture with `lines` of points and `arcs` of (left, top, right, bottom), start and end in degrees."""
    picture = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(picture)
    if paper == "cyan":
        draw.polygon([(0, 0), (24, 0), (80, 120), (56, 120)], fill="gold")
    for line in lines:
        draw.line(line, fill=pen, width=width)
    for box, start, end in arcs:
        draw.arc(box, start, end, fill=pen, width=width)
    return picture


def test_what_real_pictures_have_is_read(network):
    circle, belly, bar = ((0, 0, 58, 58), 0, 360), ((0, 34, 64, 90), 215, 500), [(58, 1), (14, 1), (12, 40)]
    foot, bold = [(26, 88), (80, 88)], [((12, 6, 48, 42), 0, 360), ((10, 32, 50, 74), 0, 360)]
    tail, head = [(84, 38), (80, 92), (66, 102)], ((46, 18, 86, 60), 0, 360)
    faults = {
        "9, its stem as long as the picture": drawn((60, 118), [[(56, 2), (56, 117)]], [circle], 7),
        "0, of 8 pixels": drawn((40, 40), [], [((16, 14, 22, 22), 0, 360)], 1),
        "5, its bar on the edge": drawn((80, 100), [bar], [belly], 9),
        "1, its foot apart": drawn((100, 100), [[(30, 36), (52, 12), (52, 76)], foot], [], 5),
        "8, filling most of its box": drawn((60, 80), [], bold, 13),
        "0, a rectangle": drawn((100, 120), [[(30, 15), (70, 15), (70, 105), (30, 105), (30, 12)]], [], 6),
        "9, blue on cyan and yellow": drawn((120, 120), [tail], [head], 6, "blue", "cyan"),
        "0, dashed": drawn((110, 120), [], [((30, 15, 80, 105), a, a + 30) for a in range(0, 360, 45)], 3, "gray"),
        "3, the example": Image.open("own_digit/example.jpg"),
    }
    for name, picture in faults.items():
        for shown in (picture, ImageOps.invert(picture)):
            assert read_digit(network, shown).digit == int(name[0]), name


def test_any_kind_of_picture_is_read(network, seven, tmp_path):
    inverse, gray, flat = ImageOps.invert(seven), np.asarray(seven), Image.new("L", seven.size)
    green, red = Image.new("RGB", seven.size, (0, 130, 0)), Image.new("RGB", seven.size, (255, 0, 0))
    large = Image.new("L", (1600, 1200), 255)
    large.paste(inverse.resize((28, 28)), (1400, 90))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90° to show
    seven.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif)
    pictures = {
        "dark on light": inverse,
        "16 bits": Image.fromarray(gray.astype(np.uint16) * 257),
        "black on transparent": Image.merge("RGBA", [flat] * 3 + [seven]),
        "white on transparent": Image.merge("RGBA", [ImageOps.invert(flat)] * 3 + [seven]),
        "bool array": gray > 127,
        "tensor with a gradient": (torch.tensor(gray) / 255).requires_grad_(),
        "green on a red of the same brightness": Image.composite(green, red, seven),
        "28 pixels on a large page": large,
        "turned as its camera says": str(tmp_path / "turned.jpg"),
    }
    for name, picture in pictures.items():
        assert read_digit(network, picture).digit == 7, name


def test_the_mass_is_centered_and_what_was_shown_comes_back(network, seven):
    digit, probabilities, image = read_digit(network, ImageOps.expand(seven, (150, 4, 38, 4)))
    assert max(np.ptp(places) for places in image.numpy().nonzero()) + 1 == 20
    center = [(image.float().sum(1 - axis) * torch.arange(28)).sum() / image.sum() for axis in (0, 1)]
    assert all(abs(value - 14) <= 0.5 for value in center)
    torch.testing.assert_close(utils.predict(network, image[None])[0].exp(), probabilities)
    assert digit == probabilities.argmax() == 7


def test_blank_pages_and_several_digits_are_refused(network, digits):
    noise = np.random.default_rng(0).normal(0, 6, (200, 200))
    for level in (0, 90, 255):
        for page in (np.full((200, 200), level, np.uint8), np.clip(level + noise, 0, 255).astype(np.uint8)):
            with pytest.raises(ValueError, match="no digit to be seen"):
                read_digit(network, page)
    for axis in (0, 1):
        with pytest.raises(ValueError, match="2 digits; cut out one"):
            read_digit(network, np.concatenate(digits[0][[0, 3]], axis))


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


def test_what_is_no_picture_is_named(network, tmp_path):
    wrong = [
        (np.zeros((28, 28, 2), np.uint8), r"\[H, W\], \[H, W, 3\] or \[H, W, 4\], got \[28, 28, 2\]"),
        (np.full((28, 28), np.nan), r"float array must hold values in \[0, 1\]"),
        (np.zeros((28, 28), np.int64), "uint8, bool or float, got int64"),
        (7, "a path, a PIL image or an array, not int"),
    ]
    example = Path("own_digit/example.jpg").read_bytes()
    for name, content in {"a.png": b"not an image", "b.jpg": example[:9000], "c.pgm": b"P2 9 9 255 1 two"}.items():
        (tmp_path / name).write_bytes(content)
        wrong.append((tmp_path / name, f"{name} is no image"))
    for picture, message in wrong:
        with pytest.raises(ValueError, match=message):
            read_digit(network, picture)
    with pytest.raises(FileNotFoundError):
        read_digit(network, tmp_path / "missing.png")


def test_the_pad_answers_every_drawing_and_every_error(network, seven):
    pad, answers = DrawingPad(network), []
    drawing = np.asarray(ImageOps.invert(seven.resize((140, 140))))
    with mock.patch.object(pad, "send", answers.append):
        for number, content in enumerate((drawing, np.full_like(drawing, 255), drawing[1:])):  # good, blank, damaged
            pad._handle_custom_msg(dict(side=140, number=number), [memoryview(content.tobytes())])  # as the browser
        with mock.patch("own_digit.read_digit", side_effect=MemoryError("full")):
            pad._handle_custom_msg(dict(side=140, number=3), [memoryview(drawing.tobytes())])
    assert np.argmax(answers[0]["probabilities"]) == 7 and answers[0]["message"] == "this is a 7"
    assert [answer["number"] for answer in answers] == [0, 1, 2, 3] and not any(a["probabilities"] for a in answers[1:])
    assert "no digit to be seen" in answers[1]["message"] and answers[3]["message"] == "MemoryError: full"
