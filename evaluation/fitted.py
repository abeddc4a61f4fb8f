"""Calibration of networks that are used together, and the files that it is stored in.

session/RUN/ensemble.json of a run with --folds holds what was fitted on its out-of-fold outputs,
and these outputs. session/RUN/calibration-NAME.json holds what `evaluate.py --recalibrate` fitted
on other slices. Both name their networks by the hashes of the weights.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_files import write_json
from common.portable_names import quote
from evaluation.calibration import apply_calibration
from evaluation.held_out import MIN_GROUPS, HeldOut, combine
from helper import UserError, first_line
from modeling.checkpoint import hash_weights
from modeling.members import is_folds

SCHEMA = 1
ENSEMBLE_FILE = "ensemble.json"
VAL_NOTE = "that also selected the best epoch: slightly optimistic"


@dataclass(frozen=True)
class Fitted:
    """What is fitted for one network or for several together.

    Attributes:
        calibration: Result of `fit_calibration`; without prediction sets, only the temperatures of
            the networks; None: plain softmax.
        ood_threshold: Of the mean distance in multiples of the networks' own thresholds.
        source: The slices it was fitted on; without prediction sets, why there are none.
        slices: sha256 of the slices that `--recalibrate` fitted it on.
    """

    calibration: dict[str, Any] | None
    ood_threshold: float
    source: str
    slices: frozenset[str] = frozenset()

    @property
    def has_sets(self) -> bool:
        """True if prediction sets and review thresholds were fitted."""
        return self.calibration is not None and "conformal" in self.calibration


@dataclass(frozen=True)
class Run:
    """The checkpoints of a run: one, or one of each fold."""

    path: Path
    checkpoints: list[dict[str, Any]]


def find_fitted(runs: Sequence[Run], file: Path | None = None) -> Fitted:
    """Find what was fitted for runs whose networks are averaged, or fit it on stored outputs.

    Args:
        runs: The networks.
        file: Of `--calibration`, instead of what the runs store.

    Raises:
        UserError: A file is missing, damaged or belongs to other networks.
    """
    checkpoints = [checkpoint for run in runs for checkpoint in run.checkpoints]
    if file is not None:
        return _read_fitted(file, checkpoints)
    if len(runs) > 1:
        return _fit_together(runs)
    if is_folds(runs[0].path):
        return _read_fitted(runs[0].path / ENSEMBLE_FILE, checkpoints, runs[0].path)
    return get_own(checkpoints[0])


def get_own(checkpoint: dict[str, Any]) -> Fitted:
    """Return what a run fitted on its val split."""
    calibration = checkpoint.get("calibration")
    if calibration is None:
        return Fitted(None, 1.0, "the checkpoint has no calibration")
    return Fitted(calibration, 1.0, f"{_count(calibration, 'val slices')} {VAL_NOTE}")


def load_held_out(run: Run) -> HeldOut | None:
    """Return the outputs of a run for slices that it was not trained on; None if it has none.

    Raises:
        UserError: They are damaged.
    """
    if is_folds(run.path):
        file = run.path / ENSEMBLE_FILE
        values = _read(file, run.checkpoints, run.path)
        record = values["outputs"]
    else:
        file = run.path
        record = run.checkpoints[0].get("val_outputs")
    if record is None:
        return None
    try:
        held_out = HeldOut.from_record(record)
        if held_out.logits.shape[2] != len(run.checkpoints[0]["classes"]):
            raise ValueError("outputs of another number of classes")
        return held_out
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: {_describe_damage(error)}; {_name_remedy(run.path)}") from error


def find_common(
    runs: Sequence[Run], held_out: Sequence[HeldOut | None]
) -> tuple[HeldOut | None, str]:
    """Join the outputs of several runs for the slices that all of them held out.

    Returns:
        The outputs; or None and the reason why nothing can be fitted to the average of these runs.
    """
    known = [each for each in held_out if each is not None]
    if len(known) < len(runs):
        return None, (
            f"{len(runs) - len(known)} of {len(runs)} runs have no outputs for slices that they "
            "were not trained on; store them with python main.py --resume session/RUN"
        )
    counts = sorted({len(run.checkpoints) for run in runs})
    if len(counts) > 1:
        return None, f"the runs have unequal numbers of networks, {counts[0]} and {counts[-1]}"
    common = combine(known)
    if common.n_groups < MIN_GROUPS:
        return None, (
            f"{common.n_groups} groups of slices were held out by all of these runs, at least "
            f"{MIN_GROUPS} are needed; use runs of the same split or with the same --folds"
        )
    return common, ""


def _fit_together(runs: Sequence[Run]) -> Fitted:
    """Fit on the slices that all runs held out; else average what each run has calibrated."""
    common, reason = find_common(runs, [load_held_out(run) for run in runs])
    if common is None:
        temperatures: list[float] = []
        for run in runs:
            own = find_fitted([run]).calibration
            temperatures += [own["temperature"] if own else 1.0] * len(run.checkpoints)
        return Fitted({"temperature": temperatures}, 1.0, reason)
    calibration = common.fit(runs[0].checkpoints[0]["classes"])
    source = f"{_count(calibration, 'slices')} that all {len(runs)} runs held out"
    return Fitted(calibration, common.fit_ood_threshold() or 1.0, source)


# ---- files


def write_fitted(
    file: Path,
    checkpoints: Sequence[dict[str, Any]],
    held_out: HeldOut,
    source: str,
    **more: Any,
) -> Fitted:
    """Fit on the outputs of networks and store it.

    Args:
        file: The file to write.
        checkpoints: Of the networks that are averaged.
        held_out: Outputs that are fitted.
        source: The slices in words, see `Fitted`.
        more: Further entries of the file.
    """
    classes = checkpoints[0]["classes"]
    values = {
        "schema": SCHEMA,
        "classes": classes,
        "weights_sha256": [hash_weights(checkpoint) for checkpoint in checkpoints],
        "fitted_on": source,
        "calibration": held_out.fit(classes),
        "ood_threshold": held_out.fit_ood_threshold(),
        **more,
    }
    write_json(file, values)
    return _build(values)


def write_ensemble(
    run_dir: Path, checkpoints: Sequence[dict[str, Any]], held_out: HeldOut
) -> Fitted:
    """Fit the ensemble of a run with --folds on its out-of-fold outputs, and store both."""
    n_slices, n_groups = len(held_out.labels), held_out.n_groups
    source = f"the out-of-fold outputs of {n_slices} slices ({n_groups} groups)"
    file = run_dir / ENSEMBLE_FILE
    return write_fitted(file, checkpoints, held_out, source, outputs=held_out.to_record())


def _read_fitted(
    file: Path, checkpoints: Sequence[dict[str, Any]], run_dir: Path | None = None
) -> Fitted:
    return _build(_read(file, checkpoints, run_dir))


def _build(values: dict[str, Any]) -> Fitted:
    threshold = values["ood_threshold"]
    return Fitted(
        values["calibration"],
        1.0 if threshold is None else threshold,
        values["fitted_on"],
        frozenset(values.get("slices", ())),
    )


def _read(
    file: Path, checkpoints: Sequence[dict[str, Any]], run_dir: Path | None = None
) -> dict[str, Any]:
    """Read a file of `write_fitted` and check it.

    Raises:
        UserError: It is missing, damaged, of another version or for other networks.
    """
    remedy = _name_remedy(run_dir) if run_dir else "fit it with evaluate.py --recalibrate"
    try:
        values = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing; {remedy}") from error
    except IsADirectoryError as error:
        raise UserError(f"{file} is a folder; name the file in it") from error
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({first_line(error)}); {remedy}") from error
    schema = values.get("schema") if isinstance(values, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{file}: schema {schema}, this program reads {SCHEMA}; {remedy}")
    try:
        _check(values, checkpoints[0]["classes"])
        hashes = sorted(values["weights_sha256"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: {_describe_damage(error)}; {remedy}") from error
    if hashes != sorted(hash_weights(checkpoint) for checkpoint in checkpoints):
        raise UserError(f"{file} was fitted to other networks than these; {remedy}")
    return dict(values)


def _check(values: dict[str, Any], classes: list[str]) -> None:
    """Check the entries of a file, also by use.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: An entry is missing or wrong.
    """
    calibration, threshold = values["calibration"], values["ood_threshold"]
    by_class = [calibration["conformal"][key] for key in ("thresholds", "n_slices")]
    for each in (*by_class, calibration["operating_points"]):
        if list(each) != classes:
            raise ValueError(f"fitted for other classes than {', '.join(classes)}")
    numbers = (calibration["temperature"], 1.0 if threshold is None else threshold)
    if not all(isinstance(number, float) and 0 < number < math.inf for number in numbers):
        raise ValueError("temperature and ood_threshold must be above 0")
    if not isinstance(values["fitted_on"], str):
        raise TypeError("fitted_on must be a text")
    calibration["n_images"], calibration["n_groups"]
    apply_calibration(calibration, np.zeros((1, len(classes))))


def _describe_damage(error: Exception) -> str:
    return f"damaged ({type(error).__name__}: {first_line(error)})"


def _name_remedy(path: Path) -> str:
    run_dir = path if path.is_dir() else path.parent
    return f"fit it with python main.py --resume {quote(run_dir)}"


def _count(calibration: dict[str, Any], what: str) -> str:
    return f"{calibration['n_images']} {what} ({calibration['n_groups']} groups)"
