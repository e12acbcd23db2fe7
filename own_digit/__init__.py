"""The reader's own digit: from any picture to what the network takes, and a canvas to draw on."""

from pathlib import Path
from typing import NamedTuple

import anywidget
import numpy as np
import torch
import torch.nn.functional as F
import traitlets
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor, nn

from utils import predict

Picture = str | Path | Image.Image | np.ndarray


class Reading(NamedTuple):
    """What the network makes of a picture."""

    digit: int
    probabilities: Tensor  # [10], of the digits 0–9
    image: Tensor  # uint8 [28, 28], what the network was shown


def read_digit(network: nn.Module, picture: Picture) -> Reading:
    """The digit in a `picture`: a file's path, a PIL image, or an array [H, W], [H, W, 3] or [H, W, 4].

    Photo, scan or screenshot; dark on light or light on dark; colour, alpha, any size will do. Arrays are uint8, bool,
    or float in [0, 1]. Raises `ValueError` for what is no picture, a blank page, and several digits side by side.
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
    ink = _one_digit(_ink(_grey(picture)))
    (box,) = ndimage.find_objects((ink > 0).astype(int))
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


def _grey(picture: Picture) -> np.ndarray:
    """Brightness of `picture`, float [H, W] in [0, 1], at most 500 pixels long; alpha laid over what shows it best."""
    if isinstance(picture, str | Path):
        try:
            with Image.open(picture) as opened:
                picture = ImageOps.exif_transpose(opened)
        except FileNotFoundError:
            raise
        except (OSError, SyntaxError) as error:  # SyntaxError: Pillow's word for a broken PNG
            raise ValueError(f"{picture} is no image that can be read; save it as PNG or JPEG") from error
    elif isinstance(picture, np.ndarray | Tensor):
        picture = _from_array(np.asarray(picture))
    elif not isinstance(picture, Image.Image):
        raise ValueError(f"a picture is a path, a PIL image or an array, not {type(picture).__name__}")
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):  # 16 bits a pixel
        values = np.asarray(picture, dtype=np.float64)
        picture = _from_array((values - values.min()) / max(np.ptp(values), 1e-9))
    if min(picture.size) < 8:
        raise ValueError(f"a picture of {picture.width} × {picture.height} pixels is too small to hold a digit")
    if max(picture.size) > 500:
        picture = picture.copy()
        picture.thumbnail((500, 500))
    if "A" in picture.mode or "transparency" in picture.info:
        grounds = (Image.new("RGBA", picture.size, colour) for colour in ("white", "black"))
        layers = [Image.alpha_composite(ground, picture.convert("RGBA")).convert("L") for ground in grounds]
        picture = max(layers, key=lambda layer: np.asarray(layer).std())
    return np.asarray(picture.convert("L"), dtype=np.float32) / 255


def _from_array(array: np.ndarray) -> Image.Image:
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


def _ink(grey: np.ndarray) -> np.ndarray:
    """How much darker (or, on dark ground, lighter) than the paper around it each pixel is, [H, W], at least 0."""
    y, x = (np.linspace(-1, 1, side) for side in grey.shape)
    x, y = np.meshgrid(x, y)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    step = max(max(grey.shape) // 100, 1)
    sample, values = terms[::step, ::step].reshape(-1, 6), grey[::step, ::step].ravel()
    paper = np.full(grey.shape, np.median(values))
    for _ in range(10):  # a smooth surface through the paper: each round leaves out what stands off it most, the ink
        distance = np.abs(values - paper[::step, ::step].ravel())
        chosen = distance <= np.quantile(distance, 0.7)
        paper = terms @ np.linalg.lstsq(sample[chosen], values[chosen], rcond=None)[0]
    darker, lighter = np.clip(paper - grey, 0, None), np.clip(grey - paper, 0, None)
    ink = darker if np.quantile(darker, 0.995) >= np.quantile(lighter, 0.995) else lighter
    return ndimage.gaussian_filter(ink, max(grey.shape) / 500)


def _one_digit(ink: np.ndarray) -> np.ndarray:
    """The `ink` of the one digit in it, from 0 (paper) to 1; specks and noise are left out."""
    mask = ink > _otsu(ink)
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = ndimage.sum_labels(mask, parts, range(1, count + 1)) if count else np.zeros(1)
    largest = sizes.max()
    if largest < 0.0005 * ink.size or sizes.sum() > 3 * largest or ink[mask].mean() < 0.08:
        raise ValueError("there is no digit to be seen; write one digit with a dark pen on light paper, or the reverse")
    kept = 1 + np.flatnonzero(sizes >= 0.03 * largest)
    boxes = [box for label, box in enumerate(ndimage.find_objects(parts), start=1) if label in kept]
    height, width = (max(box[axis].stop for box in boxes) - min(box[axis].start for box in boxes) for axis in (0, 1))
    large = {
        "side by side": [box for box in _groups(boxes, axis=1) if box[0] > 0.6 * height and box[1] > 0.1 * height],
        "one above the other": [
            box for box in _groups(boxes, axis=0) if box[0] > 0.4 * height and box[1] > 0.5 * width
        ],
    }
    for arrangement, groups in large.items():
        if len(groups) > 1:
            raise ValueError(f"there seem to be {len(groups)} digits {arrangement}; cut out one of them")
    digit = np.isin(parts, kept)
    near = ndimage.binary_dilation(digit, np.ones((5, 5)))
    floor = np.quantile(ink[~near], 0.99) if (~near).any() else 0.0
    full = np.quantile(ink[digit], 0.75)
    return np.where(near, np.clip((ink - floor) / max(full - floor, 1e-3), 0, 1), 0).astype(np.float32)


def _groups(boxes: list, axis: int) -> list[tuple[int, int]]:
    """(height, width) of every group of `boxes` that no gap along `axis` divides."""
    groups: list[list] = []
    for box in sorted(boxes, key=lambda box: box[axis].start):
        if groups and box[axis].start < max(other[axis].stop for other in groups[-1]):
            groups[-1].append(box)
        else:
            groups.append([box])
    return [
        tuple(max(box[a].stop for box in group) - min(box[a].start for box in group) for a in (0, 1))
        for group in groups
    ]


def _otsu(values: np.ndarray) -> float:
    """The threshold that divides `values` in [0, 1] into two classes of the least variance.

    Source: N. Otsu, A threshold selection method from gray-level histograms (1979)
    """
    counts, edges = np.histogram(values, bins=256, range=(0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(edges[1 + np.nanargmax(between)]) if np.isfinite(between).any() else 1.0


class DrawingPad(anywidget.AnyWidget):
    """A canvas for mouse or finger; while the reader draws, the ten probabilities of `network` follow as bars."""

    _esm = Path(__file__).parent / "drawing_pad.js"
    _css = Path(__file__).parent / "drawing_pad.css"
    pixels = traitlets.CBytes(b"").tag(sync=True)  # the browser sends a memoryview
    probabilities = traitlets.List(traitlets.Float()).tag(sync=True)
    message = traitlets.Unicode("draw one digit, as large as you like").tag(sync=True)
    question = traitlets.Int(0).tag(sync=True)  # counts the drawings sent ...
    answer = traitlets.Int(0).tag(sync=True)  # ... and names the last one answered

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self.observe(self._read, "question")

    def _read(self, change: dict) -> None:
        side = int(len(self.pixels) ** 0.5)
        drawing = np.frombuffer(self.pixels, np.uint8).reshape(side, side)
        try:
            digit, probabilities, _ = read_digit(self._network, drawing)
        except ValueError as error:
            self.probabilities, self.message = [], str(error)
        else:
            self.probabilities, self.message = probabilities.tolist(), f"this is a {digit}"
        self.answer = change["new"]
