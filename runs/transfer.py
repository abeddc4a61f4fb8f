"""What to know before a network of this program is trained further on other data."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from model import Preprocess
from modeling.weight_files import read_weights


def describe_transfer(weights: Path, preprocess: Preprocess, table: pd.DataFrame) -> list[str]:
    """List what differs if `--weights` is a checkpoint of this program; nothing for other files.

    Args:
        weights: File of `--weights`.
        preprocess: Input format of the new run.
        table: Manifest with the splits of the new run.
    """
    checkpoint = read_weights(weights, "--weights")
    if not isinstance(checkpoint, dict) or "schema" not in checkpoint:
        return []
    return [
        f"note: {weights.name}: {line}"
        for line in (
            *_compare_preprocess(checkpoint.get("preprocess"), preprocess),
            *_compare_classes(checkpoint.get("classes"), sorted(table["label"].unique())),
            *_find_seen(checkpoint.get("split"), table),
        )
    ]


def _compare_preprocess(before: Any, now: Preprocess) -> list[str]:
    if not isinstance(before, dict):
        return []
    return [
        f"{name} was {before[name]}, now {value}"
        for name, value in dataclasses.asdict(now).items()
        if name in before and before[name] != value
    ]


def _compare_classes(before: Any, now: list[str]) -> list[str]:
    if not isinstance(before, list) or before == now:
        return []
    return [f"classes were {', '.join(map(str, before))}; the head for {', '.join(now)} is new"]


def _find_seen(split: Any, table: pd.DataFrame) -> list[str]:
    """Count the held-out slices of the new run that the network was trained on."""
    if not isinstance(split, dict) or not {"sha256", "split"} <= set(split):
        return []
    pairs = zip(split["sha256"], split["split"], strict=False)
    trained = {digest for digest, name in pairs if name == "train"}
    held_out = table[table["split"] != "train"]
    n_seen = int(held_out["sha256"].isin(trained).sum())
    if not n_seen:
        return []
    return [
        f"LEAK: it was trained on {n_seen} of the {len(held_out)} slices that this run holds out; "
        "its figures will be too high"
    ]
