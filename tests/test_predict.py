"""predict.py: a row for each picture, one more for each series, and nothing lost on the way."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import predict
from inference import output_table
from inference.image_stream import Picture
from inference.predictor import Verdict
from phantoms.generator import plan_phantoms, render_phantom
from tests.support.builders import Run, expect_refusal

BEST = "session/first/best.pt"
ON = ("--device", "cpu", "--threads", "1")


@pytest.fixture
def pictures(trained: Run) -> Path:
    folder = trained.root / "pictures"
    folder.mkdir()
    for number, plan in enumerate(plan_phantoms(6, 5)):
        Image.fromarray(render_phantom(plan)[0]).save(folder / f"{number}.png")
    return folder


def test_a_row_for_each_picture_and_a_bad_one_is_a_row_too(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "2.png").write_bytes(b"no picture at all")
    assert predict.main([BEST, "pictures", *ON]) == 0
    table = pd.read_csv("predictions.csv", keep_default_na=False)
    assert list(table.columns) == [
        *("file", "predicted", "confidence", "p_Glioma", "p_Menin", "p_Tumor"),
        *("set", "refer", "unlike", "error"),
    ]
    assert table["file"].tolist() == [f"pictures/{number}.png" for number in range(6)]
    bad = table.iloc[2]
    assert "not a JPEG" in bad["error"]
    assert bad["predicted"] == bad["confidence"] == bad["set"] == bad["unlike"] == ""
    good = table.drop(index=2)
    assert (good["error"] == "").all()
    probs = good[["p_Glioma", "p_Menin", "p_Tumor"]].astype(float)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=3e-6)
    assert (good["predicted"] == probs.idxmax(axis=1).str.removeprefix("p_")).all()
    output = capsys.readouterr().out
    assert "note: PHANTOM" in output
    assert not Path("predictions.csv.part").exists()
    assert "6 pictures: " in output
    assert "1 not readable" in output
    assert "not a medical device" in output


def test_beside_the_table_stands_what_its_readers_must_know(pictures: Path) -> None:
    assert predict.main([BEST, "pictures/0.png", *ON]) == 0
    words = Path("predictions.csv.about.txt").read_text("utf-8")
    assert "Research use only: not a medical device." in words
    assert "PHANTOM: it learnt from generated slices" in words
    assert "Answers of first (session/first/best.pt): Glioma, Menin, Tumor." in words


def test_what_was_not_fitted_is_not_counted_as_none(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "2.png").write_bytes(b"no picture at all")
    assert predict.main([BEST, BEST, "pictures", *ON]) == 0
    output = capsys.readouterr().out
    assert "6 pictures: referral not fitted, " in output
    assert " unlike those of training, 1 not readable" in output
    counts = output_table.Counts()
    row = {"refer": True, "unlike": None, "error": None}
    for each in (row, {**row, "refer": False}, {**row, "refer": None, "error": "cut short"}):
        counts.add(each)
    assert counts.describe() == "1 to refer, unlike not fitted, 1 not readable"


def test_json_lines_hold_lists_and_nulls(pictures: Path) -> None:
    # options may stand between the checkpoint and the pictures
    assert predict.main([BEST, "--out", "out/table.jsonl", *ON, "pictures/0.png"]) == 0
    (line,) = Path("out/table.jsonl").read_text("utf-8").splitlines()
    row = json.loads(line)
    assert row["set"] == ["Glioma", "Menin", "Tumor"]
    assert row["error"] is None
    assert row["refer"] is True


def test_heat_maps_lie_where_the_files_lay(pictures: Path) -> None:
    assert predict.main([BEST, "pictures/0.png", "pictures/1.png", "--heatmaps", "maps", *ON]) == 0
    made = sorted(path.as_posix() for path in Path("maps").rglob("*.png"))
    assert made == ["maps/pictures/0.png.png", "maps/pictures/1.png.png"]
    with Image.open(made[0]) as sheet:
        assert sheet.width >= 2 * 384


def test_a_table_that_is_there_is_kept(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("predictions.csv").write_text("mine")
    line = expect_refusal(capsys, predict.main([BEST, "pictures", *ON]))
    assert line.startswith("error: predictions.csv exists; name another --out, or give --overwrite")
    assert Path("predictions.csv").read_text() == "mine"
    assert predict.main([BEST, "pictures", "--overwrite", *ON]) == 0
    assert Path("predictions.csv").read_text() != "mine"


def test_a_run_that_ends_early_keeps_its_rows(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "BATCH_SIZE", 2)
    from inference.predictor import SliceClassifier

    judge, calls = SliceClassifier.judge, []

    def interrupt(self: SliceClassifier, slices: list) -> list[Verdict]:
        calls.append(len(slices))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge(self, slices)

    monkeypatch.setattr(SliceClassifier, "judge", interrupt)
    assert predict.main([BEST, "pictures", *ON]) == 130
    assert not Path("predictions.csv").exists()
    assert len(pd.read_csv("predictions.csv.part")) == 4
    assert "rows so far: predictions.csv.part" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "status", "words"),
    [
        (["pictures"], 2, "pictures is no checkpoint; name session/RUN/best.pt first"),
        ([BEST], 2, "name pictures or folders to judge, behind the checkpoint"),
        ([BEST, "nowhere"], 1, "nowhere: no such file or folder"),
        (["missing.pt", "pictures"], 1, "missing.pt: no such file"),
        ([BEST, "session"], 1, "no JPEG, PNG, TIFF, BMP or DICOM picture in it"),
    ],
)
def test_refusals(
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    status: int,
    words: str,
) -> None:
    try:
        ended = predict.main([*argv, *ON])
    except SystemExit as exit_:
        ended = int(str(exit_.code))
    assert words in expect_refusal(capsys, ended, status)
    assert not list(Path().glob("predictions.csv*"))


def test_nothing_readable_is_an_error(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.png").write_bytes(b"x")
    line = expect_refusal(capsys, predict.main([BEST, "a.png", *ON]))
    assert "none of 1 pictures could be read; see predictions.csv" in line


# ---- series


def make_verdict(probs: list[float], chosen: tuple[str, ...], unlike: bool = False) -> Verdict:
    return Verdict(np.array(probs), "A", max(probs), chosen, len(chosen) != 1, unlike, 0.5, ())


def tell(tally: output_table.SeriesTally, path: str, series: str, verdict: Verdict) -> list[dict]:
    return tally.add(Picture(Path(path), 0, series, None, ""), verdict)


def test_a_series_is_the_mean_of_the_slices_that_are_like_those_of_training() -> None:
    tally = output_table.SeriesTally(["A", "B"])
    assert tell(tally, "s/1", "x", make_verdict([0.9, 0.1], ("A",))) == []
    assert tell(tally, "s/2", "x", make_verdict([0.7, 0.3], ("A",))) == []
    assert tell(tally, "s/3", "x", make_verdict([0.0, 1.0], ("B",), unlike=True)) == []
    tell(tally, "s/4", "y", make_verdict([0.1, 0.9], ("B",)))  # alone in its series: no row
    (row,) = tally.close()
    assert row["file"] == "s#series1 (3 slices)"
    assert (row["predicted"], row["p_A"], row["p_B"]) == ("A", 0.8, 0.2)
    assert (row["set"], row["refer"], row["unlike"], row["error"]) == (None, False, False, None)
    assert tally.close() == []


def test_a_series_in_doubt_is_referred() -> None:
    tally = output_table.SeriesTally(["A", "B"])
    tell(tally, "s/1", "x", make_verdict([0.9, 0.1], ("A",)))
    tell(tally, "s/2", "x", make_verdict([0.6, 0.4], ("A", "B")))
    # another folder: the rows of the first one are given away
    (row,) = tell(tally, "t/1", "x", make_verdict([0.9, 0.1], ("A",)))
    assert row["refer"] is True
    assert row["unlike"] is False


def test_a_series_unlike_training_says_so() -> None:
    tally = output_table.SeriesTally(["A", "B"])
    for number in range(3):
        tell(tally, f"s/{number}", "x", make_verdict([0.2, 0.8], ("B",), unlike=True))
    (row,) = tally.close()
    assert (row["unlike"], row["predicted"]) == (True, "B")
    assert row["refer"] is True


def test_slices_that_cannot_be_read_count_in_their_series() -> None:
    tally = output_table.SeriesTally(["A", "B"])
    tell(tally, "s/1", "x", make_verdict([0.9, 0.1], ("A",)))
    tell(tally, "s/2", "x", make_verdict([0.9, 0.1], ("A",)))
    tally.add(Picture(Path("s/3"), 0, "x", None, "cut short"), None)
    (row,) = tally.close()
    assert row["file"] == "s#series1 (2 of 3 slices)"
    assert row["refer"] is True


def test_a_series_does_not_say_what_was_not_fitted() -> None:
    tally = output_table.SeriesTally(["A", "B"])
    unknown = Verdict(np.array([0.9, 0.1]), "A", 0.9, None, None, None, None, ())
    tell(tally, "s/1", "x", unknown)
    tell(tally, "s/2", "x", unknown)
    (row,) = tally.close()
    assert (row["refer"], row["unlike"]) == (None, None)


def test_names_that_are_formulas_or_no_text_are_written_harmlessly(pictures: Path) -> None:
    good = (pictures / "0.png").read_bytes()
    (pictures / "M\udcfcller.png").write_bytes(good)
    Path("=1+1.png").write_bytes(good)
    assert predict.main([BEST, "pictures", "./=1+1.png", *ON]) == 0
    table = pd.read_csv("predictions.csv")
    assert table["file"].iloc[-1] == "'=1+1.png"
    assert any("M\\udcfcller.png" in name for name in table["file"])


def test_rows_of_a_run_that_was_stopped_are_kept(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("predictions.csv.part").write_text("rows")
    line = expect_refusal(capsys, predict.main([BEST, "pictures", *ON]))
    assert "predictions.csv.part exists" in line
    assert Path("predictions.csv.part").read_text() == "rows"
    line = expect_refusal(capsys, predict.main([BEST, "pictures", "--out", "pictures", *ON]))
    assert "pictures is a folder; name a file in it" in line


def test_maps_are_not_judged_where_they_lie_among_the_pictures(pictures: Path) -> None:
    options = ["--heatmaps", "pictures/maps", "--overwrite", *ON]
    for _ in range(2):
        assert predict.main([BEST, "pictures", *options]) == 0
        assert len(pd.read_csv("predictions.csv")) == 6
