"""How well do MNIST's test digits come back from pictures as readers take them? Records results/own_digits.json.

    python -m experiments.pasted

Digits that the network classifies correctly are pasted at a random size and place into pictures of each of `KINDS`, and
`own_digit.read_digit` reads them with the committed weights; the kinds of `REFUSED` it should refuse. Takes some
fifteen minutes.
"""

import argparse
import colorsys

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor, nn
from tqdm.auto import tqdm

import storage
import utils
from experiments import ROOT
from model import Net
from own_digit import bounding_box, read_digit

SEED, COUNT = 0, 300  # digits per kind
TIGHT = {f"tight, {side} pixels": side for side in (12, 28, 100)}  # the longer side
SHEETS = "sheet on a dark table", "sheet on wood", "sheet on a scanner", "sheet on nothing"
REFUSED = "empty sheet", "two digits"
KINDS = "clean", "light on dark", "colored pen and paper", "pale pen", "thick pen", "thin pen", "small on the page"
KINDS += "noisy, shaded", "ruled paper", "squared paper", "form box", "underlined", "punched hole", "shadow"
KINDS += "table edge", "dark frame", "dark corners", *SHEETS, *TIGHT, *REFUSED


def paste(digit: np.ndarray, kind: str, draw: np.random.Generator) -> np.ndarray:
    """A picture of that `kind` with the `digit`, uint8 [28, …], in it: float [H, W, …] in [0, 1], gray, RGB or RGBA."""
    light = draw.uniform(0.6, 1.0)
    dark = draw.uniform(0, light - 0.35)
    if kind in TIGHT:
        digit = digit[bounding_box(digit > 0)]
        enlarged = ImageOps.scale(Image.fromarray(digit), TIGHT[kind] / max(digit.shape))
        return light - (light - dark) * np.asarray(enlarged) / 255
    ink = _ink(digit, kind, draw)
    paper = _paper(kind, np.full(ink.shape, light), dark, ink > 0.5, draw)
    if kind in ("colored pen and paper", "pale pen"):
        pen = colorsys.hsv_to_rgb(draw.random(), draw.uniform(0.3, 0.6), 1)
        hues = draw.random() + np.array([0, draw.uniform(0.25, 0.75)])
        colors = [np.array(colorsys.hsv_to_rgb(hue % 1, 1, 0.8)) for hue in hues]
        paper, dark = (paper[:, :, None], light * np.array(pen)) if kind == "pale pen" else colors
        ink = ink[:, :, None]
    picture = np.clip(paper * (1 - ink) + dark * ink, 0, 1)
    if kind in (*SHEETS, "empty sheet"):
        return _on_table(paper if kind == "empty sheet" else picture, kind, draw)
    return 1 - picture if kind == "light on dark" else picture


def _ink(digit: np.ndarray, kind: str, draw: np.random.Generator) -> np.ndarray:
    """The ink of the `digit` on a page, float [H, W] from 0 to 1."""
    side = 28 if kind == "small on the page" else int(draw.integers(60, 200))
    large = np.asarray(ImageOps.scale(Image.fromarray(digit), side / len(digit))) / 255
    if kind == "thick pen":
        large = ndimage.grey_dilation(large, footprint=_disc(side * draw.uniform(0.02, 0.05)))
    if kind == "thin pen":
        large = ndimage.grey_erosion(large, footprint=_disc(side * 0.015))
    page = (400, 400) if kind == "small on the page" else [int(n * draw.uniform(1.2, 2.2)) for n in large.shape]
    top, left = (draw.integers(0, room - n + 1) for room, n in zip(page, large.shape))
    ink = np.zeros(page)
    ink[top : top + large.shape[0], left : left + large.shape[1]] = large
    return ink


def _disc(radius: float) -> np.ndarray:
    span = np.arange(-int(radius), int(radius) + 1)
    return np.hypot(*np.meshgrid(span, span)) <= max(radius, 0.5)


def _paper(kind: str, paper: np.ndarray, dark: float, mask: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The `paper` with what a picture of that `kind` has on it besides the digit, whose ink is `mask`."""
    light, size, line, box = paper[0, 0], max(paper.shape), int(draw.integers(1, 4)), bounding_box(mask)
    y, x = np.indices(paper.shape)
    free = ~ndimage.binary_dilation(mask, iterations=3)
    if kind in ("table edge", "punched hole"):
        _on_one_side(kind, paper, free, dark, int(draw.integers(4)))
    elif kind == "dark frame":
        margin = int(draw.integers(2, 6))
        paper[:margin], paper[-margin:], paper[:, :margin], paper[:, -margin:] = dark, dark, dark, dark
    elif kind == "dark corners":
        paper[free & (np.minimum(x + y, x + len(paper) - y) < 0.25 * size)] = dark
    elif kind in ("ruled paper", "squared paper"):
        spacing = int(draw.integers(20, 60))
        paper[(y % spacing < line) | (kind == "squared paper") & (x % spacing < line)] = (light + dark) / 2
    elif kind == "form box":
        gap = int(0.05 * size) + line
        box = [(max(side.start - gap, 0), min(side.stop + gap, end)) for side, end in zip(box, paper.shape)]
        paper[tuple(slice(*side) for side in box)] = dark
        paper[tuple(slice(start + line, stop - line) for start, stop in box)] = light
    elif kind == "underlined":
        row = min(box[0].stop + int(0.04 * size), len(paper) - line)
        paper[row : row + line, max(box[1].start - 10, 0) : box[1].stop + 10] = dark
    elif kind == "noisy, shaded":
        paper = paper * np.linspace(1, draw.uniform(0.7, 1.0), paper.shape[1]) + draw.normal(0, 0.03, paper.shape)
    elif kind == "shadow":
        distance = np.hypot(y - draw.uniform(0, len(paper)), x - draw.choice([0, paper.shape[1]])) / (0.3 * size)
        paper = paper * (1 - draw.uniform(0.3, 0.6) * np.exp(-(distance**2)))
    return paper


def _on_one_side(kind: str, paper: np.ndarray, free: np.ndarray, dark: float, side: int) -> None:
    """Draw the table's edge or a punched hole on one of the four sides of the `paper`, where it is `free`."""
    paper, free = np.rot90(paper, side), np.rot90(free, side)  # views: what is drawn on the left is drawn on that side
    y, x = np.indices(paper.shape)
    if kind == "table edge":
        first = (~free).any(0).argmax()
        paper[:, : max(min(paper.shape[1] // 5, first - 2), 0)] = dark
    else:
        size = max(paper.shape)
        paper[free & (np.hypot(y - len(paper) // 2, x - 0.07 * size) < 0.05 * size)] = dark


def _on_table(page: np.ndarray, kind: str, draw: np.random.Generator) -> np.ndarray:
    """The `page`, float [H, W], as a sheet that is turned a little and lit from one side: float [H, W, 3] or RGBA."""
    sheet = Image.fromarray((255 * page).astype(np.uint8)).convert("RGBA")
    sheet = sheet.rotate(draw.uniform(-10, 10), Image.Resampling.BICUBIC, expand=True)
    width, height = (int(side / draw.uniform(0.5, 0.95)) for side in sheet.size)
    color = (
        colorsys.hsv_to_rgb(draw.uniform(0.05, 0.1), 0.6, 0.6) if kind == "sheet on wood" else draw.uniform(0, 0.4, 3)
    )
    grain = 1 + 0.1 * np.sin(np.arange(height) / height * draw.uniform(20, 70))[:, None, None]
    table = np.broadcast_to(color, (height, width, 3)) * (grain if kind == "sheet on wood" else 1)
    picture = Image.fromarray((255 * table * (kind != "sheet on a scanner")).astype(np.uint8)).convert("RGBA")
    if kind == "sheet on nothing":
        picture.putalpha(0)
    place = int(draw.integers(0, width - sheet.width + 1)), int(draw.integers(0, height - sheet.height + 1))
    picture.alpha_composite(sheet, place)
    lit = np.asarray(picture) / 255
    lit[:, :, :3] *= np.linspace(1, draw.uniform(0.7, 1), width)[:, None]
    return lit if kind == "sheet on nothing" else lit[:, :, :3]


def pair(first: np.ndarray, second: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Two digits, uint8 [28, 28], side by side, the second up to a quarter smaller: uint8 [28, 49 to 56]."""
    side = int(draw.integers(21, 29))
    right = np.zeros((28, side), np.uint8)
    top = draw.integers(0, 28 - side + 1)
    right[top : top + side] = np.asarray(Image.fromarray(second).resize((side, side)))
    return np.concatenate([first, right], axis=1)


def count(network: nn.Module, images: Tensor, labels: Tensor, kind: str, draw: np.random.Generator) -> dict[str, int]:
    """How many of the digits, each pasted into a picture of that `kind`, are read right, refused, or read wrong.

    Of the kinds in `REFUSED` every reading is wrong.
    """
    counts = dict(right=0, refused=0, wrong=0, wrong_and_confident=0)
    before = images[-1].numpy()
    for image, label in zip(images.numpy(), labels.tolist()):
        digit = pair(image, before, draw) if kind == "two digits" else image
        before = image
        try:
            read, probabilities, _ = read_digit(network, paste(digit, kind, draw))
            right = read == label and kind not in REFUSED
            counts["right" if right else "wrong"] += 1
            counts["wrong_and_confident"] += int(not right and probabilities.max() > 0.9)
        except ValueError:
            counts["refused"] += 1
    return counts


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    environment = storage.environment("cpu")  # of the code that was started, whatever is edited meanwhile
    network = storage.load_weights(Net(), ROOT / "results" / "weights.pt")
    _, (images, labels) = utils.load_mnist(ROOT / "data", "cpu")
    correct = (utils.predict(network, images).argmax(1) == labels).nonzero()[:COUNT, 0]
    draw = np.random.default_rng(SEED)
    kinds = {kind: count(network, images[correct], labels[correct], kind, draw) for kind in tqdm(KINDS, unit="kind")}
    record = dict(digits=len(correct), kinds=kinds, seed=SEED, command="python -m experiments.pasted")
    storage.save_record(ROOT / "results" / "own_digits.json", record | environment)


if __name__ == "__main__":
    main()
