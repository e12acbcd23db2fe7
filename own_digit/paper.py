"""Paper in a picture: a sheet that lies on a table, on a scanner or on nothing."""

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial import ConvexHull
from skimage.filters import threshold_otsu

from own_digit.picture import SIDE, border, bounding_box, depth, shrink

RIM = 2  # pixels at the edge of a sheet that may be the table's
SMALLEST, LARGEST = 0.1, 0.97  # a sheet's share of the picture
BORDER = 0.8  # of the picture's border, at most: what covers more is the picture, not a sheet in it
WIDE = 0.32  # diameter of a disc that finds free paper on the sheet, of the sheet's longer side, at least
STEP = 0.06  # in brightness at a sheet's edge, at least: shadows fade
CONVEX, RECTANGLE = 0.93, 0.82  # the sheet's share of its convex hull; the hull's of the rectangle around it
TURNED = range(-15, 16)  # degrees


def find_sheets(picture: Image.Image) -> list[tuple[np.ndarray, int]]:
    """The sheet of light paper and the sheet of dark paper in the picture, if there are: where, bool [H, W] as `shrink`
    makes it, and by how many degrees it is turned.
    """
    colors = shrink(picture)
    least, most = colors.min(2), colors.max(2)
    lights = least**2 / np.maximum(most, 1e-3), 1 - most  # white, which colors are not, even in a shadow; black
    sheets = [_find_sheet(light) for light in lights]
    return [sheet for sheet in sheets if sheet]


def _find_sheet(light: np.ndarray) -> tuple[np.ndarray, int] | None:
    """A sheet is the largest light region, if that is a rectangle, nearly upright, that ends within the picture and is
    mostly empty: a bold 8 is a rectangle, too, but nowhere wide.
    """
    paper = np.pad(light > threshold_otsu(light), RIM)
    paper = ndimage.binary_closing(paper, iterations=RIM)[RIM:-RIM, RIM:-RIM]  # ruled lines divide no sheet
    sheet = _largest(_eroded(ndimage.binary_fill_holes(_largest(paper))))
    if not SMALLEST < sheet.mean() < LARGEST or border(sheet).mean() > BORDER:
        return None
    if 2 * depth(sheet & paper).max() < WIDE * max(sheet[bounding_box(sheet)].shape):
        return None
    around = ndimage.binary_dilation(sheet, iterations=3 * RIM) & ~ndimage.binary_dilation(sheet, iterations=2 * RIM)
    if not around.any() or np.median(light[rim(sheet)]) - np.median(light[around]) < STEP:
        return None
    points = np.argwhere(sheet)
    hull = ConvexHull(points)
    areas = {degrees: _box_area(points[hull.vertices], np.deg2rad(degrees)) for degrees in TURNED}
    angle = min(areas, key=areas.get)
    convex = len(points) > CONVEX * (hull.volume + hull.area / 2)  # of a plane hull: its area and its perimeter
    return (sheet, angle) if convex and hull.volume > RECTANGLE * areas[angle] else None


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected region of `mask`."""
    regions, _ = ndimage.label(mask)
    return regions == np.bincount(regions[mask], minlength=2).argmax()


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The `mask` without the `RIM` at its edges, but for those of the picture."""
    return ndimage.binary_erosion(mask, iterations=RIM, border_value=1)


def _box_area(points: np.ndarray, angle: float) -> float:
    """The area of the rectangle around the `points`, row and column, that is turned by `angle`, in radians."""
    (sin, cos), (rows, columns) = (np.sin(angle), np.cos(angle)), points.T
    return np.ptp(cos * rows - sin * columns) * np.ptp(cos * columns + sin * rows)


def rim(sheet: np.ndarray) -> np.ndarray:
    """The outermost pixels of the sheet, bool [H, W]."""
    return sheet & ~_eroded(sheet)


def cut_to(picture: Image.Image, sheet: np.ndarray, degrees: int) -> Image.Image:
    """The picture cut to the sheet and turned upright; what is not the sheet looks like its nearest paper."""
    colors, scale = shrink(picture), max(picture.size) / SIDE
    nearest = ndimage.distance_transform_edt(~sheet, return_distances=False, return_indices=True)
    around = Image.fromarray((255 * colors[tuple(nearest)]).round().astype(np.uint8)).resize(picture.size)
    picture = Image.composite(picture, around, Image.fromarray(sheet).resize(picture.size))
    paper = tuple(int(255 * value) for value in np.median(colors[sheet], axis=0))
    rows, columns = bounding_box(np.asarray(Image.fromarray(sheet).rotate(degrees, expand=True)))
    box = [round(scale * side) for side in (columns.start, rows.start, columns.stop, rows.stop)]
    return picture.rotate(degrees, Image.Resampling.BILINEAR, expand=True, fillcolor=paper).crop(box)
