"""The lesson's pictures: the values drawn are those given, read from what the figures hold."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import plots
import utils
from model import Net, receptive_field

HISTORY = dict(
    train_loss=[0.5, 0.2, 0.1],
    train_accuracy=[0.9, 0.97, 0.98],
    test_loss=[0.4, 0.15, 0.05],
    test_accuracy=[0.95, 0.98, 0.995],
    learning_rate=[0.25, 0.25, 0.025],
)


@pytest.fixture(scope="module")
def answers():
    """Labels of 40 images, four a class, and log-probabilities that get images 3, 17 and 30 wrong."""
    labels = torch.arange(40) % 10
    probabilities = torch.full((40, 10), 0.01)
    probabilities[torch.arange(40), labels] = 0.91
    for index, guess, confidence in ((3, 8, 0.6), (17, 1, 0.9), (30, 6, 0.7)):
        probabilities[index] = (1 - confidence) / 9
        probabilities[index, guess] = confidence
    return labels, probabilities.log()


@pytest.fixture(autouse=True)
def no_figure_is_left_open():
    yield
    assert plt.get_fignums() == []


def images_of(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def titles_of(figure):
    return [axes.get_title() for axes in figure.axes if axes.images]


def lines_of(axes):
    return {line.get_label().split(" (")[0]: line for line in axes.lines}


def tile(sheet, row, column, strip=0):
    """One image of a sheet of images with lines of one pixel between them and a `strip` of pixels above each."""
    top, left = (29 + strip) * row + strip + 1, 29 * column + 1
    return sheet[top : top + 28, left : left + 28]


def test_classes_shows_the_first_image_and_the_count_of_each_class(small):
    images, labels = small[0]
    figure = plots.classes(images, labels)
    for digit, (picture, title) in enumerate(zip(images_of(figure), titles_of(figure))):
        np.testing.assert_array_equal(picture, images[labels == digit][0])
        assert title.startswith(f"{digit}: {(labels == digit).sum()} ")


def test_classes_of_a_few_images_leaves_gaps(small):
    figure = plots.classes(small[0][0][:3], torch.tensor([5, 0, 5]))
    assert [title[0] for title in titles_of(figure)] == ["0", "5"]


def test_batch_shows_every_image_below_its_label(small):
    images, labels = small[0]
    x = utils.normalize(images[:100])
    figure = plots.batch(x, labels[:100])
    sheet = images_of(figure)[0]
    for number in (0, 1, 16, 99):
        row, column = divmod(number, 16)
        np.testing.assert_array_equal(tile(sheet, row, column, strip=10), x[number, 0])
        text = figure.axes[0].texts[number]
        assert text.get_text() == str(labels[number].item())
        x_text, y_text = text.get_position()
        assert 29 * column < x_text < 29 * column + 29 and 39 * row < y_text < 39 * row + 10  # the image begins at 11


def test_augmentations_shows_original_and_all_variants(small):
    images = small[0][0]
    original, sheet = images_of(plots.augmentations(images[0], images[:20]))
    np.testing.assert_array_equal(original, images[0])
    np.testing.assert_array_equal(tile(sheet, 1, 0), images[9])
    np.testing.assert_array_equal(tile(sheet, 2, 1), images[19])


def test_receptive_field_frames_the_pixels_that_the_middle_unit_depends_on():
    network, image = Net().double().eval(), torch.rand(1, 1, 28, 28, dtype=torch.double, requires_grad=True)
    blocks = list(network.children())
    figure = plots.receptive_field(image[0, 0].detach(), receptive_field(network))
    for depth in (1, 2, 3, 5, 6, 7):  # the convolutions, as one unit of a max-pooling passes on one pixel only
        out = torch.nn.Sequential(*blocks[:depth])(image)
        middle = out.shape[-1] // 2
        (gradient,) = torch.autograd.grad(out[0, :, middle, middle].sum(), image)
        frame = figure.axes[depth - 1].patches[0]
        left, width = round(frame.get_x() + 0.5), frame.get_width()
        seen = gradient[0, 0].nonzero()
        assert seen.min() >= left and seen.max() < left + width and frame.get_height() == width
        assert f"{width} × {width}" in figure.axes[depth - 1].get_title()


def test_receptive_field_begins_outside_a_padded_image():
    row = dict(layer="conv", r_in=1, n_in=28, j_in=1, k=29, s=1, p=14, r_out=29, n_out=28, j_out=1)
    assert plots.receptive_field(torch.zeros(28, 28), [row]).axes[0].patches[0].get_x() == 14 - 14 - 0.5


def test_curves_show_history_goal_and_drop():
    loss, accuracy = plots.curves(HISTORY, goal=0.994).axes
    for axes, kind, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        for name in ("train", "test"):
            line = lines_of(axes)[name]
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
            np.testing.assert_allclose(line.get_ydata(), scale * np.array(HISTORY[f"{name}_{kind}"]))
        np.testing.assert_allclose(lines_of(axes)["learning rate 0.25 → 0.025"].get_xdata(), 2.5)
    np.testing.assert_allclose(lines_of(accuracy)["goal 99.4%"].get_ydata(), 99.4)
    texts = " ".join(text.get_text() for text in accuracy.texts)
    assert accuracy.get_ylim()[0] < 97 < 99.5 < accuracy.get_ylim()[1]  # every epoch but the first, and that is said:
    assert "train 90.0%" in texts and "test 95.0%" in texts and "99.50%" in texts


def test_curves_of_one_epoch_omit_nothing():
    accuracy = plots.curves({name: values[:1] for name, values in HISTORY.items()}, goal=0.994).axes[1]
    assert accuracy.get_ylim()[0] < 90 and accuracy.get_ylim()[1] > 99.4
    assert [text.get_text() for text in accuracy.texts] == ["95.00%"]


def test_predictions_mark_right_and_wrong(small, answers):
    labels, log_probabilities = answers
    figure = plots.predictions(small[0][0][:5], labels[:5], log_probabilities[:5])
    assert titles_of(figure) == ["0 (91%)", "1 (91%)", "2 (91%)", "3 → 8 (60%)", "4 (91%)"]
    colors = [axes.title.get_color() for axes in figure.axes[:5]]
    assert colors == [plots.GREEN] * 3 + [plots.RED] + [plots.GREEN]


def test_misclassified_shows_exactly_the_mistakes_most_confident_first(small, answers):
    images = small[0][0][:40]
    figure = plots.misclassified(images, *answers)
    assert titles_of(figure) == ["7 → 1 (90%)", "0 → 6 (70%)", "3 → 8 (60%)"]
    for picture, index in zip(images_of(figure), (17, 30, 3)):
        np.testing.assert_array_equal(picture, images[index])
    assert len(images_of(plots.misclassified(images, *answers, limit=2))) == 2


def test_no_mistakes_is_a_picture_too(small, answers):
    right = answers[1].argmax(1)
    assert images_of(plots.misclassified(small[0][0][:40], right, answers[1])) == []
    assert "0 mistakes" in plots.confusion_matrix(right, answers[1]).get_suptitle()


def test_confusion_matrix_counts_truth_by_guess_and_gives_each_row_its_accuracy(answers):
    texts = {text.get_position()[::-1]: text.get_text() for text in plots.confusion_matrix(*answers).axes[0].texts}
    counts = {place: int(text) for place, text in texts.items() if place[1] < 9.5}
    wrong = {(3, 8): 1, (7, 1): 1, (0, 6): 1}
    assert counts == {(d, d): 3 if d in (0, 3, 7) else 4 for d in range(10)} | wrong
    assert [texts[digit, 9.8] for digit in (3, 4)] == ["75.0% of 4", "100.0% of 4"]


def test_feature_maps_show_input_and_the_first_eight_channels():
    image, maps = torch.rand(28, 28), dict(wide=torch.rand(16, 26, 26), narrow=torch.rand(3, 5, 5))
    pictures = images_of(plots.feature_maps(image, maps))
    for picture, expected in zip(pictures, [image, *maps["wide"][:8], *maps["narrow"]]):
        np.testing.assert_array_equal(picture, expected)
    assert len(pictures) == 1 + 8 + 3


def test_seeds_show_every_run_the_mean_its_interval_and_this_run():
    figure = plots.seeds([0.995, 0.996, 0.997, 0.993], goal=0.994, reference=0.9957, this_run=0.9945)
    (axes,) = figure.axes
    lines = lines_of(axes)
    np.testing.assert_allclose(lines["one recorded seed each"].get_xdata(), [99.5, 99.6, 99.7, 99.3])
    np.testing.assert_allclose(lines["this notebook: 99.45%"].get_xdata(), 99.45)
    np.testing.assert_allclose(lines["goal 99.4%"].get_xdata(), 99.4)
    np.testing.assert_allclose(lines["reference solution, one run: 99.57%"].get_xdata(), 99.57)
    mean, _, (whisker,) = axes.containers[0].lines
    assert float(mean.get_xdata()[0]) == pytest.approx(99.525)
    half = 3.1824 * 0.170783 / 4**0.5  # Student's t for three degrees of freedom, times the standard error
    np.testing.assert_allclose(whisker.get_segments()[0][:, 0], [99.525 - half, 99.525 + half], rtol=1e-6)
    assert figure.get_suptitle().startswith("3 of 4 ")


def test_seeds_with_a_quick_try_far_below_keep_their_axis():
    (axes,) = plots.seeds([0.995, 0.996], goal=0.994, reference=0.9957, this_run=0.3).axes
    assert axes.get_xlim()[0] > 98 and len(axes.get_xticks()) < 20


def test_reading_shows_image_and_probabilities(small):
    image, probabilities = small[0][0][0], torch.tensor([0.05] * 5 + [0.55] + [0.05] * 4)
    figure = plots.reading(image, probabilities)
    np.testing.assert_array_equal(images_of(figure)[0], image)
    np.testing.assert_allclose([bar.get_width() for bar in figure.axes[1].patches], 100 * probabilities, rtol=1e-6)
    assert "5" in figure.get_suptitle() and "55.0%" in figure.get_suptitle()
