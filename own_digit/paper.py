"""The sheet of paper that lies in a picture, on a table, a scanner's lid or nothing."""

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial import ConvexHull
from skimage.filters import threshold_otsu

from own_digit.picture import SIDE, bounding_box, shrink

RIM = 2  # pixels: so much of a sheet's edge is its own shadow
SMALLEST, LARGEST = 0.1, 0.97  # a sheet's share of the picture
CONVEX, RECTANGLE = 0.93, 0.82  # least shares of the sheet in its hull, of its hull in the rectangle around it
WIDE = 0.32  # least diameter of a disc that finds free paper on the sheet, of the sheet's length
TURNED = range(-15, 16)  # degrees
BORDER = 0.8  # largest share of the picture's border that shows a sheet: else it is the picture


def find_sheets(picture: Image.Image) -> list[tuple[np.ndarray, int]]:
    """Where a sheet of light paper lies in the picture, and one of dark paper: bool [H, W] and its angle in degrees."""
    colors = shrink(picture)
    least, most = colors.min(2), colors.max(2)
    lights = least**2 / np.maximum(most, 1e-3), 1 - most  # paper is white, also in the shadow
    sheets = [_find_sheet(light) for light in lights]
    return [sheet for sheet in sheets if sheet]


def edge(sheet: np.ndarray) -> np.ndarray:
    """The outermost pixels of the sheet, bool [H, W]."""
    return sheet & ~ndimage.binary_erosion(sheet, iterations=RIM, border_value=1)


def _find_sheet(light: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Where a sheet lies in a picture of that brightness [H, W]: bool [H, W], and by how many degrees it is turned.

    A sheet is the largest light region, if that is a rectangle, turned a little at most, that ends in the picture and
    is mostly empty: a bold 8 is a rectangle, too, but nowhere wide.
    """
    paper = light > threshold_otsu(light)
    sheet = ndimage.binary_fill_holes(_largest(paper))
    sheet = _largest(ndimage.binary_erosion(sheet, iterations=RIM, border_value=1))
    border = np.concatenate([sheet[0], sheet[-1], sheet[:, 0], sheet[:, -1]])
    if not SMALLEST < sheet.mean() < LARGEST or border.mean() > BORDER:
        return None
    free = sheet & ndimage.binary_closing(paper, iterations=RIM)  # whatever lines it has
    if 2 * ndimage.distance_transform_edt(free).max() < WIDE * max(sheet[bounding_box(sheet)].shape):
        return None
    points = np.argwhere(sheet)
    hull = ConvexHull(points)
    areas = {degrees: _box_area(points[hull.vertices], np.deg2rad(degrees)) for degrees in TURNED}
    angle = min(areas, key=areas.get)
    is_convex = len(points) > CONVEX * (hull.volume + hull.area / 2)
    return (sheet, angle) if is_convex and hull.volume > RECTANGLE * areas[angle] else None


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected region of `mask`."""
    regions, _ = ndimage.label(mask)
    return regions == np.bincount(regions[mask], minlength=2).argmax()


def _box_area(points: np.ndarray, angle: float) -> float:
    """The area of the rectangle around the `points`, row and column, that is turned by `angle`."""
    (sin, cos), (rows, columns) = (np.sin(angle), np.cos(angle)), points.T
    return np.ptp(cos * rows - sin * columns) * np.ptp(cos * columns + sin * rows)


def cut_to(picture: Image.Image, sheet: np.ndarray, angle: int) -> Image.Image:
    """The picture cut to the sheet's box and turned upright; around the sheet, its paper goes on."""
    colors = shrink(picture)
    nearest = ndimage.distance_transform_edt(~sheet, return_distances=False, return_indices=True)
    around = Image.fromarray((255 * colors[tuple(nearest)]).round().astype(np.uint8)).resize(picture.size)
    picture = Image.composite(picture, around, Image.fromarray(sheet).resize(picture.size))
    paper = tuple(int(255 * value) for value in np.median(colors[sheet], axis=0))
    upright = Image.fromarray(sheet).rotate(angle, expand=True)
    rows, columns = bounding_box(np.asarray(upright))
    scale = max(picture.size) / SIDE
    box = [round(scale * side) for side in (columns.start, rows.start, columns.stop, rows.stop)]
    return picture.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=paper).crop(box)
