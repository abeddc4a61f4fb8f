"""Predictions: orientations, agreement with evaluate, prediction sets, OOD, ensembles."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.ood_pictures import OOD_PICTURES
from helper import UserError
from imaging.reader import read_grey
from inference.predictor import DISPLAY_PX, Prediction, SlicePredictor, load_predictor
from modeling import checkpoint as checkpoints
from modeling import members
from phantoms.generator import plan_phantoms, render_phantom
from tests.support.builders import Run

BEST = Path("session/first/best.pt")


@pytest.fixture(scope="module")
def predictor(first_run: Run) -> SlicePredictor:
    return load_predictor([first_run.root / BEST], "cpu", 1)


def render_phantoms(count: int = 6, seed: int = 5) -> list[np.ndarray]:
    return [render_phantom(plan)[0] for plan in plan_phantoms(count, seed)]


def predict_slices(predictor: SlicePredictor, run: Run, paths: pd.Series) -> list[Prediction]:
    images = [read_grey(run.root / "data/phantom" / path) for path in paths]
    return predictor.predict([predictor.preprocess(pixels) for pixels in images])


def save_changed(path: str, **changes: Any) -> Path:
    """Save best.pt with other entries; None removes an entry."""
    checkpoint = {**checkpoints.load_run(BEST), **changes}
    present = {key: value for key, value in checkpoint.items() if value is not None}
    checkpoints.save_checkpoint(Path(path), present)
    return Path(path)


def test_eight_orientations_of_a_slice_get_one_prediction(predictor: SlicePredictor) -> None:
    for pixels in render_phantoms():
        rotated = [np.rot90(pixels, quarter) for quarter in range(4)]
        oriented = [*rotated, *(np.fliplr(each) for each in rotated)]
        first, *others = predictor.predict([predictor.preprocess(each) for each in oriented])
        for other in others:
            assert np.array_equal(other.probs, first.probs)
            assert other.prediction_set == first.prediction_set
            assert other.nearest == first.nearest


def test_it_agrees_with_evaluate(predictor: SlicePredictor, first_run: Run) -> None:
    table = pd.read_csv(first_run.root / "results/first/predictions.csv", keep_default_na=False)
    predictions = predict_slices(predictor, first_run, table["path"])
    probs = np.array([prediction.probs for prediction in predictions])
    columns = [f"p_{name}" for name in predictor.classes]
    np.testing.assert_allclose(probs, table[columns].to_numpy(), atol=2e-6)
    assert [each.predicted for each in predictions] == table["predicted"].tolist()
    sets = ["|".join(each.prediction_set or ()) for each in predictions]
    assert sets == table["prediction_set"].tolist()
    review = [len(each.prediction_set or ()) != 1 for each in predictions]
    assert review == (table["needs_review"].astype(str) == "True").tolist()


def test_a_training_slice_is_its_own_nearest(predictor: SlicePredictor, first_run: Run) -> None:
    split = pd.read_csv(first_run.root / "session/first/split.csv")
    train = split[split["split"] == "train"].drop_duplicates("duplicate_set")
    reference = predictor.members[0].checkpoint["reference"]
    assert sorted(reference["sha256"]) == sorted(train["sha256"])  # one of each duplicate set
    predictions = predict_slices(predictor, first_run, train["path"])
    for prediction, row in zip(predictions, train.itertuples(), strict=True):
        assert prediction.nearest[0] == (row.sha256, row.label)
        assert not prediction.out_of_distribution


def test_the_farthest_val_slice_is_the_threshold(predictor: SlicePredictor, first_run: Run) -> None:
    """Of more than 50 val groups, 2 % would be farther."""
    split = pd.read_csv(first_run.root / "session/first/split.csv")
    predictions = predict_slices(predictor, first_run, split["path"][split["split"] == "val"])
    assert max(each.distance or 0 for each in predictions) == pytest.approx(1, abs=1e-3)


def test_a_heat_map_has_the_orientation_of_the_image(predictor: SlicePredictor) -> None:
    pixels = render_phantoms()[0]
    upright = predictor.explain(predictor.preprocess(pixels), "Glioma")
    assert upright.shape == pixels.shape
    assert upright.max() > 0.5
    rotated = predictor.explain(predictor.preprocess(np.rot90(pixels)), "Glioma")
    np.testing.assert_allclose(rotated, np.rot90(upright), atol=0.02)


def test_without_common_slices_the_mean_has_no_sets(trained: Run) -> None:
    """The runs held out the same slices, but of too few groups."""
    calibration = checkpoints.load_run(BEST)["calibration"]
    soft_path = save_changed("soft.pt", calibration={**calibration, "temperature": 5.0})
    pixels = render_phantoms()[1]
    ensemble = load_predictor([BEST, soft_path], "cpu", 1)
    first, soft, both = (
        each.predict([each.preprocess(pixels)])[0]
        for each in (load_predictor([BEST]), load_predictor([soft_path]), ensemble)
    )
    np.testing.assert_allclose(both.probs, (first.probs + soft.probs) / 2, atol=1e-12)
    assert (both.prediction_set, both.needs_review) == (None, None)
    assert first.distance == pytest.approx(both.distance)
    [line] = [line for line in ensemble.list_warnings() if line.startswith("ENSEMBLE: ")]
    assert "groups of slices were held out by all of these runs, at least 20" in line


def test_values_that_were_not_fitted_are_none(trained: Run) -> None:
    path = save_changed("old.pt", calibration=None, reference=None)
    predictor = load_predictor([path], "cpu", 1)
    (prediction,) = predictor.predict([predictor.preprocess(np.zeros((9, 9), np.uint8))])
    assert (prediction.prediction_set, prediction.needs_review) == (None, None)
    assert (prediction.out_of_distribution, prediction.distance) == (None, None)
    assert prediction.nearest == ()
    titles = [line.partition(": ")[0] for line in predictor.list_warnings()]
    assert titles == ["PHANTOM", "NOT CALIBRATED", "NO OOD DETECTION"]


def test_unusable_checkpoints_are_refused(trained: Run) -> None:
    other = save_changed("other.pt", classes=["A", "B", "C"])
    with pytest.raises(UserError, match=r"other\.pt has the classes A, B, C, .*same classes"):
        load_predictor([BEST, other])
    with pytest.raises(UserError, match=r"no epoch is finished.*--resume"):
        load_predictor([save_changed("unfinished.pt", best={})])
    reference = {**checkpoints.load_run(BEST)["reference"]}
    del reference["statistics"]
    with pytest.raises(UserError, match=r"OOD reference lacks statistics; train again"):
        load_predictor([save_changed("partial.pt", reference=reference)])


def test_logits_that_are_not_finite_are_refused(trained: Run) -> None:
    weights = {name: part.clone() for name, part in checkpoints.load_run(BEST)["weights"].items()}
    for part in ("weight", "bias"):
        weights[f"backbone.head.{part}"].fill_(3e38)
    predictor = load_predictor([save_changed("huge.pt", weights=weights)], "cpu")
    with pytest.raises(UserError, match=r"huge\.pt: its logits are NaN or infinite"):
        predictor.predict([predictor.preprocess(np.zeros((9, 9), np.uint8))])


def test_other_images_are_out_of_distribution_and_need_review(first_run: Run) -> None:
    predictor = load_predictor([first_run.root / BEST], "cpu", 1)
    conformal = predictor.members[0].checkpoint["calibration"]["conformal"]
    conformal["thresholds"] = {"Glioma": None, "Menin": 2.0, "Tumor": 2.0}  # sets of one class
    phantoms = predictor.predict([predictor.preprocess(each) for each in render_phantoms(40, 77)])
    assert np.mean([each.out_of_distribution for each in phantoms]) <= 0.15
    typical = np.median([each.distance or 0 for each in phantoms])
    for kind, draw in OOD_PICTURES.items():
        others = predictor.predict([predictor.preprocess(draw(seed)) for seed in range(6)])
        if kind == "photograph":  # near the threshold, which rests on a few patients
            assert np.median([each.distance or 0 for each in others]) > 2 * typical
        else:
            assert all(each.out_of_distribution for each in others), kind
        for each in (*others, *phantoms):
            text = predictor.describe_prediction(each)[0]
            assert text.startswith("OUT OF DISTRIBUTION") == each.out_of_distribution
            assert each.needs_review == each.out_of_distribution


def test_simultaneous_calls_do_not_mix(predictor: SlicePredictor) -> None:
    images = [predictor.preprocess(pixels) for pixels in render_phantoms()]
    expected = [predictor.predict([image])[0] for image in images]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            heatmaps = [pool.submit(predictor.explain, image, "Glioma") for image in images[:2]]
            found = pool.map(lambda image: predictor.predict([image])[0], images)
            for each, alone in zip(found, expected, strict=True):
                assert np.array_equal(each.probs, alone.probs)
                assert (each.nearest, each.distance) == (alone.nearest, alone.distance)
            assert [heatmap.result().shape for heatmap in heatmaps] == [(512, 512)] * 2


def test_the_threshold_decides_about_ood(predictor: SlicePredictor, trained: Run) -> None:
    pixels = render_phantoms()[0]
    distance = predictor.predict([predictor.preprocess(pixels)])[0].distance
    assert distance is not None
    reference = checkpoints.load_run(BEST)["reference"]
    for factor, is_ood in ((0.99, True), (1.01, False)):
        threshold = reference["threshold"] * distance * factor
        path = save_changed("moved.pt", reference={**reference, "threshold": threshold})
        moved = load_predictor([path], "cpu", 1)
        (prediction,) = moved.predict([moved.preprocess(pixels)])
        assert prediction.out_of_distribution is is_ood
        assert prediction.distance == pytest.approx(1 / factor)


def test_a_large_image_is_stored_smaller(predictor: SlicePredictor) -> None:
    preprocessed = predictor.preprocess(np.zeros((1600, 900), np.uint8))
    assert preprocessed.picture.shape == (DISPLAY_PX, 576)
    assert predictor.explain(preprocessed, "Glioma").shape == preprocessed.picture.shape


WARNINGS = {
    "PHANTOM": lambda checkpoint: checkpoint.update(phantom=True),
    "LEAKY SPLIT": lambda checkpoint: checkpoint["config"]["data"].update(split_by="image"),
    "NO OOD DETECTION": lambda checkpoint: checkpoint.pop("reference"),
}


@pytest.mark.parametrize("title", WARNINGS)
def test_warnings_are_listed_and_shown_on_the_page(first_run: Run, title: str) -> None:
    predictor = load_predictor([first_run.root / BEST], "cpu", 1)
    checkpoint = predictor.members[0].checkpoint
    checkpoint["phantom"] = False
    assert predictor.list_warnings() == []
    WARNINGS[title](checkpoint)
    (line,) = predictor.list_warnings()
    assert line.startswith(f"{title}: ")


def test_networks_that_scale_values_differently_are_refused() -> None:
    narrow, wide, none = (
        {"preprocess": {"value_ranges": ranges}}
        for ranges in ({"integers": [0, 1023]}, {"integers": [0, 4095]}, {})
    )
    paths = [Path("a.pt"), Path("b.pt"), Path("c.pt")]
    members.check_ranges(paths, [narrow, none, narrow])
    with pytest.raises(UserError, match=r"c\.pt scales integers .*a\.pt"):
        members.check_ranges(paths, [narrow, none, wide])
