"""What wrong slices have in common: rates by patient, measures of the lesion, and the sheet."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments import error_kinds
from tests.support.builders import Capture

N = 9


def write_set(folder: Path) -> None:
    """Write nine heads with a square lesion of growing size and contrast, and their outlines."""
    (folder / "data" / "Images" / "a").mkdir(parents=True)
    outlines = []
    for number in range(N):
        pixels = np.zeros((100, 100), np.uint8)
        pixels[10:90, 10:90] = 100
        side = 10 + 2 * number
        pixels[30 : 30 + side, 30 : 30 + side] = 110 + 10 * number
        Image.fromarray(pixels).save(folder / "data" / "Images" / "a" / f"{number}.png")
        end = 30 + side - 1
        outlines.append((f"a/{number}.png", f"30,30 {end},30 {end},{end} 30,{end}"))
    pd.DataFrame(outlines, columns=["path", "outline"]).to_csv(folder / "lesions.csv", index=False)


def write_run(folder: Path, wrong: set[int]) -> Path:
    """Write the predictions of a run that is wrong for some slices, in reverse order."""
    rows = [
        {
            **{"path": f"Images/a/{number}.png", "label": "a", "patient": f"p{number // 2}"},
            **{"group": f"g{number // 2}", "predicted": "b" if number in wrong else "a"},
            **{"p_a": 0.2 if number in wrong else 0.9, "p_b": 0.8 if number in wrong else 0.1},
        }
        for number in reversed(range(N))
    ]
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "predictions.csv", index=False)
    return folder


def test_errors_are_counted_by_size_contrast_and_class(tmp_path: Path, capsys: Capture) -> None:
    write_set(tmp_path)
    runs = [write_run(tmp_path / "r0", {0, 1, 2}), write_run(tmp_path / "r1", {0, 1, 8})]
    figures, sheet = tmp_path / "figures.json", tmp_path / "sheet.png"
    command = [str(run) for run in runs] + ["--data", str(tmp_path / "data")]
    command += ["--outlines", str(tmp_path / "lesions.csv")]
    assert error_kinds.main([*command, "--sheet", str(sheet), "--json", str(figures)]) == 0
    found = json.loads(figures.read_text("utf-8"))
    # p0 has both slices wrong twice, p1 and p4 one slice once
    assert (found["n_errors"], found["n_with_errors"], found["n_with_half"]) == (3.0, 3, 1)
    assert (found["n_always_wrong"], found["n_patients_always_wrong"]) == (2, 1)
    assert found["most_errors"]["p0"] == 2.0
    kinds = found["kinds"]
    assert (kinds["all"]["n"], kinds["all"]["n_patients"]) == (N, 5)
    assert kinds["all"]["value"] == kinds["class a"]["value"] == pytest.approx(3 / 9)
    assert kinds["a, called b"]["n"] == 2  # by the mean of the runs
    for name in ("size of the lesion", "contrast"):
        rates = [kinds[f"{name}: {third}"]["value"] for third in error_kinds.THIRDS]
        assert rates == pytest.approx([2.5 / 3, 0, 0.5 / 3])
    assert "| all | 9 | 5 | 0.333 [" in capsys.readouterr().out
    with Image.open(sheet) as image:  # two tiles: wrong in most runs
        assert image.size == (2 * error_kinds.TILE_PX, error_kinds.TILE_PX + error_kinds.TITLE_PX)

    other = write_run(tmp_path / "r2", set())
    table = pd.read_csv(other / "predictions.csv")
    table.iloc[1:].to_csv(other / "predictions.csv", index=False)
    assert error_kinds.main([str(runs[0]), str(other), *command[2:]]) == 1
    assert "its slices are not those of" in capsys.readouterr().err


def test_a_lesion_is_measured_against_its_surroundings(tmp_path: Path) -> None:
    write_set(tmp_path)
    paths = [f"Images/a/{number}.png" for number in (0, 8)]
    pictures = error_kinds.lesions.read_outlined(paths, tmp_path / "data", tmp_path / "lesions.csv")
    found = error_kinds.describe_lesions(list(pictures))
    assert found["contrast"] == pytest.approx([10 / 255, 90 / 255])
    assert found["size of the lesion"] == pytest.approx([100 / 6400, 26**2 / 6400], rel=0.06)
    assert found["brightness"][0] == pytest.approx(100.2 / 255, rel=0.06)  # and a rim of air
