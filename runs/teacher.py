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

from common.portable_names import quote
from evaluation.calibration import average_softmax
from evaluation.fitted import Run, load_held_out
from helper import UserError
from modeling import members
from preparation.splits import HELD_OUT


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
    tested = table[table["split"] == HELD_OUT]
    is_seen = tested["sha256"].isin(held_out.sha256) | tested["group"].isin(held_out.groups)
    if is_seen.any():
        raise UserError(
            f"{option} was trained on {is_seen.sum()} of the {len(tested)} slices that this run is "
            "to be tested on, or on slices of their groups, so that its figures would be too high; "
            "train the teacher with --folds K --keep-test"
        )
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
