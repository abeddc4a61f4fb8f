"""How far a network's verdicts hold when slices are turned, degraded, or robbed of their anatomy.

Source: Hendrycks and Dietterich 2019, Benchmarking neural network robustness to common corruptions
and perturbations; Geirhos et al. 2020, Shortcut learning in deep neural networks.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import model
from assessment import baselines, uncertainty
from imaging import corrupt
from verdicts import Part, Verdicts

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels], Pixels]


def run_stress(verdicts: Verdicts, batch_size: int) -> dict[str, Any]:
    """Judge changed copies of the slices; all changes are made at the size of the network.

    Args:
        verdicts: Of one run, or of pooled folds: each network judges its own slices.
        batch_size: Slices a forward pass.

    Returns:
        `clean`: accuracy of the slices as they are. `positions`: accuracy in each of the eight, and
        `position_agreement`: share of slices with one verdict in all of them. `corruptions`: for
        each kind a list of strengths 1 to 5. `probes`: `blank_interior` and `matched_brightness`,
        with what brightness alone reaches on such slices. Accuracies have intervals.
    """
    labels = verdicts.labels
    groups = verdicts.rows["group"].to_numpy()
    n_classes = len(verdicts.classes)

    def describe(predicted: NDArray[np.int64]) -> dict[str, Any]:
        return uncertainty.describe(uncertainty.estimate_ratio(predicted == labels), groups)

    def measure_brightness(change: Change) -> float | None:
        changed = np.concatenate([change(_take_pixels(part)) for part in verdicts.parts])
        known = baselines.cross_validate_brightness(
            baselines.compute_brightness_statistics(changed), labels, groups
        )
        return known["brightness"] if known else None

    steps = len(corrupt.POSITIONS) + 5 * len(corrupt.CORRUPTIONS) + 2
    with tqdm(total=steps, desc="stress", unit="change", leave=False, disable=None) as bar:

        def predict(change: Change) -> NDArray[np.int64]:
            bar.update()
            return np.concatenate([_predict(part, change, batch_size) for part in verdicts.parts])

        placed = {name: predict(_place(name)) for name in corrupt.POSITIONS}
        positions = {name: describe(predicted) for name, predicted in placed.items()}
        everywhere = np.stack(list(placed.values()))
        corruptions = {
            name: [
                {
                    "strength": strength,
                    "what": corrupt.describe(name, strength),
                    "accuracy": describe(predict(_corrupt(name, strength))),
                }
                for strength in corrupt.STRENGTHS
            ]
            for name in corrupt.CORRUPTIONS
        }
        probes = {
            name: {
                "accuracy": describe(predict(change)),
                "brightness": measure_brightness(change),
            }
            for name, change in (
                ("blank_interior", _blank_interior),
                ("matched_brightness", _match_to(verdicts.parts)),
            )
        }
    share = float(np.bincount(labels, minlength=n_classes).max() / len(labels))
    covered = [corrupt.blank_interior(_take_pixels(part))[1] for part in verdicts.parts]
    probes["blank_interior"]["covered"] = float(np.concatenate(covered).mean())
    return {
        "clean": describe(verdicts.calibrated.probs.argmax(axis=1)),
        "majority": share,
        "positions": positions,
        "position_agreement": float(np.mean((everywhere == everywhere[0]).all(axis=0))),
        "corruptions": corruptions,
        "probes": probes,
    }


def describe_shortcut(stress: dict[str, Any]) -> list[str]:
    """The warning of a shortcut, where a network names classes of slices without a brain."""
    blank = stress["probes"]["blank_interior"]
    low = blank["accuracy"]["ci95"][0]
    if low <= stress["majority"]:
        return []
    beside = blank["brightness"]
    known = "" if beside is None else f"; brightness alone reaches {beside:.0%} on such slices"
    return [
        f"SHORTCUT: with the inside of the head blanked the network still names the right class of "
        f"{blank['accuracy']['value']:.0%} of the slices (the commonest class: "
        f"{stress['majority']:.0%}{known}): a part of its accuracy comes from outline, rim, place "
        "or compression, not from the brain"
    ]


def _predict(part: Part, change: Change, batch_size: int) -> NDArray[np.int64]:
    changed = torch.from_numpy(change(_take_pixels(part))).unsqueeze(1)
    batches: Iterator[torch.Tensor] = iter(changed.split(batch_size))
    return model.infer(part.network, batches)[0].argmax(dim=1).numpy()


def _take_pixels(part: Part) -> Pixels:
    """[N, S, S]."""
    return part.slices.pixels.squeeze(1).numpy()


def _place(name: str) -> Change:
    return lambda pixels: corrupt.place(pixels, name)


def _corrupt(name: str, strength: int) -> Change:
    return lambda pixels: corrupt.corrupt(pixels, name, strength)


def _blank_interior(pixels: Pixels) -> Pixels:
    return corrupt.blank_interior(pixels)[0]


def _match_to(parts: Sequence[Part]) -> Change:
    """All slices to one histogram, the mean of all that are judged."""
    sizes = [len(part.slices) for part in parts]
    references = [corrupt.compute_reference(_take_pixels(part)) for part in parts]
    reference = np.average(references, axis=0, weights=sizes)
    return lambda pixels: corrupt.match_brightness(pixels, reference)
