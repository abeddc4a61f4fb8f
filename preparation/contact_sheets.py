"""Draw contact sheets for a visual check: linked slices overlaid, and the largest groups."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw

from common.atomic_files import atomic_path
from common.fonts import draw_text
from duplicates.finder import Duplicates
from duplicates.registration import Matrix, Registrations
from duplicates.sift_features import THUMBNAIL_PX

SHEETS = ("pairs_by_score.png", "largest_groups.png", "label_conflicts.png")
SCORE_BANDS = (12, 14, 17, 20, 25, 30, 50, 80)  # lower ends
PAIRS_PER_BAND = 4
GROUPS_SHOWN, IMAGES_SHOWN = 8, 14
CONFLICTS_SHOWN = 24
TITLE_PX, GAP_PX = 18, 6
TITLE_FONT_PX = 10

Bytes = npt.NDArray[np.uint8]


def draw_sheets(
    duplicates: Duplicates, thumbnails: Mapping[str, Bytes], frame: pd.DataFrame, folder: Path
) -> None:
    """Write SHEETS into a folder; remove a sheet that would be empty.

    `thumbnails` are uint8 [THUMBNAIL_PX, THUMBNAIL_PX] by sha256, `frame` is the manifest.
    """
    labels = frame.groupby("sha256")["label"].first()
    links, digests = duplicates.links(), duplicates.digests
    ends = labels[digests].to_numpy()[links.pairs[:, :2]]
    across = np.flatnonzero(ends[:, 0] != ends[:, 1])[:CONFLICTS_SHOWN]

    def draw(rows: Sequence[int]) -> list[Image.Image]:
        drawn = []
        for row in rows:
            first, second = (thumbnails[digests[end]] for end in links.pairs[row, :2])
            drawn.append(_draw_link(links, row, (first, second), ends[row]))
        return drawn

    save_sheet(folder / SHEETS[0], draw(_choose_by_score(links.scores)), columns=PAIRS_PER_BAND)
    save_sheet(folder / SHEETS[1], _draw_groups(thumbnails, frame), columns=1)
    save_sheet(folder / SHEETS[2], draw(across.tolist()), columns=2)


def _choose_by_score(scores: npt.NDArray[np.int16]) -> list[int]:
    """Return rows of some links of each score band, spread evenly over it, lowest band first."""
    chosen: list[int] = []
    for low, high in zip(SCORE_BANDS, (*SCORE_BANDS[1:], 2**15 - 1), strict=True):
        rows = np.flatnonzero((scores >= low) & (scores < high))
        chosen += rows[_spread(len(rows), PAIRS_PER_BAND)].tolist()
    return chosen


def _spread(n_items: int, n_chosen: int) -> npt.NDArray[np.intp]:
    """Return evenly spread positions of at most `n_chosen` of `n_items`."""
    return np.linspace(0, n_items - 1, min(n_chosen, n_items)).round().astype(int)


def _draw_link(
    links: Registrations, row: int, pictures: tuple[Bytes, Bytes], labels: Sequence[str]
) -> Image.Image:
    mirrored = links.pairs[row, 2]
    note = ", mirrored" if mirrored else ""
    title = f"score {links.scores[row]}{note}: {labels[0]} / {labels[1]}"
    first, second = pictures
    matrix = links.matrices[row]
    return draw_pair(first, second, matrix, mirrored=mirrored > 0, title=title)


def draw_pair(
    first: Bytes, second: Bytes, matrix: Matrix, *, mirrored: bool, title: str
) -> Image.Image:
    """Draw the first slice moved onto the second, the second, and their magenta-green overlay.

    `matrix` maps the first thumbnail, mirrored or not, to the second.
    """
    start = np.ascontiguousarray(first[:, :: -1 if mirrored else 1])
    size = (THUMBNAIL_PX, THUMBNAIL_PX)
    moved = _brighten(np.asarray(cv2.warpAffine(start, matrix, size), np.uint8))
    fixed = _brighten(second)
    both = np.stack([moved, fixed, moved], axis=-1)
    picture = np.concatenate([_to_rgb(moved), _to_rgb(fixed), both], axis=1)
    return _add_title(picture, title)


def _draw_groups(thumbnails: Mapping[str, Bytes], frame: pd.DataFrame) -> list[Image.Image]:
    """Draw some slices of each of the largest groups, one row for each group."""
    known = frame[frame["sha256"].isin(thumbnails.keys())].drop_duplicates("sha256")
    sizes = known["group"].value_counts()
    largest = sizes[sizes > 1].sort_index().sort_values(ascending=False, kind="stable")
    rows = []
    for group, size in largest.head(GROUPS_SHOWN).items():
        members = known[known["group"] == group].sort_values(["duplicate_set", "sha256"])
        n_sets = members["duplicate_set"].nunique()
        shown = members.drop_duplicates("duplicate_set") if n_sets >= IMAGES_SHOWN else members
        digests = shown["sha256"].iloc[_spread(len(shown), IMAGES_SHOWN)]
        pictures = [_to_rgb(_brighten(thumbnails[digest])) for digest in digests]
        picture = np.zeros((THUMBNAIL_PX, IMAGES_SHOWN * THUMBNAIL_PX, 3), np.uint8)
        picture[:, : len(pictures) * THUMBNAIL_PX] = np.concatenate(pictures, axis=1)
        classes = ", ".join(sorted(set(members["label"])))
        rows.append(_add_title(picture, f"{group}: {size} images of {n_sets} slices, {classes}"))
    return rows


def _brighten(pixels: Bytes) -> Bytes:
    bright = max(float(np.percentile(pixels, 98)), 1.0)
    return (pixels * (190 / bright)).clip(0, 255).astype(np.uint8)


def _to_rgb(pixels: Bytes) -> Bytes:
    return np.repeat(pixels[:, :, None], 3, axis=2)


def _add_title(picture: Bytes, title: str) -> Image.Image:
    image = Image.new("RGB", (picture.shape[1] + GAP_PX, picture.shape[0] + TITLE_PX + GAP_PX))
    image.paste(Image.fromarray(picture), (0, TITLE_PX))
    draw_text(ImageDraw.Draw(image), (4, 3), title, TITLE_FONT_PX, (255, 230, 120))
    return image


def save_sheet(path: Path, pictures: Sequence[Image.Image], columns: int) -> None:
    """Write pictures of equal size as one sheet, or delete the file if there are none."""
    if not pictures:
        path.unlink(missing_ok=True)
        return
    width, height = pictures[0].size
    columns = min(columns, len(pictures))
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")
