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


class Reading(NamedTuple):
    """What the network makes of a picture."""

    digit: int
    probabilities: Tensor  # [10], of the digits 0–9
    image: Tensor  # uint8 [28, 28], what the network was shown


def read_digit(network: nn.Module, picture: Picture) -> Reading:
    """The digit in a `picture`: a file's path, a PIL image, an array or tensor [H, W], [H, W, 3] or [H, W, 4].

    Photo, scan or screenshot; dark on light or light on dark; colour, alpha, any size will do; arrays are uint8, bool,
    or float in [0, 1]. The edge of a table, shadows, ruled lines and the box of a form are left out. Raises
    `ValueError` for what is no picture, for a blank page, for several digits, and where ink and paper cannot be told
    apart. What is written is not questioned: of a letter, too, the network makes one of ten digits.
    """
    image = prepare(picture)
    device = next(network.parameters()).device
    probabilities = predict(network, image[None].to(device))[0].exp().cpu()
    return Reading(int(probabilities.argmax()), probabilities, image)


def prepare(picture: Picture) -> Tensor:
    """What MNIST's authors would have made of `picture`: uint8 [28, 28], light ink on a dark ground.

    Grey, polarity, ink separated from the paper; the box of the ink scaled to 20 × 20 pixels, keeping its aspect ratio;
    moved so that the ink's centre of mass is in the middle of 28 × 28 pixels. Strokes much thinner than a pen's are
    thickened first, or scaling would make them vanish. Raises `ValueError` as `read_digit` does.
    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits, http://yann.lecun.com/exdb/mnist
    """
    grey = _grey(_open(picture))
    ink = _digit_ink(grey)
    box = bounding_box(ink > 0)
    scale, margin = max(grey.size) / max(ink.shape), max(ink[box].shape)
    if scale > 1:  # what is small on a large page deserves all its pixels
        (top, bottom), (left, right) = ((scale * (side.start - margin), scale * (side.stop + margin)) for side in box)
        grey = grey.crop((max(left, 0), max(top, 0), min(right, grey.width), min(bottom, grey.height)))
        ink = _digit_ink(grey)
        box = bounding_box(ink > 0)
    ink = ink[box]
    stroke = 4 * ndimage.distance_transform_edt(np.pad(ink > 0.5, 1))[1:-1, 1:-1][ink > 0.5].mean()
    radius = round((0.1 * max(ink.shape) - stroke) / 2)
    if radius > 0:
        ink = ndimage.maximum_filter(np.pad(ink, radius), 2 * radius + 1)

    size = [max(round(20 * side / max(ink.shape)), 1) for side in ink.shape]
    small = F.interpolate(torch.from_numpy(ink)[None, None], size=size, mode="bilinear", antialias=True)[0, 0]
    small = small / small.max()
    centre = ndimage.center_of_mass(small.numpy())
    top, left = (min(max(round(14 - c), 0), 28 - side) for c, side in zip(centre, size))
    image = torch.zeros(28, 28, dtype=torch.uint8)
    image[top : top + size[0], left : left + size[1]] = (255 * small).round().to(torch.uint8)
    return image


# From any picture to its brightness -----------------------------------------------------------------------------------


def _open(picture: Picture) -> Image.Image:
    """The picture, upright, as 8-bit RGB or RGBA."""
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
        upright = upright.convert("RGBA" if transparent else "RGB")
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large ({error}); scale it to less than {LARGEST:,} pixels") from error
    except Exception as error:  # Pillow raises nearly anything on damaged or unusual files
        raise ValueError(f"{path} is no image that can be read ({error}); save it as PNG or JPEG") from error
    if min(upright.size) < 8:
        raise ValueError(f"a picture of {upright.width} × {upright.height} pixels is too small to hold a digit")
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


def _grey(picture: Image.Image) -> Image.Image:
    """Brightness, or the colour channel of most contrast; transparency is laid over what shows the picture best."""
    layers = [picture]
    if picture.mode == "RGBA":
        grounds = (Image.new("RGBA", picture.size, colour) for colour in ("white", "black"))
        layers = [Image.alpha_composite(ground, picture).convert("RGB") for ground in grounds]
    channels = [channel for layer in layers for channel in (layer.convert("L"), *layer.split())]
    return max(channels, key=lambda channel: np.asarray(channel.resize((100, 100), Image.Resampling.NEAREST)).std())


# From brightness to the ink of one digit ------------------------------------------------------------------------------


def bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that hold all of `mask`."""
    return ndimage.find_objects(mask.astype(int))[0]


def _digit_ink(grey: Image.Image) -> np.ndarray:
    """The ink of the one digit in the picture, float [H, W] from 0 (paper) to 1, at most 500 pixels long."""
    grey = grey.copy()
    grey.thumbnail((500, 500))
    light = np.asarray(grey, dtype=np.float32) / 255
    found = [_dark_ink(brightness) for brightness in (light, 1 - light)]  # light ink on dark paper is tried as well
    (_, less, _), (ink, share, digits) = sorted(found, key=lambda candidate: candidate[1])
    if share == 0:
        raise ValueError("there is no digit to be seen; write one digit with a dark pen on light paper, or the reverse")
    if share < 1.2 * less:
        raise ValueError("ink and paper cannot be told apart; leave some paper around the digit")
    if digits > 1:
        raise ValueError(f"there seem to be {digits} digits; cut out one of them")
    return ink


def _dark_ink(brightness: np.ndarray) -> tuple[np.ndarray, float, int]:
    """The ink of dark digits on light paper, which share of all that is dark it is, and how many digits there are."""
    ink = _without_lines(_darker_than_paper(brightness))
    mask = ink > _otsu(ink)[0]
    regions, _ = ndimage.label(mask, np.ones((3, 3)))
    parts = [_Part(number, box, regions[box] == number) for number, box in enumerate(ndimage.find_objects(regions), 1)]
    parts = _on_paper(sorted(parts, key=lambda part: part.size, reverse=True)[:200], ink.shape)
    blank = not parts or max(parts[0].mask.shape) < 8 or sum(part.size for part in parts) > 3 * parts[0].size
    if blank or ink[mask].mean() < 0.08:
        return ink, 0.0, 0
    parts = [part for part in parts if part.size >= 0.03 * parts[0].size]  # without specks
    digit = np.isin(regions, [part.number for part in parts])
    near = ndimage.binary_dilation(digit, np.ones((5, 5)))
    paper = ~near & ~mask
    floor = np.quantile(ink[paper], 0.99) if paper.any() else 0.0
    full = np.quantile(ink[digit], 0.75)
    ink = np.where(near, np.clip((ink - floor) / max(full - floor, 1e-3), 0, 1), 0).astype(np.float32)
    return ink, digit.sum() / mask.sum(), _count_digits(digit)


def _darker_than_paper(brightness: np.ndarray) -> np.ndarray:
    """How much darker each pixel is than the light paper around it, at least 0, without the finest noise."""
    threshold, separation = _otsu(brightness)
    paper = np.median(brightness[brightness >= min(threshold, brightness.max())])
    if separation < 0.85:  # not evenly lit: a smooth surface through the paper
        y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in brightness.shape), indexing="ij")
        terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
        step = max(max(brightness.shape) // 100, 1)
        sample, values = terms[::step, ::step].reshape(-1, 6), brightness[::step, ::step].ravel()
        surface = np.full(len(values), np.quantile(values, 0.75))
        for _ in range(10):  # each round leaves out what stands off it most
            distance = np.abs(values - surface)
            chosen = distance <= np.quantile(distance, 0.5)
            coefficients = np.linalg.lstsq(sample[chosen], values[chosen], rcond=None)[0]
            surface = sample @ coefficients
        paper = terms @ coefficients
    return ndimage.gaussian_filter(np.clip(paper - brightness, 0, None), max(brightness.shape) / 500)


def _without_lines(ink: np.ndarray) -> np.ndarray:
    """The ink without thin straight lines that cross the page, level or upright within 4 degrees."""
    for _ in range(2):  # the second time turned
        lines = _level_lines(ink > _otsu(ink)[0])
        regions, _ = ndimage.label(lines, np.ones((3, 3)))
        for number, box in enumerate(ndimage.find_objects(regions), 1):
            thickness = (regions[box] == number).sum() / (box[1].stop - box[1].start)
            if thickness <= 0.05 * max(ink.shape):
                line = regions == number
                darkest = 1.4 * np.median(ink[line])  # a darker pen crosses it
                line = ndimage.binary_dilation(line, np.ones((3, 1)), iterations=2) & (ink < darkest)
                strokes_across = ndimage.grey_opening(ink, (2 * round(thickness) + 5, 1))
                ink = np.where(line, strokes_across, ink)
        ink = ink.T
    return ink


def _level_lines(mask: np.ndarray) -> np.ndarray:
    """Where `mask` holds straight lines of at least 0.85 of its width that rise or fall by at most 4 degrees."""
    lines, length = np.zeros(mask.shape, dtype=bool), int(0.85 * mask.shape[1])
    if mask.any(0).sum() < length:
        return lines
    for slope in np.tan(np.deg2rad(range(-4, 5))):
        fall = np.round(slope * np.arange(mask.shape[1])).astype(int)
        rows = (np.arange(mask.shape[0])[:, None] + fall) % mask.shape[0]
        level = ndimage.grey_opening(np.take_along_axis(mask, rows, 0).astype(np.uint8), (1, length), mode="constant")
        np.put_along_axis(lines, rows, np.take_along_axis(lines, rows, 0) | (level > 0), 0)
    return lines


class _Part(NamedTuple):
    """A connected region of ink: its number, its box on the page, its mask in that box."""

    number: int
    box: tuple[slice, slice]
    mask: np.ndarray

    @property
    def size(self) -> int:
        return int(self.mask.sum())

    @property
    def is_solid(self) -> bool:
        """Whether it is an upright bar, as a 1 written with a thick pen."""
        upright = self.mask.shape[0] > 2 * self.mask.shape[1]
        return upright and self.mask.mean() > 0.6 and ndimage.binary_fill_holes(self.mask).sum() == self.size

    @property
    def straight_sides(self) -> int:
        """How many sides of its box it covers: four if it is the box of a form."""
        return 0 if self.is_solid else sum(side > 0.7 for side in self.sides)

    @property
    def is_disc(self) -> bool:
        """Whether it is as thick as it is long: no stroke, but a hole in the paper, a blot or a shadow."""
        return ndimage.distance_transform_edt(np.pad(self.mask, 1)).max() > 0.33 * max(self.mask.shape)

    @property
    def sides(self) -> list[float]:
        """How much of the four sides of its box it covers: top, bottom, left, right."""
        depth = max(max(self.mask.shape) // 25, 1)
        ends = self.mask[:depth], self.mask[-depth:], self.mask[:, :depth].T, self.mask[:, -depth:].T
        return [float(end.any(axis=0).mean()) for end in ends]

    def reaches(self, page: tuple[int, int]) -> list[bool]:
        """Which sides of the page it touches."""
        (y, x), (height, width) = self.box, page
        return [y.start == 0, y.stop == height, x.start == 0, x.stop == width]

    def fills(self, page: tuple[int, int], share: float = 0.8) -> bool:
        """Whether its box is nearly as large as the page, as when a picture was cut out along the digit."""
        return all(side.stop - side.start > share * length for side, length in zip(self.box, page))

    def is_sheet(self, page: tuple[int, int]) -> bool:
        """Whether it fills its box, or a bar the page, as no digit does, but paper that was taken for ink."""
        return self.mask.mean() > 0.72 and (self.fills(page) or not self.is_solid)


def _on_paper(parts: list[_Part], page: tuple[int, int]) -> list[_Part]:
    """The parts that may be a digit: no frame, table, corner, hole or shadow, and no line below all others."""
    parts = [part for part in parts if not (part.is_disc or part.is_sheet(page)) and part.straight_sides < 3]
    inside = [part for part in parts if not any(part.reaches(page))]
    edge = [part for part in parts if any(part.reaches(page))]
    cut_out = [part for part in edge if part.fills(page) and part.straight_sides < 2]
    if cut_out and cut_out[0].size > 2 * sum(part.size for part in inside):
        return cut_out + inside
    if not inside:
        inside = [part for part in edge if part.fills(page, 0.5) or sum(part.reaches(page)) == 1]
        inside = [p for p in inside if not any(side > 0.6 and end for side, end in zip(p.sides, p.reaches(page)))]
    for part in [part for part in inside if part.mask.shape[1] > 4 * part.mask.shape[0]]:
        others = [other for other in inside if other is not part]
        rows, columns = _common_box(others or [part])
        below, wide = part.box[0].start >= rows.stop - 2, part.mask.shape[1] >= columns.stop - columns.start
        inside = others if others and (below or wide) else inside
    return inside


def _common_box(parts: list[_Part]) -> tuple[slice, slice]:
    sides = ([part.box[axis] for part in parts] for axis in (0, 1))
    return tuple(slice(min(side.start for side in axis), max(side.stop for side in axis)) for axis in sides)


def _count_digits(mask: np.ndarray) -> int:
    """How many digits the ink is: parts with narrow gaps between them are one, what is much shorter belongs to it."""
    gap = 0.06 * max(mask[bounding_box(mask)].shape)
    groups, _ = ndimage.label(ndimage.distance_transform_edt(~mask) <= max(gap / 2, 1))
    heights = [rows.stop - rows.start for rows, _ in ndimage.find_objects(groups)]
    return sum(height > 0.5 * max(heights) for height in heights)


def _otsu(values: np.ndarray) -> tuple[float, float]:
    """The threshold that divides `values` in [0, 1] into two classes of the least variance, and how well: 0 to 1.

    Source: N. Otsu, A threshold selection method from gray-level histograms (1979)
    """
    counts, edges = np.histogram(values, bins=256, range=(0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2 / below[-1] ** 2
    if not np.isfinite(between).any():
        return 1.0, 0.0
    best = np.nanargmax(between)
    return float(edges[1 + best]), float(between[best] / max(values.var(), 1e-12))


class DrawingPad(anywidget.AnyWidget):
    """A canvas for mouse or finger; while the reader draws, the ten probabilities of `network` follow as bars."""

    _esm = Path(__file__).parent / "drawing_pad.js"
    _css = Path(__file__).parent / "drawing_pad.css"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self.on_msg(self._read)

    def _read(self, _: object, content: dict, buffers: list[memoryview]) -> None:
        """Answer a drawing, grey bytes row by row, with what the network makes of it."""
        drawing = np.frombuffer(buffers[0], np.uint8).reshape(content["side"], content["side"])
        try:
            digit, probabilities, _ = read_digit(self._network, drawing)
            self.send(dict(probabilities=probabilities.tolist(), message=f"this is a {digit}"))
        except ValueError as error:
            self.send(dict(probabilities=[], message=str(error)))
