"""Ink on paper, and which of it is the digit."""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops

from own_digit.picture import SIDE, border, bounding_box, depth, shrink

COLORED = 0.05  # how much colors must differ within a picture to be looked at one by one
COLORED_PAPER = 0.15  # how much red, green and blue must differ in its median color to be looked at, too
FAINTEST, DIGIT = 0.04, 0.07  # from black, 0, to white, 1: how much darker than paper ink is, and a whole digit
BESIDE = 4  # pixels from the digit to its paper
INKIEST = 0.8  # a larger share of the picture is no ink
SPECK, PIECE = 0.03, 0.2  # of the main part's area: what is smaller is dirt; what is larger is no noise
THICKER = 1.5  # than the main part: a blot
SLIM, DISC = 0.2, 0.4  # depth to length: of a stroke, at most; of a disc, at least
FLAT = 4  # width to height of an underline, at least
TABLE = 0.6  # what covers a larger share of the picture's border is no digit
UNEVEN, CUT_OFF = 0.4, 0.8  # factors of the likeness: paper not lit evenly; a digit that touches the border
ALONG, HELD = 0.6, 0.35  # of a side of the picture, that a table covers; of a box's height, that a digit in it has
LINE, FAINT, CROSSED = 0.85, 0.75, 1.4  # a ruled line's length, of the picture's; its ink and what crosses it
GAP = 0.08  # between the pieces of one digit, at most, of the longest piece's length
MEDIUM, TALL = 0.5, 0.75  # of the tallest piece's height: a digit that is well apart, a digit beside another
WIDEST, TALLEST = 1.1, 1.9  # of one digit: width to height, height to width
DASH = 0.75  # share of its convex hull that a straight stroke fills, at least


class Found(NamedTuple):
    """What is most likely a digit, in one look at a picture."""

    likeness: float  # to a digit, 0 to 1
    contrast: float  # of ink and paper, 0 to 1
    ink: np.ndarray  # float [H, W], how much darker than paper
    mask: np.ndarray  # bool [H, W], where there is any ink
    digit: np.ndarray  # bool [H, W], where the digit's is
    look: int = 0  # which look it was


def find_digit(picture: Image.Image, *looks: int) -> Found | None:
    """What looks most like a digit in all `looks` at a picture, or in those given; None if nothing does.

    Ink is darker than paper in all colors or in one, or lighter; and the paper is lit evenly or not.
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
    """The ink on paper of that brightness [H, W], and what of it is most likely a digit; None without any.

    A digit is slim, of one piece, dark, and on paper. Paper that is not lit evenly is what is left when all that is
    dark and narrower than a third of the picture is filled up: strokes are narrow, shadows and tables are wide.
    """
    if evenly:
        paper = np.median(light[light >= threshold_otsu(light)])
    else:
        filled = ndimage.grey_closing(light, SIDE // 3)
        paper = np.minimum(filled, ndimage.gaussian_filter(filled, SIDE / 50))
    ink = np.clip(paper - light, 0, None)
    mask = _is_ink(ink)
    if not 0 < mask.mean() < INKIEST:
        return None
    ink = _without_lines(ink, mask)
    mask = _is_ink(ink)
    depths = depth(mask)
    digit, whole = _main_parts(mask, depths)
    if not digit.any():
        return None
    contrast = _contrast(light, digit, ~mask)
    beside = _contrast(light, digit, ~mask & ndimage.binary_dilation(digit, iterations=BESIDE))
    if min(contrast, beside) < DIGIT or border(digit).mean() > TABLE:
        return None
    slim = max(1 - 2 * depths[digit].max() / max(digit[bounding_box(digit)].shape), 0.01)
    on_paper = 1 - border(mask).mean() / 2
    whole *= CUT_OFF if border(digit).any() else 1
    return Found((slim * on_paper * whole) ** 2 * (1 if evenly else UNEVEN), contrast, ink, mask, digit)


def _contrast(light: np.ndarray, digit: np.ndarray, paper: np.ndarray) -> float:
    """How much darker the `digit` is than the `paper`; 1 if there is none."""
    return float(np.median(light[paper]) - light[digit].mean()) if paper.any() else 1.0


def _is_ink(ink: np.ndarray) -> np.ndarray:
    return ink > max(threshold_otsu(ink), FAINTEST)


def _main_parts(mask: np.ndarray, depths: np.ndarray) -> tuple[np.ndarray, float]:
    """Where the parts of `mask`, of those `depths`, make up a digit, and the main one's share; nowhere if all is noise.

    The longest part that is slim is the digit's, and all that is no speck, no blot, no hole and no line below it.
    """
    regions = label(mask, connectivity=2)
    areas = np.bincount(regions.ravel())
    areas[0] = 0
    regions[areas[regions] < np.sort(areas)[-30:][0]] = 0  # the 30 largest will do
    parts = _without_underline(_on_paper(regionprops(regions, depths), mask.shape))
    areas = [part.area for part in parts]
    if not parts or sum(area for area in areas if area >= PIECE * max(areas)) < 0.5 * sum(areas):
        return np.zeros_like(mask), 0.0  # noise has specks of all sizes
    main = max(parts, key=_reach)
    parts = [part for part in parts if part.area >= SPECK * main.area]
    parts = [part for part in parts if part is main or not (_is_blot(part, main) or _is_hole(part, main))]
    return np.isin(regions, [part.label for part in parts]), main.area / sum(areas)


def _is_blot(part, main) -> bool:
    """Whether the part is thicker than the pen and not slim: a blot, or a shadow."""
    return part.intensity_max > max(THICKER * main.intensity_max, SLIM * max(part.image.shape))


def _is_hole(part, main) -> bool:
    """Whether the part is a disc beside the main part, and smaller: a punched hole."""
    (top, left, bottom, right), (y, x, y_end, x_end) = main.bbox, part.bbox
    beside = y >= bottom or x >= right or y_end <= top or x_end <= left
    return beside and part.intensity_max > DISC * max(part.image.shape) and main.area > 2 * part.area


def _without_underline(parts: list) -> list:
    """The parts without a flat one that lies below all others and is wider than they are."""
    large = [part for part in parts if part.area >= SPECK * max(part.area for part in parts)]
    if len(large) < 2:
        return parts
    lowest = max(large, key=lambda part: part.bbox[0])
    top, left, bottom, right = lowest.bbox
    boxes = [part.bbox for part in large if part is not lowest]
    below = all(box[2] <= top and box[1] >= left and box[3] <= right for box in boxes)
    return [part for part in parts if part is not lowest] if below and right - left > FLAT * (bottom - top) else parts


def _on_paper(parts: list, page: tuple[int, int]) -> list:
    """The parts that may be a digit, of all regions of ink."""
    contact = {part.label: _contact(part, page) for part in parts}
    inner = [part for part in parts if contact[part.label] < ALONG]
    if inner and contact[max(inner, key=_reach).label] == 0:  # a digit free of the edge owns nothing that touches it
        parts = [part for part in inner if contact[part.label] == 0]
    boxes = [part.bbox for part in parts]
    return [part for part, box in zip(parts, boxes) if not any(_holds(box, other) for other in boxes)]


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
    return top < y and left < x and y_end < bottom and x_end < right and y_end - y > HELD * (bottom - top)


def stroke(mask: np.ndarray) -> float:
    """The width of the strokes that `mask` is made of."""
    return 4 * float(depth(mask)[mask].mean())


def count_digits(digit: np.ndarray) -> int:
    """How many digits the ink, bool [H, W], is: tall pieces that stand side by side or above each other.

    The pieces of one digit, as the bar of a 5, have narrow gaps between them, or one is much shorter, or together they
    are no wider and no taller than a digit. Three and more that are curved are no dashes, however they lie.
    """
    height, width = digit[bounding_box(digit)].shape
    longest = max(max(part.image.shape) for part in regionprops(label(digit, connectivity=2)))
    joined = ndimage.distance_transform_edt(~digit) <= max(GAP * longest / 2, 1)
    pieces = regionprops(label(joined))
    tallest = max(piece.image.shape[0] for piece in pieces)
    medium = [piece for piece in pieces if piece.image.shape[0] > MEDIUM * tallest]
    tall = [piece for piece in pieces if piece.image.shape[0] > TALL * tallest]
    curved = sum(piece.solidity < DASH for piece in medium)
    if curved > 2 or width > WIDEST * height:
        return len(medium)
    if height > TALLEST * width or tallest > TALL * height and _side_by_side(tall):
        return len(tall)
    return 1


def _side_by_side(pieces: list) -> bool:
    """Whether each piece begins where the one to its left has ended."""
    columns = sorted((piece.bbox[1], piece.bbox[3]) for piece in pieces)
    return all(end <= start for (_, end), (start, _) in zip(columns, columns[1:]))


def _without_lines(ink: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The ink without ruled lines: straight ones across the page, fainter than the digit or going on beyond it."""
    level, upright = _level_lines(mask), _level_lines(mask.T).T
    rest = ndimage.binary_opening(mask & ~ndimage.binary_dilation(level | upright, iterations=2))
    if not (level | upright).any() or not rest.any():
        return ink
    digit, usual = bounding_box(rest)[1], np.median(ink[level | upright])
    if usual > FAINT * np.quantile(ink[rest], 0.75):  # as dark as the digit, whose stem goes on beyond the rest, too
        columns = level.any(0).nonzero()[0]
        beyond = min(digit.start - columns[0], columns[-1] - digit.stop) if len(columns) else 0
        if beyond < 0.1 * SIDE or level[[0, -1]].any():  # the foot of a 2 lies on the edge
            return ink
        upright[:] = False
    for lines, across in ((level, (SIDE // 10, 1)), (upright, (1, SIDE // 10))):
        near = ndimage.binary_dilation(lines, np.ones(across)[:5, :5])
        near &= ink < CROSSED * usual  # a darker pen that crosses the line stays
        ink = np.where(near, ndimage.grey_opening(ink, across), ink)
    return ink


def _level_lines(mask: np.ndarray) -> np.ndarray:
    """Where `mask` holds straight lines over `LINE` of its width that rise or fall by at most 4 degrees."""
    lines = np.zeros(mask.shape, dtype=bool)
    if mask.any(0).mean() > LINE:
        rows, columns = ndimage.binary_dilation(mask, np.ones((3, 3))).nonzero()
        for slope in np.tan(np.deg2rad(range(-4, 5))):
            row = rows - np.round(slope * columns).astype(int) + mask.shape[1]
            long = (np.bincount(row) > LINE * mask.shape[1])[row]
            lines[rows[long], columns[long]] = True
    return lines & mask
