"""Find duplicate and related slices by registering local features of their thumbnails.

The input is thumbnails by sha256, the output links and clusters. The result does not depend on
labels, file names or the order of the slices.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from duplicates.clustering import DUPLICATE_SCORE, GROUP_SCORE, cluster_duplicates, cluster_groups
from duplicates.neighbours import Neighbours, build_vectors, find_within
from duplicates.registration import Registrations, register_pairs
from duplicates.retrieval import Pairs, isin, propose_neighbours, propose_transitive_pairs
from duplicates.sift_features import Features, extract_features, load_vocabulary

FINDER_VERSION = 3  # increase it when the same slices get different links
TRANSITIVE_ROUNDS = 2
LINK_COLUMNS = ("first", "second", "score", "mirrored", "rotation_deg", "zoom", "kind")


@dataclass(frozen=True)
class Duplicates:
    """The result of a search for duplicates.

    Attributes:
        digests: sha256 of the slices, sorted.
        features: Features of these slices, in the same order.
        neighbours: Their most similar slices, by visual words.
        compared: Scores of all pairs that were compared.
    """

    digests: list[str]
    features: Features
    neighbours: Neighbours
    compared: Registrations

    def links(self) -> Registrations:
        """Return pairs with GROUP_SCORE or more, best first; each only once, mirrored or not."""
        order = np.lexsort((*self.compared.pairs.T[::-1], -self.compared.scores))
        ranked = self.compared.take(order[self.compared.scores[order] >= GROUP_SCORE])
        codes = ranked.pairs[:, 0] * len(self.digests) + ranked.pairs[:, 1]
        return ranked.take(np.sort(np.unique(codes, return_index=True)[1]))

    def cluster(
        self, patients: Mapping[str, str] | None = None, series: Mapping[str, str] | None = None
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Return the numbers of each digest's duplicate set and group.

        Args:
            patients: Known patients by digest; see `cluster_groups`.
            series: Series or volumes by digest.
        """
        links = self.links()
        pairs, n_images = links.pairs[:, :2], len(self.digests)
        duplicate_sets = cluster_duplicates(pairs, links.scores, n_images)
        keys = (
            [(names or {}).get(each, "") for each in self.digests] for names in (patients, series)
        )
        groups = cluster_groups(pairs, links.scores, n_images, *keys)
        return (
            dict(zip(self.digests, duplicate_sets.tolist(), strict=True)),
            dict(zip(self.digests, groups.tolist(), strict=True)),
        )

    def restrict(self, digests: Iterable[str]) -> "Duplicates":
        """Return the features and comparisons of some of the slices."""
        chosen = sorted(digests)
        rows = _find_rows(self, chosen)
        return Duplicates(
            chosen,
            self.features.take(np.searchsorted(self.digests, chosen)),
            self.neighbours.translate(rows, len(chosen)),
            _translate(self.compared, rows),
        )

    def to_frame(self, names: Mapping[str, str] | None = None) -> pd.DataFrame:
        """Return LINK_COLUMNS, one row for each link: digests or their names, score, transform."""
        links = self.links()
        names = names or dict(zip(self.digests, self.digests, strict=True))
        images = np.array([names[digest] for digest in self.digests], dtype=object)
        return pd.DataFrame(
            {
                "first": images[links.pairs[:, 0]],
                "second": images[links.pairs[:, 1]],
                "score": links.scores,
                **links.describe_transforms(),
                "kind": np.where(links.scores >= DUPLICATE_SCORE, "duplicate", "related"),
            }
        )


def find_duplicates(
    thumbnails: Mapping[str, npt.NDArray[np.uint8]], known: Duplicates | None = None
) -> Duplicates:
    """Find duplicates and probable neighbours among slices.

    Args:
        thumbnails: uint8 [THUMBNAIL_PX, THUMBNAIL_PX] by sha256.
        known: Result of an earlier search; only new slices are processed, with the same result.
    """
    digests = sorted(thumbnails)
    if known is not None and known.digests == digests:
        return known
    with one_opencv_thread():
        features = _gather_features(digests, thumbnails, known)
        neighbours, earlier = Neighbours.build_empty(len(digests)), Registrations.build_empty()
        if known is not None:
            rows = _find_rows(known, digests)
            neighbours = known.neighbours.translate(rows, len(digests))
            earlier = _translate(known.compared, rows)
        vectors = build_vectors(features.words, len(load_vocabulary()))
        neighbours = find_within(vectors, neighbours)
        compared = _compare(features, propose_neighbours(neighbours), earlier)
        for _ in range(TRANSITIVE_ROUNDS):
            links = compared.take(compared.scores >= GROUP_SCORE)
            proposed = propose_transitive_pairs(links.pairs, links.scores, len(digests))
            fresh = proposed[~isin(proposed, compared.pairs)]
            compared = compared.join(_compare(features, fresh, earlier))
    return Duplicates(digests, features, neighbours, compared)


@contextlib.contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Limit OpenCV to one thread: the thread pools of extraction and registration use the cores."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _gather_features(
    digests: list[str], thumbnails: Mapping[str, npt.NDArray[np.uint8]], known: Duplicates | None
) -> Features:
    """Return the features of all digests, computing only those that are not known."""
    row_of = {digest: row for row, digest in enumerate(known.digests)} if known else {}
    new = [digest for digest in digests if digest not in row_of]
    fresh = extract_features(thumbnails, new)
    if known is None:
        return fresh
    row_of |= {digest: len(known.digests) + row for row, digest in enumerate(new)}
    return known.features.join(fresh).take(np.array([row_of[digest] for digest in digests]))


def _find_rows(known: Duplicates, digests: list[str]) -> npt.NDArray[np.int64]:
    """Return the present row of each earlier slice, in rising order; -1 if it is gone."""
    row_of = {digest: row for row, digest in enumerate(digests)}
    return np.array([row_of.get(digest, -1) for digest in known.digests], np.int64)


def _translate(compared: Registrations, rows: npt.NDArray[np.int64]) -> Registrations:
    """Return the earlier comparisons of slices that still exist, with their present rows."""
    pairs = compared.pairs.copy()
    pairs[:, :2] = rows[pairs[:, :2]]  # both lists are sorted, so the first stays the first
    present = np.flatnonzero(pairs[:, :2].min(axis=1) >= 0)
    return Registrations(pairs, compared.scores, compared.matrices).take(present)


def _compare(features: Features, proposed: Pairs, earlier: Registrations) -> Registrations:
    """Register the proposed pairs, reusing earlier results."""
    is_new = ~isin(proposed, earlier.pairs)
    fresh = register_pairs(features, proposed[is_new])
    return earlier.take(isin(earlier.pairs, proposed)).join(fresh)
