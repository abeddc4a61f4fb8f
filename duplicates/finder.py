"""Find the copies that no hash sees: one slice flipped, turned, shifted, zoomed, saved again.

Thumbnails in, links and ids out. No label, file name or order enters: slices are told apart by the
sha256 of their files, and everything here is a function of the set of them.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from common.atomic_files import atomic_path
from duplicates.clustering import GROUP_SCORE, SLICE_SCORE, number_groups, number_slices
from duplicates.registration import Registrations, register_pairs
from duplicates.retrieval import Pairs, propose_friends, propose_pairs
from duplicates.sift_features import WORDS_FILE, Features, extract_features, load_words
from imaging.reader import READER_VERSION

FINDER_VERSION = 1  # raise it when the same slices give other links
FRIEND_ROUNDS = 2
LINK_COLUMNS = ("first", "second", "score", "mirrored", "rotation_deg", "zoom", "kind")


@dataclass(frozen=True)
class Copies:
    """What the finder knows of a set of slices.

    Attributes:
        digests: Their sha256, sorted.
        features: In that order.
        compared: Every pair that was compared.
    """

    digests: list[str]
    features: Features
    compared: Registrations

    def links(self) -> Registrations:
        """The better view of each linked pair, score at least GROUP_SCORE, best first."""
        order = np.lexsort((*self.compared.pairs.T[::-1], -self.compared.scores))
        ranked = self.compared.take(order[self.compared.scores[order] >= GROUP_SCORE])
        codes = ranked.pairs[:, 0] * len(self.digests) + ranked.pairs[:, 1]
        return ranked.take(np.sort(np.unique(codes, return_index=True)[1]))

    def number(self) -> tuple[dict[str, int], dict[str, int]]:
        """Slice number and group number of each digest."""
        links = self.links()
        ends, n_images = links.pairs[:, :2], len(self.digests)
        slices = number_slices(ends, links.scores, n_images)
        groups = number_groups(ends, links.scores, n_images)
        return (
            dict(zip(self.digests, slices.tolist(), strict=True)),
            dict(zip(self.digests, groups.tolist(), strict=True)),
        )

    def tabulate(self) -> pd.DataFrame:
        """LINK_COLUMNS, a row a link: digests, score, and how the first lies on the second."""
        links = self.links()
        across, along = links.matrices[:, 0, 0], links.matrices[:, 1, 0]
        digests = np.array(self.digests, dtype=object)
        return pd.DataFrame(
            {
                "first": digests[links.pairs[:, 0]],
                "second": digests[links.pairs[:, 1]],
                "score": links.scores,
                "mirrored": links.pairs[:, 2],
                "rotation_deg": np.degrees(np.arctan2(along, across)).round(1),
                "zoom": np.hypot(across, along).round(3),
                "kind": np.where(links.scores >= SLICE_SCORE, "slice", "group"),
            }
        )


def find_copies(
    thumbnails: Mapping[str, npt.NDArray[np.uint8]], known: Copies | None = None
) -> Copies:
    """Find copies and neighbours among slices.

    Args:
        thumbnails: uint8 [THUMBNAIL_PX, THUMBNAIL_PX] by sha256.
        known: What an earlier call found; only what is new is worked out, to the same outcome.
    """
    digests = sorted(thumbnails)
    if known is not None and known.digests == digests:
        return known
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the pools here use the cores
    try:
        features = _gather_features(digests, thumbnails, known)
        earlier = _translate(known, digests) if known is not None else _nothing()
        compared = _nothing()
        proposed = propose_pairs(features.words, len(load_words()))
        for _ in range(1 + FRIEND_ROUNDS):
            compared = compared.join(_compare(features, _without(proposed, compared), earlier))
            linked = compared.pairs[compared.scores >= GROUP_SCORE]
            proposed = propose_friends(linked, len(digests))
    finally:
        cv2.setNumThreads(threads)
    return Copies(digests, features, compared)


def save_copies(copies: Copies, path: Path) -> None:
    """Keep what was found, complete or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            key=_cache_key(),
            digests=np.array(copies.digests, dtype="S64"),
            **vars(copies.features),
            **vars(copies.compared),
        )


def load_copies(path: Path) -> Copies | None:
    """What an earlier run kept; None where there is none, or of another version."""
    try:
        with np.load(path) as kept:
            if str(kept["key"]) != _cache_key():
                return None
            features = Features(*(kept[name] for name in Features.__dataclass_fields__))
            compared = Registrations(*(kept[name] for name in Registrations.__dataclass_fields__))
            return Copies([digest.decode() for digest in kept["digests"]], features, compared)
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        BadZipFile,
    ):  # damaged: worked out again
        return None


def _cache_key() -> str:
    words = hashlib.sha256(WORDS_FILE.read_bytes()).hexdigest()[:12]
    versions = f"finder {FINDER_VERSION}, reader {READER_VERSION}, opencv {cv2.__version__}"
    return f"{versions}, words {words}"


def _gather_features(
    digests: list[str], thumbnails: Mapping[str, npt.NDArray[np.uint8]], known: Copies | None
) -> Features:
    """Known features, and those of the slices that are new."""
    place = {digest: row for row, digest in enumerate(known.digests)} if known else {}
    new = [digest for digest in digests if digest not in place]
    fresh = extract_features([thumbnails[digest] for digest in new])
    if known is None:
        return fresh
    place |= {digest: len(known.digests) + row for row, digest in enumerate(new)}
    rows = np.array([place[digest] for digest in digests])
    both = (
        np.concatenate([getattr(known.features, name), getattr(fresh, name)])
        for name in Features.__dataclass_fields__
    )
    return Features(*both).take(rows)


def _translate(known: Copies, digests: list[str]) -> Registrations:
    """Earlier comparisons of slices that are still there, by their rows of now."""
    row_now = {digest: row for row, digest in enumerate(digests)}
    rows = np.array([row_now.get(digest, -1) for digest in known.digests], np.int64)
    pairs = known.compared.pairs.copy()
    pairs[:, :2] = rows[pairs[:, :2]]  # both lists are sorted, so the first stays the first
    present = np.flatnonzero(pairs[:, :2].min(axis=1) >= 0)
    return Registrations(pairs, known.compared.scores, known.compared.matrices).take(present)


def _compare(features: Features, proposed: Pairs, earlier: Registrations) -> Registrations:
    """Outcomes of the proposed pairs, the earlier ones taken over."""
    is_new = ~_isin(proposed, earlier.pairs)
    fresh = register_pairs(features, proposed[is_new])
    return earlier.take(_isin(earlier.pairs, proposed)).join(fresh)


def _without(proposed: Pairs, compared: Registrations) -> Pairs:
    return proposed[~_isin(proposed, compared.pairs)]


def _isin(pairs: Pairs, others: Pairs) -> npt.NDArray[np.bool_]:
    """Which of the pairs are among the others."""

    def encode(rows: Pairs) -> npt.NDArray[np.int64]:
        return (rows[:, 0] << 33) | (rows[:, 1] << 1) | rows[:, 2]

    return np.isin(encode(pairs), encode(others))


def _nothing() -> Registrations:
    return Registrations(
        np.zeros((0, 3), np.int64), np.zeros(0, np.int16), np.zeros((0, 2, 3), np.float32)
    )
