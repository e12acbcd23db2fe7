"""The reader's own digit: from any picture to what the network takes, and a canvas to draw on.

First the paper, then the ink, then the digit, then 28 × 28 pixels: `paper`, `ink`, `prepare`.
"""

from pathlib import Path
from typing import NamedTuple

import anywidget
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from own_digit.ink import Found, count_digits, find_digit, stroke
from own_digit.paper import cut_to, find_sheets, rim
from own_digit.picture import SIDE, Picture, border, bounding_box, open_picture
from utils import predict

__all__ = ["DrawingPad", "Reading", "bounding_box", "prepare", "read_digit"]

SHEET = 1.6  # what is on a sheet is so much more likely the digit than what is in the whole picture
OUTLINE = 0.7  # and what follows a sheet's outline is less likely by so much
DOUBTFUL = 0.18  # likeness to a digit of what is no ink on the sheet, at least
SHIFTS = (0, 0, 0, 0), (1, -1, 0, 0), (-1, 1, 0, 0), (0, 0, 1, -1), (0, 0, -1, 1)  # pixels: left, right, top, bottom


class Reading(NamedTuple):
    """What the network makes of a picture."""

    digit: int
    probabilities: Tensor  # [10], of the digits 0–9
    image: Tensor  # uint8 [28, 28], what the network was shown, before its shifts


def read_digit(network: nn.Module, picture: Picture) -> Reading:
    """The digit in a `picture`: a path, a file's bytes, a PIL image, an array or tensor [H, W], [H, W, 3], [H, W, 4].

    Photo, scan or screenshot; dark on light or light on dark; color, alpha, any size will do; arrays are uint8, bool,
    or float in [0, 1]. The table around a sheet, shadows, ruled lines and the box of a form are left out. Raises
    `ValueError` for what is no picture, for a blank page and for several digits. What is written is not questioned:
    of a letter, too, the network makes one of ten digits. No picture shows where a digit's middle is to a pixel: the
    log-probabilities are the mean of the image's and of those of its shifts by one pixel in four directions.
    """
    image = prepare(picture)
    device = next(network.parameters()).device
    shifted = torch.stack([F.pad(image, margins) for margins in SHIFTS]).to(device)
    probabilities = predict(network, shifted).mean(0).softmax(0).cpu()
    return Reading(int(probabilities.argmax()), probabilities, image)


def prepare(picture: Picture) -> Tensor:
    """What MNIST's authors would have made of `picture`: uint8 [28, 28], light ink on a dark ground.

    The ink is separated from the paper; its box scaled to 20 × 20 pixels, keeping its aspect ratio; moved so that the
    ink's center of mass is in the middle of 28 × 28 pixels. Strokes much thinner than a pen's are thickened first, or
    scaling would make them vanish. Raises `ValueError` as `read_digit` does.
    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits, http://yann.lecun.com/exdb/mnist
    """
    picture, found = _look(open_picture(picture))
    ink = _digit_ink(found, max(picture.size))
    box = bounding_box(ink > 0.1)
    scale, length = max(picture.size) / SIDE, max(ink[box].shape)
    if scale > 1 and length < SIDE / 2:  # what is small on a large page deserves all its pixels
        (top, bottom), (left, right) = ((scale * (side.start - length), scale * (side.stop + length)) for side in box)
        picture = picture.crop((max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height)))
        ink = _digit_ink(find_digit(picture, found.look), max(picture.size))
        box = bounding_box(ink > 0.1)
        scale, length = max(picture.size) / SIDE, max(ink[box].shape)
    radius = round((0.1 * length - stroke(ink[box] > 0.5)) / 2)
    if radius > 0:
        ink = ndimage.maximum_filter(np.pad(ink[box], radius), 2 * radius + 1)
    else:
        if scale < 1 and scale * length >= 20:  # an MNIST image keeps its pixels
            ink = np.asarray(Image.fromarray(ink).resize(picture.size, Image.Resampling.NEAREST))
        ink = ink[bounding_box(ink > 0.1)]

    size = [max(round(20 * side / max(ink.shape)), 1) for side in ink.shape]
    small = np.asarray(Image.fromarray(ink).resize(size[::-1], Image.Resampling.BILINEAR))
    small = small / small.max()
    center = ndimage.center_of_mass(small)
    top, left = (min(max(round(14 - c), 0), 28 - side) for c, side in zip(center, size))
    image = torch.zeros(28, 28, dtype=torch.uint8)
    image[top : top + size[0], left : left + size[1]] = torch.from_numpy((255 * small).round().astype(np.uint8))
    return image


def _look(picture: Image.Image) -> tuple[Image.Image, Found | None]:
    """The digit and the picture that it is in, cut to a sheet if there is one.

    A digit lies on the sheet and off its border; what follows the sheet's outline is the sheet.
    """
    found, sheets = find_digit(picture), find_sheets(picture)
    likeness = found.likeness if found else 0
    if found and sheets:
        likeness *= 1 - OUTLINE * max(found.digit[rim(sheet)].mean() for sheet, _ in sheets)
        if likeness < DOUBTFUL and not all(sheet[found.digit].all() for sheet, _ in sheets):
            found = None
    view, likeness = picture, max(likeness, DOUBTFUL)
    for sheet, degrees in sheets:
        cut = cut_to(picture, sheet, degrees)
        on_sheet = find_digit(cut)
        if on_sheet and not border(on_sheet.digit).any() and SHEET * on_sheet.likeness > likeness:
            view, found, likeness = cut, on_sheet, SHEET * on_sheet.likeness
    return view, found


def _digit_ink(found: Found | None, side: int) -> np.ndarray:
    """The ink of the one digit that was found in a picture, its longer side `side` pixels: float [H, W], 0 to 1."""
    if found is None:
        raise ValueError("there is no digit to be seen; write one digit with a dark pen on light paper, or the reverse")
    ink, digit = found.ink, found.digit
    if (digits := count_digits(digit)) > 1:
        raise ValueError(f"there seem to be {digits} digits; cut out one of them")
    near = ndimage.distance_transform_edt(~digit) <= max(stroke(digit) / 2, SIDE / side)
    paper = ~near & ~found.mask
    floor = np.quantile(ink[paper], 0.99) if paper.any() else 0.0
    full = np.quantile(ink[digit], 0.75)
    return np.where(near, np.clip((ink - floor) / max(full - floor, 1e-3), 0, 1), 0).astype(np.float32)


class DrawingPad(anywidget.AnyWidget):
    """A canvas for mouse or finger; while the reader draws, the ten probabilities of `network` follow as bars."""

    _esm = Path(__file__).parent / "drawing_pad.js"
    _css = Path(__file__).parent / "drawing_pad.css"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self.on_msg(self._read)

    def _read(self, _: object, content: dict, buffers: list[memoryview]) -> None:
        """Answer a drawing, gray bytes row by row, with what the network makes of it, or why it cannot."""
        answer = dict(number=content.get("number"), probabilities=[])
        try:
            drawing = np.frombuffer(buffers[0], np.uint8).reshape(content["side"], content["side"])
            digit, probabilities, _ = read_digit(self._network, drawing)
            answer.update(probabilities=probabilities.tolist(), message=f"this is a {digit}")
        except Exception as error:  # whatever it is: Jupyter would show nothing, and the reader wait in vain
            name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            answer.update(message=f"{name}{error}")
        self.send(answer)
