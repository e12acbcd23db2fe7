"""Digits pasted into the kinds of pictures that readers take."""

import numpy as np
import pytest

import storage
from experiments.pasted import KINDS, count
from model import Net


@pytest.mark.parametrize("kind", KINDS)
def test_digits_in_all_kinds_of_pictures_are_read_or_refused(mnist, kind):
    images, labels = (part[50:62] for part in mnist[1])
    counts = count(storage.load_weights(Net(), "results/weights.pt"), images, labels, kind, np.random.default_rng(7))
    assert counts["right"] >= 10 and counts["wrong_and_confident"] <= 1
    record = storage.load_record("results/own_digits.json")
    recorded = record["kinds"][kind]
    assert recorded["right"] + recorded["refused"] >= 0.9 * record["digits"]
    assert recorded["wrong_and_confident"] <= 0.03 * record["digits"]
