"""Targets of a training run from the out-of-fold probabilities of another run: `--teacher`.

The teacher is a run with --folds. A training slice is taught by the network of the fold that was
not trained on it, and by its label.

Source: Hinton et al. 2015, Distilling the knowledge in a neural network; out-of-fold predictions
after Wolpert 1992, Stacked generalization.
"""

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from common import run_paths
from common.portable_names import quote
from evaluation.calibration import average_softmax
from evaluation.fitted import Run, load_held_out
from evaluation.held_out import HeldOut
from helper import UserError
from model import Preprocess
from modeling import members
from preparation.splits import HELD_OUT
from runs.run_folder import read_config
from runs.transfer import describe_transfer


def build_targets(teacher: Path, weight: float, table: pd.DataFrame, classes: list[str]) -> Tensor:
    """Return the class probabilities that the training slices of a table are trained on, [N, K].

    They are `weight` times the out-of-fold probabilities of the teacher, plus `1 - weight` times
    those of the label.

    Args:
        teacher: session/RUN of a run with --folds.
        weight: Share of the teacher, 0 to 1.
        table: Manifest with the splits of the new run.
        classes: Class names in the order of the outputs.

    Raises:
        UserError: The teacher is no finished run with --folds or has other classes, lacks a
            training slice, or was trained on slices that the new run is to be tested on.
    """
    option = f"--teacher {quote(teacher)}"
    if not members.is_run(teacher) or not members.is_folds(teacher):
        raise UserError(f"{option}: not session/RUN of a run with --folds; train one first")
    checkpoints = [members.load_best(path) for path in members.list_checkpoints(teacher)]
    if checkpoints[0]["classes"] != classes:
        raise UserError(
            f"{option} has the classes {', '.join(checkpoints[0]['classes'])}, these data "
            f"{', '.join(classes)}; use a teacher of the same classes"
        )
    held_out = load_held_out(Run(teacher, checkpoints))
    if held_out is None:
        raise UserError(
            f"{option} has no out-of-fold outputs; finish it: --resume {quote(teacher)}"
        )
    _check_unseen(option, teacher, held_out, table, Preprocess(**checkpoints[0]["preprocess"]))
    rows = table[table["split"] == "train"]
    row_of = {digest: row for row, digest in enumerate(held_out.sha256)}
    missing = rows["path"][~rows["sha256"].isin(held_out.sha256)]
    if len(missing):
        raise UserError(
            f"{option} has no outputs for {len(missing)} of {len(rows)} training slices, such as "
            f"{missing.iloc[0]}; train it on the same data"
        )
    chosen = [row_of[digest] for digest in rows["sha256"]]
    probs = average_softmax(held_out.logits[:, chosen])
    labels = torch.tensor([classes.index(label) for label in rows["label"]])
    hard = F.one_hot(labels, len(classes)).float()
    return weight * torch.from_numpy(probs).float() + (1 - weight) * hard


def _check_unseen(
    option: str, teacher: Path, held_out: HeldOut, table: pd.DataFrame, preprocess: Preprocess
) -> None:
    """Raise a UserError if a teacher, or its initial weights, know slices to be tested on."""
    tested = table[table["split"] == HELD_OUT]
    too_high = "so that the figures of this run would be too high"
    if n_seen := int(tested["sha256"].isin(held_out.sha256).sum()):
        raise UserError(
            f"{option} was trained on {n_seen} of the {len(tested)} slices that this run is to be "
            f"tested on, {too_high}; train it with --folds K --keep-test on this data folder"
        )
    if n_related := int(tested["group"].isin(held_out.groups).sum()):
        raise UserError(
            f"{option} was trained on slices of the groups of {n_related} slices that this run is "
            f"to be tested on, {too_high}; use data whose split divides no group"
        )
    weights = read_config(teacher / "config.json").model.weights
    weights = None if weights is None else run_paths.locate(weights, teacher)
    if weights is not None and weights.is_file():
        for line in describe_transfer(weights, preprocess, table):
            if "LEAK" in line:
                raise UserError(
                    f"{option} started from other weights ({line.removeprefix('note: ')}); train "
                    "it from weights that do not know these slices"
                )
