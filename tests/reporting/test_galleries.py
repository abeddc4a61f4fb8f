"""Galleries: which slices are selected, and by which network each is explained."""

import numpy as np

from evaluation.predictions import MemberSlices
from loading.image_source import MemorySlices
from reporting import galleries
from tests.support.toys import BrightnessReader, make_predictions

CENTRE = slice(26, 38)


def test_errors_and_least_certain_slices_are_selected() -> None:
    predictions = make_predictions(BrightnessReader(CENTRE, CENTRE))
    probs = predictions.calibrated.probs
    probs[:] = [[0.9, 0.1]]
    probs[predictions.labels == 1] = [0.1, 0.9]
    probs[5] = [0.8, 0.2]  # wrong, of duplicate set 1
    probs[7] = [0.7, 0.3]  # wrong, of the same duplicate set
    probs[13] = [0.95, 0.05]  # wrong and confident, of duplicate set 3
    probs[20] = [0.55, 0.45]  # right, with low confidence
    errors = galleries.select(predictions, 8)[0].items
    assert [item.caption.split("\n")[1] for item in errors] == ["13.png", "5.png"]
    assert errors[0].caption.startswith("true 1, predicted a (0.95)")
    least_certain = galleries.select(predictions, 2)[1].items
    assert [item.caption.split("\n")[1] for item in least_certain] == ["20.png", "7.png"]
    pixels = predictions.member_slices[0].slices.pixels
    assert np.array_equal(errors[0].pixels, pixels[13, 0].numpy())
    assert errors[0].heatmap.shape == (64, 64)
    assert galleries.select(predictions, 0) == []


def test_each_slice_of_pooled_folds_is_found() -> None:
    predictions = make_predictions(BrightnessReader(CENTRE, CENTRE))
    [member] = predictions.member_slices
    pixels, labels = member.slices.pixels, member.slices.labels
    predictions.member_slices[:] = [
        MemberSlices(member.network, MemorySlices(pixels[fold], labels[fold]))
        for fold in (slice(0, 10), slice(10, 17), slice(17, 24))
    ]
    predictions.calibrated.probs[[3, 9, 10, 16, 17, 23]] = [0.52, 0.48]
    for item in galleries.select(predictions, 6)[-1].items:
        row = int(item.caption.split("\n")[1].removesuffix(".png"))
        assert np.array_equal(item.pixels, pixels[row, 0].numpy())
