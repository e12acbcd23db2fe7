"""Ink on paper, and what of it is the digit."""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops

from own_digit.picture import SIDE, bounding_box, shrink

COLORED = 0.05  # differences in color above this deserve looks at single colors
COLORED_PAPER = 0.15
TABLE = 0.6  # share of the picture's border: what covers more is no digit
DISC = 0.4  # of the longer side, depth
FLAT = 4  # width to height
GAP = 0.08
SPECK = 0.03
FAINTEST = 0.04  # least contrast of ink and paper, of that between black and white


class Found(NamedTuple):
    """What is most likely a digit, as one look at a picture shows it."""

    likeness: float  # to a digit, 0 to 1
    contrast: float  # of ink and paper, 0 to 1
    ink: np.ndarray  # float [H, W], how much darker than paper
    mask: np.ndarray  # bool [H, W], where there is any ink
    digit: np.ndarray  # bool [H, W], where the digit's is
    look: int = 0  # which of the looks it was


def find_digit(picture: Image.Image, *looks: int) -> Found | None:
    """What looks most like a digit in all `looks` at a picture, or in those named; None if nothing does.

    Ink is dark in all colors on paper that is bright in one, or the reverse, or differs from it in red, green or blue;
    the paper is lit evenly or not.
    """
    colors = np.moveaxis(shrink(picture), 2, 0)
    lights = [colors.max(0), 1 - colors.min(0), colors.min(0), 1 - colors.max(0), *colors, *(1 - colors)]
    colored = np.ptp(colors - colors.mean(0), axis=(1, 2)).max() > COLORED
    colored_paper = np.ptp(np.median(colors, axis=(1, 2))) > COLORED_PAPER
    looks = looks or range(len(lights) if colored_paper else 4 if colored else 2)
    found = [(look, find_ink(lights[look], evenly)) for look in looks for evenly in (True, False)]
    found = [candidate._replace(look=look) for look, candidate in found if candidate]
    return max(found, key=lambda candidate: candidate.likeness * candidate.contrast, default=None)


def find_ink(light: np.ndarray, evenly: bool) -> Found | None:
    """What is most likely a digit: its score, the ink [H, W], where there is any and where the digit's is.

    A digit is slim, of one piece, dark, and on paper. Paper that is not lit evenly is what is left when all that is
    dark and narrower than a third of the picture is filled up: strokes are narrow, shadows and tables are wide.
    """
    if evenly:
        paper = np.median(light[light >= threshold_otsu(light)])
    else:
        filled = ndimage.grey_closing(light, SIDE // 3)
        paper = np.minimum(filled, ndimage.gaussian_filter(filled, SIDE / 50))
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
    parts = _without_underline(_on_paper(regionprops(regions, depth), mask.shape))
    areas = [part.area for part in parts]
    if not parts or sum(area for area in areas if area >= 0.2 * max(areas)) < 0.5 * sum(areas):
        return None  # noise has specks of all sizes
    main = max(parts, key=_reach)
    # what is thicker than the pen and not slim is a blot, a hole or a shadow
    pen = [part for part in parts if part.intensity_max <= max(1.5 * main.intensity_max, 0.2 * max(part.image.shape))]
    pen = [part for part in pen if part is main or not _is_hole(part, main)]
    digit = np.isin(regions, [part.label for part in pen if part.area >= SPECK * main.area])
    contrast = np.median(light[~mask]) - light[digit].mean()
    if contrast < FAINTEST:
        return None
    slim = 1 - 2 * depth[digit].max() / max(digit[bounding_box(digit)].shape)
    border = np.ones_like(mask)
    border[1:-1, 1:-1] = False
    if digit[border].mean() > TABLE:
        return None
    on_paper = 1 - mask[border].mean() / 2
    whole = main.area / sum(areas) * (0.8 if digit[border].any() else 1)
    likeness = max(slim, 0.01) ** 2 * on_paper**2 * whole**2 * (1 if evenly else 0.4)
    return Found(likeness, contrast, ink, mask, digit)


def _on_paper(parts: list, page: tuple[int, int]) -> list:
    """The parts that may be a digit, of all regions of ink."""
    contact = {part.label: _contact(part, page) for part in parts}
    inner = [part for part in parts if contact[part.label] < 0.6]
    if inner and contact[max(inner, key=_reach).label] == 0:  # a digit free of the edge owns nothing that touches it
        parts = [part for part in inner if contact[part.label] == 0]
    boxes = [part.bbox for part in parts]
    return [part for part, box in zip(parts, boxes) if not any(_holds(box, other) for other in boxes)]


def _is_hole(part, main) -> bool:
    """Whether the part is a disc beside the main part: a punched hole."""
    (top, left, bottom, right), (y, x, y_end, x_end) = main.bbox, part.bbox
    beside = y >= bottom or x >= right or y_end <= top or x_end <= left
    return beside and part.intensity_max > DISC * max(part.image.shape) and main.area > 2 * part.area


def _without_underline(parts: list) -> list:
    """The parts without a stroke that lies below all others and is wider than they are."""
    large = [part for part in parts if part.area >= SPECK * max(part.area for part in parts)]
    lowest = max(large, key=lambda part: part.bbox[0], default=None)
    others = [part.bbox for part in large if part is not lowest]
    if not others:
        return parts
    (y, x, y_end, x_end), (_, left, bottom, right) = lowest.bbox, zip(*others)
    is_line = x_end - x > FLAT * (y_end - y)
    return [part for part in parts if part is not lowest] if is_line and y >= max(bottom) and x <= min(left) and x_end >= max(right) else parts


def _reach(part) -> float:
    """How long the part is, less twice how thick: most for a pen's stroke."""
    return max(part.image.shape) - 4 * part.intensity_max


def _contact(part, page: tuple[int, int]) -> float:
    """How much of a side of the page the part covers, at most."""
    mask = np.zeros(page, dtype=bool)
    mask[part.slice] = part.image
    return max(side.mean() for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))


def _holds(box: tuple, other: tuple) -> bool:
    """Whether the other box lies within the first and is large enough for a digit in it."""
    (top, left, bottom, right), (y, x, y_end, x_end) = box, other
    return top < y and left < x and y_end < bottom and x_end < right and y_end - y > 0.35 * (bottom - top)


def _depth(mask: np.ndarray) -> np.ndarray:
    """How far each pixel of `mask` is from the nearest that is not, the picture's outside included; float [pixels]."""
    return ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


def stroke(mask: np.ndarray) -> float:
    """The width of the strokes that `mask` is made of."""
    return 4 * float(_depth(mask)[mask].mean())


def count_digits(digit: np.ndarray) -> int:
    """How many digits the ink [H, W] is: tall pieces side by side, or above each other, or many that are curved.

    The pieces of one digit, a 5 and its bar, have narrow gaps, or one is much shorter, or together they are no wider
    and no taller than a digit; or they are straight dashes.
    """
    height, width = digit[bounding_box(digit)].shape
    gap = GAP * max(max(part.image.shape) for part in regionprops(label(digit, connectivity=2)))
    pieces = regionprops(label(ndimage.distance_transform_edt(~digit) <= max(gap / 2, 1)))
    boxes = [piece.bbox for piece in pieces]
    tallest = max(bottom - top for top, _, bottom, _ in boxes)
    half = [box for box in boxes if box[2] - box[0] > 0.5 * tallest]
    tall = [box for box in boxes if box[2] - box[0] > 0.75 * tallest]
    beside = [box for box in tall if all(box is other or box[3] <= other[1] or box[1] >= other[3] for other in tall)]
    curved = [piece for piece in pieces if piece.image.shape[0] > 0.5 * tallest and piece.solidity < 0.75]
    if len(curved) > 2:
        return len(curved)
    if width > 1.1 * height:
        return len(half)
    if height > 1.9 * width:
        return len(tall)
    return max(len(beside), 1) if tallest > 0.75 * height else 1


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
        rows, columns = ndimage.binary_dilation(mask, np.ones((3, 3))).nonzero()
        for slope in np.tan(np.deg2rad(range(-4, 5))):
            row = rows - np.round(slope * columns).astype(int) + mask.shape[1]
            long = (np.bincount(row) > 0.85 * mask.shape[1])[row]
            lines[rows[long], columns[long]] = True
    return lines & mask
