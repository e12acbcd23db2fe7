"""The lab's pictures, in the style of the lesson's. Each function draws one and returns its matplotlib figure."""

import textwrap

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from scipy import stats
from torch import Tensor

from plots import BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, by_epoch, interval, sheet, stack, style, subplots
from utils import History


def _final_accuracies(axes: Axes, finals: dict[str, list[float]], goal: float) -> None:
    """A row for each of `finals`: its seeds (fractions), their mean and its 95% interval; the `goal` is a line."""
    axes.axvline(100 * goal, color=GREEN, linestyle="--", label=f"goal {goal:.1%}")
    for row, values in enumerate(finals.values()):
        points = 100 * np.array(values)
        labels = ("one seed", "mean and its 95% interval") if row == 0 else (None, None)
        heights = row - 0.1 - 0.12 * stack(points)  # the axis points downwards
        axes.plot(points, heights, "o", color=BLUE, alpha=0.7, markersize=6, label=labels[0])
        bar = dict(fmt="D", color="black", capsize=5, markersize=5, label=labels[1])
        axes.errorbar(points.mean(), row + 0.22, xerr=interval(points), **bar)
    names = [textwrap.fill(name, 24) for name in finals]
    axes.set(yticks=range(len(finals)), yticklabels=names, ylim=(len(finals) - 0.4, -0.8))


@style
def recipes(finals: dict[str, list[float]], goal: float, reference: float) -> Figure:
    """Final accuracies (fractions) of each recipe's seeds, in their order; `reference` is the solution's single run."""
    failed = sum(final <= goal for values in finals.values() for final in values)
    total = sum(map(len, finals.values()))
    title = f"{total - failed} of {total} runs end above {goal:.1%}"
    figure, (axes,) = subplots(1, 1, 1.6 + 0.75 * len(finals), title)
    _final_accuracies(axes, finals, goal)
    axes.axvline(100 * reference, color=PURPLE, linestyle=":", label=f"reference solution, one run: {reference:.2%}")
    axes.xaxis.set_major_locator(MultipleLocator(0.05))
    axes.set_xlabel("test accuracy after the last epoch (%)")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _differences(axes: Axes, names: list[str], intervals: dict[str, tuple[float, float, float]]) -> None:
    """The difference to the first row with its interval; filled where the interval excludes zero."""
    axes.axvline(0, color=GRAY, linewidth=1)
    for row, name in enumerate(names[1:], start=1):
        difference, low, high = (10_000 * value for value in intervals[name])
        filled = low > 0 or high < 0
        bar = dict(fmt="s", color=RED, mfc=RED if filled else "white", capsize=5, markersize=7)
        axes.errorbar(difference, row, xerr=[[difference - low], [high - difference]], **bar)
        axes.annotate(f"{difference:+.0f}", (difference, row), (0, 8), textcoords="offset points", ha="center")


def _break(left: Axes, right: Axes) -> None:
    """Show that the axes of two panels are one, with a gap."""
    left.spines["right"].set_visible(False)
    right.spines["left"].set_visible(False)
    right.tick_params(left=False, labelleft=False)
    marks = dict(marker=[(-0.5, -1), (0.5, 1)], markersize=9, linestyle="none", color="black", clip_on=False)
    left.plot(1, 0, transform=left.transAxes, **marks)
    right.plot(0, 0, transform=right.transAxes, **marks)


@style
def ingredients(
    finals: dict[str, list[float]], goal: float, intervals: dict[str, tuple[float, float, float]]
) -> Figure:
    """Final accuracies (fractions) of the unchanged recipe, first in `finals`, and of each change, the best first.

    `intervals`: change → (difference to the unchanged recipe, its 95% interval's low and high end), as fractions.
    Changes that cost more than 50 digits in 10,000 are drawn beyond a gap in the axes.
    """
    unchanged, *changes = finals
    changes.sort(key=lambda name: intervals[name][0], reverse=True)
    order = {name: finals[name] for name in (unchanged, *changes)}
    far = [name for name in changes if intervals[name][0] < -0.005]
    near = [name for name in order if name not in far]
    clear = sum(low > 0 or high < 0 for _, low, high in intervals.values())
    title = f"{clear} of {len(changes)} changes make a difference: their 95% intervals exclude zero"
    ratios = [1, 3, 1, 3] if far else [1, 1]
    options = dict(width_ratios=ratios, sharey=True)
    figure, panels = subplots(1, len(ratios), 1.6 + 0.75 * len(order), title, **options)
    accuracies, differences = panels[: len(panels) // 2], panels[len(panels) // 2 :]
    for axes in accuracies:
        _final_accuracies(axes, order, goal)
    for axes in differences:
        _differences(axes, list(order), intervals)
    for pair, width, values in (
        (accuracies, 0.05, {name: [100 * value for value in order[name]] for name in order}),
        (differences, 5, {name: [10_000 * value for value in intervals.get(name, (0,))] for name in order}),
    ):
        for axes, names in zip(pair[::-1], (near, far)):
            drawn = [value for name in names for value in values[name]]
            axes.set_xlim(min(drawn) - width, max(drawn) + width)
        if far:
            _break(*pair)
    accuracies[-1].set_xlabel("test accuracy after the last epoch (%)")
    differences[-1].set_xlabel("difference in correct digits per 10,000,\nwith Welch's 95% interval")
    figure.legend(*accuracies[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


@style
def comparison(histories: dict[str, History], goal: float) -> Figure:
    """Learning rate, test loss and test accuracy of every epoch of two runs, with the `goal` (a fraction)."""
    ends = (f"{name}: {history['test_accuracy'][-1]:.2%}" for name, history in histories.items())
    figure, panels = subplots(1, 3, 4.4, "Test accuracy after the last epoch: " + "; ".join(ends))
    for axes, name in zip(panels, ("learning rate", "test loss", "test accuracy")):
        key = name.replace(" ", "_")
        by_epoch(axes, name, {title: history[key] for title, history in histories.items()})
    panels[2].axhline(100 * goal, color=GREEN, linestyle="--", label=f"goal {goal:.1%}")
    figure.legend(*panels[2].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


@style
def deskewing(before: Tensor, after: Tensor) -> Figure:
    """Images (float [B, 1, 28, 28]) in one row, and below each what `networks.Deskew` makes of it."""
    figure, (axes,) = subplots(1, 1, 2.2, "Test digits as they were written, and deskewed")
    sheet(axes, torch.cat([before, after])[:, 0], len(before))
    axes.set_yticks([14.5, 43.5], ["written", "deskewed"])
    return figure


KINDS = {  # of training → marker and color
    "trained alone": ("o", BLUE),
    "distilled": ("^", ORANGE),
    "deskewed": ("s", GREEN),
    "distilled and deskewed": ("D", PURPLE),
}


def _label(axes: Axes, texts: list[tuple[str, float, float, str]]) -> None:
    """Write each (text, x, y, color) at the first place around its point where it covers no point and no text."""
    axes.figure.draw_without_rendering()  # only now is known where the points are, in pixels
    taken = [tuple(axes.transData.transform((x, y))) for _, x, y, _ in texts]
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in taken]
    for text, x, y, color in texts:
        for dx, dy in [(sign * dx, dy) for dy in (0, 9, -9, 18, -18, 27, -27) for dx, sign in ((9, 1), (9, -1))]:
            style = dict(textcoords="offset points", va="center", fontsize=9, color=color)
            note = axes.annotate(text, (x, y), (dx, dy), ha="left" if dx > 0 else "right", **style)
            box = note.get_window_extent()
            if not any(box.x0 < x1 and x0 < box.x1 and box.y0 < y1 and y0 < box.y1 for x0, y0, x1, y1 in taken):
                break
            note.remove()
        taken.append((box.x0, box.y0, box.x1, box.y1))


@style
def frontier(networks: list[dict], peers: list[dict], goal: float, limit: int) -> Figure:
    """Test accuracy (fractions) by number of parameters: ours, mean ± standard deviation of the seeds, and `peers`.

    `networks` have name, parameters, finals (of the seeds) and kind, one of `KINDS`; `peers` source, parameters and
    accuracy, as in results/peers.json. The corner of fewer than `limit` parameters and more than the `goal` is shaded.
    """
    passing = min(network["parameters"] for network in networks if min(network["finals"]) > goal)
    title = f"{passing:,} parameters are enough: every seed ends above {goal:.1%}"
    figure, (axes,) = subplots(1, 1, 7, title)
    corner = dict(color=GREEN, alpha=0.12, linewidth=0, label=f"the goal: over {goal:.1%}, under {limit:,} parameters")
    axes.fill_between([100, limit], 100 * goal, 100, **corner)
    texts = []
    for kind, (marker, color) in KINDS.items():
        chosen = [network for network in networks if network["kind"] == kind]
        counts = [network["parameters"] for network in chosen]
        means = [100 * np.mean(network["finals"]) for network in chosen]
        deviations = [100 * np.std(network["finals"], ddof=1) for network in chosen]
        axes.errorbar(counts, means, deviations, fmt=marker, color=color, capsize=4, markersize=7, label=kind)
        texts += [(network["name"], *place, color) for network, *place in zip(chosen, counts, means)]
    published = [(peer["source"], peer["parameters"], 100 * peer["accuracy"], GRAY) for peer in peers]
    _, counts, accuracies, _ = zip(*published)
    axes.plot(counts, accuracies, "X", color=GRAY, markersize=8, label="published by others (mostly one run)")
    lowest = min(mean for _, _, mean, _ in texts + published)
    axes.set(xscale="log", xlim=(500, 1.5 * limit), ylim=(lowest - 0.15, 99.75))
    axes.set(xlabel="parameters (logarithmic scale)", ylabel="test accuracy after the last epoch (%)")
    ticks = [500, 1_000, 2_000, 5_000, 10_000, 20_000]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(loc="lower right")
    _label(axes, texts + published)
    return figure


@style
def calibration(labels: Tensor, log_probabilities: Tensor) -> Figure:
    """Reliability diagram: accuracy in each of ten bins of confidence with its 95% Wilson interval, and their counts.

    Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599
    """
    confidence, guesses = log_probabilities.exp().max(1)
    correct = guesses == labels
    bins = (confidence * 10).long().clamp(max=9)
    title = f"Calibration: mean confidence {confidence.mean():.2%}, accuracy {correct.float().mean():.2%}"
    figure, (above, below) = subplots(2, 1, 6.5, title, sharex=True, height_ratios=[2, 1])
    above.plot([0, 100], [0, 100], color=GRAY, linestyle="--", label="perfectly calibrated")
    for number in sorted(set(bins.tolist())):
        chosen = bins == number
        n, k = int(chosen.sum()), int(correct[chosen].sum())
        x, y, wilson = (
            100 * confidence[chosen].mean().item(),
            100 * k / n,
            stats.binomtest(k, n).proportion_ci(method="wilson"),
        )
        above.errorbar(x, y, [[y - 100 * wilson.low], [100 * wilson.high - y]], fmt="o", color=BLUE, capsize=4)
    above.errorbar([], [], [], fmt="o", color=BLUE, capsize=4, label="one bin of test images, with its 95% interval")
    above.set(ylim=(0, 103), ylabel="accuracy (%)")
    above.legend(loc="upper left")
    counts = torch.bincount(bins.cpu(), minlength=10).tolist()
    bars = below.bar(range(5, 100, 10), counts, width=9.5, color=BLUE)
    below.bar_label(bars, [f"{count:,}" if count else "" for count in counts])
    below.set(xlim=(0, 102), yscale="log", ylim=(1, 8 * max(counts)), yticks=[], xlabel="confidence (%)")
    below.set_ylabel("test images\n(logarithmic)")
    return figure


@style
def robustness(
    accuracies: dict[str, dict[float, float]], trained: dict[str, tuple[float, float]], images: int
) -> Figure:
    """Accuracy (fractions) on the first `images` of the test set against each corruption's strength.

    The range of strengths that training saw is shaded.
    """
    title = f"Accuracy on the first {images:,} test images, corrupted"
    figure, axes = subplots(1, len(accuracies), 4, title, sharey=True)
    for panel, (name, results) in zip(axes, accuracies.items()):
        panel.axvspan(*trained[name], color=GREEN, alpha=0.2, linewidth=3, label="seen in training")
        values = [100 * accuracy for accuracy in results.values()]
        panel.plot(list(results), values, color=BLUE, marker="o", label="test accuracy")
        panel.set(xlabel=name, ylim=(0, 103))
    axes[0].set_ylabel("accuracy (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure
