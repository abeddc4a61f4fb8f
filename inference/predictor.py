"""A checkpoint, or several as an ensemble, made ready: a picture in, a verdict out."""

import copy
import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

import helper
import model
from evaluation import calibration, ood
from explanation import heatmaps
from helper import UserError
from imaging.grayscale import Pixels, resize_grey, shrink_grey
from imaging.orientation import Position, find_position, turn, unfit_map
from modeling import activation_stats
from modeling import checkpoint as checkpoints
from modeling.precision import keep_freed_memory

SHOWN_PX = 1024  # longer side of a picture that is kept to be shown
REFERENCE_KEYS = {
    *("sha256", "labels", "embeddings", "threshold", "mean", "deviation", "statistics"),
}


@dataclass(frozen=True)
class PreprocessedSlice:
    """A picture as the networks see it.

    Attributes:
        picture: As it came, or smaller: of a large one no more is kept than people look at.
        squares: By side in px: uint8 [S, S], in the standard position.
        position: How the picture was turned.
    """

    picture: Pixels
    squares: dict[int, Pixels]
    position: Position


@dataclass(frozen=True)
class Verdict:
    """What is said of one picture.

    Attributes:
        probs: Calibrated probabilities, in the order of the classes, [K].
        predicted: The likeliest class.
        confidence: Its probability.
        prediction_set: The classes that cannot be ruled out; None where nothing was fitted.
        refer: Whether a human should look: the set is not a single class, or the picture is unlike
            those of training; None as above.
        unlike: Whether the picture is unlike those of training; None where nothing was fitted.
        distance: From the training slices, as a multiple of the threshold.
        nearest: sha256 of the nearest training slices and their classes, the nearest first.
    """

    probs: NDArray[np.float64]
    predicted: str
    confidence: float
    prediction_set: tuple[str, ...] | None
    refer: bool | None
    unlike: bool | None
    distance: float | None
    nearest: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Member:
    """One network and what its checkpoint holds."""

    path: Path
    network: model.Classifier
    kept: dict[str, Any]

    @property
    def image_size(self) -> int:
        """Side of the slices that it takes, px."""
        return self.network.preprocess.image_size

    @functools.cached_property
    def twin(self) -> model.Classifier:
        """The same network once more, for heat maps: a verdict need not wait for them."""
        return copy.deepcopy(self.network)

    @functools.cached_property
    def reference(self) -> "Reference | None":
        """The training slices to compare with; None where the checkpoint keeps none."""
        kept = self.kept.get("reference")
        return None if kept is None else Reference(kept)


class Reference:
    """The training slices that a checkpoint remembers, by their numbers and never their pictures.

    Args:
        kept: What `runs.lifecycle.complete` wrote.
    """

    def __init__(self, kept: dict[str, Any]) -> None:
        self.rows = list(zip(kept["sha256"], kept["labels"], strict=True))
        self._threshold = kept["threshold"]
        self._embeddings, self._statistics, self._mean, self._deviation = (
            kept[key].float().numpy() for key in ("embeddings", "statistics", "mean", "deviation")
        )

    def measure(self, statistics: NDArray[np.float32]) -> NDArray[np.float64]:
        """Distances [N] of pictures as shares of the threshold: beyond 1 they are unlike."""
        scaled = ood.standardise(statistics, self._mean, self._deviation)
        return ood.measure_distances(self._statistics, scaled) / self._threshold

    def find_nearest(self, embeddings: NDArray[np.float32]) -> list[tuple[tuple[str, str], ...]]:
        """sha256 and class of the nearest training slices of each picture, the nearest first."""
        found = ood.find_nearest(self._embeddings, embeddings)
        return [tuple(self.rows[row] for row in rows) for rows in found]


class SliceClassifier:
    """Checkpoints as one classifier of pictures; several are averaged.

    Args:
        members: Networks of the same classes.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        self._pools = ThreadpoolController()
        # hooks see every pass through a network, whoever asks
        self._judging, self._explaining = threading.Lock(), threading.Lock()
        self.classes: list[str] = list(members[0].kept["classes"])

    @property
    def is_phantom(self) -> bool:
        """Whether it learnt from generated slices."""
        return any(member.kept["phantom"] for member in self.members)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.members[0].network.parameters()).device

    def list_warnings(self) -> list[str]:
        """What a reader of the verdicts must know first."""
        warnings = []
        if self.is_phantom:
            warnings.append("PHANTOM: it learnt from generated slices; it says nothing of patients")
        if any(member.kept["config"]["data"]["split_by"] == "image" for member in self.members):
            warnings.append("LEAKY SPLIT: how good it is was measured on copies of training slices")
        if any(member.kept.get("calibration") is None for member in self.members):
            warnings.append("NOT CALIBRATED: plain softmax, no prediction sets and no referral")
        elif len(self.members) > 1:
            warnings.append("an ensemble: no prediction sets and no referral, none were fitted")
        if any(member.kept.get("reference") is None for member in self.members):
            warnings.append("NOT FITTED: pictures unlike those of training are not noticed")
        return warnings

    def describe_verdict(self, verdict: Verdict) -> list[str]:
        """A verdict in plain words, its warnings first, a line each."""
        lines = []
        if verdict.unlike:
            lines.append("UNLIKE the slices of training: do not believe what is said of it")
        elif verdict.refer:
            chosen = " or ".join(verdict.prediction_set or ()) or "none of the classes"
            lines.append(f"REFER to a radiologist: it could be {chosen}")
        lines.append(f"{verdict.predicted} {verdict.confidence:.1%}")
        return lines

    def preprocess(self, pixels: Pixels) -> PreprocessedSlice:
        """A picture made ready for `judge`; safe to call in many threads.

        Args:
            pixels: uint8 [H, W].
        """
        position = find_position(pixels)
        turned = turn(pixels, position)
        sides = {member.image_size for member in self.members}
        squares = {side: resize_grey(turned, side) for side in sides}
        return PreprocessedSlice(shrink_grey(pixels, SHOWN_PX), squares, position)

    def judge(self, slices: Sequence[PreprocessedSlice]) -> list[Verdict]:
        """One forward pass over the slices for each network.

        Several networks are averaged, and so are their distances from training; there are no
        prediction sets then, for none were fitted to the average.

        Raises:
            UserError: A network gives logits that are NaN or infinite.
        """
        with self._judging:
            answers = [self._ask(member, slices) for member in self.members]
        first = answers[0]
        probs = np.mean([answer.calibrated.probs for answer in answers], axis=0)
        distances = np.mean([answer.distances for answer in answers], axis=0)
        sets = first.calibrated.sets if len(answers) == 1 else None
        return [
            self._describe(
                probs[row], None if sets is None else sets[row], distances[row], first.nearest[row]
            )
            for row in range(len(slices))
        ]

    def explain(self, preprocessed: PreprocessedSlice, class_name: str) -> NDArray[np.float32]:
        """What a class rests on, averaged over the networks: fp32 [H, W] in 0..1.

        It is of the picture as it came, whatever its position.
        """
        target = torch.tensor([self.classes.index(class_name)])
        with self._judging:  # a copy made beside a verdict would keep the hooks of that verdict
            twins = [member.twin for member in self.members]
        with self._explaining:
            maps = [
                heatmaps.compute_heatmaps(
                    twin, model.to_unit_range(self._stack(member, [preprocessed])), target
                )[0].numpy()
                for twin, member in zip(twins, self.members, strict=True)
            ]
        shape = (preprocessed.picture.shape[0], preprocessed.picture.shape[1])
        maps = [unfit_map(heatmap, shape, preprocessed.position) for heatmap in maps]
        return np.mean(maps, axis=0)

    def _ask(self, member: Member, slices: Sequence[PreprocessedSlice]) -> "_Answer":
        with activation_stats.watch_layers(member.network) as watch:
            inferred = model.infer(member.network, [self._stack(member, slices)])
        logits, embeddings = (part.numpy() for part in inferred)
        if not np.isfinite(logits).all():
            raise UserError(
                f"{member.path}: its logits are NaN or infinite; use another checkpoint or train "
                "again with a lower learning rate"
            )
        calibrated = calibration.apply_calibration(member.kept.get("calibration"), logits)
        if member.reference is None:
            unknown = np.full(len(slices), np.nan)
            return _Answer(calibrated, unknown, [()] * len(slices))
        # the threads of numpy's products would spin on while torch's begin the next pass
        with self._pools.limit(limits=1, user_api="blas"):
            distances = member.reference.measure(watch.collect().numpy())
            nearest = member.reference.find_nearest(embeddings)
        return _Answer(calibrated, distances, nearest)

    def _stack(self, member: Member, slices: Sequence[PreprocessedSlice]) -> torch.Tensor:
        """uint8 [B, 1, S, S] on the device, at the side that the member takes."""
        squares = np.stack([preprocessed.squares[member.image_size] for preprocessed in slices])
        return torch.from_numpy(squares).unsqueeze(1).to(self.device)

    def _describe(
        self,
        probs: NDArray[np.float64],
        in_set: NDArray[np.bool_] | None,
        distance: float,
        nearest: tuple[tuple[str, str], ...],
    ) -> Verdict:
        likeliest, knows_distance = int(probs.argmax()), not math.isnan(distance)
        unlike = bool(distance > 1) if knows_distance else None
        return Verdict(
            probs=probs,
            predicted=self.classes[likeliest],
            confidence=float(probs[likeliest]),
            prediction_set=None
            if in_set is None
            else tuple(name for name, is_in in zip(self.classes, in_set, strict=True) if is_in),
            refer=None if in_set is None else bool(in_set.sum() != 1) or bool(unlike),
            unlike=unlike,
            distance=float(distance) if knows_distance else None,
            nearest=nearest,
        )


@dataclass(frozen=True)
class _Answer:
    """What one network says of slices: distances [N] are shares of its threshold."""

    calibrated: calibration.Calibrated
    distances: NDArray[np.float64]
    nearest: list[tuple[tuple[str, str], ...]]


def load_classifier(
    paths: Sequence[Path], device: str = "auto", threads: int = 0
) -> SliceClassifier:
    """Make checkpoints ready for use.

    Args:
        paths: best.pt of one run, or of several runs of the same classes.
        device: As of `--device`.
        threads: CPU threads; 0: as many as there are cores.

    Raises:
        UserError: A file is no checkpoint of a run, no epoch is finished, or classes differ.
    """
    keep_freed_memory()
    helper.set_threads(threads)
    members: list[Member] = []
    for path in paths:
        kept = checkpoints.load_run(path)
        if not kept["best"]:
            raise UserError(
                f"{path}: no epoch is finished; go on with python main.py --resume {path.parent}"
            )
        if members and kept["classes"] != members[0].kept["classes"]:
            raise UserError(
                f"{path} knows {', '.join(kept['classes'])}, {paths[0]} knows "
                f"{', '.join(members[0].kept['classes'])}; name checkpoints of the same classes"
            )
        missing = REFERENCE_KEYS - set(kept.get("reference") or REFERENCE_KEYS)
        if missing:
            raise UserError(
                f"{path}: its training slices lack {', '.join(sorted(missing))}; train again with "
                "this version"
            )
        network = checkpoints.restore_model(kept, path).to(helper.resolve_device(device))
        members.append(Member(path, network.eval(), kept))
    return SliceClassifier(members)
