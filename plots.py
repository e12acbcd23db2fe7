"""The notebooks' pictures. Each function draws one and returns its matplotlib figure; none computes a result.

Colours are Okabe and Ito's, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color).
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from scipy import stats
from torch import Tensor
from torchvision.utils import make_grid

from utils import History

BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"

_style = plt.rc_context(
    {
        "font.size": 11,
        "axes.titlesize": 12,
        "figure.titlesize": 14,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "lines.linewidth": 1.8,
        "legend.framealpha": 0.9,
    }
)


def _subplots(rows: int, columns: int, width: float, height: float, title: str) -> tuple[Figure, list[Axes]]:
    """A figure of rows × columns panels and the list of its axes; closed, so that a notebook shows it only once."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    plt.close(figure)
    figure.suptitle(title)
    return figure, list(axes.flat)


def _digits(*arguments: int | float | str) -> tuple[Figure, list[Axes]]:
    """As `_subplots`, for pictures that need no axes."""
    figure, axes = _subplots(*arguments)
    for panel in axes:
        panel.set_axis_off()
    return figure, axes


def _digit(axes: Axes, image: Tensor) -> None:
    axes.imshow(image.cpu().numpy(), cmap="gray_r", vmin=0, vmax=255)
    axes.set_axis_off()


def _grid(axes: Axes, images: Tensor, columns: int) -> AxesImage:
    """The images [N, 28, 28] row by row, 29 pixels from one to the next, with thin lines between them."""
    low, high = images.min().item(), images.max().item()
    sheet = make_grid(images[:, None].float(), columns, padding=1, pad_value=low + 0.2 * (high - low))
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return axes.imshow(sheet[0].cpu().numpy(), cmap="gray_r", vmin=low, vmax=high)


@_style
def classes(images: Tensor, labels: Tensor) -> Figure:
    """The first of `images` (uint8 [N, 28, 28]) of each class, titled with class and count."""
    figure, axes = _digits(2, 5, 9, 4.4, "One training image of each class")
    for digit, panel in enumerate(axes):
        chosen = images[labels == digit]
        if len(chosen):
            _digit(panel, chosen[0])
        panel.set_title(f"“{digit}”: {len(chosen):,} images")
    return figure


@_style
def batch(x: Tensor, labels: Tensor) -> Figure:
    """A training batch as the network takes it: float [B, 1, 28, 28], each image with its label in the corner."""
    columns = 16
    figure, (axes,) = _subplots(
        1, 1, 11, 6.2, f"One training batch: {len(x)} augmented, normalised images and their labels"
    )
    picture = _grid(axes, x[:, 0], columns)
    for number, label in enumerate(labels.tolist()):
        row, column = divmod(number, columns)
        axes.text(29 * column + 3, 29 * row + 3, str(label), color=BLUE, fontsize=11, weight="bold", va="top")
    figure.colorbar(picture, ax=axes, shrink=0.9, label="input value (standard deviations from the mean)")
    return figure


@_style
def augmentations(image: Tensor, variants: Tensor) -> Figure:
    """One `image` (uint8 [28, 28]) beside many augmented `variants` of it (uint8 [N, 28, 28])."""
    figure = plt.figure(figsize=(11, 4.2))
    plt.close(figure)
    left, right = figure.subplots(1, 2, width_ratios=[1, 2.3])
    figure.suptitle("One digit and what augmentation makes of it")
    _digit(left, image)
    left.set_title("in the data set")
    _grid(right, variants, 9)
    right.set_title(f"{len(variants)} times in training")
    return figure


@_style
def deskewing(before: Tensor, after: Tensor) -> Figure:
    """Images (float [B, 1, 28, 28]) in one row, and below each what `networks.Deskew` makes of it."""
    figure, (axes,) = _subplots(1, 1, 11, 2.4, "Test digits as they were written, and deskewed")
    _grid(axes, torch.cat([before, after])[:, 0], len(before))
    axes.set_yticks([14.5, 43.5], ["written", "deskewed"])
    return figure


@_style
def receptive_field(image: Tensor, table: list[dict[str, str | int]]) -> Figure:
    """For each row of `model.receptive_field`, the part of `image` [28, 28] that the layer's middle unit sees."""
    columns = min(len(table), 4)
    rows = -(-len(table) // columns)
    figure, axes = _digits(rows, columns, 2.5 * columns, 2.9 * rows, "What one unit of each layer sees of the image")
    padding = 0
    for panel, row in zip(axes, table):
        padding += row["p"] * row["j_in"]
        corner = row["n_out"] // 2 * row["j_out"] - padding - 0.5
        _digit(panel, image)
        field = dict(width=row["r_out"], height=row["r_out"], edgecolor=RED, linewidth=2.5, clip_on=False)
        panel.add_patch(Rectangle((corner, corner), facecolor=(*plt.matplotlib.colors.to_rgb(ORANGE), 0.3), **field))
        panel.set_title(f"{row['layer']}: {row['r_out']} × {row['r_out']} pixels")
    return figure


def _by_epoch(axes: Axes, quantity: str, lines: dict[str, list[float]], goal: float) -> None:
    """A value per epoch for each of two `lines`, by their labels; accuracies are fractions, as is their `goal`."""
    kind = quantity.split()[-1].lower()
    scale = 100 if kind == "accuracy" else 1
    for (label, values), colour, marker in zip(lines.items(), (BLUE, RED), ("o", "s")):
        scaled = [scale * value for value in values]
        axes.plot(range(1, len(values) + 1), scaled, color=colour, marker=marker, markersize=5, label=label)
    if kind == "accuracy":
        axes.axhline(100 * goal, color=GREEN, linestyle="--", label=f"goal {goal:.1%}")
        axes.set_ylim(bottom=100 * min(min(values[1:] or values) for values in lines.values()) - 0.2)
    units = dict(
        loss="mean negative log-likelihood (nats)", accuracy="accuracy (%)", rate="learning rate at the epoch's start"
    )
    axes.set(title=quantity, xlabel="epoch", ylabel=units[kind], yscale="log" if kind == "loss" else "linear")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


@_style
def curves(history: History, goal: float) -> Figure:
    """Loss and accuracy of every epoch, train and test, with the `goal` (a fraction) and the learning-rate drops."""
    if not history.get("test_loss"):
        raise ValueError("the history is empty: no epoch was completed, so there are no curves to draw")
    figure, panels = _subplots(1, 2, 12, 4.6, "Training and test, epoch by epoch")
    rates = history["learning_rate"]
    for axes, name in zip(panels, ("loss", "accuracy")):
        lines = {"train (augmented images)": history[f"train_{name}"], "test": history[f"test_{name}"]}
        _by_epoch(axes, name.capitalize(), lines, goal)
        for epoch, (before, rate) in enumerate(zip(rates, rates[1:]), start=1):
            if rate < before / 2:
                axes.axvline(epoch + 0.5, color=GREY, linestyle=":", label=f"learning rate {before:g} → {rate:g}")
        axes.legend()
    return figure


@_style
def comparison(histories: dict[str, History], goal: float) -> Figure:
    """Learning rate, test loss and test accuracy of every epoch of two runs, with the `goal` (a fraction)."""
    figure, panels = _subplots(1, 3, 14, 4.6, "Two recipes for the same network, epoch by epoch")
    for axes, name in zip(panels, ("learning_rate", "test_loss", "test_accuracy")):
        lines = {title: history[name] for title, history in histories.items()}
        _by_epoch(axes, name.replace("_", " ").capitalize(), lines, goal)
        axes.legend()
    return figure


def _verdicts(images: Tensor, labels: Tensor, log_probabilities: Tensor, row_height: float, title: str) -> Figure:
    """All `images`, ten a row (one empty row if there are none), titled with the network's guess and its confidence.

    Green and ticked if right; red, with the second guess and the true label, if wrong.
    """
    rows = max(-(-len(images) // 10), 1)
    figure, axes = _digits(rows, 10, 12, row_height * rows + 0.5, title)
    confidences, guesses = log_probabilities.exp().topk(2)
    for panel, image, label, (first, second), (guess, runner_up) in zip(
        axes, images, labels.tolist(), confidences.tolist(), guesses.tolist()
    ):
        _digit(panel, image)
        text = f"✓ {guess}   {first:.1%}"
        if guess != label:
            text = f"✗ {guess}  {first:.0%}\nthen {runner_up}  {second:.0%}\nis {label}"
        panel.set_title(text, color=GREEN if guess == label else RED, fontsize=11)
    return figure


@_style
def predictions(images: Tensor, labels: Tensor, log_probabilities: Tensor) -> Figure:
    """The given images with the network's guess and its confidence, wrong ones marked."""
    title = "Test images: the network's guess and its confidence"
    return _verdicts(images, labels, log_probabilities, 1.75, title)


@_style
def misclassified(images: Tensor, labels: Tensor, log_probabilities: Tensor, limit: int = 100) -> Figure:
    """Every wrongly classified image (up to `limit`) with first and second guess, the most confident mistakes first."""
    confidence, guesses = log_probabilities.max(1)
    wrong = (guesses != labels).nonzero()[:, 0]
    wrong = wrong[confidence[wrong].argsort(descending=True)]
    shown = wrong[:limit]
    title = f"All {len(wrong)} misclassified of {len(labels):,} test images, most confident mistakes first"
    if len(wrong) > limit:
        title = f"The {limit} most confident of {len(wrong):,} mistakes among {len(labels):,} test images"
    return _verdicts(images[shown], labels[shown], log_probabilities[shown], 2.1, title)


@_style
def confusion_matrix(labels: Tensor, log_probabilities: Tensor) -> Figure:
    """How often each class (rows) was taken for each other (columns); the colour shows the mistakes only."""
    counts = torch.zeros(10, 10, dtype=torch.int64)
    counts.index_put_((labels.cpu(), log_probabilities.argmax(1).cpu()), torch.tensor(1), accumulate=True)
    mistakes = counts.clone().fill_diagonal_(0)
    figure, (axes,) = _subplots(
        1, 1, 7.4, 6.4, f"Confusion matrix: {mistakes.sum():,} mistakes in {len(labels):,} test images"
    )
    norm = LogNorm(1, max(mistakes.max().item(), 10))
    colours = axes.imshow(
        mistakes.float().masked_fill(mistakes == 0, torch.nan).numpy(),
        cmap="YlOrBr",
        norm=norm,
    )
    for true in range(10):
        for guess in range(10):
            count = counts[true, guess].item()
            if count:
                right = true == guess
                dark = not right and norm(float(count)) > 0.55
                colour = GREEN if right else "white" if dark else "black"
                axes.text(guess, true, count, ha="center", va="center", color=colour, weight="bold" if right else None)
    axes.set(xlabel="predicted digit", ylabel="true digit", xticks=range(10), yticks=range(10))
    axes.grid(False)
    figure.colorbar(colours, ax=axes, shrink=0.85, label="mistakes (test images)")
    return figure


@_style
def class_accuracy(labels: Tensor, log_probabilities: Tensor) -> Figure:
    """Accuracy of each class with its 95 % Wilson interval, and of all of them together."""
    correct = (log_probabilities.argmax(1) == labels).float()
    figure, (axes,) = _subplots(1, 1, 9, 4.2, "Test accuracy of each class")
    style = dict(textcoords="offset points", fontsize=9, bbox=dict(facecolor="white", edgecolor="none", pad=0.5))
    for digit in range(10):
        chosen = correct[labels == digit]
        if len(chosen) == 0:
            continue
        k, n = int(chosen.sum()), len(chosen)
        accuracy, interval = k / n, stats.binomtest(k, n).proportion_ci(method="wilson")
        whiskers = [[100 * (accuracy - interval.low)], [100 * (interval.high - accuracy)]]
        axes.errorbar(digit, 100 * accuracy, whiskers, fmt="o", color=BLUE, capsize=4, markersize=7)
        axes.annotate(f"{n - k} wrong", (digit, 100 * accuracy), (8, 3), **style)
    mean = correct.mean().item()
    axes.axhline(100 * mean, color=GREY, linestyle="--", label=f"all classes: {mean:.2%}")
    axes.errorbar([], [], [], fmt="o", color=BLUE, capsize=4, label="one class, with its 95 % Wilson interval")
    axes.set(xlabel="digit", ylabel="accuracy (%)", xticks=range(10), xlim=(-0.5, 9.8))
    axes.legend(loc="lower left")
    return figure


@_style
def calibration(labels: Tensor, log_probabilities: Tensor) -> Figure:
    """Reliability diagram: accuracy in each of ten bins of confidence against the bin's mean confidence, and counts.

    Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, https://arxiv.org/abs/1706.04599
    """
    confidence, guesses = log_probabilities.exp().max(1)
    correct = (guesses == labels).float()
    bins = (confidence * 10).long().clamp(max=9)
    figure, (above, below) = _subplots(2, 1, 7, 6.5, "Calibration")
    above.plot([0, 100], [0, 100], color=GREY, linestyle="--", label="perfectly calibrated")
    points = [
        (100 * confidence[chosen].mean().item(), 100 * correct[chosen].mean().item())
        for chosen in (bins == number for number in range(10))
        if chosen.any()
    ]
    above.plot(*zip(*points), color=BLUE, marker="o", label="test images, in ten bins")
    above.set(xlim=(0, 102), ylim=(0, 105), xlabel="confidence (%)", ylabel="accuracy (%)")
    above.legend(loc="upper left")
    below.hist(100 * confidence.cpu().numpy(), bins=range(0, 101, 10), color=BLUE, edgecolor="white")
    below.set(xlim=(0, 102), yscale="log", xlabel="confidence (%)", ylabel="test images")
    return figure


@_style
def feature_maps(image: Tensor, activations: dict[str, Tensor]) -> Figure:
    """The first eight feature maps (of [C, H, W]) of each block for one `image`, the image first; light is strong."""
    figure, axes = _digits(len(activations), 9, 11, 1.28 * len(activations) + 0.6, "Feature maps of one digit")
    for number, (name, channels) in enumerate(activations.items()):
        first, *rest = axes[9 * number : 9 * number + 9]
        if number == 0:
            _digit(first, image)
        first.set_title(f"{name}\n{channels.shape[1]} × {channels.shape[2]}", fontsize=11, y=0.35 if number else 1.0)
        for panel, channel in zip(rest, channels):
            panel.imshow(channel.cpu().numpy(), cmap="viridis")
    return figure


@_style
def robustness(accuracies: dict[str, dict[float, float]], trained: dict[str, tuple[float, float]]) -> Figure:
    """Test accuracy (fractions) against the strength of each corruption; the range that training saw is shaded."""
    figure, axes = _subplots(1, len(accuracies), 12, 4, "Robustness: test accuracy under corruptions")
    for panel, (name, results) in zip(axes, accuracies.items()):
        panel.axvspan(*trained[name], color=GREEN, alpha=0.15, label="seen in training")
        values = [100 * accuracy for accuracy in results.values()]
        panel.plot(list(results), values, color=BLUE, marker="o", label="test accuracy")
        panel.set(xlabel=name, ylabel="accuracy (%)", ylim=(0, 104))
    axes[0].legend(loc="lower center")
    return figure


@_style
def reading(image: Tensor, probabilities: Tensor) -> Figure:
    """What the network was shown (uint8 [28, 28]) beside its ten probabilities."""
    digit = int(probabilities.argmax())
    figure, (left, right) = _subplots(1, 2, 8, 3.6, f"This is a {digit}, says the network: {probabilities.max():.1%}")
    _digit(left, image)
    left.set_title("what it was shown")
    colours = [RED if guess == digit else BLUE for guess in range(10)]
    right.barh(range(10), 100 * probabilities.cpu().numpy(), color=colours)
    right.set(xlabel="probability (%)", ylabel="digit", yticks=range(10), xlim=(0, 100))
    right.invert_yaxis()
    return figure


@_style
def seeds(accuracies: dict[str, list[float]], reference: float) -> Figure:
    """Final accuracies (fractions) of each recipe's seeds, their mean and its 95 % interval; `reference` is a line."""
    figure, (axes,) = _subplots(1, 1, 10, 1.6 + 0.8 * len(accuracies), "Final test accuracy, one point per seed")
    for row, values in enumerate(accuracies.values()):
        points = 100 * np.array(values)
        equal_before = [int(np.isclose(points[:i], point).sum()) for i, point in enumerate(points)]
        raised = row - 0.15 * np.array(equal_before)  # so that equal values do not hide each other
        axes.scatter(points, raised, color=BLUE, alpha=0.7, s=45, label="one seed" if row == 0 else None, zorder=2)
        half = stats.t.ppf(0.975, len(points) - 1) * stats.sem(points) if len(points) > 1 else 0
        label = "mean with its 95 % confidence interval" if row == 0 else None
        style = dict(color=RED, markersize=13, markeredgewidth=2.5, capsize=6, elinewidth=2.5, zorder=3)
        axes.errorbar(points.mean(), row + 0.32, xerr=half, fmt="|", label=label, **style)
    label = f"the reference solution's one seed: {reference:.2%}"
    axes.axvline(100 * reference, color=GREY, linestyle="--", label=label)
    axes.set(
        xlabel="test accuracy after the last epoch (%)", yticks=range(len(accuracies)), yticklabels=list(accuracies)
    )
    axes.set_ylim(len(accuracies) - 0.4, -0.6)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


@_style
def frontier(
    networks: list[tuple[int, list[float]]], peers: list[tuple[str, int, float]], goal: float, limit: int
) -> Figure:
    """Final accuracies (fractions) of every seed by number of parameters, their means and standard deviations.

    `networks` are ours: (parameters, accuracies of the seeds); `peers` what others published: (name, parameters,
    accuracy). The corner of fewer than `limit` parameters and more than the `goal` is shaded.
    """
    figure, (axes,) = _subplots(1, 1, 11, 6.2, "How few parameters does the goal need?")
    label = f"the assignment: over {goal:.1%} with fewer than {limit:,}"
    axes.fill_between([100, limit], 100 * goal, 100, color=GREEN, alpha=0.15, linewidth=0, label=label)
    points = [(parameters, 100 * accuracy) for parameters, accuracies in networks for accuracy in accuracies]
    axes.scatter(*zip(*points), color=BLUE, alpha=0.4, s=25, linewidth=0, label="one seed")
    counts, accuracies = zip(*networks)
    means = [100 * np.mean(values) for values in accuracies]
    deviations = [100 * np.std(values, ddof=1) for values in accuracies]
    style = dict(color=BLUE, fmt="o", capsize=6, label="mean ± standard deviation of the seeds")
    axes.errorbar(counts, means, deviations, **style)
    published = [(count, 100 * accuracy) for _, count, accuracy in peers]
    axes.scatter(*zip(*published), color=RED, marker="s", s=50, label="published by others, chosen on the test set")
    for (name, *_), place in zip(peers, published):
        axes.annotate(name, place, (4, -4), textcoords="offset points", color=RED, fontsize=9, va="top", rotation=-50)
    lowest = min(means + [accuracy for _, accuracy in published])
    axes.set(xscale="log", xlim=(500, 1.15 * limit), ylim=(lowest - 0.2, 99.8))
    axes.set(xlabel="parameters (logarithmic scale)", ylabel="test accuracy after the last epoch (%)")
    ticks = [500, 1_000, 2_000, 5_000, 10_000, 20_000]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(loc="lower right")
    return figure
