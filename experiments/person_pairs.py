"""Judge a similarity of slices by pairs of one class: AUC, recall at a precision, intervals."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

PRECISIONS = (0.5, 0.9)

Rows = NDArray[np.int64]
Similarities = dict[str, NDArray[np.float32]]  # [M] of pairs, by method


class Pairs(NamedTuple):
    """Pairs of slices.

    Attributes:
        first: Index of one slice, [M].
        second: Index of the other slice, [M].
        is_same: Whether both show one person, [M].
    """

    first: Rows
    second: Rows
    is_same: NDArray[np.bool_]

    def take(self, chosen: NDArray[np.bool_]) -> "Pairs":
        """Return the chosen pairs, bool [M]."""
        return Pairs(self.first[chosen], self.second[chosen], self.is_same[chosen])


def list_pairs(strata: NDArray[Any], persons: NDArray[Any]) -> Pairs:
    """Return all pairs of slices within each stratum (fold and class).

    Args:
        strata: [N] ids; pairs across strata are left out.
        persons: [N] ids.
    """
    parts = []
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        first, second = np.triu_indices(len(rows), 1)
        parts.append(np.stack([rows[first], rows[second]]))
    first, second = np.concatenate(parts, axis=1)
    return Pairs(first, second, persons[first] == persons[second])


def compute_crowding(is_same: NDArray[np.bool_], share_of_all: float) -> float:
    """Return how many pairs of two persons there are among all persons for one among these pairs.

    The number of pairs of two persons grows with the square of the number of persons, and the
    number of pairs of one person only in proportion. So the same threshold is less precise in a
    larger data set.

    Args:
        is_same: Whether each of these pairs shows one person, [M]; some do.
        share_of_all: Share of the pairs of all slices that show one person, above 0.
    """
    share = is_same.mean()
    return float((1 - share_of_all) / share_of_all * share / max(1 - share, 1e-12))


class Ranking:
    """Pairs in descending order of similarity, which can be weighted in many ways.

    Args:
        similarity: [M].
        is_same: Whether a pair shows one person, bool [M].
        crowding: Weight of the pairs of two persons for the recall among all persons.
    """

    def __init__(
        self, similarity: NDArray[Any], is_same: NDArray[np.bool_], crowding: float = 1.0
    ) -> None:
        self.order = np.argsort(-similarity, kind="stable")
        self.is_same = is_same[self.order]
        self.crowding = crowding
        ranked = similarity[self.order]
        # a threshold lies between two different similarities only
        self.ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)

    def score(self, weights: NDArray[Any] | None = None) -> dict[str, float]:
        """Return AUC, and the highest recall at each precision: here, and among all persons.

        The thresholds are the best for these pairs. A recall is 0 if no threshold reaches the
        precision.

        Args:
            weights: Weights of the pairs, [M]; 1 by default.
        """
        ordered = np.ones(len(self.order)) if weights is None else weights[self.order]
        hits = np.cumsum(ordered * self.is_same)[self.ends]
        misses = np.cumsum(ordered * ~self.is_same)[self.ends]
        recall, fall_out = hits / hits[-1], misses / misses[-1]
        steps = np.diff(fall_out, prepend=0.0)
        scores = {"auc": float(np.sum(steps * (recall + np.append(0.0, recall[:-1])) / 2))}
        for suffix, factor in (("", 1.0), ("_among_all", self.crowding)):
            precision = hits / np.maximum(hits + factor * misses, 1e-12)
            for least in PRECISIONS:
                best = np.max(recall, where=precision >= least, initial=0.0)
                scores[f"recall_at_precision_{least}{suffix}"] = float(best)
        return scores


def score_pairs(
    similarity: NDArray[Any],
    pairs: Pairs,
    persons: NDArray[Any],
    strata: NDArray[Any],
    crowding: float,
    replicates: int,
    generator: np.random.Generator,
) -> dict[str, Any] | None:
    """Score a similarity of pairs [M]; None if all pairs are of one kind.

    The 95 % intervals are those of a bootstrap that draws n of the n persons of each stratum with
    replacement. A pair of one person counts as often as the person is drawn. A pair of two persons
    counts as often as the product, times n / (n - 1), because two drawings of one person are no
    pair; so its mean weight is 1, too.

    Args:
        similarity: [M], higher for slices of one person.
        pairs: M pairs.
        persons: Ids of the slices, [N]; a person is in one stratum.
        strata: Ids of the slices, [N]; no pair is across strata.
        crowding: From `compute_crowding`.
        replicates: Number of bootstrap samples.
        generator: Random generator.
    """
    if pairs.is_same.all() or not pairs.is_same.any():
        return None
    ranking = Ranking(similarity, pairs.is_same, crowding)
    rows = np.concatenate([pairs.first, pairs.second])
    names, at, codes = np.unique(persons[rows], return_index=True, return_inverse=True)
    first, second = codes.reshape(2, -1)
    stratum_of, sizes = np.unique(strata[rows][at], return_inverse=True, return_counts=True)[1:]
    members = [np.flatnonzero(stratum_of == stratum) for stratum in range(len(sizes))]
    inflation = (sizes / np.maximum(sizes - 1, 1))[stratum_of[first]]
    samples = []
    for _ in range(replicates):
        drawn = np.concatenate([generator.choice(each, len(each)) for each in members])
        counts = np.bincount(drawn, minlength=len(names))
        weights = counts[first] * np.where(pairs.is_same, 1.0, counts[second] * inflation)
        if weights[pairs.is_same].any() and weights[~pairs.is_same].any():
            samples.append(ranking.score(weights))
    result: dict[str, Any] = {"n_pairs": len(similarity), "n_same": int(pairs.is_same.sum())}
    for name, value in ranking.score().items():
        values = [sample[name] for sample in samples] or [value]
        result[name] = {"value": value, "ci95": np.quantile(values, [0.025, 0.975]).tolist()}
    return result


def judge(
    pairs: Pairs, similarities: Similarities, slices: pd.DataFrame, crowding: float, replicates: int
) -> dict[str, Any]:
    """Score every similarity on all pairs, on those within a plane, across planes and scans.

    Args:
        pairs: M pairs within a class and fold.
        similarities: [M] by method.
        slices: Columns patient, label, fold, plane, and scan if known.
        crowding: Of all these pairs.
        replicates: Bootstrap samples.
    """
    planes = slices["plane"].to_numpy()
    is_within = planes[pairs.first] == planes[pairs.second]
    subsets = {"all": np.ones(len(is_within), bool), "within_plane": is_within}
    subsets["across_planes"] = ~is_within
    if "scan" in slices:
        scans = slices["scan"].to_numpy()
        subsets["across_scans"] = scans[pairs.first] != scans[pairs.second]
    persons = slices["patient"].to_numpy()
    strata = (slices["fold"] + "/" + slices["label"]).to_numpy()
    return {
        method: {
            name: score_pairs(
                *(values[chosen], pairs.take(chosen), persons, strata, crowding, replicates),
                np.random.default_rng(0),
            )
            for name, chosen in subsets.items()
        }
        for method, values in similarities.items()
    }
