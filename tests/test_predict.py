"""predict.py: the table, its notes, heat maps, series, refusals."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import predict
from evaluation.thresholds import Thresholds
from inference import pipeline
from inference.predictor import Prediction, SlicePredictor
from phantoms.generator import plan_phantoms, render_phantom
from tests.support.builders import Capture, Patch, Run, expect_refusal
from tests.support.dicom_files import HIDDEN, encode_dicom

BEST = "session/first/best.pt"
ON_CPU = ("--device", "cpu", "--threads", "1")


@pytest.fixture
def images(trained: Run) -> Path:
    folder = trained.root / "images"
    folder.mkdir()
    for number, plan in enumerate(plan_phantoms(6, 5)):
        Image.fromarray(render_phantom(plan)[0][::4, ::4]).save(folder / f"{number}.png")
    return folder


def read_table() -> pd.DataFrame:
    return pd.read_csv("predictions.csv", keep_default_na=False)


def test_each_image_has_a_row(images: Path, capsys: Capture) -> None:
    (images / "2.png").write_bytes(b"not an image")
    assert predict.main([BEST, "images", *ON_CPU]) == 0
    table = read_table()
    assert list(table.columns) == [
        *("file", "patient", "predicted", "confidence", "p_Glioma", "p_Menin", "p_Tumor"),
        *("prediction_set", "needs_review", "out_of_distribution", "error"),
    ]
    assert table["file"].tolist() == [f"images/{number}.png" for number in range(6)]
    bad, good = table.iloc[2], table.drop(index=2)
    assert "not a JPEG" in bad["error"]
    assert set(bad.drop(["file", "error"])) == {""}
    assert (good["error"] == "").all()
    assert (good["patient"] == "").all()
    probs = good[["p_Glioma", "p_Menin", "p_Tumor"]].astype(float)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=3e-6)
    assert (good["predicted"] == probs.idxmax(axis=1).str.removeprefix("p_")).all()
    assert not Path("predictions.csv.part").exists()
    output = capsys.readouterr().out
    assert "note: PHANTOM" in output
    assert "6 images: " in output
    assert "1 unreadable" in output
    assert "not a medical device" in output


@pytest.mark.parametrize("name", ["model", "model.pth", "model.zip"])
def test_a_checkpoint_of_any_name_is_recognised(name: str, images: Path) -> None:
    shutil.copy(BEST, name)
    assert predict.main([name, "images/0.png", *ON_CPU]) == 0
    assert len(read_table()) == 1


def test_an_archive_is_unpacked_beside_heat_maps(images: Path, capsys: Capture) -> None:
    (images / "readme.txt").write_text("text")
    shutil.make_archive("slices", "zip", images)
    argv = [BEST, "slices.zip", "--out", "out/table.csv", "--heatmaps", "out", *ON_CPU]
    assert predict.main(argv) == 0
    assert "note: slices.zip: 1 files are not images and are passed" in capsys.readouterr().out
    assert len(pd.read_csv("out/table.csv")) == 6
    assert len(list(Path("out/slices.zip").glob("*.png"))) == 6


def test_an_archive_of_images_is_no_checkpoint(images: Path) -> None:
    shutil.make_archive("slices", "zip", images)
    config = predict.parse_args([BEST, "slices.zip"])
    assert (config.checkpoints, config.images) == ((Path(BEST),), (Path("slices.zip"),))


def test_notes_beside_the_table_explain_it(images: Path) -> None:
    assert predict.main([BEST, "images/0.png", *ON_CPU]) == 0
    notes = Path("predictions.csv.about.txt").read_text("utf-8")
    for words in (
        *("not a medical device", "PHANTOM: ", "first (session/first/best.pt)"),
        *("Glioma, Menin, Tumor", "patient: pseudonym", "out_of_distribution: "),
    ):
        assert words in notes


def test_images_without_a_declared_bit_depth_are_noted(images: Path, capsys: Capture) -> None:
    deep = np.asarray(Image.open(images / "0.png")).astype(np.uint16) * 16
    Image.fromarray(deep).save(images / "deep.png")
    assert predict.main([BEST, "images", *ON_CPU]) == 0
    words = "1 images: no declared bit depth"
    assert words in capsys.readouterr().out
    assert words in Path("predictions.csv.about.txt").read_text("utf-8")


def test_dicom_series_have_a_row_and_one_pseudonym(images: Path) -> None:
    pixels = np.asarray(Image.open(images / "0.png"))
    study = Path("study")
    study.mkdir()
    for number in range(3):
        (study / f"{number}.dcm").write_bytes(encode_dicom(pixels))
    (study / "3.dcm").write_bytes(encode_dicom(pixels)[:-5000])
    assert predict.main([BEST, "study", "images/0.png", *ON_CPU]) == 0
    table = read_table().set_index("file")
    row = table.loc["study#series1 (3 of 4 slices)"]
    assert str(row["needs_review"]) == "True"
    series = table[table.index.str.startswith("study")]["patient"]
    assert series.nunique() == 1
    assert series.iloc[0].startswith("p")
    assert table.loc["images/0.png", "patient"] == ""
    text = Path("predictions.csv").read_text("utf-8").lower()
    assert not [word for word in HIDDEN if word in text]


def test_an_ensemble_has_no_review_flags(images: Path, capsys: Capture) -> None:
    assert predict.main([BEST, BEST, "images", *ON_CPU]) == 0
    output = capsys.readouterr().out
    assert "note: ENSEMBLE: " in output
    assert "6 images: review not fitted, " in output
    assert set(read_table()["needs_review"]) == {""}


def test_heat_maps_are_saved_under_the_path_of_their_image(images: Path) -> None:
    for number in range(2, 6):
        (images / f"{number}.png").unlink()
    # options may stand between paths; the second time the folder of heat maps is not read
    above = f"../{images.parent.name}/images"
    for _ in range(2):
        argv = [BEST, "--heatmaps", "images/maps", "--out", "out/table.jsonl", above]
        assert predict.main([*argv, "--overwrite", *ON_CPU]) == 0
        assert len(Path("out/table.jsonl").read_text("utf-8").splitlines()) == 2
    saved = sorted(path.as_posix() for path in Path("images/maps").rglob("*.png"))
    inside = f"images/maps/__/{images.parent.name}/images"
    assert saved == [f"{inside}/0.png.png", f"{inside}/1.png.png"]
    with Image.open(saved[0]) as sheet:
        assert sheet.width >= 2 * 384


def test_existing_tables_are_not_replaced(images: Path, capsys: Capture) -> None:
    for name in ("predictions.csv", "predictions.csv.part"):
        Path(name).write_text("mine")
        line = expect_refusal(capsys, predict.main([BEST, "images/0.png", *ON_CPU]))
        assert f"{name} exists" in line
        assert "--overwrite" in line
        assert Path(name).read_text() == "mine"
        assert predict.main([BEST, "images/0.png", "--overwrite", *ON_CPU]) == 0
        Path("predictions.csv").unlink()


def test_an_interrupted_run_keeps_rows(images: Path, capsys: Capture, monkeypatch: Patch) -> None:
    predict_batch, calls = SlicePredictor.predict, []

    def interrupt(self: SlicePredictor, slices: list) -> list[Prediction]:
        calls.append(len(slices))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict_batch(self, slices)

    monkeypatch.setattr(pipeline, "BATCH_SIZE", 2)
    monkeypatch.setattr(SlicePredictor, "predict", interrupt)
    assert predict.main([BEST, "images", *ON_CPU]) == 130
    assert not Path("predictions.csv").exists()
    assert len(pd.read_csv("predictions.csv.part")) == 4
    assert "predictions.csv.part" in capsys.readouterr().out


def test_a_folder_of_images_may_hold_a_config_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    config = predict.parse_args(["best.pt", str(tmp_path)])
    assert config.images == (tmp_path,)
    (tmp_path / "split.csv").write_text("", "utf-8")
    assert predict.parse_args([str(tmp_path), "images"]).checkpoints == (tmp_path,)


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["images"], 2, "images is not a checkpoint or run; name session/RUN/best.pt"),
        ([BEST], 2, "name images or folders after the checkpoint"),
        ([BEST, "nowhere"], 1, "nowhere: no such file or folder"),
        (["missing.pt", "images"], 1, "missing.pt: no such file"),
        ([BEST, "session"], 1, "MATLAB or DICOM image (2 .pt"),
        ([BEST, "images", "--out", "images"], 1, "images is a folder; name a file in it"),
        ([BEST, "bad/a.png"], 1, "none of 1 images could be read (not a JPEG"),
    ],
)
def test_refusals(images: Path, capsys: Capture, argv: list[str], status: int, words: str) -> None:
    Path("bad").mkdir()
    Path("bad/a.png").write_bytes(b"x")
    try:
        actual = predict.main([*argv, *ON_CPU])
    except SystemExit as ended:
        actual = int(str(ended.code))
    assert words in expect_refusal(capsys, actual, status)
    assert Path("predictions.csv").exists() == ("none of" in words)


def test_unusual_file_names_are_escaped(images: Path) -> None:
    (images / "0.png").rename(images / "M\udcfcller.png")
    assert predict.main([BEST, "images", *ON_CPU]) == 0
    assert "M\\udcfcller.png" in read_table()["file"].iloc[-1]


def test_long_heat_map_names_are_cut_and_stay_different() -> None:
    first, second = (pipeline._shorten(f"{'a' * 300}{end}.png") for end in "xy")
    assert first != second
    assert max(len(first), len(second)) <= 255
    assert pipeline._shorten("a.png") == "a.png"


# ---- archives, patients, thresholds


def test_an_archive_gives_the_rows_of_its_folder(images: Path) -> None:
    for number in range(6):
        folder = images / f"patient_{number % 2}"
        folder.mkdir(exist_ok=True)
        (images / f"{number}.png").rename(folder / f"{number}.png")
    shutil.make_archive("images", "gztar", ".", "images")
    assert predict.main([BEST, "images", *ON_CPU]) == 0
    plain = read_table()
    argv = [BEST, "images.tar.gz", "--heatmaps", "maps", "--overwrite", *ON_CPU]
    assert predict.main(argv) == 0
    packed = read_table()
    for column in ("file", "patient"):
        text = plain[column].str.replace("images/", "images.tar.gz/images/")
        assert packed[column].tolist() == text.tolist()
    assert packed.drop(columns=["file", "patient"]).equals(plain.drop(columns=["file", "patient"]))
    assert packed["file"].tolist()[-2:] == [
        f"images.tar.gz/images/patient_{number}#patient (3 slices)" for number in range(2)
    ]
    probs = packed[["p_Glioma", "p_Menin", "p_Tumor"]].astype(float).to_numpy()
    np.testing.assert_allclose(probs[6], probs[:3].mean(axis=0), atol=2e-6)
    assert Path("maps/images.tar.gz/images/patient_1/5.png.png").is_file()
    assert not list(Path().glob(".part-*"))


def test_a_damaged_archive_is_one_line(images: Path, capsys: Capture) -> None:
    shutil.make_archive("images", "zip", ".", "images")
    content = bytearray(Path("images.zip").read_bytes())
    Path("cut.zip").write_bytes(content[:-40])
    content[200:300] = bytes(100)
    Path("bad.zip").write_bytes(content)
    for name in ("cut.zip", "bad.zip"):
        assert f"{name}: truncated or damaged" in expect_refusal(
            capsys, predict.main([BEST, name, *ON_CPU])
        )
    assert not Path("predictions.csv").exists()


def test_a_threshold_decides_and_is_named(images: Path, capsys: Capture) -> None:
    assert predict.main([BEST, "images", *ON_CPU, "--threshold", "Tumor=0", "Menin=0.9"]) == 0
    table = read_table()
    assert set(table["predicted"]) == {"Tumor"}
    assert table["confidence"].equals(table["p_Tumor"])
    rule = "THRESHOLD: predicted is Tumor if its probability is at least 0, else Menin if"
    assert rule in capsys.readouterr().out
    notes = Path("predictions.csv.about.txt").read_text("utf-8")
    assert rule in notes
    assert "does not hold the predicted class alone" in notes
    argv = [BEST, "images", "--overwrite", *ON_CPU, "--threshold"]
    assert "Glioma, Menin, Tumor" in expect_refusal(capsys, predict.main([*argv, "x=0.2"]))
    assert "0 to 1" in expect_refusal(capsys, predict.main([*argv, "Menin=2"]), 2)


def test_a_threshold_asks_for_review_unless_the_set_agrees() -> None:
    predictor = SlicePredictor.__new__(SlicePredictor)
    predictor.classes = ["A", "B"]
    probs, in_set = np.array([0.7, 0.3]), np.array([True, False])
    for options, expected in (([], False), (["A=0.5"], False), (["B=0.3"], True)):
        predictor.rule = Thresholds.parse(options, predictor.classes)
        found = predictor._build_prediction(probs, in_set, 0.5, ())
        assert found.needs_review is expected
        assert found.confidence == probs[predictor.classes.index(found.predicted)]
