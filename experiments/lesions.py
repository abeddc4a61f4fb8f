"""Slices whose lesions are known: phantoms, and slices with outlines drawn by a person."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor

from helper import UserError
from imaging.grayscale import Pixels, resize_grey
from imaging.orientation import apply_orientation, find_orientation
from imaging.reader import read_grey
from phantoms.generator import encode_phantom, plan_phantoms, render_phantom

AIR = 26  # smoothed grey values below it are outside the head


def load_phantom_lesions(rows: pd.DataFrame, data_dir: Path, size_px: int) -> list[Tensor]:
    """Render phantoms again to obtain their lesions: bool [S, S] each.

    Raises:
        UserError: The folder holds no phantoms, or this version renders them differently.
    """
    truth = data_dir / "CSV" / "phantoms.csv"
    if not truth.is_file():
        raise UserError(
            f"{data_dir} holds no phantoms; give a run that was trained with --phantom, or "
            "--outlines FILE"
        )
    table = pd.read_csv(truth, usecols=["seed"])
    planned = plan_phantoms(len(table), int(table["seed"].iloc[0]))
    plans = {f"Images/{plan.label}/{plan.name}": plan for plan in planned}
    lesions = []
    for path, digest in zip(rows["path"], rows["sha256"], strict=True):
        picture, mask = render_phantom(plans[path]) if path in plans else (None, None)
        content = b"" if picture is None else encode_phantom(plans[path], picture)
        if mask is None or hashlib.sha256(content).hexdigest() != digest:
            raise UserError(
                f"{data_dir / path} is not a phantom of this version; run prepare.py again"
            )
        lesions.append(bring_to_input(mask, read_grey(content), size_px))
    return lesions


def load_outlined_lesions(
    rows: pd.DataFrame, data_dir: Path, outlines: Path, size_px: int
) -> list[Tensor]:
    """Draw outlines and bring them to the input of the network: bool [S, S] each.

    Args:
        rows: Manifest rows.
        data_dir: Folder that prepare.py wrote.
        outlines: As for `read_outlined`.
        size_px: S.

    Raises:
        UserError: As `read_outlined`.
    """
    pictures = read_outlined(rows["path"], data_dir, outlines)
    return [bring_to_input(lesion, pixels, size_px) for pixels, lesion in pictures]


def read_outlined(
    paths: Iterable[str], data_dir: Path, outlines: Path
) -> Iterator[tuple[Pixels, NDArray[np.bool_]]]:
    """Yield pictures, uint8 [H, W], with their lesions, bool [H, W].

    Args:
        paths: Paths below the data folder.
        data_dir: Folder that prepare.py wrote.
        outlines: CSV with the columns path (below the class folders' parent) and outline (x,y pairs
            in px of the picture, separated by blanks).

    Raises:
        UserError: The table cannot be read, or has no outline for a picture.
    """
    try:
        table = pd.read_csv(outlines, usecols=["path", "outline"], dtype=str).set_index("path")
        polygons = {f"Images/{path}": outline for path, outline in table["outline"].items()}
    except (OSError, ValueError) as error:
        raise UserError(f"{outlines}: not a table of the columns path,outline ({error})") from error
    for path in paths:
        if path not in polygons:
            raise UserError(f"{outlines} has no outline for {path}; give the table of this data")
        pixels = read_grey((data_dir / path).read_bytes())
        yield pixels, draw_outline(polygons[path], pixels.shape)


def draw_outline(outline: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Fill an outline, x,y pairs in px separated by blanks: bool [H, W].

    Raises:
        UserError: The text is no such list.
    """
    try:
        points = [tuple(map(float, pair.split(","))) for pair in outline.split()]
        canvas = Image.new("1", (shape[1], shape[0]))
        ImageDraw.Draw(canvas).polygon(points, fill=1)
    except (ValueError, TypeError) as error:
        raise UserError(f"outline {outline[:40]!r}: write x,y pairs in px") from error
    return np.asarray(canvas, dtype=bool)


def bring_to_input(mask: NDArray[Any], pixels: Pixels, size_px: int) -> Tensor:
    """Bring a mask [H, W] to the orientation and size of its slice at the input: bool [S, S]."""
    oriented = apply_orientation(mask.astype(np.uint8) * 255, find_orientation(pixels))
    return torch.from_numpy(resize_grey(oriented, size_px) >= 128)


def find_head(picture: Pixels) -> NDArray[np.bool_]:
    """Return the largest component brighter than air, holes filled: bool [S, S]."""
    smooth = ndimage.gaussian_filter(picture.astype(np.float32), len(picture) / 64)
    components, n_components = ndimage.label(smooth > AIR)
    if not n_components:
        return np.zeros(picture.shape, bool)
    largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
    return np.asarray(ndimage.binary_fill_holes(components == largest), dtype=bool)
