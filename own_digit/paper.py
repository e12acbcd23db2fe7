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
BORDER = 0.8  # largest share of the picture's border that shows a sheet: else it is the picture


def cut_sheets(picture: Image.Image) -> list[Image.Image]:
    """The picture cut to a sheet of light paper, and to one of dark paper, where one lies in it."""
    colors = shrink(picture)
    sheets = [find_sheet(light) for light in (colors.min(2), 1 - colors.max(2))]
    return [_cut(picture, colors, sheet) for sheet in sheets if sheet is not None]


def find_sheet(light: np.ndarray) -> np.ndarray | None:
    """Where a sheet lies in a picture of that brightness [H, W]: bool [H, W], or None.

    A sheet is the largest light region, convex and a rectangle, turned by 15 degrees at most, that ends in the picture.
    """
    regions, _ = ndimage.label(light > threshold_otsu(light))
    areas = np.bincount(regions.ravel())
    areas[0] = 0
    sheet = ndimage.binary_fill_holes(regions == areas.argmax())
    sheet = ndimage.binary_erosion(sheet, iterations=RIM, border_value=1)
    regions, _ = ndimage.label(sheet)
    areas = np.bincount(regions.ravel())
    areas[0] = 0
    sheet = regions == areas.argmax()
    border = np.concatenate([sheet[0], sheet[-1], sheet[:, 0], sheet[:, -1]])
    if not SMALLEST < sheet.mean() < LARGEST or border.mean() > BORDER:
        return None
    points = np.argwhere(sheet)
    hull = ConvexHull(points)
    turned = (_turn(points[hull.vertices], degrees) for degrees in range(-15, 16))
    rectangle = min(np.prod(np.ptp(corners, axis=0)) for corners in turned)
    return sheet if len(points) > CONVEX * (hull.volume + hull.area / 2) and hull.volume > RECTANGLE * rectangle else None


def _turn(points: np.ndarray, degrees: float) -> np.ndarray:
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return points @ [[cos, -sin], [sin, cos]]


def _cut(picture: Image.Image, colors: np.ndarray, sheet: np.ndarray) -> Image.Image:
    """The picture cut to the box of the sheet; around the sheet, its paper goes on."""
    nearest = ndimage.distance_transform_edt(~sheet, return_distances=False, return_indices=True)
    around = Image.fromarray((255 * colors[tuple(nearest)]).round().astype(np.uint8)).resize(picture.size)
    mask = Image.fromarray(sheet).resize(picture.size)
    scale = max(picture.size) / SIDE
    rows, columns = bounding_box(sheet)
    box = [round(scale * side) for side in (columns.start, rows.start, columns.stop, rows.stop)]
    return Image.composite(picture, around, mask).crop(box)
