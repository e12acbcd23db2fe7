"""The lab's pictures: the values drawn are those given, and labels cover nothing."""

import numpy as np
import torch
from matplotlib.text import Text

from experiments import plots


def points(axes, label):
    """The coordinates of all lines of that label."""
    return np.concatenate([line.get_xydata() for line in axes.lines if line.get_label().startswith(label)])


def bars(axes):
    """(x, y, low, high) of each horizontal or vertical error bar."""
    found = []
    for data, _, collections in (bar.lines for bar in axes.containers):
        for place, ends in zip(data.get_xydata(), collections[0].get_segments()):
            found.append((*place, *ends[:, int(ends[0, 0] == ends[1, 0])]))
    return found


def test_ingredients_show_seeds_and_intervals_the_best_change_first():
    finals = {"none": [0.995, 0.996], "bad": [0.986, 0.985], "good": [0.994, 0.995]}
    intervals = dict(bad=(-0.01, -0.011, -0.009), good=(-0.001, -0.003, 0.001))
    figure = plots.ingredients(finals, 0.994, intervals)
    (axes,) = figure.axes
    np.testing.assert_allclose(points(axes, "one seed")[:, 0], [99.5, 99.6, 99.4, 99.5, 98.6, 98.5])
    expected = [99.55 + 100 * np.array(intervals[name]) for name in ("good", "bad")]
    rows = [(d, row + 0.25, low, high) for row, (d, low, high) in enumerate(expected, 1)]
    np.testing.assert_allclose(bars(axes), rows)
    assert [label.get_text().split("\n")[0] for label in axes.get_yticklabels()] == ["none", "good", "bad"]
    assert figure.get_suptitle().startswith("1 of 2 ")


def test_frontier_shows_means_deviations_and_peers_and_no_label_covers_another_or_a_point():
    crowd = [(9_768, 0.9950), (9_768, 0.9957), (9_710, 0.9958), (9_768, 0.9965), (9_710, 0.9965), (970, 0.9912)]
    networks = [
        dict(name="trained alone", parameters=count, finals=[mean - 0.0003, mean + 0.0003], kind="trained alone")
        for count, mean in crowd
    ]
    peers = [dict(source="somebody", parameters=1_500, accuracy=0.9945)]
    (axes,) = plots.frontier(networks, peers, goal=0.994, limit=20_000).axes
    deviation = 0.03 * 2**0.5
    expected = [(count, 100 * mean, 100 * mean - deviation, 100 * mean + deviation) for count, mean in crowd]
    np.testing.assert_allclose(bars(axes), expected)
    np.testing.assert_allclose(points(axes, "published"), [(1_500, 99.45)])
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines to the points
    assert len(boxes) == 7 and all(box.count_overlaps(boxes) == 1 for box in boxes)  # itself
    places = axes.transData.transform([(1_500, 99.45), *((count, 100 * mean) for count, mean in crowd)])
    assert not any(box.contains(*place) for box in boxes for place in places)


def test_calibration_shows_accuracy_by_confidence_with_wilsons_interval():
    confidence = torch.tensor([0.6, 0.91, 0.93, 0.95, 0.97])
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    (axes,) = plots.calibration(torch.tensor([1, 0, 0, 0, 1]), probabilities.log()).axes
    # Wilson's formula for 0 of 1 and 3 of 4
    np.testing.assert_allclose(bars(axes), [(60, 0, 0, 79.345), (94, 75, 30.064, 95.441)], atol=0.01)
    assert [text.get_text() for text in axes.texts] == ["1", "4"]
