"""The cost of the duplicate search by the number of slices, on few phantoms."""

import json
from pathlib import Path

import pytest

from experiments import duplicate_scaling
from phantoms.generator import CLASSES


def test_costs_and_growth_are_written(phantom_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "scaling.json"
    command = [str(phantom_dir), "--sizes", "40", "20", "--json", str(output)]
    assert duplicate_scaling.main(command) == 0
    figures = json.loads(output.read_text())
    assert [row["slices"] for row in figures["rows"]] == [20, 40]
    assert [row["originals"] for row in figures["rows"]] == [2, 4]
    assert [row["real"] for row in figures["rows"]] == [2, 4]
    assert all(row["recall_link"] == 1.0 for row in figures["rows"])
    assert set(figures["growth_exponents"][0]) == set(duplicate_scaling.GROWING)


def test_phantoms_are_added_in_the_same_share(phantom_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "scaling.json"
    command = [str(phantom_dir), "--sizes", "60", "120", "--real-share", "0.5"]
    assert duplicate_scaling.main([*command, "--json", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [(row["real"], row["originals"]) for row in rows] == [(3, 6), (6, 12)]


@pytest.mark.parametrize("share", ["1.5", "-0.1", "1"])
def test_share_that_the_folders_cannot_fill_is_refused(
    phantom_dir: Path, capsys: pytest.CaptureFixture[str], share: str
) -> None:
    command = [str(phantom_dir), "--sizes", "100000", "--real-share", share]
    assert duplicate_scaling.main(command) == 1
    assert f"--real-share {float(share)}: give a share from 0 to 1" in capsys.readouterr().err


def test_sizes_of_one_original_are_refused(
    phantom_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert duplicate_scaling.main([str(phantom_dir), "--sizes", "10", "20"]) == 1
    assert "--sizes 10: too few to compare originals; give 11 or more" in capsys.readouterr().err


def test_originals_are_of_all_classes_and_no_copies(phantom_dir: Path) -> None:
    plans = duplicate_scaling.plan_originals(100)
    assert len(plans) == len({plan.duplicate_set for plan in plans}) == 100
    assert {plan.label for plan in plans} == set(CLASSES)
    paths = duplicate_scaling.list_real([phantom_dir])
    assert sorted(paths) != paths
    assert {path.parent.name for path in paths[:20]} == set(CLASSES)


def test_growth_is_the_exponent_of_a_power() -> None:
    small, large = ({"slices": n, "pairs": 3 * n**1.5} for n in (100, 700))
    assert duplicate_scaling.measure_growth(small, large, "pairs") == pytest.approx(1.5)
