"""Predict images with one checkpoint, or with several as an ensemble."""

import copy
import functools
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

import helper
import model
from evaluation import calibration, fitted
from evaluation.conformal import ALPHA
from evaluation.fitted import Fitted
from evaluation.ood import REFERENCE_KEYS, Neighbours, Reference
from evaluation.thresholds import Thresholds
from explanation import heatmaps
from explanation.evidence import describe_evidence
from helper import UserError
from imaging.bit_depth import Ranges
from imaging.grayscale import Pixels, resize_grey, shrink_grey
from imaging.orientation import Orientation, apply_orientation, find_orientation, map_back
from modeling import activation_stats, forward, members
from modeling import checkpoint as checkpoints
from modeling.precision import keep_freed_memory

DISPLAY_PX = 1024  # longest side of an image that is kept for display


@dataclass(frozen=True)
class PreprocessedSlice:
    """An image, preprocessed for all networks of the ensemble."""

    picture: Pixels  # for display: uint8 [H, W] as read, or a smaller version of a large image
    squares: dict[int, Pixels]  # by side S in px: uint8 [S, S] in the standard orientation
    orientation: Orientation  # the transform to the standard orientation


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image; a value is None if nothing was fitted for it."""

    probs: NDArray[np.float64]  # calibrated [K], in the order of the classes
    predicted: str  # the most probable class, or that of `--threshold`
    confidence: float  # its probability
    prediction_set: tuple[str, ...] | None  # classes that cannot be ruled out
    needs_review: bool | None  # not exactly one class in the set, or not this one, or image is OOD
    out_of_distribution: bool | None  # `distance` exceeds 1
    distance: float | None  # from the training slices, as a multiple of the OOD threshold
    nearest: Neighbours  # training slices

    def describe_review(self) -> str:
        """Return in plain words whether a human must look at the image, and why."""
        percent, found = round(100 * (1 - ALPHA)), self.prediction_set
        likely = f"For {percent} of 100 slices like those of training, it holds the true class."
        if self.out_of_distribution:
            return "the image differs from the training images; do not trust the prediction."
        if found is None:
            return "no prediction set was fitted."
        if not found:
            return f"no class reaches the probability that {percent} of 100 of its slices reach."
        if self.needs_review:
            return f"the prediction set holds {' and '.join(found)}. {likely}"
        return f"the prediction set holds {found[0]} alone. {likely}"


@dataclass(frozen=True)
class Member:
    """A network of the ensemble and its checkpoint."""

    path: Path
    network: model.Classifier
    checkpoint: dict[str, Any]

    @property
    def image_size(self) -> int:
        """Side of the input slices, px."""
        return self.network.preprocess.image_size

    @functools.cached_property
    def explanation_network(self) -> model.Classifier:
        """A second copy of the network, so that predictions do not wait for heat maps."""
        return copy.deepcopy(self.network)

    @functools.cached_property
    def reference(self) -> Reference | None:
        """The features of the training slices; None if the checkpoint has none."""
        stored = self.checkpoint.get("reference")
        return None if stored is None else Reference(stored)


class _MemberOutput(NamedTuple):
    """Logits [N, K], distances [N] (NaN if unknown) and neighbours of one network."""

    logits: NDArray[np.float32]
    distances: NDArray[np.float64]
    nearest: list[Neighbours]


class SlicePredictor:
    """Predicts images with the average of networks of the same classes; thread-safe.

    Args:
        members: The networks.
        fitted: What was fitted for their average.
        thresholds: `CLASS=P` each; without any, the most probable class is predicted.

    Raises:
        UserError: A threshold is invalid.
    """

    def __init__(
        self, members: Sequence[Member], fitted: Fitted, thresholds: Iterable[str] = ()
    ) -> None:
        self.members, self.fitted = list(members), fitted
        self.classes: list[str] = list(members[0].checkpoint["classes"])
        self.rule = Thresholds.parse(thresholds, self.classes)
        self._pools = ThreadpoolController()
        # else forward hooks would also record other threads' passes
        self._predict_lock, self._explain_lock = threading.Lock(), threading.Lock()

    @property
    def is_phantom(self) -> bool:
        """True if a network was trained on generated slices."""
        return any(member.checkpoint["phantom"] for member in self.members)

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self.members[0].network.parameters()).device

    @property
    def value_ranges(self) -> Ranges:
        """Range in training of values without a declared bit depth, the same in all networks."""
        known = [member.network.preprocess.value_ranges for member in self.members]
        return {kind: ends for ranges in known for kind, ends in ranges.items()}

    def list_warnings(self) -> list[str]:
        """Return the warnings about the checkpoints, each as `TITLE: text`."""
        saved = [member.checkpoint for member in self.members]
        warnings = []
        if self.is_phantom:
            warnings.append("PHANTOM: trained on generated slices; not valid for patients")
        if any(each["config"]["data"]["split_by"] == "image" for each in saved):
            warnings.append("LEAKY SPLIT: its metrics were measured on duplicates of training data")
        has_sets, source = self.fitted.has_sets, self.fitted.source
        if not has_sets and any(each.get("calibration") is None for each in saved):
            warnings.append("NOT CALIBRATED: plain softmax, no prediction sets, no review flags")
        elif not has_sets:
            warnings.append(f"ENSEMBLE: no prediction sets and no review flags: {source}")
        if any(each.get("reference") is None for each in saved):
            warnings.append("NO OOD DETECTION: out-of-distribution images are not marked")
        return [*warnings, *self.rule.describe()]

    def describe_prediction(
        self, prediction: Prediction, names: Mapping[str, str] | None = None
    ) -> list[str]:
        """Return a prediction as lines of text, its warnings first.

        Args:
            prediction: The prediction.
            names: How classes are called in pictures, see `common.fonts`.
        """
        names = names or {name: name for name in self.classes}
        lines = []
        if prediction.out_of_distribution:
            lines.append("OUT OF DISTRIBUTION: do not trust this prediction")
        elif prediction.needs_review:
            in_set = [names[name] for name in prediction.prediction_set or ()]
            classes = " or ".join(in_set) or "none of the classes"
            lines.append(f"NEEDS REVIEW by a radiologist: it could be {classes}")
        lines.append(f"{names[prediction.predicted]} {prediction.confidence:.1%}")
        return lines

    def describe_heatmaps(self) -> str:
        """Return how often heat maps of these networks point at a tumour, if that is known."""
        return describe_evidence(member.checkpoint for member in self.members)

    def preprocess(self, pixels: Pixels) -> PreprocessedSlice:
        """Bring an image, uint8 [H, W], into the standard orientation and the input sizes."""
        orientation = find_orientation(pixels)
        oriented = apply_orientation(pixels, orientation)
        sides = {member.image_size for member in self.members}
        squares = {side: resize_grey(oriented, side) for side in sides}
        return PreprocessedSlice(shrink_grey(pixels, DISPLAY_PX), squares, orientation)

    def predict(self, slices: Sequence[PreprocessedSlice]) -> list[Prediction]:
        """Predict slices in one forward pass for each network.

        The probabilities and OOD distances of several networks are averaged.

        Raises:
            UserError: A network returns logits that are NaN or infinite.
        """
        with self._predict_lock:
            outputs = [self._predict_member(member, slices) for member in self.members]
        logits = np.stack([output.logits for output in outputs])  # [M, B, K]
        calibrated = calibration.apply_calibration(self.fitted.calibration, logits)
        distances = np.mean([output.distances for output in outputs], axis=0)
        distances /= self.fitted.ood_threshold
        sets = calibrated.prediction_sets
        return [
            self._build_prediction(
                calibrated.probs[row],
                None if sets is None else sets[row],
                distances[row],
                outputs[0].nearest[row],
            )
            for row in range(len(slices))
        ]

    def explain(self, preprocessed: PreprocessedSlice, class_name: str) -> NDArray[np.float32]:
        """Return the heat map of a class, averaged over the networks: fp32 [H, W] in 0..1.

        It has the shape and orientation of `preprocessed.picture`.
        """
        target = torch.tensor([self.classes.index(class_name)])
        with self._predict_lock:  # a copy made during a prediction would keep its hooks
            networks = [member.explanation_network for member in self.members]
        with self._explain_lock:
            maps = [
                heatmaps.compute_heatmaps(
                    network, forward.to_unit_range(self._stack(member, [preprocessed])), target
                )[0].numpy()
                for network, member in zip(networks, self.members, strict=True)
            ]
        shape = (preprocessed.picture.shape[0], preprocessed.picture.shape[1])
        return np.mean([map_back(each, shape, preprocessed.orientation) for each in maps], axis=0)

    def _predict_member(self, member: Member, slices: Sequence[PreprocessedSlice]) -> _MemberOutput:
        with activation_stats.record_activation_stats(member.network) as stats:
            inferred = forward.predict_logits(member.network, [self._stack(member, slices)])
        logits, embeddings = (part.numpy() for part in inferred)
        if not np.isfinite(logits).all():
            raise UserError(
                f"{member.path}: its logits are NaN or infinite; use another checkpoint or train "
                "again with a lower learning rate"
            )
        if member.reference is None:
            unknown = np.full(len(slices), np.nan)
            return _MemberOutput(logits, unknown, [()] * len(slices))
        # more BLAS threads would still spin when torch's threads start the next pass
        with self._pools.limit(limits=1, user_api="blas"):
            distances = member.reference.compute_distances(stats.collect().numpy())
            nearest = member.reference.find_nearest(embeddings)
        return _MemberOutput(logits, distances, nearest)

    def _stack(self, member: Member, slices: Sequence[PreprocessedSlice]) -> torch.Tensor:
        """Return slices as uint8 [B, 1, S, S] on the device, S of the member."""
        squares = np.stack([preprocessed.squares[member.image_size] for preprocessed in slices])
        return torch.from_numpy(squares).unsqueeze(1).to(self.device)

    def _build_prediction(
        self,
        probs: NDArray[np.float64],
        in_set: NDArray[np.bool_] | None,
        distance: float,
        nearest: Neighbours,
    ) -> Prediction:
        best = int(self.rule.predict(probs[None])[0])
        prediction_set = needs_review = None
        is_ood = None if math.isnan(distance) else bool(distance > 1)
        if in_set is not None:
            prediction_set = tuple(np.array(self.classes)[in_set].tolist())
            is_other = bool(self.rule.values) and self.classes[best] not in prediction_set
            needs_review = len(prediction_set) != 1 or is_other or bool(is_ood)
        return Prediction(
            probs=probs,
            predicted=self.classes[best],
            confidence=float(probs[best]),
            prediction_set=prediction_set,
            needs_review=needs_review,
            out_of_distribution=is_ood,
            distance=None if is_ood is None else float(distance),
            nearest=nearest,
        )


def load_predictor(
    paths: Sequence[Path],
    device: str = "auto",
    threads: int = 0,
    file: Path | None = None,
    thresholds: Iterable[str] = (),
) -> SlicePredictor:
    """Load runs for prediction; their networks are averaged.

    Args:
        paths: best.pt or the folder of a run, also of one with --folds; or several.
        device: As for `--device`.
        threads: CPU threads; 0: one for each core.
        file: Calibration to use instead of those of the runs.
        thresholds: As for `SlicePredictor`.

    Raises:
        UserError: A file is not a checkpoint of a run, no epoch is finished, a fold or calibration
            is missing, classes differ, or a threshold is invalid.
    """
    keep_freed_memory()
    # for all threads: one that leaves `disable_tf32` would allow TF32 to another that is inside
    torch.backends.cudnn.allow_tf32 = False
    helper.set_threads(threads)
    listed = [members.list_checkpoints(path) for path in paths]
    runs = [
        fitted.Run(path if members.is_folds(path) else each[0], list(map(members.load_best, each)))
        for path, each in zip(paths, listed, strict=True)
    ]
    files = [path for each in listed for path in each]
    loaded = [checkpoint for run in runs for checkpoint in run.checkpoints]
    members.check_classes(files, loaded)
    members.check_ranges(files, loaded)
    found = fitted.find_fitted(runs, file)
    on_device = helper.resolve_device(device)
    networks: list[Member] = []
    for path, checkpoint in zip(files, loaded, strict=True):
        missing = REFERENCE_KEYS - set(checkpoint.get("reference") or REFERENCE_KEYS)
        if missing:
            raise UserError(
                f"{path}: its OOD reference lacks {', '.join(sorted(missing))}; train again with "
                "this version"
            )
        network = checkpoints.restore_model(checkpoint, path).to(on_device)
        networks.append(Member(path, network.eval(), checkpoint))
    return SlicePredictor(networks, found, thresholds)
