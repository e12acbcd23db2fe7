"""How well do MNIST's test digits come back from pictures as readers take them? Records results/own_digits.json.

    python -m experiments.pasted

Digits that the network classifies correctly are pasted at a random size and place into pictures of each of `KINDS`, and
`own_digit.read_digit` reads them with the committed weights. Takes some five minutes.
"""

import argparse
import colorsys

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor, nn
from tqdm.auto import tqdm

import storage
import utils
from experiments import ROOT
from model import Net
from own_digit import bounding_box, read_digit

SEED, COUNT = 0, 300  # digits per kind
TIGHT = {f"tight, {side} pixels": side for side in (12, 28, 100)}  # the longer side
KINDS = "clean", "light on dark", "colored pen and paper", "ruled paper", "squared paper", "form box", "shadow"
KINDS += ("table edge", *TIGHT)


def paste(digit: np.ndarray, kind: str, draw: np.random.Generator) -> np.ndarray:
    """A picture of that `kind` with the `digit`, uint8 [28, 28], in it: float [H, W], or [H, W, 3], in [0, 1]."""
    light = draw.uniform(0.6, 1.0)
    dark = draw.uniform(0, light - 0.35)
    if kind in TIGHT:
        digit = digit[bounding_box(digit > 0)]
        enlarged = ImageOps.scale(Image.fromarray(digit), TIGHT[kind] / max(digit.shape))
        return light - (light - dark) * np.asarray(enlarged) / 255
    side = int(draw.integers(60, 200))
    height, width = (int(side * draw.uniform(1.2, 2.2)) for _ in range(2))
    top, left = draw.integers(0, height - side + 1), draw.integers(0, width - side + 1)
    ink = np.zeros((height, width))
    ink[top : top + side, left : left + side] = np.asarray(Image.fromarray(digit).resize((side, side))) / 255
    paper = _paper(kind, np.full((height, width), light), dark, ink > 0.5, draw)
    if kind == "colored pen and paper":
        hues = draw.random() + np.array([0, draw.uniform(0.25, 0.75)])
        paper, dark = (np.array(colorsys.hsv_to_rgb(hue % 1, 1, 0.8)) for hue in hues)
        ink = ink[:, :, None]
    picture = paper * (1 - ink) + dark * ink
    return 1 - picture if kind == "light on dark" else picture


def _paper(kind: str, paper: np.ndarray, dark: float, mask: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The `paper` with what a picture of that `kind` has on it besides the digit, whose ink is `mask`."""
    light, size, line, box = paper[0, 0], max(paper.shape), int(draw.integers(1, 4)), bounding_box(mask)
    y, x = np.indices(paper.shape)
    if kind == "table edge":
        side = int(draw.integers(4))
        turned = np.rot90(paper, side)  # a view: what is drawn on its left side is drawn on one of the four
        turned[:, : max(min(turned.shape[1] // 5, np.rot90(mask, side).any(0).argmax() - 5), 0)] = dark
    elif kind in ("ruled paper", "squared paper"):
        spacing = int(draw.integers(20, 60))
        paper[(y % spacing < line) | (kind == "squared paper") & (x % spacing < line)] = (light + dark) / 2
    elif kind == "form box":
        gap = int(0.05 * size) + line
        box = [(max(side.start - gap, 0), min(side.stop + gap, end)) for side, end in zip(box, paper.shape)]
        paper[tuple(slice(*side) for side in box)] = dark
        paper[tuple(slice(start + line, stop - line) for start, stop in box)] = light
    elif kind == "shadow":
        distance = np.hypot(y - draw.uniform(0, len(paper)), x - draw.choice([0, paper.shape[1]])) / (0.3 * size)
        paper = paper * (1 - draw.uniform(0.3, 0.6) * np.exp(-(distance**2)))
    return paper


def count(network: nn.Module, images: Tensor, labels: Tensor, kind: str, draw: np.random.Generator) -> dict[str, int]:
    """How many of the digits, each pasted into a picture of that `kind`, are read right, refused, or read wrong."""
    counts = dict(right=0, refused=0, wrong=0, wrong_and_confident=0)
    for image, label in zip(images.numpy(), labels.tolist()):
        try:
            digit, probabilities, _ = read_digit(network, paste(image, kind, draw))
            counts["right" if digit == label else "wrong"] += 1
            counts["wrong_and_confident"] += int(digit != label and probabilities.max() > 0.9)
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
