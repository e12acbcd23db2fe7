"""Pictures: the right values in the right axes."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

import plots
import utils
from model import Net, receptive_field

HISTORY = dict(
    train_loss=[0.5, 0.2, 0.1],
    train_accuracy=[0.9, 0.97, 0.98],
    test_loss=[0.4, 0.15, 0.05],
    test_accuracy=[0.95, 0.98, 0.995],
    learning_rate=[0.25, 0.25, 0.025],
    seconds=[1.0, 1.0, 1.0],
)


@pytest.fixture(scope="module")
def answers():
    """Labels of 40 images, four a class, and log-probabilities that get images 3, 17 and 30 wrong."""
    labels = torch.arange(40) % 10
    probabilities = torch.full((40, 10), 0.01)
    probabilities[torch.arange(40), labels] = 0.91
    for index, guess, confidence in ((3, 8, 0.6), (17, 1, 0.9), (30, 6, 0.7)):
        probabilities[index] = (1 - confidence) / 16
        probabilities[index, labels[index]] = (1 - confidence) / 2
        probabilities[index, guess] = confidence
    return labels, probabilities.log()


def images_of(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def tile(sheet, row, column):
    """One image of a sheet of images with lines of one pixel between them."""
    return sheet[29 * row + 1 : 29 * row + 29, 29 * column + 1 : 29 * column + 29]


def titles_of(figure):
    return [axes.get_title() for axes in figure.axes if axes.images]


@pytest.fixture(autouse=True)
def no_figure_is_left_open():
    yield
    assert plt.get_fignums() == []


def test_comparison_draws_both_runs_in_every_panel():
    other = {name: [value / 2 for value in values] for name, values in HISTORY.items()}
    rate, loss, accuracy = plots.comparison({"one": HISTORY, "two": other}, goal=0.9).axes
    for axes, key, scale in ((rate, "learning_rate", 1), (loss, "test_loss", 1), (accuracy, "test_accuracy", 100)):
        for line, history in zip(axes.lines, (HISTORY, other)):
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
            np.testing.assert_allclose(line.get_ydata(), [scale * value for value in history[key]])
        assert [text.get_text() for text in axes.get_legend().get_texts()][:2] == ["one", "two"]
    assert accuracy.lines[2].get_ydata()[0] == 90


def test_classes_shows_the_first_image_and_the_count_of_each_class(small):
    images, labels = small[0]
    figure = plots.classes(images, labels)
    for digit, picture in enumerate(images_of(figure)):
        np.testing.assert_array_equal(picture, images[labels == digit][0])
        assert titles_of(figure)[digit] == f"“{digit}”: {(labels == digit).sum()} images"


def test_batch_shows_every_image_with_its_label_in_its_tile(small):
    images, labels = small[0]
    x = utils.normalize(images[:128])
    figure = plots.batch(x, labels[:128])
    sheet = images_of(figure)[0]
    for number in (0, 1, 16, 127):
        row, column = divmod(number, 16)
        np.testing.assert_array_equal(tile(sheet, row, column), x[number, 0])
        text = figure.axes[0].texts[number]
        assert text.get_text() == str(labels[number].item())
        assert 29 * column < text.get_position()[0] < 29 * column + 28
        assert 29 * row < text.get_position()[1] < 29 * row + 28


def test_augmentations_shows_original_and_all_variants(small):
    images = small[0][0]
    original, sheet = images_of(plots.augmentations(images[0], images[:20]))
    np.testing.assert_array_equal(original, images[0])
    np.testing.assert_array_equal(tile(sheet, 1, 0), images[9])
    np.testing.assert_array_equal(tile(sheet, 2, 1), images[19])


def test_receptive_field_frames_as_many_pixels_as_the_table_says(small):
    table = receptive_field(Net())
    figure = plots.receptive_field(small[0][0][0], table)
    for axes, row in zip(figure.axes, table):
        frame = axes.patches[0]
        assert frame.get_width() == frame.get_height() == row["r_out"]
        assert row["layer"] in axes.get_title() and f"{row['r_out']} × {row['r_out']}" in axes.get_title()
        left, right = frame.get_x() + 0.5, frame.get_x() + 0.5 + row["r_out"]
        assert 0 <= left and right <= 28
        assert left == row["n_out"] // 2 * row["j_out"]


def test_curves_show_history_goal_and_drop():
    loss, accuracy = plots.curves(HISTORY, goal=0.994).axes
    lines = {line.get_label(): line for line in accuracy.lines}
    np.testing.assert_allclose(lines["test"].get_ydata(), [95, 98, 99.5])
    np.testing.assert_allclose(lines["train (augmented images)"].get_ydata(), [90, 97, 98])
    np.testing.assert_array_equal(lines["test"].get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(lines["goal 99.4%"].get_ydata(), 99.4)
    np.testing.assert_allclose(lines["learning rate 0.25 → 0.025"].get_xdata(), 2.5)
    np.testing.assert_allclose(loss.lines[0].get_ydata(), HISTORY["train_loss"])
    np.testing.assert_allclose(loss.lines[1].get_ydata(), HISTORY["test_loss"])
    assert loss.get_xlabel() == accuracy.get_xlabel() == "epoch"
    assert accuracy.get_ylabel() == "accuracy (%)" and "nats" in loss.get_ylabel()
    assert accuracy.get_ylim()[0] < 97 and accuracy.get_ylim()[1] > 99.5  # every epoch but the first


def test_curves_of_nothing_is_an_error():
    for nothing in ({}, {name: [] for name in HISTORY}):
        with pytest.raises(ValueError, match="no epoch was completed"):
            plots.curves(nothing, goal=0.994)


def test_predictions_mark_right_and_wrong(small, answers):
    labels, log_probabilities = answers
    figure = plots.predictions(small[0][0][:5], labels[:5], log_probabilities[:5])
    assert titles_of(figure) == [
        "✓ 0   91.0%",
        "✓ 1   91.0%",
        "✓ 2   91.0%",
        "✗ 8  60%\nthen 3  20%\nis 3",
        "✓ 4   91.0%",
    ]
    colours = [axes.title.get_color() for axes in figure.axes[:5]]
    assert colours == [plots.GREEN] * 3 + [plots.RED] + [plots.GREEN]


def test_misclassified_shows_exactly_the_mistakes_most_confident_first(small, answers):
    images = small[0][0][:40]
    figure = plots.misclassified(images, *answers)
    assert titles_of(figure) == [
        "✗ 1  90%\nthen 7  5%\nis 7",
        "✗ 6  70%\nthen 0  15%\nis 0",
        "✗ 8  60%\nthen 3  20%\nis 3",
    ]
    for picture, index in zip(images_of(figure), (17, 30, 3)):
        np.testing.assert_array_equal(picture, images[index])
    assert figure.get_suptitle().startswith("All 3 misclassified of 40")
    figure = plots.misclassified(images, *answers, limit=2)
    assert len(images_of(figure)) == 2 and figure.get_suptitle().startswith("The 2 most confident of 3 mistakes")


def test_no_mistakes_is_a_picture_too(small, answers):
    labels, log_probabilities = answers
    right = log_probabilities.argmax(1)
    assert plots.misclassified(small[0][0][:40], right, log_probabilities).get_suptitle().startswith("All 0")
    assert "0 mistakes" in plots.confusion_matrix(right, log_probabilities).get_suptitle()


def test_confusion_matrix_counts_truth_by_guess(answers):
    figure = plots.confusion_matrix(*answers)
    counts = {text.get_position()[::-1]: int(text.get_text()) for text in figure.axes[0].texts}
    expected = {(d, d): 4 for d in range(10)} | {(3, 3): 3, (3, 8): 1, (7, 7): 3, (7, 1): 1, (0, 0): 3, (0, 6): 1}
    assert counts == expected
    assert figure.axes[0].get_ylabel() == "true digit" and figure.axes[0].get_xlabel() == "predicted digit"
    assert "3 mistakes in 40" in figure.get_suptitle()


def test_class_accuracy_shows_share_interval_and_total(answers):
    axes = plots.class_accuracy(*answers).axes[0]
    bars = [container for container in axes.containers if len(container.lines[0].get_xdata())]
    points = {int(bar.lines[0].get_xdata()[0]): bar.lines[0].get_ydata()[0] for bar in bars}
    assert points == pytest.approx({d: 75 if d in (0, 3, 7) else 100 for d in range(10)})
    (segment,) = bars[3].lines[2][0].get_segments()
    np.testing.assert_allclose(segment[:, 1], [30.064, 95.441], atol=0.01)  # Wilson, 3 of 4, from the published formula
    (total,) = [line for line in axes.lines if line.get_label() == "all classes: 92.50%"]
    np.testing.assert_allclose(total.get_ydata(), 92.5)


def test_calibration_shows_accuracy_by_confidence(answers):
    above, below = plots.calibration(*answers).axes
    (line,) = [line for line in above.lines if "bins" in line.get_label()]
    expected = [(60, 0), (70, 0), (100 * (37 * 0.91 + 0.9) / 38, 100 * 37 / 38)]  # 0.9 and 0.91 share a bin
    np.testing.assert_allclose(list(zip(*line.get_data())), expected, atol=1e-3)
    heights = [patch.get_height() for patch in below.patches]
    assert heights[9] == 38 and sum(heights) == 40


def test_feature_maps_are_those_of_the_network(small):
    torch.manual_seed(0)
    model, image = Net().eval(), small[0][0][0]
    maps = utils.activations(utils.to_device(model, "cpu"), image)
    assert list(maps) == ["conv1", "conv2", "conv3", "tran1", "conv4", "conv5", "conv6"]
    expected = model.conv2(model.conv1(utils.normalize(image[None]))).to_dense()[0].detach()
    torch.testing.assert_close(maps["conv2"], expected)
    pictures = images_of(plots.feature_maps(image, maps))
    assert len(pictures) == 1 + 7 * 8
    np.testing.assert_array_equal(pictures[0], image)
    np.testing.assert_allclose(pictures[1 + 8 + 3], expected[3], rtol=1e-5, atol=1e-6)


def test_robustness_shows_each_corruption_with_what_training_saw():
    accuracies = {"rotation (degrees)": {0: 0.99, 30: 0.8}, "shift (pixels)": {0: 0.99, 4: 0.5}}
    figure = plots.robustness(accuracies, {"rotation (degrees)": (-15, 15), "shift (pixels)": (0, 0)})
    np.testing.assert_allclose(figure.axes[0].lines[0].get_data(), [[0, 30], [99, 80]])
    assert figure.axes[1].get_xlabel() == "shift (pixels)"
    span = figure.axes[0].patches[0]
    assert (span.get_x(), span.get_x() + span.get_width()) == (-15, 15)


def test_reading_shows_image_and_probabilities(small):
    image, probabilities = small[0][0][0], torch.tensor([0.05] * 5 + [0.55] + [0.05] * 4)
    figure = plots.reading(image, probabilities)
    np.testing.assert_array_equal(images_of(figure)[0], image)
    np.testing.assert_allclose([bar.get_width() for bar in figure.axes[1].patches], 100 * probabilities, rtol=1e-6)
    assert figure.get_suptitle() == "This is a 5, says the network: 55.0%"


def test_seeds_show_every_run_its_mean_and_interval():
    figure = plots.seeds({"a": [0.995, 0.996, 0.997], "b": [0.99, 0.99]}, reference=0.9957)
    axes = figure.axes[0]
    np.testing.assert_allclose(sorted(axes.collections[0].get_offsets()[:, 0]), [99.5, 99.6, 99.7])
    mean, _, (whisker,) = axes.containers[0].lines
    assert float(mean.get_xdata()[0]) == pytest.approx(99.6)
    # Student's t for two degrees of freedom is 4.303; the standard deviation is 0.1
    np.testing.assert_allclose(
        whisker.get_segments()[0][:, 0], [99.6 - 4.303 * 0.1 / 3**0.5, 99.6 + 4.303 * 0.1 / 3**0.5], rtol=1e-5
    )
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert any("99.57%" in line.get_label() for line in axes.lines)


def test_deskewing_shows_each_image_above_its_deskewed_self():
    before, after = torch.rand(2, 5, 1, 28, 28)
    figure = plots.deskewing(before, after)
    (sheet,) = images_of(figure)
    np.testing.assert_array_equal(tile(sheet, 0, 2), before[2, 0])
    np.testing.assert_array_equal(tile(sheet, 1, 2), after[2, 0])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["written", "deskewed"]


def test_frontier_shows_every_seed_the_means_the_peers_and_the_corner():
    networks = [(9_000, [0.995, 0.996, 0.997]), (1_000, [0.98, 0.99]), (1_000, [0.97, 0.97])]
    figure = plots.frontier(networks, [("somebody", 4_000, 0.991)], goal=0.994, limit=20_000)
    axes = figure.axes[0]
    scatters = [dots.get_offsets() for dots in axes.collections if isinstance(dots, PathCollection)]
    ours = [[9_000, 99.5], [9_000, 99.6], [9_000, 99.7], [1_000, 98], [1_000, 99], [1_000, 97], [1_000, 97]]
    np.testing.assert_allclose(scatters[0], ours)
    np.testing.assert_allclose(scatters[1], [[4_000, 99.1]])
    assert [(text.get_text(), text.xy) for text in axes.texts] == [("somebody", (4_000, pytest.approx(99.1)))]
    line, _, (whiskers,) = axes.containers[0].lines
    np.testing.assert_allclose(line.get_xydata(), [[9_000, 99.6], [1_000, 98.5], [1_000, 97]])
    assert line.get_linestyle() == "None"
    np.testing.assert_allclose(whiskers.get_segments()[0][:, 1], [99.5, 99.7])
    (corner,) = [area for area in axes.collections if area.get_label().startswith("the assignment")]
    box = corner.get_paths()[0].get_extents()
    assert (box.x1, box.y0) == (20_000, pytest.approx(99.4)) and axes.get_xscale() == "log"
