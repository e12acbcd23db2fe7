"""Digits pasted into the kinds of pictures that readers take."""

import numpy as np
import pytest

import storage
from experiments.pasted import KINDS, REFUSED, SHEETS, count
from model import Net


@pytest.mark.parametrize("kind", KINDS)
def test_digits_in_all_kinds_of_pictures_are_read_or_refused(mnist, kind):
    images, labels = (part[50:62] for part in mnist[1])
    counts = count(storage.load_weights(Net(), "results/weights.pt"), images, labels, kind, np.random.default_rng(7))
    expected = "refused" if kind in REFUSED else "right"
    assert counts[expected] >= 10 and counts["wrong_and_confident"] <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_that_was_read_is_lost(kind):
    record = storage.load_record("results/own_digits.json")
    recorded, digits = record["kinds"][kind], record["digits"]
    if kind in REFUSED:
        assert recorded["refused"] >= 0.9 * digits
    else:
        assert recorded["right"] >= (0.95 if kind in (*SHEETS, "pale pen") else 0.97) * digits
        assert recorded["wrong_and_confident"] <= 0.01 * digits
