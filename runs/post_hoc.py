"""Calibration and OOD detection: fitted once on val when training ends, stored in best.pt.

The outputs for val are stored, too: calibrations of several networks together are fitted on them.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from evaluation import calibration, ood
from evaluation.held_out import HeldOut
from modeling import activation_stats, checkpoint, forward
from trainer import Trainer

# Largest number of training slices in the OOD reference: 48 MiB at 6,000 statistics each.
REFERENCE_SLICES = 4096


def fit_post_hoc(path: Path, trainer: Trainer, table: pd.DataFrame) -> None:
    """Fit calibration and OOD detector of a finished run and store them in its best.pt.

    Args:
        path: Checkpoint of the best epoch, which is rewritten.
        trainer: Trainer of the run, for its training and val slices.
        table: Manifest with the splits of the run.
    """
    best = checkpoint.load_run(path)
    network = checkpoint.restore_model(best, path).to(trainer.device)
    batch_size, val = trainer.micro_batch, trainer.val
    val_rows = table[table["split"] == "val"]
    groups = val_rows["group"].to_numpy()
    with activation_stats.record_activation_stats(network) as val_stats:
        logits = forward.predict_logits(network, val.iterate(batch_size))[0].numpy()
    labels = val.labels.cpu().numpy()
    best["calibration"] = calibration.fit_calibration(logits, labels, groups, best["classes"])
    train_rows = table[table["split"] == "train"].reset_index(drop=True)
    chosen = choose_reference(train_rows)
    batches = torch.from_numpy(chosen).split(batch_size)
    with activation_stats.record_activation_stats(network) as train_stats:
        embeddings = forward.predict_logits(network, trainer.train.read(batches))[1]
    detector = ood.fit_ood_detector(
        train_stats.collect().numpy(), val_stats.collect().numpy(), groups
    )
    best["val_outputs"] = HeldOut.of_rows(
        val_rows, labels, logits[None], detector.val_distances[None]
    ).to_record()
    best["reference"] = {
        "sha256": train_rows["sha256"].iloc[chosen].tolist(),
        "labels": train_rows["label"].iloc[chosen].tolist(),
        "embeddings": torch.nn.functional.normalize(embeddings).half(),
        "threshold": detector.threshold,
        "mean": torch.from_numpy(detector.mean),
        "deviation": torch.from_numpy(detector.deviation),
        "statistics": torch.from_numpy(detector.statistics).half(),
    }
    checkpoint.save_checkpoint(path, best)


def choose_reference(train_rows: pd.DataFrame) -> np.ndarray:
    """Return positions of one slice per duplicate set, at most REFERENCE_SLICES, evenly spaced."""
    distinct = np.flatnonzero(~train_rows["duplicate_set"].duplicated().to_numpy())
    if len(distinct) <= REFERENCE_SLICES:
        return distinct
    return distinct[np.linspace(0, len(distinct) - 1, REFERENCE_SLICES).round().astype(int)]
