"""Fit the ensemble of a run with --folds when its last fold has ended."""

from pathlib import Path

import torch

from evaluation.fitted import ENSEMBLE_FILE, write_ensemble
from evaluation.predictions import predict_out_of_fold
from helper import log

BATCH_SIZE = 64


def fit_ensemble(run_dir: Path, device: torch.device) -> None:
    """Fit the calibration of the average of all folds on their out-of-fold outputs.

    Every slice is predicted by the network that was not trained on its fold, so no slice calibrates
    a network that has seen it. The result and these outputs are written to ENSEMBLE_FILE. It is a
    file of its own, because it belongs to no single fold, and a fold that is trained again must not
    keep it: it names the weights that it was fitted to.

    Args:
        run_dir: Folder of the run, session/RUN; all folds are finished.
        device: Device of the networks.
    """
    pooled = predict_out_of_fold(
        run_dir, None, device=str(device), batch_size=BATCH_SIZE, threads=0, with_distances=True
    )
    assert pooled.held_out is not None
    fitted = write_ensemble(run_dir, pooled.checkpoints, pooled.held_out)
    assert fitted.calibration is not None
    log.info(
        "%s: temperature %.3f and thresholds of the ensemble, fitted on %s",
        *(run_dir / ENSEMBLE_FILE, fitted.calibration["temperature"], fitted.source),
    )
