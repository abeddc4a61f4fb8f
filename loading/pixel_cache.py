"""Pixel cache: decode every distinct slice once into an .npy file below the data folder.

The brightness statistics of the slices are stored beside it, in a second .npy file. For a data
folder that cannot be written, both are in the user's cache folder.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from common.atomic_files import atomic_path, clear_unfinished, lock
from common.cache_folder import is_read_only, list_cache_folders
from helper import UserError, describe_error, log
from imaging.bit_depth import Ranges, ValueScaler
from imaging.brightness import N_STATISTICS, compute_brightness_statistics
from imaging.orientation import orient_and_letterbox
from imaging.reader import READER_VERSION, read_grey

CHUNK_SLICES = 512  # decoded between two writes


class DecodedSlices(NamedTuple):
    """All distinct slices of a table.

    Attributes:
        pixels: uint8 [distinct slices, S, S].
        brightness: Brightness statistics, float64 [distinct slices, 7].
        row_of: Row of each sha256 in both.
    """

    pixels: NDArray[np.uint8]
    brightness: NDArray[np.float64]
    row_of: dict[str, int]


def open_pixels(
    table: pd.DataFrame,
    data_dir: Path,
    image_size: int,
    *,
    ranges: Ranges | None = None,
    in_memory: bool = True,
) -> DecodedSlices:
    """Return the pixels of all distinct slices of a table, from the cache or decoded now.

    The name of the cache file depends on the contents of the slices, the size, the ranges and the
    reader's version, not on file names or splits.

    Args:
        table: Rows of the manifest with `path` and `sha256`.
        data_dir: The folder that the paths are relative to.
        image_size: Side of the slices, px.
        ranges: For values without a declared bit depth (`imaging.bit_depth`).
        in_memory: If the cache cannot be written, hold all pixels in memory instead.

    Raises:
        UserError: A file is missing, changed or unreadable, or the cache cannot be written and
            `in_memory` is False.
    """
    sources = dict(zip(table["sha256"], table["path"], strict=True))
    digests = sorted(sources)
    row_of = {digest: row for row, digest in enumerate(digests)}
    for name in sources.values():
        if not (data_dir / name).is_file():
            raise UserError(f"{data_dir / name}: No such file; run prepare.py again")
    paths = [data_dir / sources[digest] for digest in digests]
    scale = json.dumps(ranges or {}, sort_keys=True)
    parts = [str(READER_VERSION), scale, str(image_size), *digests]
    key = hashlib.sha256("\n".join(parts).encode())
    name = f"{image_size}px-{key.hexdigest()[:16]}.npy"
    caches = [folder / name for folder in list_cache_folders(data_dir)]
    shape = (len(paths), image_size, image_size)
    try:
        for cache in caches:
            if _is_complete(cache, shape):
                break
            try:
                _fill_cache(cache, paths, digests, shape, ranges)
                break
            except OSError as error:
                if cache == caches[-1] or not is_read_only(error):
                    raise
            log.info("%s cannot be written: slices are cached in the user's folder", cache.parent)
    except OSError as error:
        if not in_memory:
            raise UserError(
                f"{cache}: cannot be written ({describe_error(error)}), and the slices exceed "
                "the memory budget; free disk space there, or raise --memory-mib"
            ) from error
        log.info("pixel cache not written (%s): decoded again next time", describe_error(error))
        pixels = np.concatenate(list(_decode(paths, digests, image_size, ranges)))
        return DecodedSlices(pixels, compute_brightness_statistics(pixels), row_of)
    return DecodedSlices(np.load(cache, mmap_mode="r"), np.load(_brightness_path(cache)), row_of)


def _brightness_path(cache: Path) -> Path:
    return cache.with_name(f"{cache.stem}-brightness.npy")


def _is_complete(cache: Path, shape: tuple[int, ...]) -> bool:
    try:
        brightness = np.load(_brightness_path(cache))
        pixels = np.load(cache, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # missing or truncated
        return False
    return pixels.shape == shape and brightness.shape == (shape[0], N_STATISTICS)


def _fill_cache(
    cache: Path,
    paths: list[Path],
    digests: list[str],
    shape: tuple[int, int, int],
    ranges: Ranges | None,
) -> None:
    """Decode into an .npy file, unless another program does so in the meantime.

    It is written chunk by chunk, so that only one chunk is in memory.
    """
    cache.parent.mkdir(parents=True, exist_ok=True)
    with lock(cache.parent):  # a second process waits here and then finds the cache
        if _is_complete(cache, shape):
            return
        clear_unfinished(cache.parent, cache.suffix)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        brightness = []
        with atomic_path(cache) as temporary:
            with temporary.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for pixels in _decode(paths, digests, shape[1], ranges):
                    file.write(pixels.data)
                    brightness.append(compute_brightness_statistics(pixels))
            with atomic_path(_brightness_path(cache)) as other, other.open("wb") as file:
                np.save(file, np.concatenate(brightness))


def _decode(
    paths: list[Path], digests: list[str], image_size: int, ranges: Ranges | None = None
) -> Iterator[np.ndarray]:
    """Read, verify and resize all slices on all cores; yield chunks, uint8 [N, S, S]."""

    def decode(row: int) -> np.ndarray:
        try:
            content = paths[row].read_bytes()
        except OSError as error:
            raise UserError(f"{describe_error(error)}; run prepare.py again") from error
        if hashlib.sha256(content).hexdigest() != digests[row]:
            raise UserError(f"{paths[row]}: changed since prepare.py ran; run prepare.py again")
        return orient_and_letterbox(read_grey(content, ValueScaler(ranges)), image_size)

    rows = range(len(paths))
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(paths), desc="decoding", unit="slice", disable=None) as bar,
    ):
        for start in rows[::CHUNK_SLICES]:
            chunk = []
            for pixels in pool.map(decode, rows[start : start + CHUNK_SLICES]):
                chunk.append(pixels)
                bar.update()
            yield np.stack(chunk)
