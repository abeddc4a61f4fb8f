"""How far a network's verdicts hold when slices are turned, degraded, or robbed of their anatomy.

Source: Hendrycks and Dietterich 2019, Benchmarking neural network robustness to common corruptions
and perturbations; Geirhos et al. 2020, Shortcut learning in deep neural networks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import model
from evaluation import baselines, corruptions, intervals
from evaluation.predictions import Part, Verdicts

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels], Pixels]


def run_stress(verdicts: Verdicts, batch_size: int) -> dict[str, Any]:
    """Judge changed copies of the slices; all changes are made at the size of the network.

    Args:
        verdicts: Of one run, or of pooled folds: each network judges its own slices.
        batch_size: Slices a forward pass.

    Returns:
        `clean`: accuracy of the slices as they are, and `majority`, what naming their commonest
        class reaches. `positions`: accuracy in each of the eight, and `position_agreement`: share
        of slices with one verdict in all of them. `corruptions`: for each kind a list of strengths
        1 to 5. `probes`: `blank_interior`, on the slices in which a head was found (their share:
        `covered`), and `matched_brightness`, each beside what brightness alone and the commonest
        class reach on the same changed slices. Accuracies have intervals.
    """
    plain = [part.slices.pixels.squeeze(1).numpy() for part in verdicts.parts]  # [N, S, S] each
    steps = len(corruptions.POSITIONS) + 5 * len(corruptions.CORRUPTIONS) + 2
    with tqdm(total=steps, desc="stress", unit="change", leave=False, disable=None) as bar:

        def predict(changed: Sequence[Pixels]) -> NDArray[np.int64]:
            bar.update()
            pairs = zip(verdicts.parts, changed, strict=True)
            return np.concatenate([_predict(part, pixels, batch_size) for part, pixels in pairs])

        def ask(change: Change) -> NDArray[np.int64]:
            return predict([change(pixels) for pixels in plain])

        placed = {name: ask(_place(name)) for name in corruptions.POSITIONS}
        by_corruption = {
            name: [
                {
                    "strength": strength,
                    "what": corruptions.describe(name, strength),
                    "accuracy": _describe(verdicts, ask(_corrupt(name, strength))),
                }
                for strength in corruptions.STRENGTHS
            ]
            for name in corruptions.CORRUPTIONS
        }
        blanked, covered = zip(*map(corruptions.blank_interior, plain), strict=True)
        match = _match_to(plain)
        matched = [match(pixels) for pixels in plain]
        probes = {
            "blank_interior": _judge_probe(
                verdicts, predict(blanked), blanked, np.concatenate(covered)
            ),
            "matched_brightness": _judge_probe(
                verdicts, predict(matched), matched, np.ones(len(verdicts.labels), dtype=bool)
            ),
        }
    everywhere = np.stack(list(placed.values()))
    return {
        "clean": _describe(verdicts, verdicts.calibrated.probs.argmax(axis=1)),
        "majority": _measure_majority(verdicts.labels),
        "positions": {name: _describe(verdicts, predicted) for name, predicted in placed.items()},
        "position_agreement": float(np.mean((everywhere == everywhere[0]).all(axis=0))),
        "corruptions": by_corruption,
        "probes": probes,
    }


def _describe(
    verdicts: Verdicts, predicted: NDArray[np.int64], counted: NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    """Accuracy with its interval, of all slices or of those that count."""
    right = predicted == verdicts.labels
    hits, trials = (right, None) if counted is None else (right & counted, counted)
    estimate = intervals.estimate_ratio(hits, trials)
    return intervals.describe(estimate, verdicts.rows["group"].to_numpy())


def _measure_majority(labels: NDArray[np.int64]) -> float | None:
    return float(np.bincount(labels).max() / len(labels)) if len(labels) else None


def _judge_probe(
    verdicts: Verdicts,
    predicted: NDArray[np.int64],
    changed: Sequence[Pixels],
    counted: NDArray[np.bool_],
) -> dict[str, Any]:
    """A network on the slices that a probe changed, beside two that know no anatomy."""
    labels, groups = verdicts.labels[counted], verdicts.rows["group"].to_numpy()[counted]
    known = None
    if len(labels):
        statistics = baselines.compute_brightness_statistics(np.concatenate(changed)[counted])
        known = baselines.cross_validate_brightness(statistics, labels, groups)
    return {
        "covered": float(counted.mean()),
        "accuracy": _describe(verdicts, predicted, counted),
        "majority": _measure_majority(labels),
        "brightness": known["brightness"] if known else None,
    }


def describe_shortcut(stress: dict[str, Any]) -> list[str]:
    """The warning of a shortcut, where a network names classes of slices without a brain."""
    blank = stress["probes"]["blank_interior"]
    interval, majority, beside = (
        blank["accuracy"]["ci95"],
        blank["majority"],
        blank["brightness"],
    )
    if interval is None or interval[0] <= majority:
        return []
    known = "" if beside is None else f"; brightness alone reaches {beside:.0%} on such slices"
    return [
        f"SHORTCUT: with the inside of the head blanked the network still names the right class of "
        f"{blank['accuracy']['value']:.0%} of the slices (their commonest class: {majority:.0%}"
        f"{known}): a part of its accuracy comes from outline, rim, place or compression, not from "
        "the brain"
    ]


def _predict(part: Part, pixels: Pixels, batch_size: int) -> NDArray[np.int64]:
    batches = iter(torch.from_numpy(pixels).unsqueeze(1).split(batch_size))
    return model.infer(part.network, batches)[0].argmax(dim=1).numpy()


def _place(name: str) -> Change:
    return lambda pixels: corruptions.place(pixels, name)


def _corrupt(name: str, strength: int) -> Change:
    return lambda pixels: corruptions.corrupt(pixels, name, strength)


def _match_to(plain: Sequence[Pixels]) -> Change:
    """All slices to one histogram, the mean of all that are judged."""
    try:
        reference = corruptions.compute_reference(np.concatenate(plain))
    except ValueError:  # no slice has a foreground: there is nothing to match
        return lambda pixels: pixels
    return lambda pixels: corruptions.match_brightness(pixels, reference)
