"""The folds of a run as one calibrated ensemble, for every command."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

import evaluate
import export
import main
import predict
from evaluation import ensembles, fitted
from evaluation.calibration import average_softmax
from evaluation.held_out import HeldOut, cross_fit
from evaluation.predictions import predict_run
from helper import UserError
from imaging.reader import read_grey
from inference.predictor import Prediction, SlicePredictor, load_predictor
from modeling import checkpoint as checkpoints
from tests.support.builders import (
    Capture,
    Patch,
    Run,
    expect_refusal,
    hash_file,
    read_metrics,
    skip_plots,
)

RUN = Path("session/cross")
FILE = RUN / "ensemble.json"
RESUME = ["--resume", str(RUN), "--device", "cpu"]
PREDICT: dict[str, Any] = {"device": "cpu", "batch_size": 64, "threads": 0}
N_FILES = 20


def read_ensemble() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text("utf-8")))


def change_ensemble(**values: Any) -> None:
    content = {**read_ensemble(), **values}
    FILE.unlink()  # a hard link
    FILE.write_text(json.dumps(content), "utf-8")


def narrow_sets(folder: Path) -> NDArray[np.float64]:
    """Give the ensemble thresholds that leave classes out, which phantoms are too few for.

    Returns:
        The thresholds [K]; sets of the first N_FILES files have one class or two.
    """
    found = predict_files(load_predictor([RUN], "cpu", 1), folder, N_FILES)
    median = float(np.median([each.probs[0] for each in found]))
    thresholds = {"Glioma": median, "Menin": None, "Tumor": 1.0}
    values = read_ensemble()["calibration"]
    conformal = {**values["conformal"], "thresholds": thresholds}
    change_ensemble(calibration={**values, "conformal": conformal})
    return np.array([median, 0.0, 1.0])


def predict_files(predictor: SlicePredictor, folder: Path, count: int) -> list[Prediction]:
    files = sorted(folder.rglob("Images/*/*.*"))[:count]
    return predictor.predict([predictor.preprocess(read_grey(path)) for path in files])


# ---- fitting


@pytest.mark.usefixtures("crossed")
def test_it_is_fitted_on_out_of_fold_outputs() -> None:
    values = read_ensemble()
    held_out = HeldOut.from_record(values["outputs"])
    assert values["calibration"] == held_out.fit(values["classes"])
    assert values["ood_threshold"] == held_out.fit_ood_threshold()
    for fold in (1, 2, 3):
        path = RUN / f"fold_{fold}"
        split = pd.read_csv(path / "split.csv")
        own = held_out.take(held_out.folds == fold)
        assert sorted(own.path) == sorted(split["path"][split["split"] == "test"])
        assert values["weights_sha256"][fold - 1] == checkpoints.hash_weights(
            checkpoints.load_run(path / "best.pt")
        )
        # the same as the network alone gives for them
        predictor = load_predictor([path / "best.pt"], "cpu", 1)
        files = [Path("data/phantom", name) for name in own.path[:5]]
        alone = predictor.predict([predictor.preprocess(read_grey(file)) for file in files])
        distances = [each.distance for each in alone]
        np.testing.assert_allclose(own.distances[0, :5], np.array(distances, float), rtol=1e-4)
        temperature = predictor.members[0].checkpoint["calibration"]["temperature"]
        probs = average_softmax(own.logits[:, :5], temperature)
        np.testing.assert_allclose(probs, [each.probs for each in alone], atol=1e-5)


@pytest.mark.usefixtures("crossed", "no_evaluation")
def test_old_runs_are_told_what_to_run(capsys: Capture, other_phantoms: Path) -> None:
    before = FILE.read_text("utf-8")
    FILE.unlink()
    image = str(next(other_phantoms.rglob("Images/*/*.*")))
    for run, argv in ((predict.main, [str(RUN), image]), (export.main, [str(RUN)])):
        line = expect_refusal(capsys, run(argv))
        assert "ensemble.json is missing" in line
        assert "python main.py --resume session/cross" in line
    assert main.main(RESUME) == 0
    assert FILE.read_text("utf-8") == before


@pytest.mark.usefixtures("crossed", "no_evaluation")
def test_a_stop_while_it_is_fitted_can_be_continued(monkeypatch: Patch, capsys: Capture) -> None:
    FILE.unlink()
    full = OSError(28, "No space left on device", str(FILE))
    for error, status, words in (
        (KeyboardInterrupt(), 130, "after the last fold; continue with --resume session/cross"),
        (full, 1, "ensemble.json: No space left on device; free disk space, and continue with"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("runs.ensemble.write_ensemble", Mock(side_effect=error))
            assert words in expect_refusal(capsys, main.main(RESUME), status)
    assert main.main(RESUME) == 0
    assert FILE.exists()


DAMAGE: dict[str, Any] = {
    "not JSON": "{",
    "schema None": "[]",
    "schema 9": {"schema": 9},
    "damaged (TypeError": {"calibration": None},
    "fitted for other classes": {"classes": 0},
    "temperature and ood_threshold must be above 0": {"ood_threshold": -1.0},
    "fitted to other networks": {"weights_sha256": ["0" * 64] * 3},
}


@pytest.mark.usefixtures("crossed")
@pytest.mark.parametrize("words", DAMAGE)
def test_damaged_files_are_refused(words: str) -> None:
    damage = DAMAGE[words]
    if isinstance(damage, str):
        FILE.unlink()
        FILE.write_text(damage)
    elif "classes" in damage:
        values = read_ensemble()["calibration"]
        change_ensemble(calibration={**values, "operating_points": {"A": 0.1}})
    else:
        change_ensemble(**damage)
    with pytest.raises(UserError) as caught:
        load_predictor([RUN], "cpu")
    assert words in str(caught.value)
    assert "--resume session/cross" in str(caught.value)


@pytest.mark.usefixtures("crossed")
def test_damaged_outputs_are_refused() -> None:
    outputs = read_ensemble()["outputs"]
    change_ensemble(outputs={**outputs, "labels": outputs["labels"][:-1]})
    run = fitted.Run(RUN, [checkpoints.load_run(RUN / f"fold_{k}/best.pt") for k in (1, 2, 3)])
    with pytest.raises(UserError, match=r"damaged .*--resume session/cross"):
        fitted.load_held_out(run)


@pytest.mark.usefixtures("crossed")
def test_a_missing_fold_and_a_replaced_one_are_refused(
    capsys: Capture, other_phantoms: Path
) -> None:
    (RUN / "fold_2/best.pt").unlink()
    image = str(next(other_phantoms.rglob("Images/*/*.*")))
    for run, argv in ((predict.main, [str(RUN), image]), (export.main, [str(RUN)])):
        line = expect_refusal(capsys, run(argv))
        assert "fold_2/best.pt is missing; continue with python main.py --resume" in line
    shutil.copy(RUN / "fold_1/best.pt", RUN / "fold_2/best.pt")
    with pytest.raises(UserError, match="fitted to other networks"):
        load_predictor([RUN], "cpu")


# ---- prediction


@pytest.mark.usefixtures("crossed")
def test_the_ensemble_is_the_calibrated_mean(other_phantoms: Path) -> None:
    limits = narrow_sets(other_phantoms)
    predictor = load_predictor([RUN], "cpu", 1)
    assert [line.partition(":")[0] for line in predictor.list_warnings()] == ["PHANTOM"]
    singles = [load_predictor([member.path], "cpu", 1) for member in predictor.members]
    together = predict_files(predictor, other_phantoms, N_FILES)
    apart = [predict_files(single, other_phantoms, N_FILES) for single in singles]
    values = read_ensemble()
    temperature = values["calibration"]["temperature"]
    logits = [
        [np.log(each.probs) * single.fitted.calibration["temperature"] for each in predicted]  # type: ignore[index]
        for single, predicted in zip(singles, apart, strict=True)
    ]
    probs = average_softmax(np.array(logits), temperature)
    np.testing.assert_allclose([each.probs for each in together], probs, atol=1e-9)
    distances = np.mean([[each.distance or 0 for each in found] for found in apart], axis=0)
    distances /= values["ood_threshold"]
    np.testing.assert_allclose([each.distance or 0 for each in together], distances)
    for each, row in zip(together, probs, strict=True):
        expected = tuple(np.array(predictor.classes)[row >= limits].tolist())
        assert each.prediction_set == expected
        assert each.needs_review == (len(expected) != 1 or bool(each.out_of_distribution))
        assert each.out_of_distribution == (each.distance is not None and each.distance > 1)
        assert "prediction set holds" in each.describe_review()
    assert {len(each.prediction_set or ()) for each in together} == {1, 2}


@pytest.mark.usefixtures("trained")
def test_an_ensemble_of_one_fold_is_its_checkpoint(other_phantoms: Path) -> None:
    """The run `first` as the only fold, with its val outputs as the out-of-fold outputs."""
    one, fold = Path("session/one"), Path("session/one/fold_1")
    shutil.copytree("session/first", fold)
    config = json.loads((fold / "config.json").read_text("utf-8"))
    config["data"]["folds"] = 1
    (one / "config.json").write_text(json.dumps(config), "utf-8")
    checkpoint = checkpoints.load_run(fold / "best.pt")
    held_out = HeldOut.from_record(checkpoint["val_outputs"])
    fitted.write_ensemble(one, [checkpoint], held_out)
    alone, ensemble = (load_predictor([path], "cpu", 1) for path in (fold / "best.pt", one))
    assert ensemble.fitted.calibration == checkpoint["calibration"]
    for each, other in zip(
        *(predict_files(predictor, other_phantoms, 12) for predictor in (alone, ensemble)),
        strict=True,
    ):
        assert np.array_equal(each.probs, other.probs)
        assert each.prediction_set == other.prediction_set
        assert each.distance == other.distance
        assert each.nearest == other.nearest


@pytest.mark.usefixtures("trained")
def test_the_folder_of_a_run_is_its_checkpoint(other_phantoms: Path) -> None:
    first, best = Path("session/first"), Path("session/first/best.pt")
    by_folder, by_file = (load_predictor([path], "cpu", 1) for path in (first, best))
    for each, other in zip(
        *(predict_files(predictor, other_phantoms, 4) for predictor in (by_folder, by_file)),
        strict=True,
    ):
        assert np.array_equal(each.probs, other.probs)
    assert predict_run(first, "val", None, **PREDICT).path == best


@pytest.mark.usefixtures("crossed")
def test_predict_writes_sets_and_names_all_networks(other_phantoms: Path) -> None:
    argv = [str(RUN), str(other_phantoms / "Images"), "--device", "cpu"]
    assert predict.main(argv) == 0
    table = pd.read_csv("predictions.csv")
    assert table["prediction_set"].notna().all()
    assert table["needs_review"].notna().all()
    about = Path("predictions.csv.about.txt").read_text("utf-8")
    assert all(f"cross-fold_{fold}" in about for fold in (1, 2, 3))
    assert "ENSEMBLE" not in about


# ---- evaluation


@pytest.mark.usefixtures("crossed")
def test_own_slices_are_calibrated_by_the_other_folds(cross_run: Path) -> None:
    held_out = HeldOut.from_record(read_ensemble()["outputs"])
    classes = read_ensemble()["classes"]
    calibrated, fits = cross_fit(held_out, held_out.logits, held_out.folds, classes)
    table = pd.read_csv(cross_run / "results/cross/predictions.csv")
    assert table["path"].tolist() == held_out.path.tolist()
    np.testing.assert_allclose(table["p_Glioma"], calibrated.probs[:, 0], atol=2e-6)
    report = read_metrics(cross_run, "cross")
    temperatures = [each["temperature"] for each in fits]
    assert report["calibration"]["temperature"] == pytest.approx(np.mean(temperatures))
    assert report["conformal"]["coverage_by_group"]["value"] is not None
    assert any("out-of-fold outputs of the other folds" in note for note in report["notes"])


@pytest.mark.usefixtures("crossed")
def test_other_slices_are_predicted_by_the_ensemble(
    other_phantoms: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    skip_plots(monkeypatch)
    narrow_sets(other_phantoms)
    argv = [str(RUN), "--data", str(other_phantoms), "--split", "all", "--device", "cpu"]
    assert evaluate.main(argv) == 0
    name = f"cross-on-{other_phantoms.name}-all"
    report = read_metrics(Path(), name)
    temperature = read_ensemble()["calibration"]["temperature"]
    assert report["calibration"]["temperature"] == temperature
    assert any("OTHER DATA" in note for note in report["notes"])
    assert any("fitted on the out-of-fold outputs of 60 slices" in note for note in report["notes"])
    table = pd.read_csv(f"results/{name}/predictions.csv", keep_default_na=False)
    predictor = load_predictor([RUN], "cpu", 1)
    for row in table.head(15).itertuples():
        slice_ = predictor.preprocess(read_grey(other_phantoms / row.path))
        [found] = predictor.predict([slice_])
        assert row.p_Menin == pytest.approx(found.probs[1], abs=2e-6)
        assert row.prediction_set == "|".join(found.prediction_set or ())
    assert "--stress" in expect_refusal(capsys, evaluate.main([*argv, "--stress"]))
    line = expect_refusal(capsys, evaluate.main([*argv[:1], "--calibration", str(FILE)]))
    assert "--data and --split all" in line


@pytest.mark.usefixtures("crossed")
def test_runs_with_folds_are_averaged_with_sets() -> None:
    """The second run has other weights, and so other outputs for the same slices."""
    second = Path("session/second")
    shutil.copytree(RUN, second)
    for path in second.glob("fold_*/best.pt"):
        content = checkpoints.load_run(path)
        name = "backbone.head.weight"
        content["weights"][name] = content["weights"][name] * 0.5
        path.unlink()
        checkpoints.save_checkpoint(path, content)
    runs = [predict_run(path, "test", None, **PREDICT) for path in (RUN, second)]
    averaged = ensembles.average_predictions(ensembles.align(runs))
    assert averaged.logits.shape[0] == 2
    assert averaged.calibrated.prediction_sets is not None
    assert len(averaged.calibrations) == 3
    assert averaged.fitted.source == ensembles.OUT_OF_FOLD
    few = [replace_held_out(run, np.arange(9)) for run in runs]
    averaged = ensembles.average_predictions(ensembles.align(few))
    assert averaged.calibrated.prediction_sets is None
    assert "groups of slices were held out" in averaged.fitted.source
    pooled = runs[0].held_out
    assert pooled is not None
    fitted.write_ensemble(second, runs[1].checkpoints, runs[1].held_out or pooled)
    predictor = load_predictor([RUN, second], "cpu", 1)
    assert predictor.fitted.has_sets
    assert "that all 2 runs held out" in predictor.fitted.source
    assert len(predictor.members) == 6


def replace_held_out(run: ensembles.Predictions, rows: np.ndarray) -> ensembles.Predictions:
    assert run.held_out is not None
    return ensembles.replace(run, held_out=run.held_out.take(rows))


@pytest.mark.usefixtures("trained")
def test_runs_of_one_split_are_calibrated_on_val(monkeypatch: Patch, first_run: Run) -> None:
    monkeypatch.setattr(fitted, "MIN_GROUPS", 2)
    content = checkpoints.load_run(Path("session/first/best.pt"))
    checkpoints.save_checkpoint(Path("session/second/best.pt"), {**content, "run": "second"})
    paths = [Path("session/first/best.pt"), Path("session/second/best.pt")]
    averaged = ensembles.average_predictions(
        [predict_run(path, "test", None, **PREDICT) for path in paths]
    )
    # two copies of one network are calibrated like one
    alone = predict_run(paths[0], "test", None, **PREDICT)
    np.testing.assert_allclose(averaged.calibrated.probs, alone.calibrated.probs, atol=1e-5)
    assert averaged.calibrated.prediction_sets is not None
    del content["val_outputs"]
    checkpoints.save_checkpoint(paths[1], {**content, "run": "second"})
    predictor = load_predictor(paths, "cpu", 1)
    [line] = [line for line in predictor.list_warnings() if "ENSEMBLE" in line]
    assert "1 of 2 runs have no outputs" in line
    assert "--resume session/RUN" in line


# ---- export


@pytest.mark.integration
@pytest.mark.usefixtures("crossed")
def test_one_file_holds_the_ensemble(other_phantoms: Path, capsys: Capture) -> None:
    from onnx_export import exporter, parity

    limits = narrow_sets(other_phantoms)
    before = hash_file(RUN / "fold_1/best.pt")
    assert export.main([str(RUN), "--threads", "1"]) == 0
    assert "the same labels and prediction sets" in capsys.readouterr().out
    session = exporter.open_onnx(Path("model.onnx"), 1)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["networks"] == "3"
    assert metadata["run"] == "cross-fold_1 cross-fold_2 cross-fold_3"
    assert len(metadata["checkpoint_sha256"].split()) == 3
    assert before in metadata["checkpoint_sha256"]
    assert json.loads(metadata["temperature"]) == read_ensemble()["calibration"]["temperature"]
    predictor = load_predictor([RUN], "cpu", 1)
    files = sorted(other_phantoms.rglob("Images/*/*.*"))[:12]
    for path in files:
        pixels = read_grey(path)
        probs, in_sets = exporter.run_session(session, [pixels])
        [found] = predictor.predict([predictor.preprocess(pixels)])
        np.testing.assert_allclose(probs[0], found.probs, atol=parity.TOLERANCE)
        shown = tuple(np.array(predictor.classes)[in_sets[0]].tolist())
        is_tie = (np.abs(found.probs - limits) <= parity.TOLERANCE).any()
        assert is_tie or shown == found.prediction_set
    line = expect_refusal(capsys, export.main([str(RUN), "--precision", "int8", "--overwrite"]))
    assert "takes one network" in line
