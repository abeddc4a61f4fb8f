"""The comparison of duplicate searches: what is written, and how pairs are scored."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments.rivals import compare


def test_pairs_are_scored_by_planted_copies_and_classes() -> None:
    label_of = {"a": "x", "b": "x", "c": "y", "copy of a": "x", "copy of c": "y"}
    original_of = {"copy of a": "a", "copy of c": "c"}
    rows = [("copy of a", "a", 5), ("a", "b", 9), ("b", "c", 3), ("copy of c", "b", 9)]
    pairs = pd.DataFrame(rows, columns=["first", "second", "score"])
    figures = compare.describe_pairs(pairs, label_of, original_of)
    assert figures["recall"]["value"] == 0.5
    assert figures["other_pairs"] == 2
    assert figures["other_pairs_of_one_class"] == 0.5
    assert figures["recall_at_0.99_of_one_class"]["value"] == 0.0  # its threshold is 9


def test_the_own_search_finds_planted_phantoms(phantom_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "rivals.json"
    command = ["--data", str(phantom_dir), "--python", sys.executable, "--weights", "none.pth"]
    command += ["--count", "10", "--only", compare.OWN, "--json", str(output)]
    assert compare.main(command) == 0
    figures = json.loads(output.read_text())
    assert figures["rows"][compare.OWN]["recall"]["value"] == 1.0
    assert figures["planted"] == 10


def test_a_failing_search_is_reported(phantom_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["--data", str(phantom_dir), "--python", sys.executable, "--weights", "none.pth"]
    assert compare.main([*command, "--count", "2", "--only", "cleanvision"]) == 1
    assert "cleanvision failed with status 1" in capfd.readouterr().err
