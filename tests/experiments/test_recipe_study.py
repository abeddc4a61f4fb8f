"""The recipe study: paired differences, early stop, and a log that is continued."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import net
from experiments import recipe_study
from experiments.recipe_study import REFERENCE, build_config, compare, divide, format_row, is_worse
from helper import UserError
from tests.support.builders import Capture, Patch

REFERENCE_OPTIONS = "--model net --image-size 32 --epochs 1"
RECIPES = {REFERENCE: "", "slow": "--lr 0.0001"}


def write_log(path: Path, *lines: tuple[str, int, list[float], list[int]]) -> argparse.Namespace:
    """Write lines of recipe, fold, NLL by group and hits by group, with two slices a group."""
    texts = [
        json.dumps(
            {
                **{"data": "d", "seed": 0, "study": "s", "fold": fold, "recipe": name},
                **{"options": RECIPES[name], "reference": REFERENCE_OPTIONS},
                "weights": None,
                "time_s": 2.0 if name == "slow" else 1.0,
                "groups": {
                    f"g{fold}{place}": [2, loss, hit]
                    for place, (loss, hit) in enumerate(zip(losses, hits, strict=True))
                },
            }
        )
        for name, fold, losses, hits in lines
    ]
    path.write_text("\n".join(texts) + "\n")
    return argparse.Namespace(
        log=path, data=Path("x/d"), seed=0, study="s", reference=REFERENCE_OPTIONS, digests={}
    )


def test_differences_are_paired_by_group(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(recipe_study, "RECIPES", RECIPES)
    options = write_log(
        tmp_path / "log.jsonl",
        (REFERENCE, 1, [1.0, 0.2], [1, 2]),
        ("slow", 1, [1.4, 0.8], [1, 1]),
        (REFERENCE, 2, [0.5, 0.5], [2, 2]),  # not of both: ignored
    )
    row = compare(options, "slow")
    assert (row["folds"], row["n"], row["n_groups"]) == ([1], 4, 2)
    assert row["nll"] == pytest.approx(2.2 / 4)
    assert row["nll_difference"] == pytest.approx(1.0 / 4)
    assert row["accuracy_difference"] == pytest.approx(-1 / 4)
    # sums of the groups differ from the mean by -0.1 and 0.1; two groups, n / (n - 1) = 2
    assert row["nll_error"] == pytest.approx(np.sqrt(2 * 0.02) / 4)
    assert row["relative_time"] == 2
    assert is_worse(row)
    assert not is_worse({**row, "nll_error": 0.2})
    assert not is_worse({**row, "nll_difference": -1.0})
    assert "| slow | `--lr 0.0001` | 1 | 0.5500 | 0.5000 | +0.2500" in format_row("slow", row)
    assert compare(options, REFERENCE)["nll_difference"] == 0
    others = {"study": "t"}, {"seed": 1}, {"reference": "--model net"}, {"digests": {"net": "w"}}
    for change in others:
        assert compare(argparse.Namespace(**{**vars(options), **change}), "slow") == {"folds": []}
    with options.log.open("a") as file:
        file.write('{"data": "d", "se')
    with pytest.raises(UserError, match="a line is cut off"):
        compare(options, "slow")


def test_each_model_has_its_weights(tmp_path: Path, capsys: Capture) -> None:
    first, second = tmp_path / "a=b.pth", tmp_path / "c.pth"
    first.write_bytes(b"a")
    second.write_bytes(b"c")
    weights = [
        recipe_study.read_weights(f"{model}={path}")
        for model, path in (("mobilenet_v2", first), ("timm/tf_efficientnet_lite2", second))
    ]
    options = argparse.Namespace(
        reference=recipe_study.REFERENCE_OPTIONS, weights=weights, data=tmp_path, threads=1, seed=0
    )
    for name, path in (("mixup", first), ("EfficientNet-Lite2", second)):
        assert build_config(options, name).model.weights == path
    options.weights.append(("mixup", second))
    assert build_config(options, "mixup").model.weights == second
    del options.weights[-1]
    options.reference = "--model net"
    assert build_config(options, "mixup").model.weights is None
    for wrong in ("mobilenet_v2", f"mobilenet_v2={tmp_path / 'none.pth'}"):
        with pytest.raises(SystemExit):
            recipe_study.main([str(tmp_path), "--log", "x", "--weights", wrong])
        assert "write NAME=FILE, with a file that exists" in capsys.readouterr().err


@pytest.mark.parametrize("name", recipe_study.NETS)
def test_other_networks_are_small_and_end_with_the_recipe(name: str) -> None:
    def count() -> int:
        return sum(each.numel() for each in net.SliceNet(3).parameters())

    usual, constants = count(), dict(vars(net))
    with recipe_study.vary_net(recipe_study.NETS[name]):
        assert vars(net) != constants
        assert count() <= 1_500_000
    assert vars(net) == constants
    assert count() == usual
    assert name in recipe_study.RECIPES
    assert json.loads(json.dumps(recipe_study.NETS)) == recipe_study.NETS  # as in a line of the log


def test_lines_of_another_variant_are_not_reused(tmp_path: Path, monkeypatch: Patch) -> None:
    options = argparse.Namespace(
        **{"study": "s", "seed": 0, "weights": [], "digests": {}},
        **{"reference": "--model net", "log": tmp_path / "log.jsonl"},
    )
    line = {"fold": 1, **recipe_study.identify_recipe(options, "wider")}
    options.log.write_text(json.dumps(line) + "\n")
    assert recipe_study.find_lines(options, "wider") == [line]
    monkeypatch.setitem(recipe_study.NETS, "wider", {"WIDTHS": [28, 56, 112, 160]})
    assert recipe_study.find_lines(options, "wider") == []


def test_variants_of_the_custom_network_need_it(
    phantom_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    command = [str(phantom_dir), "--log", str(tmp_path / "log.jsonl"), "--recipes", "wider"]
    assert recipe_study.main(command) == 1
    assert 'wider: a variant of net; give --reference "--model net' in capsys.readouterr().err


def test_the_test_split_takes_no_part(phantom_dir: Path) -> None:
    import dataset

    whole = dataset.load_table(phantom_dir)
    kept = set(whole["path"][whole["split"] != recipe_study.TEST])
    tables = divide(phantom_dir)
    assert len(tables) == recipe_study.FOLDS
    held_out = [path for table in tables for path in table["path"][table["split"] == "test"]]
    assert sorted(held_out) == sorted(kept)


def test_a_share_of_the_training_patients_is_kept(phantom_dir: Path) -> None:
    table = divide(phantom_dir)[0]
    assert recipe_study.keep_share(table, 1.0).equals(table)
    kept = recipe_study.keep_share(table, 0.5)
    for split in ("val", recipe_study.TEST):
        assert (kept["split"] == split).sum() == (table["split"] == split).sum()
    before, after = (
        each[each["split"] == "train"].groupby("label")["group"].unique() for each in (table, kept)
    )
    for label, groups in before.items():
        assert len(after[label]) == round(len(groups) / 2)
        assert set(after[label]) < set(groups)
    whole = table[table["group"].isin(set(kept["group"]))]
    assert len(kept) == len(whole)  # no group is divided


@pytest.mark.integration
def test_folds_are_trained_once_and_losers_stop(
    phantom_dir: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(recipe_study, "RECIPES", RECIPES)
    monkeypatch.setattr(recipe_study, "MIN_FOLDS", 1)
    path, figures = tmp_path / "log.jsonl", tmp_path / "figures.json"
    command = [str(phantom_dir), "--log", str(path), "--json", str(figures), "--folds", "2"]
    command += ["--reference", REFERENCE_OPTIONS]
    monkeypatch.setattr(recipe_study, "is_worse", lambda row: True)
    calibrated: list[int] = []

    def fit(logits: Any, labels: Any, groups: Any) -> float:
        calibrated.append(len(labels))
        return 1.0

    monkeypatch.setattr(recipe_study, "fit_temperature", fit)
    assert recipe_study.main(command) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["recipe"], line["fold"]) for line in lines] == [
        *((REFERENCE, 1), ("slow", 1), (REFERENCE, 2))
    ]
    splits = [table["split"].value_counts() for table in divide(phantom_dir)]
    assert calibrated == [splits[line["fold"] - 1]["val"] for line in lines]
    scored = [sum(n for n, *_ in line["groups"].values()) for line in lines]
    assert scored == [splits[line["fold"] - 1]["test"] for line in lines]
    assert [len(line["epochs"]) for line in lines] == [1, 1, 1]
    assert "| slow |" in capsys.readouterr().out
    rows = json.loads(figures.read_text())["recipes"]
    assert rows["slow"]["folds"] == [1]
    monkeypatch.setattr(recipe_study, "train_fold", lambda *_: pytest.fail("trained again"))
    assert recipe_study.main(command) == 0
