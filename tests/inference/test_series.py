"""The rows of DICOM series."""

from pathlib import Path

import numpy as np

from inference.image_stream import Picture
from inference.output_table import list_columns
from inference.predictor import Prediction
from inference.series import SeriesAggregator


def make_prediction(
    probs: list[float], prediction_set: tuple[str, ...] | None, is_ood: bool | None = False
) -> Prediction:
    needs_review = None if prediction_set is None else len(prediction_set) != 1
    return Prediction(
        np.array(probs), "A", max(probs), prediction_set, needs_review, is_ood, 0.5, ()
    )


SURE = make_prediction([0.9, 0.1], ("A",))
UNSURE = make_prediction([0.6, 0.4], ("A", "B"))


def add(
    series: SeriesAggregator, path: str, prediction: Prediction | None, name: str = "x"
) -> list[dict]:
    return series.add(Picture(Path(path), series=name, patient="p1", n_lost=0), prediction)


def test_a_series_is_the_mean_of_its_in_distribution_slices() -> None:
    series = SeriesAggregator(["A", "B"])
    assert add(series, "s/1", SURE) == []
    assert add(series, "s/2", make_prediction([0.7, 0.3], ("A",))) == []
    assert add(series, "s/3", make_prediction([0.0, 1.0], ("B",), is_ood=True)) == []
    add(series, "s/4", SURE, name="y")  # one slice: no row
    (row,) = series.close()
    assert list(row) == list_columns(["A", "B"])
    assert (row["file"], row["patient"]) == ("s#series1 (3 slices)", "p1")
    assert (row["predicted"], row["p_A"], row["p_B"]) == ("A", 0.8, 0.2)
    assert (row["needs_review"], row["out_of_distribution"]) == (False, False)
    assert series.close() == []


def test_a_series_with_half_of_its_slices_unsure_needs_review() -> None:
    series = SeriesAggregator(["A", "B"])
    add(series, "s/1", SURE)
    add(series, "s/2", UNSURE)
    (row,) = add(series, "t/1", SURE)  # another folder completes the first one
    assert row["needs_review"] is True
    assert row["out_of_distribution"] is False


def test_flags_of_a_series_out_of_distribution_or_not_fitted() -> None:
    other = make_prediction([0.2, 0.8], ("B",), is_ood=True)
    unfitted = make_prediction([0.2, 0.8], None, is_ood=None)
    for prediction, flag in ((other, True), (unfitted, None)):
        series = SeriesAggregator(["A", "B"])
        for number in range(3):
            add(series, f"s/{number}", prediction)
        (row,) = series.close()
        assert row["predicted"] == "B"
        assert (row["out_of_distribution"], row["needs_review"]) == (flag, flag)


def test_unreadable_slices_count_and_need_review() -> None:
    series = SeriesAggregator(["A", "B"])
    add(series, "s/1", SURE)
    add(series, "s/2", SURE)
    series.add(Picture(Path("s/3"), series="x", error="truncated", n_lost=2), None)
    (row,) = series.close()
    assert row["file"] == "s#series1 (2 of 5 slices)"
    assert row["needs_review"] is True
    add(series, "s/4", None)
    assert series.close() == []


def test_the_patient_of_a_series_is_the_first_known_one() -> None:
    series = SeriesAggregator(["A", "B"])
    for patient in ("", "p2", "p2"):
        series.add(Picture(Path("s/1"), series="x", patient=patient), SURE)
    assert series.close()[0]["patient"] == "p2"
