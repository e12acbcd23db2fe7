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


def on_table(page, table: str, angle: float, size=(400, 480), place=(70, 60)):
    """The `page` as a sheet that lies on a table of that color, turned by `angle` degrees."""
    picture, sheet = Image.new("RGBA", size, table), page.convert("RGBA")
    turned = sheet.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    picture.paste(turned, place, turned)
    return picture


def test_a_sheet_is_read_whatever_it_lies_on(network, seven):
    page = Image.new("L", (220, 260), 235)
    page.paste(ImageOps.invert(seven).resize((90, 90)).point(lambda value: min(value, 235)), (60, 70))
    ruled = page.copy()
    for row in range(10, 260, 25):
        ImageDraw.Draw(ruled).line([(0, row), (220, row)], fill=170, width=2)
    pale = ImageOps.colorize(page, "pink", "white")
    for table in ("black", "sienna", "darkgreen", "gray", "#00000000"):
        for angle in (-9, 0, 5):
            for sheet in (page, ruled, pale):
                assert read_digit(network, on_table(sheet, table, angle)).digit == 7, (table, angle)
        assert read_digit(network, on_table(page, table, 4, (400, 300), (250, 90))).digit == 7, "cut off by the picture"
        assert read_digit(network, on_table(page, table, 4, (270, 300), (20, 90))).digit == 7, "lower side cut off"
    chalk = ImageOps.invert(page)
    assert read_digit(network, on_table(chalk, "beige", 6)).digit == 7
    assert read_digit(network, ImageOps.expand(Image.open("own_digit/example.jpg"), 40, "black")).digit == 3


def test_a_sheet_without_a_digit_is_refused(network):
    light = np.linspace(250, 190, 220).astype(np.uint8)
    for page in (Image.new("L", (220, 260), 235), Image.fromarray(np.tile(light, (260, 1)))):
        for sheet, tables in ((page, ("black", "sienna", "gray", "#00000000")), (ImageOps.invert(page), ("beige",))):
            for table in tables:
                for angle in (0, 7):
                    with pytest.raises(ValueError, match="no digit to be seen"):
                        read_digit(network, on_table(sheet, table, angle))


@pytest.mark.parametrize("pen, paper", [("black", "white"), ("white", "black"), ("crimson", "white")])
def test_bold_digits_are_no_sheets(network, pen, paper):
    holes = {8: [(150, 110, 250, 210), (150, 260, 250, 360)], 0: [(150, 110, 250, 360)], 1: []}
    for digit, boxes in holes.items():
        picture = Image.new("RGB", (400, 480), paper)
        draw = ImageDraw.Draw(picture)
        draw.rectangle((90, 50, 310, 420) if boxes else (160, 50, 240, 420), fill=pen)
        for box in boxes:
            draw.rectangle(box, fill=paper)
        for size in ((28, 34), (100, 120), (400, 480)):
            assert read_digit(network, picture.resize(size)).digit == digit, size


def test_pale_pens_are_read(network, seven):
    for pen in ("pink", "#ffe680", "#b8e0b8", "#a8c8f0", "plum"):
        for paper in ("white", "#e0e0e0"):
            assert read_digit(network, ImageOps.colorize(ImageOps.invert(seven), pen, paper)).digit == 7, (pen, paper)


def test_any_kind_of_picture_is_read(network, seven, tmp_path):
    inverse, gray, flat = ImageOps.invert(seven), np.asarray(seven), Image.new("L", seven.size)
    green, red = Image.new("RGB", seven.size, (0, 130, 0)), Image.new("RGB", seven.size, (255, 0, 0))
    large = Image.new("L", (1600, 1200), 255)
    large.paste(inverse.resize((28, 28)), (1400, 90))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90° to show
    seven.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif)
    inverse.save(tmp_path / "transparent.png", transparency=255)
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
        "a file's bytes": (tmp_path / "turned.jpg").read_bytes(),
        "white is transparent": Image.open(tmp_path / "transparent.png"),
    }
    for name, picture in pictures.items():
        assert read_digit(network, picture).digit == 7, name


def test_the_mass_is_centered_and_what_was_shown_comes_back(network, seven):
    digit, probabilities, image = read_digit(network, ImageOps.expand(seven, (150, 4, 38, 4)))
    assert max(np.ptp(places) for places in image.numpy().nonzero()) + 1 == 20
    center = [(image.float().sum(1 - axis) * torch.arange(28)).sum() / image.sum() for axis in (0, 1)]
    assert all(abs(value - 14) <= 0.5 for value in center)
    shifted = [image.roll(step, axis) for step, axis in [(0, 0), (1, 0), (-1, 0), (1, 1), (-1, 1)]]
    log_probabilities = utils.predict(network, torch.stack(shifted)).sum(0) / 5
    torch.testing.assert_close(log_probabilities.exp() / log_probabilities.exp().sum(), probabilities)
    assert digit == probabilities.argmax() == 7


def test_blank_pages_and_several_digits_are_refused(network, digits):
    noise = np.random.default_rng(0).normal(0, 6, (200, 200))
    for level in (0, 90, 255):
        for page in (np.full((200, 200), level, np.uint8), np.clip(level + noise, 0, 255).astype(np.uint8)):
            with pytest.raises(ValueError, match="no digit to be seen"):
                read_digit(network, page)
    seven, two, one, zero = digits[0][:4]
    small = np.pad(np.asarray(Image.fromarray(two).resize((20, 20))), ((5, 3), (0, 0)))
    pages = [([[seven, zero]], 2), ([[seven], [zero]], 2), ([[one, zero]], 2), ([[one, one]], 2), ([[seven, small]], 2)]
    pages += [([[seven, two], [two, zero]], 4), ([[two, zero, seven]] * 3, 9)]
    for page, number in pages:
        with pytest.raises(ValueError, match=f"{number} digits; cut out one"):
            read_digit(network, np.block(page))


def test_hardly_any_single_digit_is_taken_for_several(mnist):
    refused = 0
    for image in mnist[0][0][:300].numpy():
        try:
            prepare(image)
        except ValueError:
            refused += 1
    assert refused <= 1


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
        (b"not an image", "the picture is no image"),
        ("https://example.com/7.png", "is an address; download the picture"),
    ]
    example = Path("own_digit/example.jpg").read_bytes()
    for name, content in {"a.png": b"not an image", "b.jpg": example[:9000], "c.pgm": b"P2 9 9 255 1 two"}.items():
        (tmp_path / name).write_bytes(content)
        wrong.append((tmp_path / name, f"{name} is no image"))
    for picture, message in wrong:
        with pytest.raises(ValueError, match=message):
            read_digit(network, picture)
    Image.new("1", (20_000, 10_050)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match="huge.png is too large; scale it down to less than 178 megapixels"):
        read_digit(network, tmp_path / "huge.png")
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
