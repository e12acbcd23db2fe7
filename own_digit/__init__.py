"""The reader's own digit: from any picture to what the network takes, and a canvas to draw on."""

from pathlib import Path
from typing import NamedTuple

import anywidget
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor, nn

from utils import predict

Picture = str | Path | Image.Image | np.ndarray | Tensor

LARGEST = 100_000_000  # pixels of a picture
SIDE = 192  # pixels of the longer side of a picture, enlarged or reduced, when its ink is judged


class Reading(NamedTuple):
    """What the network makes of a picture."""

    digit: int
    probabilities: Tensor  # [10], of the digits 0–9
    image: Tensor  # uint8 [28, 28], what the network was shown


def read_digit(network: nn.Module, picture: Picture) -> Reading:
    """The digit in a `picture`: a file's path, a PIL image, an array or tensor [H, W], [H, W, 3] or [H, W, 4].

    Photo, scan or screenshot; dark on light or light on dark; color, alpha, any size will do; arrays are uint8, bool,
    or float in [0, 1]. The edge of a table, shadows, ruled lines and the box of a form are left out. Raises
    `ValueError` for what is no picture, for a blank page and for several digits. What is written is not questioned:
    of a letter, too, the network makes one of ten digits.
    """
    image = prepare(picture)
    device = next(network.parameters()).device
    probabilities = predict(network, image[None].to(device))[0].exp().cpu()
    return Reading(int(probabilities.argmax()), probabilities, image)


def prepare(picture: Picture) -> Tensor:
    """What MNIST's authors would have made of `picture`: uint8 [28, 28], light ink on a dark ground.

    The ink is separated from the paper; its box scaled to 20 × 20 pixels, keeping its aspect ratio; moved so that the
    ink's center of mass is in the middle of 28 × 28 pixels. Strokes much thinner than a pen's are thickened first, or
    scaling would make them vanish. Raises `ValueError` as `read_digit` does.
    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits, http://yann.lecun.com/exdb/mnist
    """
    picture = _open(picture)
    ink = _digit_ink(picture)
    box = bounding_box(ink > 0.1)
    scale, margin = max(picture.size) / SIDE, max(ink[box].shape)
    if scale > 1 and margin < SIDE / 2:  # what is small on a large page deserves all its pixels
        (top, bottom), (left, right) = ((scale * (side.start - margin), scale * (side.stop + margin)) for side in box)
        picture = picture.crop((max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height)))
        ink = _digit_ink(picture)
        box = bounding_box(ink > 0.1)
    ink = ink[box]
    radius = round((0.1 * max(ink.shape) - _stroke(ink > 0.5)) / 2)
    if radius > 0:
        ink = ndimage.maximum_filter(np.pad(ink, radius), 2 * radius + 1)

    size = [max(round(20 * side / max(ink.shape)), 1) for side in ink.shape]
    small = F.interpolate(torch.from_numpy(ink)[None, None], size=size, mode="bilinear", antialias=True)[0, 0]
    small = small / small.max()
    center = ndimage.center_of_mass(small.numpy())
    top, left = (min(max(round(14 - c), 0), 28 - side) for c, side in zip(center, size))
    image = torch.zeros(28, 28, dtype=torch.uint8)
    image[top : top + size[0], left : left + size[1]] = (255 * small).round().to(torch.uint8)
    return image


# From any picture to RGB ----------------------------------------------------------------------------------------------


def _open(picture: Picture) -> Image.Image:
    """The picture, upright, as 8-bit RGB."""
    if isinstance(picture, np.ndarray | Tensor):
        picture = _from_array(picture)
    elif not isinstance(picture, str | Path | Image.Image):
        raise ValueError(f"a picture is a path, a PIL image or an array, not {type(picture).__name__}")
    path = "the picture" if isinstance(picture, Image.Image) else picture
    try:
        opened = picture if isinstance(picture, Image.Image) else Image.open(picture)
        if opened.width * opened.height > LARGEST:
            raise Image.DecompressionBombError(f"{opened.width * opened.height:,} pixels")
        upright = ImageOps.exif_transpose(opened)
        if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):  # more than 8 bits a pixel
            values = np.asarray(upright, dtype=np.float64)
            upright = _from_array((values - values.min()) / max(np.ptp(values), 1e-9))
        if upright.mode in ("La", "RGBa"):
            upright = upright.convert(upright.mode.upper())
        transparent = "A" in upright.mode or "transparency" in upright.info
        if transparent:  # laid over what shows the picture best
            layers = [Image.new("RGBA", upright.size, ground) for ground in ("white", "black")]
            layers = [Image.alpha_composite(layer, upright.convert("RGBA")) for layer in layers]
            upright = max(layers, key=lambda layer: np.asarray(layer.convert("L")).std())
        upright = upright.convert("RGB")
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large ({error}); scale it to less than {LARGEST:,} pixels") from error
    except Exception as error:  # Pillow raises nearly anything on damaged or unusual files
        raise ValueError(f"{path} is no image that can be read ({error}); save it as PNG or JPEG") from error
    return upright


def _from_array(array: np.ndarray | Tensor) -> Image.Image:
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in (3, 4) or 0 in array.shape:
        raise ValueError(f"an array must be [H, W], [H, W, 3] or [H, W, 4], got {list(array.shape)}")
    if array.dtype == bool:
        array = array.astype(float)
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError("a float array must hold values in [0, 1] only")
        array = (255 * array).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"an array must be uint8, bool or float, got {array.dtype}")
    return Image.fromarray(array)


# From RGB to the ink of one digit -------------------------------------------------------------------------------------


Found = tuple[float, np.ndarray, np.ndarray, np.ndarray]  # score, ink [H, W], where there is any, where the digit's


def _digit_ink(picture: Image.Image) -> np.ndarray:
    """The ink of the one digit in the picture, float [H, W] from 0 (paper) to 1, its longer side `SIDE` pixels.

    Each color channel is searched for dark and for light ink, on paper that is lit evenly and on paper that is not;
    what looks most like a digit is taken.
    """
    scale = SIDE / max(picture.size)
    size = [max(round(scale * side), 1) for side in picture.size]
    picture = picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX)
    gray, *colors = (np.asarray(part, np.float32) / 255 for part in (picture.convert("L"), *picture.split()))
    channels = [gray] + [color for color in colors if np.abs(color - gray - np.mean(color - gray)).max() > 0.1]
    lights = [light for channel in channels for light in (channel, 1 - channel)]
    found = [_find(light, ink, trust) for light in lights for ink, trust in _darker_than_paper(light)]
    found = [candidate for candidate in found if candidate]
    if not found:
        raise ValueError("there is no digit to be seen; write one digit with a dark pen on light paper, or the reverse")
    _, ink, mask, digit = max(found, key=lambda candidate: candidate[0])
    if (digits := _count_digits(digit)) > 1:
        raise ValueError(f"there seem to be {digits} digits; cut out one of them")
    near = ndimage.distance_transform_edt(~digit) <= max(_stroke(digit) / 2, scale)
    paper = ~near & ~mask
    floor = np.quantile(ink[paper], 0.99) if paper.any() else 0.0
    full = np.quantile(ink[digit], 0.75)
    return np.where(near, np.clip((ink - floor) / max(full - floor, 1e-3), 0, 1), 0).astype(np.float32)


def _darker_than_paper(brightness: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """How much darker each pixel is than the paper, at least 0, and how far to trust it: paper lit evenly, unevenly.

    Unevenly lit paper is what is left when all that is dark and narrower than a third of the picture is filled up:
    strokes are narrow, shadows and tables are wide.
    """
    from skimage.filters import threshold_otsu

    smooth = ndimage.gaussian_filter(brightness, SIDE / 500)
    even = np.median(brightness[brightness >= threshold_otsu(brightness)])
    uneven = ndimage.gaussian_filter(ndimage.grey_closing(smooth, SIDE // 3), SIDE / 50)
    return [(np.clip(even - smooth, 0, None), 1.0), (np.clip(uneven - smooth, 0, None), 0.3)]


def _find(light: np.ndarray, ink: np.ndarray, trust: float) -> Found | None:
    """What is most likely a digit in the `ink`, with a score: a digit is slim, of one piece, dark, and on paper."""
    from skimage.filters import threshold_otsu
    from skimage.measure import label, regionprops

    mask = ink > max(threshold_otsu(ink), 0.04)
    if not 0 < mask.mean() < 0.8:
        return None
    ink = _without_lines(ink, mask)
    mask = ink > max(threshold_otsu(ink), 0.04)
    regions = label(mask, connectivity=2)
    areas = np.bincount(regions.ravel())[1:]
    regions[np.isin(regions, 1 + np.argsort(areas)[:-30])] = 0
    parts = _on_paper(regionprops(regions), mask.shape)
    areas = [part.area for part in parts]
    if not parts or sum(area for area in areas if area >= 0.2 * max(areas)) < 0.5 * sum(areas):
        return None  # noise has specks of all sizes
    digit = np.isin(regions, [part.label for part in parts if part.area >= 0.03 * max(areas)])
    usual = np.median(light[~mask]) - light[digit].mean()  # ink is darker than most of the page, not only nearby
    contrast = min(ink[digit].mean() - ink[~mask].mean(), usual)
    if contrast < 0.08:
        return None
    slim = 1 - 2 * _depth(digit).max() / max(digit[bounding_box(digit)].shape)
    within = SIDE // 12 if _edge(mask) > 0.95 else 0  # a frame all around is no ink of the digit
    on_paper = 1 - _edge(mask[within : len(mask) - within, within : mask.shape[1] - within]) / 2
    whole = max(areas) / sum(areas) * (0.8 if _edge(digit) else 1)
    return trust * max(slim, 0.01) ** 2 * on_paper**2 * whole**2 * contrast, ink, mask, digit


def _on_paper(parts: list, page: tuple[int, int]) -> list:
    """The parts that may be a digit, of all regions of ink."""
    free = [part for part in parts if not _touches(part, page).any()]
    inner = [part for part in parts if not _lies_along(part, page)]
    if inner and not _touches(max(inner, key=_length), page).any():
        parts = free  # a digit that is free of the edge owns nothing that touches it
    boxes = [part.label for part in parts if (_sides(part) > 0.7).sum() >= 3 and any(_holds(part, p) for p in parts)]
    parts = [part for part in parts if part.label not in boxes]  # a rectangular 0 holds nothing
    if not parts:
        return []
    largest = max(parts, key=lambda part: part.area)
    stroke, length = _stroke(largest.image), _length(largest)
    # a long line half as wide is another pen's; what is as thick as long, and no mere dot, is a blot or a hole
    thin = [part.label for part in parts if _length(part) > length / 2 and _stroke(part.image) < stroke / 2]
    bulky = (part for part in parts if 0.7 * stroke < _length(part) < length / 2)
    blots = [part.label for part in bulky if 2 * _depth(part.image).max() > 0.7 * _length(part)]
    return [part for part in parts if part.label not in thin + blots]


def _touches(part, page: tuple[int, int]) -> np.ndarray:
    """Which sides of the page it touches: top, bottom, left, right."""
    top, left, bottom, right = part.bbox
    return np.array([top == 0, bottom == page[0], left == 0, right == page[1]])


def _sides(part) -> np.ndarray:
    """How much of the four sides of its own box it covers: top, bottom, left, right."""
    depth, image = max(_length(part) // 25, 1), part.image
    ends = image[:depth], image[-depth:], image[:, :depth].T, image[:, -depth:].T
    return np.array([end.any(axis=0).mean() for end in ends])


def _lies_along(part, page: tuple[int, int]) -> bool:
    """Whether it covers a side of the page."""
    height, width = np.array(part.image.shape) > 0.9 * np.array(page)
    return bool((_touches(part, page) & (_sides(part) > 0.6) & [width, width, height, height]).any())


def _holds(box, other) -> bool:
    """Whether the other part lies within the box and is large enough for a digit in it."""
    (top, left, bottom, right), (y, x, y_end, x_end) = box.bbox, other.bbox
    return top < y and left < x and y_end < bottom and x_end < right and y_end - y > 0.35 * (bottom - top)


def _length(part) -> int:
    return max(part.image.shape)


def bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that hold all of `mask`."""
    return ndimage.find_objects(mask.astype(int))[0]


def _edge(mask: np.ndarray) -> float:
    """How much of the four edges `mask` covers."""
    return float(np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()) if mask.size else 1.0


def _depth(mask: np.ndarray) -> np.ndarray:
    """How far each pixel of `mask` is from the nearest that is not, the picture's outside included; float [pixels]."""
    return ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1][mask]


def _stroke(mask: np.ndarray) -> float:
    """The width of the strokes that `mask` is made of."""
    return 4 * float(_depth(mask).mean())


def _count_digits(mask: np.ndarray) -> int:
    """How many digits the ink is: several tall pieces that together are wider or taller than one digit."""
    height, width = mask[bounding_box(mask)].shape
    gap = 0.06 * max(height, width)
    groups, _ = ndimage.label(ndimage.distance_transform_edt(~mask) <= max(gap / 2, 1))
    heights = [rows.stop - rows.start for rows, _ in ndimage.find_objects(groups)]
    tall = sum(h > 0.75 * max(heights) for h in heights)
    return tall if width > 1.1 * height or height > 2.2 * width else 1


# Ruled lines ----------------------------------------------------------------------------------------------------------


def _without_lines(ink: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The ink without ruled lines: they cross the page, and are fainter than the digit or go on beyond it."""
    level, upright = _level_lines(mask), _level_lines(mask.T).T
    rest = ndimage.binary_opening(mask & ~ndimage.binary_dilation(level | upright, iterations=2))
    if not (level | upright).any() or not rest.any():
        return ink
    ink = _erase(ink, level, rest, alone=True)
    return _erase(ink.T, upright.T, rest.T, alone=False).T  # the stem of a 4 goes on beyond the rest, too


def _level_lines(mask: np.ndarray) -> np.ndarray:
    """Where `mask` holds straight lines over 0.85 of its width that rise or fall by at most 4 degrees."""
    lines = np.zeros(mask.shape, dtype=bool)
    if mask.any(0).mean() > 0.85:
        rows, columns = mask.nonzero()
        for slope in np.tan(np.deg2rad(range(-4, 5))):
            row = rows - np.round(slope * columns).astype(int) + mask.shape[1]
            long = (np.bincount(row) > 0.85 * mask.shape[1])[row]
            lines[rows[long], columns[long]] = True
    return lines


def _erase(ink: np.ndarray, lines: np.ndarray, rest: np.ndarray, alone: bool) -> np.ndarray:
    """The ink without the level `lines` that are fainter than the `rest` or, `alone`, go on beyond it on both sides."""
    digit, dark = bounding_box(rest)[1], np.quantile(ink[rest], 0.75)
    regions, _ = ndimage.label(lines, np.ones((3, 3)))
    ink = ink.copy()
    for number, (rows, columns) in enumerate(ndimage.find_objects(regions), 1):
        thickness = (regions[rows] == number).sum() / (columns.stop - columns.start)
        inside = 0 < rows.start and rows.stop < len(ink)
        beyond = inside and min(digit.start - columns.start, columns.stop - digit.stop) > 0.1 * SIDE
        height = 2 * round(thickness) + 5
        near = slice(max(rows.start - height, 0), rows.stop + height)
        line, part = regions[near] == number, ink[near]
        usual = np.median(part[line])
        if thickness <= 0.05 * SIDE and (beyond and alone or usual < 0.75 * dark):
            line = ndimage.binary_dilation(line, np.ones((3, 1)), iterations=2) & (part < 1.4 * usual)
            part[line] = ndimage.grey_opening(part, (height, 1))[line]  # a darker pen that crosses the line stays
    return ink


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
