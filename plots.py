"""The lesson's pictures. Each function draws one and returns its matplotlib figure.

All are 10 inches wide, 1,000 pixels in a notebook. Colors are Okabe and Ito's, which color-blind readers can tell
apart (https://jfly.uni-koeln.de/color); what a color says, a marker, a line style or a text says, too.
"""

import inspect
import linecache
import math
from collections.abc import Callable
from contextlib import suppress

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, MultipleLocator, NullLocator, StrMethodFormatter
from scipy import stats
from torch import Tensor
from torchvision.utils import make_grid

from utils import History

BLUE, ORANGE, GREEN, RED, PURPLE, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"

style = plt.rc_context(
    {
        "font.size": 11,
        "axes.titlesize": 12,
        "figure.titlesize": 14,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
    }
)


def subplots(rows: int, columns: int, height: float, title: str, **options: object) -> tuple[Figure, list[Axes]]:
    """A figure of rows × columns panels, `height` in inches, and its axes; closed, so that a notebook shows it once."""
    figure, axes = plt.subplots(rows, columns, figsize=(10, height), squeeze=False, **options)
    plt.close(figure)
    figure.suptitle(title)
    return figure, list(axes.flat)


def _picture(axes: Axes, image: Tensor, **options: object) -> None:
    """One `image` or feature map [H, W], thinly framed, as light digits hide where the image ends."""
    axes.imshow(image.float().cpu().numpy(), **(options or dict(cmap="gray_r", vmin=0, vmax=255)))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=GRAY, linewidth=0.5)


def sheet(axes: Axes, images: Tensor, columns: int) -> AxesImage:
    """Images [N, H, W] row by row, H + 1 and W + 1 pixels from one to the next, with thin lines between them."""
    low, high = images.min().item(), images.max().item()
    grid = make_grid(images[:, None].float(), columns, padding=1, pad_value=low + 0.2 * (high - low))
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return axes.imshow(grid[0].cpu().numpy(), cmap="gray_r", vmin=low, vmax=high)


def source(*functions: Callable) -> Markdown:
    """The code of `functions` and classes, as a notebook shows it in colors; without what Python cannot find.

    Before Python 3.13, that is every class of a notebook's own cells.
    """
    linecache.checkcache()  # a file may have been edited since it was imported
    code = []
    for function in functions:
        with suppress(OSError, TypeError):
            code.append(inspect.getsource(function))
    return Markdown("```python\n" + "\n\n".join(code) + "```")


@style
def classes(images: Tensor, labels: Tensor) -> Figure:
    """The first of `images` (uint8 [N, 28, 28]) of each class, titled with class and count."""
    figure, axes = subplots(2, 5, 4.6, f"{len(images):,} training images: the first of each class")
    for digit, panel in enumerate(axes):
        chosen = images[labels == digit]
        _picture(panel, chosen[0])
        panel.set_title(f"{digit}: {len(chosen):,} images")
    return figure


@style
def augmentations(image: Tensor, variants: Tensor) -> Figure:
    """One `image` (uint8 [28, 28]) beside many augmented `variants` of it (uint8 [N, 28, 28])."""
    title = "One training image, and what augmentation makes of it"
    figure, (left, right) = subplots(1, 2, 3.8, title, width_ratios=[1, 2.4])
    _picture(left, image)
    left.set_title("in the data set")
    sheet(right, variants, 9)
    right.set_title(f"drawn {len(variants)} times for training")
    return figure


@style
def batch(x: Tensor, labels: Tensor) -> Figure:
    """A training batch as the network takes it: float [B, 1, 28, 28], each image below its label."""
    columns, strip = 16, 10
    rows = math.ceil(len(x) / columns)
    title = f"One training batch: {len(x)} augmented, normalized images, each below its label"
    figure, (axes,) = subplots(1, 1, 1.2 + 0.7 * rows, title)
    picture = sheet(axes, F.pad(x[:, 0], (0, 0, strip, 0), value=x.min().item()), columns)
    for number, label in enumerate(labels.tolist()):
        row, column = divmod(number, columns)
        place = 29 * column + 14.5, (29 + strip) * row + strip / 2 + 1
        axes.text(*place, str(label), color=BLUE, fontsize=10, weight="bold", ha="center", va="center")
    label = "input value (standard deviations from the mean)"
    figure.colorbar(picture, ax=axes, location="bottom", shrink=0.6, aspect=40, label=label)
    return figure


@style
def receptive_field(image: Tensor, table: list[dict[str, str | int]]) -> Figure:
    """For each row of `inspection.receptive_field`, the part of `image` [28, 28] that the layer's middle unit sees."""
    rows = max(math.ceil(len(table) / 4), 1)
    figure, axes = subplots(rows, 4, 0.6 + 2.7 * rows, "What the middle unit of each layer sees of the image")
    padding = 0  # of all layers so far, in pixels of the image
    for panel in axes[len(table) :]:
        panel.set_axis_off()
    for panel, row in zip(axes, table):
        padding += row["p"] * row["j_in"]
        corner, size = row["n_out"] // 2 * row["j_out"] - padding - 0.5, row["r_out"]
        _picture(panel, image)
        look = dict(facecolor=to_rgba(ORANGE, 0.3), edgecolor=RED, linewidth=2.5, clip_on=False)
        panel.add_patch(Rectangle((corner, corner), size, size, **look))
        panel.set_title(f"{row['layer']}: {size} × {size} pixels")
    return figure


def by_epoch(axes: Axes, name: str, lines: dict[str, list[float]], goal: float) -> None:
    """A value per epoch for each label of `lines`; `name` ends with loss, accuracy (as fractions) or rate.

    The axis of an accuracy shows the `goal`, begins below the second epoch and says which values of the first it omits.
    """
    kind = name.split()[-1]
    scale = 100 if kind == "accuracy" else 1
    for (label, values), color, marker in zip(lines.items(), (BLUE, RED), ("o", "s")):
        scaled = [scale * value for value in values]
        axes.plot(range(1, len(values) + 1), scaled, color=color, marker=marker, markersize=5, label=label)
    units = dict(loss="mean loss (logarithmic scale)", accuracy="accuracy (%)", rate="at the epoch's start")
    axes.set(title=name.capitalize(), xlabel="epoch", ylabel=units[kind])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if kind == "loss":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    if kind == "accuracy":
        axes.axhline(100 * goal, color=GREEN, linestyle="--", label=f"goal {goal:.1%}")
        bottom = min(min(values[1:] or values) for values in lines.values()) - 0.002
        top = max(goal, *map(max, lines.values()))
        axes.set_ylim(100 * bottom, 100 * (top + 0.15 * (top - bottom)))
        first = [f"{label.split(' (')[0]} {values[0]:.1%}" for label, values in lines.items() if values[0] < bottom]
        if first:
            text = "\n".join(["below the axis,", "in epoch 1:", *first])
            axes.text(0.98, 0.04, text, transform=axes.transAxes, ha="right", color=GRAY)


@style
def curves(history: History, goal: float) -> Figure:
    """Loss and accuracy of every epoch, train and test, with the `goal` (a fraction) and the learning-rate drops."""
    final, rates = history["test_accuracy"][-1], history["learning_rate"]
    figure, panels = subplots(1, 2, 4.8, f"Test accuracy after epoch {len(rates)}: {final:.2%}")
    drops = [epoch for epoch in range(1, len(rates)) if rates[epoch] < rates[epoch - 1] / 2]
    label = "learning rate " + ", ".join(f"{rates[epoch - 1]:.3g} → {rates[epoch]:.3g}" for epoch in drops)
    for axes, name in zip(panels, ("loss", "accuracy")):
        lines = {"train (augmented images)": history[f"train_{name}"], "test": history[f"test_{name}"]}
        by_epoch(axes, name, lines, goal)
        for epoch in drops:
            axes.axvline(epoch + 0.5, color=GRAY, linestyle=":", label=label if epoch == drops[0] else None)
    place = dict(xytext=(0, 9), textcoords="offset points", ha="right", va="bottom")
    panels[1].annotate(f"{final:.2%}", (len(rates), 100 * final), color=RED, weight="bold", **place)
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


@style
def predictions(images: Tensor, labels: Tensor, log_probabilities: Tensor, title: str = "") -> Figure:
    """All `images`, eight a row, titled with predicted digit and confidence; true → predicted, in red, if wrong."""
    confidences, predicted = log_probabilities.exp().max(1)
    correct = int((predicted == labels).sum())
    rows = max(math.ceil(len(images) / 8), 1)
    about = "predicted digit (confidence); if wrong, true → predicted"
    title = title or f"{correct} of {len(images)} test images classified correctly: {about}"
    figure, axes = subplots(rows, 8, 0.6 + 1.5 * rows, title)
    for panel in axes[len(images) :]:
        panel.set_axis_off()
    for panel, image, true, digit, confidence in zip(
        axes, images, labels.tolist(), predicted.tolist(), confidences.tolist()
    ):
        _picture(panel, image)
        text = f"{digit} ({confidence:.0%})" if digit == true else f"{true} → {digit} ({confidence:.0%})"
        panel.set_title(text, color=GREEN if digit == true else RED, fontsize=11)
    return figure


def misclassified(images: Tensor, labels: Tensor, log_probabilities: Tensor, limit: int = 96) -> Figure:
    """Every wrongly classified image (up to `limit`), the most confident mistakes first."""
    confidence, predicted = log_probabilities.max(1)
    wrong = (predicted != labels).nonzero()[:, 0]
    wrong = wrong[confidence[wrong].argsort(descending=True)]
    shown = wrong[:limit]
    which = f"All {len(wrong)}" if len(shown) == len(wrong) else f"The {limit} most confident of {len(wrong):,}"
    title = f"{which} mistakes among {len(labels):,} test images: true → predicted (confidence)"
    return predictions(images[shown], labels[shown], log_probabilities[shown], title)


@style
def confusion_matrix(labels: Tensor, log_probabilities: Tensor) -> Figure:
    """How often each class (rows) was confused with each other (columns), and its accuracy; colors show mistakes."""
    counts = torch.zeros(10, 10, dtype=torch.int64)
    counts.index_put_((labels.cpu(), log_probabilities.argmax(1).cpu()), torch.tensor(1), accumulate=True)
    mistakes = counts.clone().fill_diagonal_(0)
    most, total = max(mistakes.max().item(), 1), mistakes.sum()
    title = f"Confusion matrix: {total:,} mistakes among {len(labels):,} test images"
    figure, (axes,) = subplots(1, 1, 6.6, title)
    axes.imshow(mistakes.numpy(), cmap="Oranges", vmin=0, vmax=1.5 * most)
    for true, row in enumerate(counts.tolist()):
        for digit, count in enumerate(row):
            if count:
                correct = dict(color=GREEN, weight="bold") if digit == true else {}
                axes.text(digit, true, f"{count:,}", ha="center", va="center", **correct)
        if sum(row):
            axes.text(9.8, true, f"{row[true] / sum(row):.1%} of {sum(row):,}", va="center")
    axes.text(9.8, -0.8, "correct", va="center", weight="bold")
    axes.set(xlabel="predicted digit", ylabel="true digit", xticks=range(10), yticks=range(10))
    axes.grid(False)
    return figure


@style
def feature_maps(image: Tensor, activations: dict[str, Tensor]) -> Figure:
    """An `image` [28, 28] and, block by block, the first eight of its feature maps: block name → [C, H, W]."""
    title = "Feature maps: the first 8 channels of each block, each scaled separately (yellow is highest)"
    rows = max(len(activations), 1)
    figure, axes = subplots(rows, 9, 0.7 + 1.02 * rows, title)
    for panel in axes:
        panel.set_axis_off()
    for row, (name, channels) in enumerate(activations.items()):
        for panel, channel in zip(axes[9 * row + 1 : 9 * row + 9], channels):
            panel.set_axis_on()
            _picture(panel, channel, cmap="viridis")
        shape = f"{name}\n{channels.shape[1]} × {channels.shape[2]}"
        axes[9 * row + 1].set_ylabel(shape, rotation=0, ha="right", va="center")
    axes[0].set_axis_on()
    _picture(axes[0], image)
    axes[0].set_title("input")
    return figure


def stack(points: np.ndarray) -> np.ndarray:
    """How many of the `points` before each are equal to it, so that equal ones can be drawn above each other."""
    return np.array([int(np.isclose(points[:i], point).sum()) for i, point in enumerate(points)])


def interval(points: np.ndarray) -> float:
    """Half the width of the 95% confidence interval (Student's t) of the mean of `points`."""
    return stats.sem(points) * stats.t.ppf(0.975, len(points) - 1)


@style
def seeds(finals: list[float], goal: float, reference: float, this_run: float) -> Figure:
    """Final accuracies (fractions) of the recorded seeds, their mean with its 95% interval, and two other runs."""
    points = 100 * np.array(finals)
    heights = 0.16 * stack(points)
    above = sum(final > goal for final in finals)
    title = f"{above} of {len(finals)} seeds end above {goal:.1%}; the mean of all is {points.mean():.2f}%"
    figure, (axes,) = subplots(1, 1, 2.9, title)
    low = 100 * min(*finals, goal, max(this_run, 0.99)) - 0.03
    high = 100 * max(*finals, reference, this_run) + 0.03
    axes.axvline(100 * goal, color=GREEN, linestyle="--", label=f"goal {goal:.1%}")
    axes.axvline(100 * reference, color=PURPLE, linestyle=":", label=f"reference solution, one run: {reference:.2%}")
    axes.plot(points, heights, "o", color=BLUE, markersize=8, label="one recorded seed each")
    bar = dict(fmt="D", color="black", capsize=6, label="mean and its 95% interval")
    axes.errorbar(points.mean(), -0.25, xerr=interval(points), **bar)
    outside = " (off the axis)" if 100 * this_run < low else ""
    this = dict(color=RED, markersize=15, linestyle="none", label=f"this notebook: {this_run:.2%}{outside}")
    axes.plot(100 * this_run, -0.55, "*", **this)
    axes.set(xlim=(low, high), ylim=(-0.8, max(0.7, heights.max() + 0.1)), yticks=[])
    axes.set_xlabel("test accuracy after the last epoch (%)")
    axes.xaxis.set_major_locator(MultipleLocator(0.05))
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


@style
def reading(image: Tensor, probabilities: Tensor) -> Figure:
    """What the network was shown (uint8 [28, 28]) beside its ten probabilities."""
    digit, percent = int(probabilities.argmax()), 100 * probabilities.cpu().numpy()
    title = f"The network reads a {digit}, with a probability of {probabilities.max():.1%}"
    figure, (left, right) = subplots(1, 2, 3.8, title, width_ratios=[1, 1.6])
    _picture(left, image)
    left.set_title("what it was shown")
    bars = right.barh(range(10), percent, color=[RED if other == digit else BLUE for other in range(10)])
    right.bar_label(bars, fmt="%.1f%%", padding=4)
    right.set(xlabel="probability (%)", ylabel="digit", yticks=range(10), xlim=(0, 115), xticks=range(0, 101, 20))
    right.invert_yaxis()
    return figure
