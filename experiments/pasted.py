"""How well do MNIST's test digits come back from pictures as readers take them? Records results/own_digits.json.

    python -m experiments.pasted

Digits that the network classifies correctly are pasted at a random size and place into pictures of each of `KINDS`, and
`own_digit.read_digit` reads them with the committed weights. Takes some five minutes.
"""

import argparse
import colorsys

import numpy as np
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn
from tqdm.auto import tqdm

import storage
import utils
from experiments import ROOT
from model import Net
from own_digit import bounding_box, read_digit

SEED, COUNT = 0, 300  # digits per kind
KINDS = (
    *("clean", "light on dark", "noisy, shaded", "coloured pen and paper", "thick pen", "thin pen", "tight crop"),
    *("small on the page", "dark frame", "table edge", "dark corners", "punched hole", "ruled paper", "squared paper"),
    *("form box", "underlined", "shadow"),
)


def paste(digit: np.ndarray, kind: str, draw: np.random.Generator) -> np.ndarray:
    """A picture of that `kind` with the `digit`, uint8 [28, 28], in it: float [H, W], or [H, W, 3], in [0, 1]."""
    side = 28 if kind == "small on the page" else int(draw.integers(60, 200))
    large = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)) / 255
    if kind in ("thick pen", "tight crop"):
        large = ndimage.grey_dilation(large, footprint=_disc(side * draw.uniform(0.02, 0.05)))
    if kind == "thin pen":
        large = ndimage.grey_erosion(large, footprint=_disc(side * 0.015))
    height, width = (400, 400) if side == 28 else (int(side * draw.uniform(1.2, 2.2)) for _ in range(2))
    top, left = draw.integers(0, height - side + 1), draw.integers(0, width - side + 1)
    ink = np.zeros((height, width))
    ink[top : top + side, left : left + side] = large
    light = draw.uniform(0.6, 1.0)
    dark = draw.uniform(0, light - 0.35)
    paper = _paper(kind, np.full((height, width), light), dark, ink > 0.5, draw)
    if kind == "coloured pen and paper":
        paper, dark = (np.array(colorsys.hsv_to_rgb(draw.random(), 1, 0.8)) for _ in range(2))
        while np.abs(paper - dark).max() < 0.5:
            dark = np.array(colorsys.hsv_to_rgb(draw.random(), 1, 0.8))
        ink = ink[:, :, None]
    picture = np.clip(paper * (1 - ink) + dark * ink, 0, 1)
    if kind == "tight crop":
        picture = picture[bounding_box(ink > 0.5)]
    return 1 - picture if kind == "light on dark" else picture


def _disc(radius: float) -> np.ndarray:
    span = np.arange(-int(radius), int(radius) + 1)
    return np.hypot(*np.meshgrid(span, span)) <= max(radius, 0.5)


def _paper(kind: str, paper: np.ndarray, dark: float, mask: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The `paper` with what a picture of that `kind` has on it besides the digit, whose ink is `mask`."""
    height, width = paper.shape
    light, size, side = paper[0, 0], max(paper.shape), int(draw.integers(4))
    y, x = np.mgrid[:height, :width]
    line, box = int(draw.integers(1, 4)), bounding_box(mask)
    turned = np.rot90(paper, side)  # a view: what is drawn on its left side is drawn on one of the four
    if kind == "noisy, shaded":
        paper = paper * np.linspace(1, draw.uniform(0.7, 1.0), width) + draw.normal(0, 0.03, paper.shape)
    elif kind == "dark frame":
        margin = int(draw.integers(2, 6))
        paper[:margin], paper[-margin:], paper[:, :margin], paper[:, -margin:] = dark, dark, dark, dark
    elif kind == "table edge":
        free = np.rot90(mask, side).any(0).argmax()
        turned[:, : max(min(turned.shape[1] // 5, free - 5), 0)] = dark
    elif kind == "dark corners":
        for corner in (x + y, x + height - y):
            paper[(corner < 0.25 * size) & ~ndimage.binary_dilation(mask, iterations=3)] = dark
    elif kind == "punched hole":
        centre = turned.shape[0] // 2, int(0.07 * size)
        rows, columns = np.ogrid[: turned.shape[0], : turned.shape[1]]
        hole = np.hypot(rows - centre[0], columns - centre[1]) < 0.05 * size
        turned[hole & ~ndimage.binary_dilation(np.rot90(mask, side), iterations=3)] = dark
    elif kind in ("ruled paper", "squared paper"):
        spacing, half = int(draw.integers(20, 60)), (light + dark) / 2
        paper[y % spacing < line] = half
        if kind == "squared paper":
            paper[x % spacing < line] = half
    elif kind == "form box":
        gap = int(0.05 * size) + line
        top, bottom, left, right = (
            *(max(box[0].start - gap, 0), min(box[0].stop + gap, height)),
            *(max(box[1].start - gap, 0), min(box[1].stop + gap, width)),
        )
        paper[top:bottom, left:right] = dark
        paper[top + line : bottom - line, left + line : right - line] = light
    elif kind == "underlined":
        row = min(box[0].stop + int(0.04 * size), height - line)
        paper[row : row + line, max(box[1].start - 10, 0) : box[1].stop + 10] = dark
    elif kind == "shadow":
        centre = draw.uniform(0, height), draw.choice([0, width])
        distance = np.hypot(y - centre[0], x - centre[1]) / (0.3 * size)
        paper = paper * (1 - draw.uniform(0.3, 0.6) * np.exp(-(distance**2)))
    return paper


def count(network: nn.Module, images: Tensor, labels: Tensor, kind: str, draw: np.random.Generator) -> dict[str, int]:
    """How many of the digits, each pasted into a picture of that `kind`, are read right, refused, or read wrong."""
    counts = dict(right=0, refused=0, wrong=0, wrong_and_confident=0)
    for image, label in zip(images.numpy(), labels.tolist()):
        try:
            digit, probabilities, _ = read_digit(network, paste(image, kind, draw))
        except ValueError:
            counts["refused"] += 1
            continue
        counts["right" if digit == label else "wrong"] += 1
        counts["wrong_and_confident"] += int(digit != label and probabilities.max() > 0.9)
    return counts


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    network = storage.load_weights(Net(), ROOT / "results" / "weights.pt")
    _, (images, labels) = utils.load_mnist(ROOT / "data", "cpu")
    correct = (utils.predict(network, images).argmax(1) == labels).nonzero()[:COUNT, 0]
    draw = np.random.default_rng(SEED)
    kinds = {kind: count(network, images[correct], labels[correct], kind, draw) for kind in tqdm(KINDS, unit="kind")}
    record = dict(digits=len(correct), kinds=kinds, seed=SEED, command="python -m experiments.pasted")
    storage.save_record(ROOT / "results" / "own_digits.json", record | storage.environment("cpu"))


if __name__ == "__main__":
    main()
