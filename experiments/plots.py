"""The lab's pictures, in the style of the lesson's. Each function draws one and returns its matplotlib figure."""

import textwrap
from itertools import product

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from scipy import stats
from torch import Tensor

from plots import BLUE, GRAY, GREEN, PURPLE, RED, by_epoch, sheet, stack, style, subplots
from utils import History


def _legend(figure: Figure, axes: Axes) -> None:
    """One legend below all panels, from the `axes` of one; each label once."""
    entries = {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, frameon=False)


@style
def ingredients(
    finals: dict[str, list[float]], goal: float, intervals: dict[str, tuple[float, float, float]]
) -> Figure:
    """Final accuracies (fractions) of the unchanged recipe, first in `finals`, and of each change, the best first.

    `intervals`: change → (difference to the unchanged recipe, its 95% interval's low and high end), as fractions.
    """
    unchanged, *changes = finals
    changes.sort(key=lambda name: -intervals[name][0])
    clear = sum(low > 0 or high < 0 for _, low, high in intervals.values())
    title = f"{clear} of {len(changes)} changes make a difference: their 95% intervals miss the unchanged mean"
    figure, (axes,) = subplots(1, 1, 2 + 0.7 * len(changes), title)
    mean, names = 100 * np.mean(finals[unchanged]), [unchanged]
    axes.axvline(100 * goal, color=GREEN, linestyle="--", label=f"goal {goal:.1%}")
    axes.axvline(mean, color="black", linewidth=1, label="mean of the\nunchanged recipe")
    for row, name in enumerate([unchanged, *changes]):
        points = 100 * np.array(finals[name])
        heights = row - 0.05 - 0.12 * stack(points)  # the axis points downwards
        axes.plot(points, heights, "o", color=BLUE, alpha=0.7, markersize=6, label="one seed")
    for row, name in enumerate(changes, 1):
        difference, low, high = 100 * np.array(intervals[name])
        bar = dict(color=RED, markerfacecolor="white" if low <= 0 <= high else RED, capsize=5, markersize=7)
        label = "mean, with Welch's 95% interval of the\ndifference (open: includes the unchanged mean)"
        ends = [[difference - low], [high - difference]]
        axes.errorbar(mean + difference, row + 0.25, xerr=ends, fmt="s", **bar, label=label)
        cost = f"{100 * difference:+.0f} correct per 10,000".replace("-", "−")
        names.append(f"{textwrap.fill(name, 30)}\n{cost}")
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.7))
    axes.set_xlabel("test accuracy after the last epoch (%)")
    _legend(figure, axes)
    return figure


@style
def comparison(histories: dict[str, History], goal: float) -> Figure:
    """Learning rate, test loss and test accuracy of every epoch of two runs, with the `goal` (a fraction)."""
    ends = (f"{name}: {history['test_accuracy'][-1]:.2%}" for name, history in histories.items())
    figure, panels = subplots(1, 3, 4.4, "Test accuracy after the last epoch: " + "; ".join(ends))
    for axes, name in zip(panels, ("learning rate", "test loss", "test accuracy")):
        key = name.replace(" ", "_")
        by_epoch(axes, name, {title: history[key] for title, history in histories.items()}, goal)
    _legend(figure, panels[2])
    return figure


@style
def deskewing(before: Tensor, after: Tensor) -> Figure:
    """Images (float [B, 1, 28, 28]) in one row, and below each what `networks.Deskew` makes of it."""
    figure, (axes,) = subplots(1, 1, 2, "Test digits as they were written, and deskewed")
    sheet(axes, torch.cat([before, after])[:, 0], len(before))
    axes.set_yticks([14.5, 43.5], ["written", "deskewed"])
    axes.tick_params(length=0)
    return figure


KINDS = {  # how a network was trained → marker, size, color, fill; the hollow ones leave visible what they lie upon
    "trained alone": ("o", 7, BLUE, BLUE),
    "distilled": ("^", 7, RED, RED),
    "deskewed": ("s", 12, GREEN, "none"),
    "distilled and deskewed": ("D", 12, PURPLE, "none"),
}


def _label(axes: Axes, points: list[tuple[str, float, float, float]]) -> None:
    """Write each (text, x, y, deviation) at the first place around its point where it covers no point and no text.

    A thin line leads from the text to its point.
    """
    axes.figure.draw_without_rendering()  # only now is known where the points are, in pixels
    taken = []
    for _, x, y, deviation in points:
        (x0, y0), (_, y1) = axes.transData.transform([(x, y - deviation), (x, y + deviation)])
        taken.append(Bbox([(x0 - 10, y0 - 10), (x0 + 10, y1 + 10)]))
    line = dict(arrowstyle="-", color=GRAY, linewidth=0.8, shrinkA=0, shrinkB=4)
    look = dict(textcoords="offset points", va="center", fontsize=10, arrowprops=line)
    for text, x, y, _ in points:
        for dy, dx in product((0, 10, -10, 20, -20, 30, -30, 40, -40), (9, -9)):
            note = axes.annotate(text, (x, y), (dx, dy), ha="left" if dx > 0 else "right", **look)
            note.get_window_extent()  # of text and line, which puts both in place
            box = Text.get_window_extent(note)
            if box.x0 > axes.bbox.x0 and box.x1 < axes.bbox.x1 and not box.count_overlaps(taken):
                break
            note.remove()
        taken.append(box)


@style
def frontier(networks: list[dict], peers: list[dict], goal: float, limit: int) -> Figure:
    """Test accuracy (fractions) by number of parameters: ours, mean ± standard deviation of the seeds, and `peers`.

    `networks` have name, parameters, finals (of the seeds) and kind, one of `KINDS`; `peers` source, parameters and
    accuracy, as in results/peers.json. The corner of fewer than `limit` parameters and more than the `goal` is shaded.
    """
    least = min((n for n in networks if min(n["finals"]) > goal), key=lambda network: network["parameters"])
    title = f"{least['parameters']:,} parameters, {least['kind']}: all {len(least['finals'])} seeds above {goal:.1%}"
    figure, (axes,) = subplots(1, 1, 7, title)
    corner = dict(color=GREEN, alpha=0.12, linewidth=0, label=f"the goal: over {goal:.1%}, under {limit:,}")
    axes.fill_between([100, limit], 100 * goal, 100, **corner)
    points = []
    for kind, (marker, size, color, fill) in KINDS.items():
        chosen = [network for network in networks if network["kind"] == kind]
        counts = [network["parameters"] for network in chosen]
        means = [100 * np.mean(network["finals"]) for network in chosen]
        deviations = [100 * np.std(network["finals"], ddof=1) for network in chosen]
        marks = dict(fmt=marker, color=color, markersize=size, markerfacecolor=fill)
        axes.errorbar(counts, means, deviations, **marks, capsize=4, label=kind)
        points += zip((network["name"] for network in chosen), counts, means, deviations)
    published = [(peer["source"], peer["parameters"], 100 * peer["accuracy"], 0) for peer in peers]
    _, counts, accuracies, _ = zip(*published)
    axes.plot(counts, accuracies, "X", color=GRAY, markersize=8, label="published by others, mostly one run")
    lowest = min(mean for _, _, mean, _ in points + published)
    axes.set(xscale="log", xlim=(450, 1.9 * limit), ylim=(lowest - 0.15, 99.75))
    axes.set(xlabel="parameters (logarithmic scale)", ylabel="final test accuracy (%), of others as published")
    ticks = [500, 1_000, 2_000, 5_000, 10_000, 20_000]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(loc="lower right", title="ours: mean ± standard deviation of the seeds")
    _label(axes, points + published)
    return figure


@style
def calibration(labels: Tensor, log_probabilities: Tensor) -> Figure:
    """Reliability diagram: accuracy in each of ten bins of confidence with its 95% Wilson interval, and their counts.

    Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599
    """
    confidence, predicted = log_probabilities.exp().max(1)
    correct = predicted == labels
    bins = (confidence * 10).long().clamp(max=9)
    title = f"Calibration: mean confidence {confidence.mean():.2%}, accuracy {correct.float().mean():.2%}"
    figure, (axes,) = subplots(1, 1, 5, title)
    axes.plot([0, 100], [0, 100], color=GRAY, linestyle="--", label="perfectly calibrated")
    marks = dict(fmt="o", color=BLUE, capsize=4, label="one bin and its number of test images, with its 95% interval")
    for chosen in (bins == number for number in bins.unique()):
        n, k = int(chosen.sum()), int(correct[chosen].sum())
        low, high = (100 * end for end in stats.binomtest(k, n).proportion_ci(method="wilson"))
        x, y = 100 * confidence[chosen].mean().item(), 100 * k / n
        axes.errorbar(x, y, [[y - low], [high - y]], **marks)
        axes.annotate(f"{n:,}", (x, y), (7, 0), textcoords="offset points", va="center")
    axes.set(xlim=(0, 104), ylim=(0, 104), xlabel="confidence (%)", ylabel="accuracy (%)")
    _legend(figure, axes)
    return figure


@style
def robustness(
    accuracies: dict[str, dict[float, float]], trained: dict[str, tuple[float, float]], image_count: int
) -> Figure:
    """Accuracy (fractions) on `image_count` images of the test set against each corruption's strength.

    The range of strengths that training saw is shaded.
    """
    title = f"Accuracy on {image_count:,} corrupted test images"
    figure, axes = subplots(1, len(accuracies), 4, title, sharey=True)
    for panel, (name, results) in zip(axes, accuracies.items()):
        panel.axvspan(*trained[name], color=GREEN, alpha=0.2, linewidth=3, label="seen in training")
        values = [100 * accuracy for accuracy in results.values()]
        panel.plot(list(results), values, color=BLUE, marker="o", label="test accuracy")
        panel.set(xlabel=name, ylim=(0, 103))
    axes[0].set_ylabel("accuracy (%)")
    _legend(figure, axes[0])
    return figure
