"""What checkpoints say of the slices of a split: judged, pooled over folds, averaged.

The road from a checkpoint and the manifest to calibrated probabilities and prediction sets. Whether
a run has seen a slice, or a copy of one, is decided here, from what the checkpoint itself recorded.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import dataset
import helper
import model
from evaluation import baselines, calibration
from evaluation.metrics import softmax
from helper import UserError
from loading.image_source import Slices
from loading.memory_budget import measure_budget_mib
from modeling import checkpoint as checkpoints
from modeling.precision import keep_freed_memory
from preparation import integrity

SLICES_A_CHUNK = 256
CPU = torch.device("cpu")

LEAKY_SPLIT = (
    "LEAKY SPLIT (--split-by image): copies of one slice stand in training and test; "
    "these figures measure the leak, not the classifier"
)
COPIES_UNKNOWN = (
    "UNCHECKED: copies were not searched for in this data: they may stand in training and test, so "
    "these figures are likely too high; run prepare.py again"
)
PHANTOM = "PHANTOM: generated slices; nothing here says anything about patients"


@dataclass(frozen=True)
class Verdicts:
    """What one network, several folds or an ensemble say of slices.

    Attributes:
        path: Of the checkpoint, or of the folder of folds.
        checkpoints: The content of each checkpoint that had a say.
        rows: The manifest's rows of the slices.
        labels: Class indices [N].
        calibrated: Probabilities [N, K], prediction sets and what else was fitted on val.
        raw_probs: [N, K], plain softmax of the logits.
        baseline_hits: Of the two that know no anatomy, how far each is right [N], 0 to 1.
        related: [N] whether a copy or likely neighbour is among the training slices.
        warnings: What a reader must know first.
        parts: What a network alone said, with its slices still at hand.
        is_average: Whether every slice was judged by all checkpoints, and their mean counts.
    """

    path: Path
    checkpoints: list[dict[str, Any]]
    rows: pd.DataFrame
    labels: np.ndarray
    calibrated: calibration.Calibrated
    raw_probs: np.ndarray
    baseline_hits: dict[str, np.ndarray]
    related: np.ndarray
    warnings: list[str]
    parts: "list[Part]"
    is_average: bool = False

    @property
    def classes(self) -> list[str]:
        """The class names in the order of the outputs."""
        return list(self.checkpoints[0]["classes"])

    @property
    def correct(self) -> np.ndarray:
        """[N] whether the likeliest class is the true one."""
        return self.calibrated.probs.argmax(axis=1) == self.labels

    @property
    def baselines(self) -> dict[str, float]:
        """Accuracies of the two that know no anatomy, on the same slices."""
        return {name: float(hits.mean()) for name, hits in self.baseline_hits.items()}

    def take(self, kept: np.ndarray) -> "Verdicts":
        """The same verdicts on some of the slices, by position."""
        return replace(
            self,
            rows=self.rows.iloc[kept].reset_index(drop=True),
            labels=self.labels[kept],
            calibrated=self.calibrated.take(kept),
            raw_probs=self.raw_probs[kept],
            baseline_hits={name: hits[kept] for name, hits in self.baseline_hits.items()},
            related=self.related[kept],
            parts=[],
        )


@dataclass(frozen=True)
class Part:
    """One network and the slices that it judged."""

    network: model.Classifier
    slices: Slices
    calibration: dict[str, Any] | None


def judge_run(path: Path, split: str, data: Path | None, **how: Any) -> Verdicts:
    """The verdicts of a checkpoint, or of all folds of a run with --folds together.

    Args:
        path: best.pt, or the folder of a run with --folds.
        split: `test`, `val`, `train` or `all`.
        data: Another folder that prepare.py wrote; None: the run's own.
        how: `device`, `batch_size`, `threads` of `judge`.

    Raises:
        UserError: As `judge`; or folds are incomplete or overlap, or a split was asked of them.
    """
    paths = list_fold_checkpoints(path)
    if not paths:
        return judge(path, split, data, **how)
    if split != "test":
        raise UserError(
            f"{path}: pooled folds are judged on the slices that each has not seen; "
            "leave out --split, or name the best.pt of one fold"
        )
    return pool_folds(path, [judge(fold, split, data, **how) for fold in paths])


def list_fold_checkpoints(run_dir: Path) -> list[Path]:
    """The best.pt of every fold of a run with --folds; none where the path is no such run's.

    Raises:
        UserError: A fold is missing or has not finished an epoch.
    """
    if not run_dir.is_dir() or not (run_dir / "config.json").is_file():
        return []
    n_folds = json.loads((run_dir / "config.json").read_text("utf-8"))["data"].get("folds") or 0
    paths = [run_dir / f"fold_{fold}" / "best.pt" for fold in range(1, n_folds + 1)]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing; go on with python main.py --resume {run_dir}")
    return paths


def judge(
    path: Path, split: str, data: Path | None, *, device: str, batch_size: int, threads: int
) -> Verdicts:
    """Load one checkpoint and let it judge the slices of its split.

    Raises:
        UserError: No finished epoch, slices missing, a class that it does not know.
    """
    kept = checkpoints.load_run(path)
    if not kept["best"]:
        raise UserError(
            f"{path}: no epoch is finished; go on with python main.py --resume {path.parent}"
        )
    keep_freed_memory()
    helper.set_threads(threads or kept["threads"])
    network = checkpoints.restore_model(kept, path).to(helper.resolve_device(device))
    data_dir = data or Path(kept["data"])
    table = dataset.assign_split(dataset.load_table(data_dir), kept["split"])
    rows = select_rows(table, kept, split, data_dir)
    integrity.check_used(data_dir, set(rows["path"]))
    image_size = network.preprocess.image_size
    wanted_mib = len(rows) * image_size**2 / 2**20
    slices = dataset.take_slices(
        table,
        split,
        data_dir,
        kept["classes"],
        image_size,
        in_memory=wanted_mib <= measure_budget_mib(CPU),
    )
    logits = model.infer(network, slices.iterate(batch_size))[0].numpy()
    check_finite(logits, path)
    labels = slices.labels.numpy()
    return Verdicts(
        path=path,
        checkpoints=[kept],
        rows=rows.reset_index(drop=True),
        labels=labels,
        calibrated=calibration.apply_calibration(kept.get("calibration"), logits),
        raw_probs=softmax(logits),
        baseline_hits={
            name: hits.astype(float)
            for name, hits in baselines.judge_baselines(
                kept["baselines"], measure_brightness(slices), labels
            ).items()
        },
        related=dataset.find_relatives(table, rows) & (split in {"test", "val"}),
        warnings=list_warnings(kept, table, split, data_dir),
        parts=[Part(network, slices, kept.get("calibration"))],
    )


def measure_brightness(slices: Slices) -> np.ndarray:
    """The seven statistics that know no anatomy, of every slice: [N, 7]."""
    return np.concatenate(
        [
            baselines.compute_brightness_statistics(pixels.squeeze(1).cpu().numpy())
            for pixels in slices.iterate(SLICES_A_CHUNK)
        ]
    )


def check_finite(logits: np.ndarray, path: Path) -> None:
    """Make sure that every slice got a verdict.

    Raises:
        UserError: Logits are NaN or infinite; says of how many slices.
    """
    n_bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if n_bad:
        raise UserError(
            f"{path}: {n_bad} of {len(logits)} images have logits that are NaN or infinite; "
            "use another checkpoint or train again with a lower learning rate"
        )


def pool_folds(path: Path, folds: Sequence[Verdicts]) -> Verdicts:
    """The verdicts of several folds as one.

    Raises:
        UserError: A slice is judged by more than one fold.
    """
    rows = pd.concat([fold.rows for fold in folds], ignore_index=True)
    if rows["path"].duplicated().any():
        raise UserError(f"{path}: its folds overlap; start a new run")
    return Verdicts(
        path=path,
        checkpoints=[kept for fold in folds for kept in fold.checkpoints],
        rows=rows,
        labels=np.concatenate([fold.labels for fold in folds]),
        calibrated=calibration.Calibrated.concatenate([fold.calibrated for fold in folds]),
        raw_probs=np.concatenate([fold.raw_probs for fold in folds]),
        baseline_hits={
            name: np.concatenate([fold.baseline_hits[name] for fold in folds])
            for name in folds[0].baseline_hits
        },
        related=np.concatenate([fold.related for fold in folds]),
        warnings=[
            *dict.fromkeys(line for fold in folds for line in fold.warnings),
            f"pooled over {len(folds)} folds: each slice is judged once, by the "
            "network that was not trained on its fold",
        ],
        parts=[part for fold in folds for part in fold.parts],
    )


def align(judged: Sequence[Verdicts]) -> list[Verdicts]:
    """The verdicts of several runs on the slices that all of them judged, in one order.

    Raises:
        UserError: Their classes differ, or they have no slice in common.
    """
    first = judged[0]
    for other in judged[1:]:
        if other.classes != first.classes:
            raise UserError(
                f"{other.path} knows {', '.join(other.classes)}, {first.path} knows "
                f"{', '.join(first.classes)}; compare runs of the same classes"
            )
    keys = [pd.MultiIndex.from_frame(each.rows[["path", "sha256"]]) for each in judged]
    common = keys[0]
    for other_keys in keys[1:]:
        common = common.intersection(other_keys)
    if not len(common):
        raise UserError(
            f"{', '.join(str(each.path) for each in judged)}: no slice is in the test of all of "
            "them; train them on the same data with the same --split-by and --split-seed, or use "
            "--folds"
        )
    common = common.sort_values()
    return [each.take(own.get_indexer(common)) for each, own in zip(judged, keys, strict=True)]


def average_members(members: Sequence[Verdicts]) -> Verdicts:
    """The ensemble: the mean of the members' calibrated probabilities, slices aligned.

    It has no prediction sets, for none were fitted to it.

    Source: Lakshminarayanan et al. 2017, Simple and scalable predictive uncertainty estimation
    using deep ensembles.
    """
    first = members[0]
    return replace(
        first,
        checkpoints=[kept for member in members for kept in member.checkpoints],
        calibrated=calibration.Calibrated(
            np.mean([member.calibrated.probs for member in members], axis=0)
        ),
        raw_probs=np.mean([member.raw_probs for member in members], axis=0),
        baseline_hits={
            name: np.mean([member.baseline_hits[name] for member in members], axis=0)
            for name in first.baseline_hits
        },
        related=np.any([member.related for member in members], axis=0),
        warnings=list(dict.fromkeys(line for member in members for line in member.warnings)),
        parts=[],
        is_average=True,
    )


def select_rows(
    table: pd.DataFrame, kept: dict[str, Any], split: str, data_dir: Path
) -> pd.DataFrame:
    """The rows of the split that the run itself recorded; all of them must be there.

    Raises:
        UserError: Slices of the split are missing, or a class is unknown to the checkpoint.
    """
    rows = table if split == "all" else table[table["split"] == split]
    if split != "all":
        dataset.check_complete(table, kept["split"], split, data_dir, kept["run"])
    unknown = sorted(set(rows["label"]) - set(kept["classes"]))
    if unknown:
        raise UserError(
            f"{data_dir}: class {', '.join(unknown)} is unknown to the checkpoint, which was "
            f"trained on {', '.join(kept['classes'])}; rename or remove that folder"
        )
    return rows


def list_warnings(
    kept: dict[str, Any], table: pd.DataFrame, split: str, data_dir: Path
) -> list[str]:
    """What a reader of the figures must know first."""
    warnings = []
    if kept["phantom"] or dataset.is_phantom(data_dir):
        warnings.append(PHANTOM)
    if kept["config"]["data"]["split_by"] == "image":
        warnings.append(LEAKY_SPLIT)
    if not dataset.has_found_copies(data_dir):
        warnings.append(COPIES_UNKNOWN)
    known = int((table["split"] != "").sum())
    learnt = int((table["split"] == "train").sum())
    if split in {"train", "val"}:
        warnings.append(
            f"SEEN: these are the {split} slices, which the run has learnt from or chosen by"
        )
    elif split == "all" and not known:
        warnings.append(
            "OTHER DATA: no file here is identical to one of the run; whether slices are copies of "
            "slices of the run was not looked for"
        )
    elif split == "all":
        warnings.append(
            f"SEEN: {known} of these {len(table)} slices belong to the run; it was trained on "
            f"{learnt}"
        )
    return warnings


def describe_leak(verdicts: Verdicts) -> list[str]:
    """The warning of a leak, where slices judged have relatives among those learnt from."""
    n_related = int(verdicts.related.sum())
    if not n_related:
        return []
    return [
        f"LEAK: {n_related} of these {len(verdicts.labels)} slices have a copy or likely "
        "neighbour among the training slices of the run; the figures are too high"
    ]
