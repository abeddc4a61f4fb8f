"""Accuracy on rotated and corrupted slices, and on probes that remove the anatomy.

Source: Hendrycks and Dietterich 2019, Benchmarking neural network robustness to common corruptions
and perturbations; Geirhos et al. 2020, Shortcut learning in deep neural networks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation import baselines, corruptions, intervals
from evaluation.ensembles import Predictions
from imaging.brightness import compute_brightness_statistics
from modeling import forward

Pixels = NDArray[np.uint8]
Predict = Callable[[Sequence[Pixels]], NDArray[np.int64]]


def run_stress(predictions: Predictions, batch_size: int) -> dict[str, Any]:
    """Predict changed slices; all changes are made at the input size of the network.

    Args:
        predictions: Of one run, or of pooled folds: each network predicts its own slices.
        batch_size: Slices in a forward pass.

    Returns:
        `clean`: accuracy on the unchanged slices, and `majority`: share of their most frequent
        class. `orientations`: accuracy in each of the eight, and `orientation_agreement`: share of
        slices with the same prediction in all of them. `corruptions`: for each kind a list of
        strengths 1 to 5. `probes`: `blank_interior`, on the slices in which a head was found
        (their share: `covered`), and `matched_brightness`, each with the accuracies of the
        majority-class and brightness baselines on the changed slices. Accuracies have intervals.
    """
    members = predictions.member_slices
    plain = [  # [N, S, S] each, on the host
        torch.cat([pixels.cpu() for pixels in member.slices.iterate(batch_size)]).squeeze(1).numpy()
        for member in members
    ]
    steps = len(corruptions.ORIENTATIONS) + 5 * len(corruptions.CORRUPTIONS) + 2
    with tqdm(total=steps, desc="stress", unit="change", leave=False, disable=None) as bar:

        def predict(changed: Sequence[Pixels]) -> NDArray[np.int64]:
            bar.update()
            found = []
            for member, pixels in zip(members, changed, strict=True):
                batches = iter(torch.from_numpy(pixels).unsqueeze(1).split(batch_size))
                found.append(forward.predict_logits(member.network, batches)[0].argmax(dim=1))
            return torch.cat(found).numpy()

        oriented = {
            name: predict([corruptions.orient(pixels, name) for pixels in plain])
            for name in corruptions.ORIENTATIONS
        }
        by_corruption = {
            name: [
                {
                    "strength": strength,
                    "what": corruptions.describe(name, strength),
                    "accuracy": _describe(
                        predictions,
                        predict([corruptions.corrupt(pixels, name, strength) for pixels in plain]),
                    ),
                }
                for strength in corruptions.STRENGTHS
            ]
            for name in corruptions.CORRUPTIONS
        }
        probes = _run_probes(predictions, plain, predict)
    all_oriented = np.stack(list(oriented.values()))
    return {
        "clean": _describe(predictions, predictions.calibrated.probs.argmax(axis=1)),
        "majority": _compute_majority(predictions.labels),
        "orientations": {name: _describe(predictions, found) for name, found in oriented.items()},
        "orientation_agreement": float(np.mean((all_oriented == all_oriented[0]).all(axis=0))),
        "corruptions": by_corruption,
        "probes": probes,
    }


def _run_probes(
    predictions: Predictions, plain: Sequence[Pixels], predict: Predict
) -> dict[str, dict[str, Any]]:
    """Score the two probes; brightness is matched to the mean histogram of all slices."""
    blanked, has_head = zip(*map(corruptions.blank_interior, plain), strict=True)
    try:
        reference = corruptions.compute_reference(np.concatenate(plain))
        matched = [corruptions.match_brightness(pixels, reference) for pixels in plain]
    except ValueError:  # no slice has a foreground
        matched = list(plain)
    return {
        "blank_interior": _score_probe(predictions, predict, blanked, np.concatenate(has_head)),
        "matched_brightness": _score_probe(
            predictions, predict, matched, np.ones(len(predictions.labels), dtype=bool)
        ),
    }


def _score_probe(
    predictions: Predictions,
    predict: Predict,
    changed: Sequence[Pixels],
    is_counted: NDArray[np.bool_],
) -> dict[str, Any]:
    """Compute the accuracies of the network and of the baselines on the counted slices."""
    labels, groups = predictions.labels, predictions.rows["group"].to_numpy()
    baseline = None
    if is_counted.any():
        statistics = compute_brightness_statistics(np.concatenate(changed)[is_counted])
        baseline = baselines.cross_validate_brightness(
            statistics, labels[is_counted], groups[is_counted]
        )
    return {
        "covered": float(is_counted.mean()),
        "accuracy": _describe(predictions, predict(changed), is_counted),
        "majority": _compute_majority(labels[is_counted]),
        "brightness": baseline["brightness"] if baseline else None,
    }


def _describe(
    predictions: Predictions,
    predicted: NDArray[np.int64],
    is_counted: NDArray[np.bool_] | bool = True,
) -> dict[str, Any]:
    """Compute the accuracy on the counted slices with its interval."""
    is_right = predicted == predictions.labels
    trials = np.broadcast_to(is_counted, is_right.shape)
    estimate = intervals.estimate_ratio(is_right & is_counted, trials)
    return intervals.describe(estimate, predictions.rows["group"].to_numpy())


def _compute_majority(labels: NDArray[np.int64]) -> float | None:
    return float(np.bincount(labels).max() / len(labels)) if len(labels) else None


def describe_shortcut(stress: dict[str, Any]) -> list[str]:
    """Return a warning if the network beats the majority class with the head's inside blanked."""
    probe = stress["probes"]["blank_interior"]
    interval, majority, brightness = (
        probe["accuracy"]["ci95"],
        probe["majority"],
        probe["brightness"],
    )
    if interval is None or interval[0] <= majority:
        return []
    baseline = "" if brightness is None else f", brightness baseline {brightness:.0%}"
    return [
        "SHORTCUT: with the inside of the head blanked the network is still right about "
        f"{probe['accuracy']['value']:.0%} of the slices (majority class {majority:.0%}{baseline}):"
        " part of its accuracy comes from outline, rim, location or compression, not from the brain"
    ]
