"""How well do MNIST's test digits come back from other pictures? Records results/own_digits.json.

    python -m experiments.pasted

Each of the first 2,000 test digits is pasted at a random size and place, dark on light or light on dark, on plain,
shaded or noisy paper; `own_digit.read_digit` reads it with the committed weights. Takes about two minutes.
"""

import argparse

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

import storage
import utils
from experiments import ROOT
from model import Net
from own_digit import read_digit

SEED, COUNT = 0, 2_000


def paste(digit: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """`digit` at a random size and place, as pen of random grey on paper of random grey: plain, shaded or noisy."""
    side = int(draw.integers(20, 300))
    large = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)) / 255
    height, width = (int(side * draw.uniform(1, 2.5)) for _ in range(2))
    top, left = draw.integers(0, height - side + 1), draw.integers(0, width - side + 1)
    ink = np.zeros((height, width))
    ink[top : top + side, left : left + side] = large
    paper = np.full((height, width), draw.uniform(0.6, 1.0))
    pen = draw.uniform(0, paper[0, 0] - 0.35)
    kind = draw.integers(3)
    if kind == 1:
        paper *= np.linspace(1, draw.uniform(0.7, 1.0), width)
    if kind == 2:
        paper += draw.normal(0, 0.03, paper.shape)
    picture = np.clip(paper * (1 - ink) + pen * ink, 0, 1)
    return picture if draw.random() < 0.5 else 1 - picture


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    network = storage.load_weights(Net(), ROOT / "results" / "weights.pt")
    _, test = utils.load_mnist(ROOT / "data", "cpu")
    images, labels = (part[:COUNT] for part in test)
    draw = np.random.default_rng(SEED)
    correct, refused = 0, 0
    for image, label in tqdm(list(zip(images.numpy(), labels.tolist())), unit="digit"):
        try:
            correct += read_digit(network, paste(image, draw)).digit == label
        except ValueError:
            refused += 1
    record = dict(
        digits=len(images),
        pasted_accuracy=correct / len(images),
        refused=refused,
        original_accuracy=utils.evaluate(network, images, labels)[1],
        seed=SEED,
        command="python -m experiments.pasted",
    )
    storage.save_record(ROOT / "results" / "own_digits.json", record | storage.environment("cpu"))
    print(f"original {record['original_accuracy']:.2%}, pasted {record['pasted_accuracy']:.2%}, {refused} refused")


if __name__ == "__main__":
    main()
