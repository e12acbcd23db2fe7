"""The reader's own digit: from any picture to what the network takes, and a canvas to draw on."""

from pathlib import Path
from typing import NamedTuple

import anywidget
import numpy as np
import torch
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor, nn

from utils import predict

Picture = str | Path | Image.Image | np.ndarray | Tensor

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
    ink, look = _digit_ink(picture)
    box = bounding_box(ink > 0.1)
    scale, length = max(picture.size) / SIDE, max(ink[box].shape)
    if scale > 1 and length < SIDE / 2:  # what is small on a large page deserves all its pixels
        (top, bottom), (left, right) = ((scale * (side.start - length), scale * (side.stop + length)) for side in box)
        picture = picture.crop((max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height)))
        ink, _ = _digit_ink(picture, look)
        box = bounding_box(ink > 0.1)
        scale, length = max(picture.size) / SIDE, max(ink[box].shape)
    radius = round((0.1 * length - _stroke(ink[box] > 0.5)) / 2)
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


def _open(picture: Picture) -> Image.Image:
    """The picture, upright, as 8-bit RGB."""
    if isinstance(picture, np.ndarray | Tensor):
        picture = _from_array(picture)
    elif not isinstance(picture, str | Path | Image.Image):
        raise ValueError(f"a picture is a path, a PIL image or an array, not {type(picture).__name__}")
    path = "the picture" if isinstance(picture, Image.Image) else picture
    try:
        opened = picture if isinstance(picture, Image.Image) else Image.open(picture)
        upright = ImageOps.exif_transpose(opened)
        if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):  # more than 8 bits a pixel
            values = np.asarray(upright, dtype=np.float64)
            upright = _from_array((values - values.min()) / max(np.ptp(values), 1e-9))
        if "A" in upright.mode or "transparency" in upright.info:  # laid over what shows the picture best
            layers = [Image.new("RGBA", upright.size, ground) for ground in ("white", "black")]
            layers = [Image.alpha_composite(layer, upright.convert("RGBA")) for layer in layers]
            upright = max(layers, key=lambda layer: np.asarray(layer.convert("L")).std())
        upright = upright.convert("RGB")
    except FileNotFoundError:
        raise
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
    if array.dtype == bool or np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError("a float array must hold values in [0, 1] only")
        array = (255 * array).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"an array must be uint8, bool or float, got {array.dtype}")
    return Image.fromarray(array)


# From RGB to the ink of one digit -------------------------------------------------------------------------------------


def _digit_ink(picture: Image.Image, *looks: int) -> tuple[np.ndarray, int]:
    """The ink of the one digit in the picture, float [H, W] from 0 (paper) to 1, its longer side `SIDE` pixels.

    Ink is dark in all colors on paper that is bright in one, or the reverse, or differs from it in red, green or blue.
    Of all these looks, each on paper that is lit evenly and on paper that is not, the one that shows what looks most
    like a digit is taken and told.
    """
    scale = SIDE / max(picture.size)
    size = [max(round(scale * side), 1) for side in picture.size]
    picture = picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX)
    colors = np.moveaxis(np.asarray(picture, np.float32) / 255, 2, 0)
    lights = [colors.max(0), 1 - colors.min(0), *colors, *(1 - colors)]
    colored = np.ptp(colors - colors.mean(0), axis=(1, 2)).max() > 0.2
    looks = looks or range(len(lights) if colored else 2)
    found = [(_find(lights[look], evenly), look) for look in looks for evenly in (True, False)]
    found = [candidate for candidate in found if candidate[0]]
    if not found:
        raise ValueError("there is no digit to be seen; write one digit with a dark pen on light paper, or the reverse")
    (_, ink, mask, digit), look = max(found, key=lambda candidate: candidate[0][0])
    distance = ndimage.distance_transform_edt(~digit)
    if (digits := _count_digits(digit, distance)) > 1:
        raise ValueError(f"there seem to be {digits} digits; cut out one of them")
    near = distance <= max(_stroke(digit) / 2, scale)
    paper = ~near & ~mask
    floor = np.quantile(ink[paper], 0.99) if paper.any() else 0.0
    full = np.quantile(ink[digit], 0.75)
    return np.where(near, np.clip((ink - floor) / max(full - floor, 1e-3), 0, 1), 0).astype(np.float32), look


def _find(light: np.ndarray, evenly: bool) -> tuple[float, np.ndarray, np.ndarray, np.ndarray] | None:
    """What is most likely a digit: its score, the ink [H, W], where there is any and where the digit's is.

    A digit is slim, of one piece, dark, and on paper. Paper that is not lit evenly is what is left when all that is
    dark and narrower than a third of the picture is filled up: strokes are narrow, shadows and tables are wide.
    """
    from skimage.filters import threshold_otsu
    from skimage.measure import label, regionprops

    if evenly:
        paper = np.median(light[light >= threshold_otsu(light)])
    else:
        paper = ndimage.gaussian_filter(ndimage.grey_closing(light, SIDE // 3), SIDE / 50)
    ink = np.clip(paper - light, 0, None)
    mask = ink > max(threshold_otsu(ink), 0.04)
    if not 0 < mask.mean() < 0.8:
        return None
    ink = _without_lines(ink, mask)
    mask = ink > max(threshold_otsu(ink), 0.04)
    regions, depth = label(mask, connectivity=2), _depth(mask)
    areas = np.bincount(regions.ravel())
    areas[0] = 0
    regions[areas[regions] < np.sort(areas)[-30:][0]] = 0
    parts = _on_paper(regionprops(regions, depth), mask.shape)
    areas = [part.area for part in parts]
    if not parts or sum(area for area in areas if area >= 0.2 * max(areas)) < 0.5 * sum(areas):
        return None  # noise has specks of all sizes
    main = max(parts, key=_reach)
    # what is thicker than the pen and not slim is a blot, a hole or a shadow
    pen = [part for part in parts if part.intensity_max <= max(1.5 * main.intensity_max, 0.2 * max(part.image.shape))]
    digit = np.isin(regions, [part.label for part in pen if part.area >= 0.03 * main.area])
    contrast = np.median(light[~mask]) - light[digit].mean()
    if contrast < 0.08:
        return None
    slim = 1 - 2 * depth[digit].max() / max(digit[bounding_box(digit)].shape)
    border = np.ones_like(mask)
    border[1:-1, 1:-1] = False
    on_paper = 1 - mask[border].mean() / 2
    whole = main.area / sum(areas) * (0.8 if digit[border].any() else 1)
    score = max(slim, 0.01) ** 2 * on_paper**2 * whole**2 * contrast * (1 if evenly else 0.4)
    return score, ink, mask, digit


def _on_paper(parts: list, page: tuple[int, int]) -> list:
    """The parts that may be a digit, of all regions of ink."""
    contact = {part.label: _contact(part, page) for part in parts}
    inner = [part for part in parts if contact[part.label] < 0.6]
    if inner and contact[max(inner, key=_reach).label] == 0:  # a digit free of the edge owns nothing that touches it
        parts = [part for part in inner if contact[part.label] == 0]
    return [part for part in parts if not any(_holds(part, other) for other in parts)]


def _reach(part) -> float:
    """How long the part is, less twice how thick: most for a pen's stroke."""
    return max(part.image.shape) - 4 * part.intensity_max


def _contact(part, page: tuple[int, int]) -> float:
    """How much of a side of the page the part covers, at most."""
    mask = np.zeros(page, dtype=bool)
    mask[part.slice] = part.image
    return max(side.mean() for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))


def _holds(box, other) -> bool:
    """Whether the other part lies within the box of the first and is large enough for a digit in it."""
    (top, left, bottom, right), (y, x, y_end, x_end) = box.bbox, other.bbox
    return top < y and left < x and y_end < bottom and x_end < right and y_end - y > 0.35 * (bottom - top)


def bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that hold all of `mask`."""
    return ndimage.find_objects(mask.astype(int))[0]


def _depth(mask: np.ndarray) -> np.ndarray:
    """How far each pixel of `mask` is from the nearest that is not, the picture's outside included; float [pixels]."""
    return ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


def _stroke(mask: np.ndarray) -> float:
    """The width of the strokes that `mask` is made of."""
    return 4 * float(_depth(mask)[mask].mean())


def _count_digits(mask: np.ndarray, distance: np.ndarray) -> int:
    """How many digits the ink is: several tall pieces that together are wider or taller than one digit."""
    height, width = mask[bounding_box(mask)].shape
    gap = 0.08 * min(height, width)
    groups, _ = ndimage.label(distance <= max(gap / 2, 1))
    heights = [rows.stop - rows.start for rows, _ in ndimage.find_objects(groups)]
    tall = sum(h > 0.75 * max(heights) for h in heights)
    return tall if width > 1.1 * height or height > 1.9 * width else 1


def _without_lines(ink: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The ink without ruled lines: straight ones across the page, fainter than the digit or going on beyond it."""
    level, upright = _level_lines(mask), _level_lines(mask.T).T
    rest = ndimage.binary_opening(mask & ~ndimage.binary_dilation(level | upright, iterations=2))
    if not (level | upright).any() or not rest.any():
        return ink
    digit, usual = bounding_box(rest)[1], np.median(ink[level | upright])
    if usual > 0.75 * np.quantile(ink[rest], 0.75):  # as dark as the digit, whose stem goes on beyond the rest, too
        columns = level.any(0).nonzero()[0]
        beyond = min(digit.start - columns[0], columns[-1] - digit.stop) if len(columns) else 0
        if beyond < 0.1 * SIDE or level[[0, -1]].any():  # the foot of a 2 lies on the edge
            return ink
        upright[:] = False
    for lines, across in ((level, (SIDE // 10, 1)), (upright, (1, SIDE // 10))):
        near = ndimage.binary_dilation(lines, np.ones(across)[:5, :5])
        near &= ink < 1.4 * usual  # a darker pen that crosses the line stays
        ink = np.where(near, ndimage.grey_opening(ink, across), ink)
    return ink


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
