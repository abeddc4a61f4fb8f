"""Contact sheets that a person checks: linked slices laid on each other, and whole groups."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw

from common.atomic_files import atomic_path
from duplicates.finder import Copies
from duplicates.registration import Registrations
from duplicates.sift_features import THUMBNAIL_PX

PICTURES = ("pairs_by_score.png", "largest_groups.png", "label_conflicts.png")
SCORE_BANDS = (12, 14, 17, 20, 25, 30, 50, 80)  # lower ends
PAIRS_A_BAND = 4
GROUPS_SHOWN, SLICES_SHOWN = 8, 14
CONFLICTS_SHOWN = 24
TITLE_PX, GAP_PX = 18, 6

Bytes = npt.NDArray[np.uint8]


def draw_sheets(
    copies: Copies,
    thumbnails: Mapping[str, Bytes],
    frame: pd.DataFrame,
    folder: Path,
) -> None:
    """Write PICTURES into a folder; one of which there is nothing to show is removed.

    Args:
        copies: What the finder found.
        thumbnails: uint8 [THUMBNAIL_PX, THUMBNAIL_PX] by sha256.
        frame: The manifest.
        folder: Where they go.
    """
    labels = frame.groupby("sha256")["label"].first()
    links = copies.links()
    ends = np.array([labels[digest] for digest in copies.digests])[links.pairs[:, :2]]
    across = np.flatnonzero(ends[:, 0] != ends[:, 1])[:CONFLICTS_SHOWN]

    def show(rows: Sequence[int]) -> list[Image.Image]:
        return [_draw_pair(links, row, copies.digests, thumbnails, ends[row]) for row in rows]

    _save(folder / PICTURES[0], show(_choose_by_score(links.scores)), columns=PAIRS_A_BAND)
    _save(folder / PICTURES[1], _draw_groups(thumbnails, frame), columns=1)
    _save(folder / PICTURES[2], show(across.tolist()), columns=2)


def _choose_by_score(scores: npt.NDArray[np.int16]) -> list[int]:
    """Some links of every band of scores, evenly spread over the band, weakest band first."""
    chosen: list[int] = []
    for low, high in zip(SCORE_BANDS, (*SCORE_BANDS[1:], 2**15 - 1), strict=True):
        rows = np.flatnonzero((scores >= low) & (scores < high))
        steps = np.linspace(0, len(rows) - 1, min(PAIRS_A_BAND, len(rows)))
        chosen += rows[steps.round().astype(int)].tolist()
    return chosen


def _draw_pair(
    links: Registrations,
    row: int,
    digests: Sequence[str],
    thumbnails: Mapping[str, Bytes],
    names: Sequence[str],
) -> Image.Image:
    """The first slice moved onto the second, the second, and both: magenta and green."""
    first, second, mirrored = links.pairs[row]
    start = thumbnails[digests[first]]
    start = np.ascontiguousarray(start[:, ::-1]) if mirrored else start
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    moved = _brighten(np.asarray(cv2.warpAffine(start, links.matrices[row], size), np.uint8))
    fixed = _brighten(thumbnails[digests[second]])
    both = np.stack([moved, fixed, moved], axis=-1)
    picture = np.concatenate([_colour(moved), _colour(fixed), both], axis=1)
    way = ", mirrored" if mirrored else ""
    return _entitle(picture, f"{links.scores[row]} points agree{way}: {names[0]} / {names[1]}")


def _draw_groups(thumbnails: Mapping[str, Bytes], frame: pd.DataFrame) -> list[Image.Image]:
    """Some slices of each of the largest groups, a row a group."""
    known = frame[frame["sha256"].isin(thumbnails.keys())].drop_duplicates("sha256")
    sizes = known["group"].value_counts()
    largest = sizes[sizes > 1].sort_index().sort_values(ascending=False, kind="stable")
    rows = []
    for group, size in largest.head(GROUPS_SHOWN).items():
        members = known[known["group"] == group].sort_values(["slice", "sha256"])
        n_slices = members["slice"].nunique()
        shown = members.drop_duplicates("slice") if n_slices >= SLICES_SHOWN else members
        steps = np.linspace(0, len(shown) - 1, min(SLICES_SHOWN, len(shown))).round().astype(int)
        pictures = [
            _colour(_brighten(thumbnails[digest])) for digest in shown["sha256"].iloc[steps]
        ]
        picture = np.zeros((THUMBNAIL_PX, SLICES_SHOWN * THUMBNAIL_PX, 3), np.uint8)
        picture[:, : len(pictures) * THUMBNAIL_PX] = np.concatenate(pictures, axis=1)
        classes = ", ".join(sorted(set(members["label"])))
        rows.append(_entitle(picture, f"{group}: {size} images of {n_slices} slices, {classes}"))
    return rows


def _brighten(pixels: Bytes) -> Bytes:
    bright = max(float(np.percentile(pixels, 98)), 1.0)
    return (pixels * (190 / bright)).clip(0, 255).astype(np.uint8)


def _colour(pixels: Bytes) -> Bytes:
    return np.repeat(pixels[:, :, None], 3, axis=2)


def _entitle(picture: Bytes, title: str) -> Image.Image:
    image = Image.new("RGB", (picture.shape[1] + GAP_PX, picture.shape[0] + TITLE_PX + GAP_PX))
    image.paste(Image.fromarray(picture), (0, TITLE_PX))
    ImageDraw.Draw(image).text((4, 3), title, fill=(255, 230, 120))
    return image


def _save(path: Path, pictures: Sequence[Image.Image], columns: int) -> None:
    if not pictures:
        path.unlink(missing_ok=True)
        return
    width, height = pictures[0].size
    columns = min(columns, len(pictures))
    n_rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, n_rows * height))
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % columns * width, place // columns * height))
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")
