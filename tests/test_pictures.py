"""The lesson's pictures: the values drawn are those given, read from what the figures hold."""

import importlib

import numpy as np
import pytest
import torch

import plots
import utils
from inspection import receptive_field
from model import Net

LABELS = torch.arange(40) % 10
LOG_PROBABILITIES = torch.full((40, 10), 0.01)
LOG_PROBABILITIES[torch.arange(40), LABELS] = 0.91
for index, predicted, confidence in ((3, 8, 0.6), (17, 1, 0.9), (30, 6, 0.7)):  # the mistakes
    LOG_PROBABILITIES[index] = (1 - confidence) / 9
    LOG_PROBABILITIES[index, predicted] = confidence
LOG_PROBABILITIES.log_()


def test_the_source_that_is_shown_is_that_of_the_edited_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "edited.py"
    path.write_text("def first():\n    return 1\n", encoding="utf-8")
    edited = importlib.import_module("edited")
    assert "return 1" in plots.source(edited.first).data
    path.write_text("def other():\n    return 2\n\n\ndef first():\n    return 3\n", encoding="utf-8")
    importlib.reload(edited)
    assert plots.source(edited.first).data == "```python\ndef first():\n    return 3\n```"
    exec("class Pasted: pass", namespace := dict(__name__="cell"))
    assert plots.source(edited.first, namespace["Pasted"]).data == plots.source(edited.first).data


def images_of(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def titles_of(figure):
    return [axes.get_title() for axes in figure.axes if axes.images]


def lines_of(axes):
    """The points of each line, by the line's label."""
    return {line.get_label().split(" (")[0]: line.get_xydata() for line in axes.lines}


def test_images_probabilities_and_feature_maps_are_those_given(small):
    images, maps = small[0][0], dict(wide=torch.rand(16, 26, 26), narrow=torch.rand(3, 5, 5))
    classes, reading = plots.classes(images[:40], LABELS), plots.reading(images[0], LOG_PROBABILITIES[3].exp())
    shown = [image for figure in (classes, plots.feature_maps(images[0], maps), reading) for image in images_of(figure)]
    expected = [*images[:10], images[0], *maps["wide"][:8], *maps["narrow"], images[0]]
    assert len(shown) == len(expected) and all(map(np.array_equal, shown, expected))
    assert titles_of(classes) == [f"{digit}: 4 images" for digit in range(10)]
    np.testing.assert_allclose([bar.get_width() for bar in reading.axes[1].patches], [*[40 / 9] * 8, 60, 40 / 9])
    assert "reads a 8, with a probability of 60.0%" in reading.get_suptitle()
    assert plots.plt.get_fignums() == []  # a notebook would show an open one twice


def test_a_batch_shows_every_image_below_its_label(small):
    images, labels = small[0]
    x = utils.normalize(images[:100])
    figure = plots.batch(x, labels[:100])
    (sheet,) = images_of(figure)
    labels_at = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    for number in (0, 16, 19):
        row, column = divmod(number, 16)
        left, top = 29 * column + 1, 39 * row + 1
        np.testing.assert_array_equal(sheet[top + 10 :, left:][:28, :28], x[number, 0])
        assert labels_at[left + 13.5, top + 5] == str(labels[number].item())


@pytest.mark.parametrize("network", [Net(), torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3, padding=14))])
def test_receptive_field_frames_the_pixels_that_the_middle_unit_depends_on(network):
    image = torch.rand(1, 1, 28, 28, dtype=torch.double, requires_grad=True)
    blocks = list(network.double().eval())
    figure = plots.receptive_field(image[0, 0].detach(), receptive_field(network)[0])
    for depth in {1, 2, 3, 5, 6, 7} & {*range(len(blocks) + 1)}:  # one unit of a max-pooling passes on one pixel only
        out = torch.nn.Sequential(*blocks[:depth])(image)
        middle = out.shape[-1] // 2
        (gradient,) = torch.autograd.grad(out[0, :, middle, middle].sum(), image)
        frame, seen = figure.axes[depth - 1].patches[0], gradient[0, 0].nonzero()
        left, width = round(frame.get_x() + 0.5), frame.get_width()
        assert seen.min() >= left and seen.max() < left + width and frame.get_height() == width


def test_curves_show_history_goal_drop_and_what_is_below_the_axis():
    history = dict(train_loss=[0.5, 0.2, 0.1], test_loss=[0.4, 0.15, 0.05], learning_rate=[0.25, 0.25, 0.025])
    history |= dict(train_accuracy=[0.9, 0.97, 0.98], test_accuracy=[0.95, 0.98, 0.995])
    loss, accuracy = plots.curves(history, goal=0.994).axes
    for name in ("train", "test"):
        for kind, axes, scale in (("loss", loss, 1), ("accuracy", accuracy, 100)):
            expected = [(epoch, scale * value) for epoch, value in enumerate(history[f"{name}_{kind}"], 1)]
            np.testing.assert_allclose(lines_of(axes)[name], expected)
    np.testing.assert_allclose(lines_of(accuracy)["goal 99.4%"][:, 1], 99.4)
    assert lines_of(loss)["learning rate 0.25 → 0.025"][0, 0] == 2.5
    below, final = [text.get_text() for text in accuracy.texts]
    assert below.split("\n")[2:] == ["train 90.0%", "test 95.0%"] and final == "99.50%"
    bottom, top = accuracy.get_ylim()
    assert bottom < 97 and top > 99.5


def test_predictions_mark_right_and_wrong_and_mistakes_come_most_confident_first(small):
    images = small[0][0][:40]
    figure = plots.predictions(images[:5], LABELS[:5], LOG_PROBABILITIES[:5])
    assert titles_of(figure) == ["0 (91%)", "1 (91%)", "2 (91%)", "3 → 8 (60%)", "4 (91%)"]
    assert [axes.title.get_color() == plots.RED for axes in figure.axes[:5]] == [False, False, False, True, False]
    figure = plots.misclassified(images, LABELS, LOG_PROBABILITIES, limit=2)
    assert titles_of(figure) == ["7 → 1 (90%)", "0 → 6 (70%)"]
    np.testing.assert_array_equal(images_of(figure), images[[17, 30]])


def test_confusion_matrix_counts_true_by_predicted_digits_and_gives_each_row_its_accuracy():
    figure = plots.confusion_matrix(LABELS, LOG_PROBABILITIES)
    texts = {text.get_position()[::-1]: text.get_text() for text in figure.axes[0].texts}
    counts = {place: int(text) for place, text in texts.items() if place[1] < 9.5}
    wrong = {(3, 8): 1, (7, 1): 1, (0, 6): 1}
    assert counts == {(d, d): 3 if d in (0, 3, 7) else 4 for d in range(10)} | wrong
    assert [texts[digit, 9.8] for digit in (3, 4)] == ["75.0% of 4", "100.0% of 4"]


def test_seeds_show_every_run_the_mean_its_interval_and_this_run():
    """A quick try, far below, does not stretch the axis."""
    figure = plots.seeds([0.995, 0.996, 0.997, 0.993], goal=0.994, reference=0.9957, this_run=0.3)
    (axes,) = figure.axes
    x = {name: points[:, 0].tolist() for name, points in lines_of(axes).items()}
    assert x["one recorded seed each"] == pytest.approx([99.5, 99.6, 99.7, 99.3])
    assert x["this notebook: 30.00%"] == pytest.approx([30])
    assert (x["goal 99.4%"][0], x["reference solution, one run: 99.57%"][0]) == pytest.approx((99.4, 99.57))
    mean, _, (whisker,) = axes.containers[0].lines
    half = 3.1824 * 0.170783 / 4**0.5  # Student's t for three degrees of freedom, times the standard error
    assert mean.get_xdata() == pytest.approx([99.525])
    assert whisker.get_segments()[0][:, 0] == pytest.approx([99.525 - half, 99.525 + half])
    assert figure.get_suptitle().startswith("3 of 4 ") and axes.get_xlim()[0] > 98
