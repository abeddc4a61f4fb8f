"""A checkpoint made ready: the same answer in all positions, sets, distances, ensembles."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.ood_pictures import STRANGERS
from helper import UserError
from imaging.reader import read_grey
from inference.predictor import SHOWN_PX, SliceClassifier, load_classifier
from modeling import checkpoint
from phantoms.generator import plan_phantoms, render_phantom
from tests.support.builders import Run
from webapp import page_content

BEST = Path("session/first/best.pt")


@pytest.fixture
def classifier(trained: Run) -> SliceClassifier:
    return load_classifier([BEST], "cpu", 1)


def list_positions(pixels: np.ndarray) -> list[np.ndarray]:
    turned = [np.rot90(pixels, quarter) for quarter in range(4)]
    return [*turned, *(np.fliplr(each) for each in turned)]


def test_eight_positions_of_a_slice_get_one_answer(classifier: SliceClassifier) -> None:
    for plan in plan_phantoms(6, 5):
        verdicts = classifier.judge(
            [classifier.preprocess(each) for each in list_positions(render_phantom(plan)[0])]
        )
        for other in verdicts[1:]:
            assert np.array_equal(other.probs, verdicts[0].probs)
            assert other.prediction_set == verdicts[0].prediction_set
            assert other.nearest == verdicts[0].nearest


def test_it_agrees_with_evaluate(classifier: SliceClassifier) -> None:
    table = pd.read_csv("results/first/predictions.csv", keep_default_na=False)
    pictures = [read_grey(Path("data/phantom") / path) for path in table["path"]]
    verdicts = classifier.judge([classifier.preprocess(pixels) for pixels in pictures])
    probs = np.array([verdict.probs for verdict in verdicts])
    columns = [f"p_{name}" for name in classifier.classes]
    np.testing.assert_allclose(probs, table[columns].to_numpy(), atol=2e-6)
    assert [verdict.predicted for verdict in verdicts] == table["predicted"].tolist()
    assert ["|".join(verdict.prediction_set or ()) for verdict in verdicts] == table["set"].tolist()
    assert [str(verdict.refer) for verdict in verdicts] == table["refer"].astype(str).tolist()


def test_a_training_slice_is_its_own_nearest(classifier: SliceClassifier) -> None:
    table = pd.read_csv("session/first/split.csv")
    own = table[table["split"] == "train"].drop_duplicates("slice").iloc[:8]
    verdicts = classifier.judge(
        [classifier.preprocess(read_grey(Path("data/phantom") / path)) for path in own["path"]]
    )
    for verdict, row in zip(verdicts, own.itertuples(), strict=True):
        assert verdict.nearest[0] == (row.sha256, row.label)
        assert verdict.distance is not None
        assert not verdict.unlike


def test_the_reference_is_one_of_each_distinct_training_slice(trained: Run) -> None:
    reference = checkpoint.load_run(BEST)["reference"]
    table = pd.read_csv("session/first/split.csv")
    train = table[table["split"] == "train"]
    assert set(reference["sha256"]) <= set(train["sha256"])
    assert len(reference["sha256"]) == train["slice"].nunique()
    assert len(reference["embeddings"]) == len(reference["labels"]) == len(reference["sha256"])
    assert reference["threshold"] > 0


def test_a_heat_map_follows_the_picture(classifier: SliceClassifier) -> None:
    pixels = render_phantom(plan_phantoms(6, 5)[0])[0]
    upright = classifier.explain(classifier.preprocess(pixels), "Glioma")
    assert upright.shape == pixels.shape
    assert upright.max() > 0.5
    turned = classifier.explain(classifier.preprocess(np.rot90(pixels)), "Glioma")
    np.testing.assert_allclose(turned, np.rot90(upright), atol=0.02)


def test_an_ensemble_is_the_mean_and_has_no_sets(trained: Run) -> None:
    kept = checkpoint.load_run(BEST)
    kept["calibration"] = {**kept["calibration"], "temperature": 5.0}
    checkpoint.save_checkpoint(Path("soft.pt"), kept)
    pixels = render_phantom(plan_phantoms(6, 5)[1])[0]
    alone = []
    for paths in ([BEST], [Path("soft.pt")], [BEST, Path("soft.pt")]):
        classifier = load_classifier(paths, "cpu", 1)
        alone.append(classifier.judge([classifier.preprocess(pixels)])[0])
    first, soft, both = alone
    np.testing.assert_allclose(both.probs, (first.probs + soft.probs) / 2, atol=1e-12)
    assert both.prediction_set is None
    assert both.refer is None
    assert first.distance == pytest.approx(both.distance)


def test_what_was_not_fitted_is_said_and_left_open(trained: Run) -> None:
    kept = checkpoint.load_run(BEST)
    del kept["calibration"], kept["reference"]
    checkpoint.save_checkpoint(Path("old.pt"), kept)
    classifier = load_classifier([Path("old.pt")], "cpu", 1)
    verdict = classifier.judge([classifier.preprocess(np.zeros((9, 9), np.uint8))])[0]
    assert (verdict.prediction_set, verdict.refer, verdict.unlike, verdict.distance) == (None,) * 4
    assert verdict.nearest == ()
    warnings = " ".join(classifier.list_warnings())
    assert "NOT CALIBRATED" in warnings
    assert "NOT FITTED" in warnings
    assert "PHANTOM" in warnings


def test_refusals(trained: Run) -> None:
    kept = checkpoint.load_run(BEST)
    checkpoint.save_checkpoint(Path("other.pt"), {**kept, "classes": ["A", "B", "C"]})
    with pytest.raises(UserError, match=r"other.pt knows A, B, C, .* name checkpoints of the same"):
        load_classifier([BEST, Path("other.pt")])
    checkpoint.save_checkpoint(Path("begun.pt"), {**kept, "best": {}})
    with pytest.raises(UserError, match=r"no epoch is finished"):
        load_classifier([Path("begun.pt")])
    broken = {name: value.clone() for name, value in kept["weights"].items()}
    for part in ("weight", "bias"):
        broken[f"backbone.head.{part}"].fill_(3e38)
    checkpoint.save_checkpoint(Path("vast.pt"), {**kept, "weights": broken})
    classifier = load_classifier([Path("vast.pt")], "cpu")
    with pytest.raises(UserError, match=r"vast.pt: its logits are NaN or infinite"):
        classifier.judge([classifier.preprocess(np.zeros((9, 9), np.uint8))])


@pytest.mark.parametrize("kind", STRANGERS)
def test_strangers_are_unlike_and_fresh_phantoms_are_not(
    kind: str, classifier: SliceClassifier
) -> None:
    strangers = [classifier.preprocess(STRANGERS[kind](seed)) for seed in range(6)]
    assert all(verdict.unlike for verdict in classifier.judge(strangers))


def test_fresh_phantoms_raise_no_alarm(classifier: SliceClassifier) -> None:
    fresh = [classifier.preprocess(render_phantom(plan)[0]) for plan in plan_phantoms(100, 77)]
    # of 60 phantoms only: a threshold from the nine patients of val is rough
    assert np.mean([verdict.unlike for verdict in classifier.judge(fresh)]) <= 0.1


def test_two_who_ask_at_once_get_their_own_answers(classifier: SliceClassifier) -> None:
    pictures = [classifier.preprocess(render_phantom(plan)[0]) for plan in plan_phantoms(6, 5)]
    alone = [classifier.judge([picture])[0] for picture in pictures]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            together = list(pool.map(lambda picture: classifier.judge([picture])[0], pictures))
            assert [each.nearest for each in together] == [each.nearest for each in alone]
            assert [each.distance for each in together] == [each.distance for each in alone]


def test_what_is_unlike_is_referred(classifier: SliceClassifier) -> None:
    (verdict,) = classifier.judge([classifier.preprocess(STRANGERS["page of text"](0))])
    assert verdict.unlike
    assert verdict.refer
    assert classifier.describe_verdict(verdict)[0].startswith("UNLIKE")


def test_a_checkpoint_whose_training_slices_are_incomplete_is_refused(trained: Run) -> None:
    kept = checkpoint.load_run(BEST)
    del kept["reference"]["statistics"]
    checkpoint.save_checkpoint(Path("partial.pt"), kept)
    with pytest.raises(UserError, match=r"partial.pt: its training slices lack statistics"):
        load_classifier([Path("partial.pt")])


def test_unlike_begins_at_the_threshold(trained: Run) -> None:
    kept = checkpoint.load_run(BEST)
    pixels = render_phantom(plan_phantoms(6, 5)[0])[0]
    for share, is_unlike in ((0.99, True), (1.01, False)):
        checkpoint.save_checkpoint(Path("moved.pt"), kept)
        classifier = load_classifier([Path("moved.pt")], "cpu", 1)
        distance = classifier.judge([classifier.preprocess(pixels)])[0].distance
        assert distance is not None
        threshold = kept["reference"]["threshold"] * distance * share
        moved = {**kept, "reference": {**kept["reference"], "threshold": threshold}}
        checkpoint.save_checkpoint(Path("moved.pt"), moved)
        classifier = load_classifier([Path("moved.pt")], "cpu", 1)
        verdict = classifier.judge([classifier.preprocess(pixels)])[0]
        assert verdict.unlike is is_unlike
        assert verdict.distance == pytest.approx(1 / share)


def test_of_a_large_picture_no_more_is_kept_than_is_looked_at(classifier: SliceClassifier) -> None:
    large = np.repeat(np.arange(1600) % 256, 900).astype(np.uint8).reshape(1600, 900)
    kept = classifier.preprocess(large)
    assert kept.picture.shape == (SHOWN_PX, 576)
    assert classifier.explain(kept, "Glioma").shape == kept.picture.shape


WARNINGS = {
    "PHANTOM: ": lambda kept: kept.update(phantom=True),
    "LEAKY SPLIT: ": lambda kept: kept["config"]["data"].update(split_by="image"),
    "NOT CALIBRATED: ": lambda kept: kept.pop("calibration"),
    "NOT FITTED: ": lambda kept: kept.pop("reference"),
}


@pytest.mark.parametrize("words", WARNINGS)
def test_what_a_reader_must_know_is_said(classifier: SliceClassifier, words: str) -> None:
    for member in classifier.members:
        member.kept["phantom"] = False
    assert classifier.list_warnings() == []
    WARNINGS[words](classifier.members[0].kept)
    (line,) = classifier.list_warnings()
    assert line.startswith(words)
    assert f"<b>{words.removesuffix(': ')}</b>" in page_content.describe_top(classifier)


def test_an_ensemble_says_that_nothing_was_fitted_to_it(trained: Run) -> None:
    both = load_classifier([BEST, BEST], "cpu", 1)
    assert any(line.startswith("an ensemble: no prediction sets") for line in both.list_warnings())
