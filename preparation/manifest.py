"""The manifest data/CSV/images.csv: one row an image, written by prepare alone, read by everybody.

Slice and group ids are made from what the files hold, so no order and no class name enters them.
"""

import concurrent.futures
import hashlib
import itertools
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from common.atomic_files import write_text
from duplicates.clustering import connect
from duplicates.sift_features import THUMBNAIL_PX
from helper import UserError
from imaging.grayscale import ImageError, ImageTooLargeError, resize_grey
from imaging.reader import is_picture, read_grey, read_mode, read_patient, read_start
from preparation.splits import SPLITS, extend_split

COLUMNS = ("path", "label", "width", "height", "sha256", "mean", "slice", "group", "split", "note")
ID_DIGITS = 12
FILES_AT_ONCE = 16  # held in memory while the pool decodes


@dataclass(frozen=True)
class ImageFacts:
    """What one file holds, a function of its bytes alone.

    `mean` is grey 0..255; `patient` is the pseudonym of whom a DICOM file names, else "";
    `thumbnail`, uint8 [THUMBNAIL_PX, THUMBNAIL_PX], is None of a file that cannot be read.
    """

    sha256: str
    width: int
    height: int
    mean: float
    mode: str
    note: str = ""
    patient: str = ""
    thumbnail: npt.NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)


def manifest_path(data_dir: Path) -> Path:
    """Where the manifest of a data folder lies."""
    return data_dir / "CSV" / "images.csv"


def list_images(data_dir: Path) -> list[str]:
    """Every picture of data_dir/Images/<Class>/, relative to data_dir in POSIX form, sorted."""
    found = (path for path in (data_dir / "Images").glob("*/*") if path.is_file())
    pictures = (path for path in found if is_picture(path.name, partial(read_start, path)))
    names = (path.relative_to(data_dir).as_posix() for path in pictures)
    return sorted(name for name in names if "/." not in name)


def measure_image(content: bytes) -> ImageFacts:
    """Decode one file's bytes and note its facts; an unreadable one is a note, no error.

    Raises:
        ImageTooLargeError: Over the pixel limit.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        mode = read_mode(content)
        pixels = read_grey(content)
        patient = read_patient(content)
    except ImageTooLargeError:
        raise
    except ImageError as error:
        return ImageFacts(sha256, 0, 0, float("nan"), "", f"unreadable: {error.reason}")
    height, width = pixels.shape
    mean = round(float(pixels.mean()), 3)
    thumbnail = resize_grey(pixels, THUMBNAIL_PX)
    return ImageFacts(sha256, width, height, mean, mode, patient=patient, thumbnail=thumbnail)


def measure_images(
    files: Iterable[tuple[str, bytes]], total: int, task: str = "reading"
) -> dict[str, ImageFacts]:
    """Measure many files on all cores, with a progress bar on a terminal.

    Args:
        files: Name and content of each; read one after the other, few held at a time.
        total: How many there are.
        task: What the progress bar calls it.

    Raises:
        UserError: Names the first file over the pixel limit.
    """
    measured: dict[str, ImageFacts] = {}
    remaining = iter(files)
    with (
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=total, desc=task, unit="image", disable=None if total else True) as bar,
    ):
        while chunk := list(itertools.islice(remaining, FILES_AT_ONCE)):
            futures = [(name, pool.submit(measure_image, content)) for name, content in chunk]
            for name, future in futures:
                try:
                    measured[name] = future.result()
                except ImageTooLargeError as error:
                    raise UserError(
                        f"{name}: {error.reason}; make it smaller or leave it out"
                    ) from error
            bar.update(len(chunk))
    return measured


def measure_present(data_dir: Path, known: Container[str] = ()) -> dict[str, ImageFacts]:
    """Measure every picture of a data folder whose path is not `known`; see `measure_images`."""
    names = [name for name in list_images(data_dir) if name not in known]
    return measure_images(((name, (data_dir / name).read_bytes()) for name in names), len(names))


def collect_thumbnails(facts: Mapping[str, ImageFacts]) -> dict[str, npt.NDArray[np.uint8]]:
    """The thumbnail of every distinct content that can be read, by sha256."""
    return {fact.sha256: fact.thumbnail for fact in facts.values() if fact.thumbnail is not None}


def build_manifest(
    data_dir: Path,
    seed: int = 0,
    planned: Mapping[str, ImageFacts] | None = None,
    patients: Mapping[str, str] | None = None,
    true_ids: Mapping[str, tuple[str, str]] | None = None,
    found: tuple[Mapping[str, int], Mapping[str, int]] | None = None,
    kept: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """List every picture of a data folder, with ids and the split; writes nothing.

    Args:
        data_dir: The folder that holds Images/.
        seed: Of the split.
        planned: Facts of files that are known already or not yet written, by path.
        patients: Known patients by path; slices of one patient share a group.
        true_ids: Slice and group ids by path, where the truth is known (phantoms).
        found: Slice and group numbers by sha256, as the finder of copies gives them; without them
            only byte copies are known.
        kept: Splits of an earlier manifest by sha256; groups keep theirs (`extend_split`).

    Returns:
        COLUMNS, sorted by path; unreadable rows have a note, no mean and no split.

    Raises:
        UserError: One class only, or a class with too few groups to split.
    """
    facts = dict(planned or {})
    facts |= measure_present(data_dir, facts)
    names = sorted(facts)
    rows = [facts[name] for name in names]
    labels = [PurePosixPath(name).parent.name for name in names]
    frame = pd.DataFrame(
        {
            "path": names,
            "label": labels,
            "width": [row.width for row in rows],
            "height": [row.height for row in rows],
            "sha256": [row.sha256 for row in rows],
            "mean": [row.mean for row in rows],
            "note": [row.note for row in rows],
        }
    )
    if true_ids is None:
        by_slice, by_group = found or ({}, {})
        digests = frame["sha256"]
        slices = name_sets("s", (str(by_slice.get(key, key)) for key in digests), digests)
        neighbours = [str(by_group.get(key, "")) for key in digests]
        known = [(patients or {}).get(name, "") for name in names]
        groups = name_sets("g", link_groups(slices, neighbours, known), digests)
    else:
        slices = [true_ids[name][0] for name in names]
        groups = [true_ids[name][1] for name in names]
    frame = frame.assign(slice=slices, group=groups)
    frame["split"] = _split_readable(frame, seed, data_dir, kept or {})
    return frame[list(COLUMNS)]


def _split_readable(
    frame: pd.DataFrame, seed: int, data_dir: Path, kept: Mapping[str, str]
) -> npt.NDArray[np.str_]:
    readable = frame["mean"].notna().to_numpy()
    classes = sorted(set(frame["label"][readable]))
    if len(classes) < 2:
        raise UserError(
            f"{data_dir / 'Images'}: {'one class only' if classes else 'no readable class'} "
            f"({', '.join(classes) or 'none'}); a classifier needs two or more class folders"
        )
    splits = np.full(len(frame), "", dtype="<U5")
    rows = frame[readable]
    before = [kept.get(digest, "") for digest in rows["sha256"]]
    splits[readable] = extend_split(
        rows["label"].to_numpy(), rows["group"].to_numpy(), before, seed
    )
    return splits


def link_groups(slices: Sequence[str], *links: Sequence[str]) -> npt.NDArray[np.intp]:
    """Number what must stay on one side: rows that share a slice or a link, in any chain.

    Args:
        slices: Slice id of each row.
        links: Any number of further keys of each row, such as patients; "" links nothing.

    Returns:
        A group number for each row.
    """
    n_rows = len(slices)
    starts, ends = [], []
    n_nodes = n_rows
    for keys in (slices, *links):
        known, codes = np.unique(np.asarray(keys, dtype=str), return_inverse=True)
        rows = np.flatnonzero(known[codes] != "")
        starts.append(rows)
        ends.append(n_nodes + codes[rows])  # one further node for every key
        n_nodes += len(known)
    pairs = np.stack([np.concatenate(starts), np.concatenate(ends)], axis=1)
    return connect(pairs, n_nodes)[:n_rows]


def name_sets(prefix: str, members: Iterable[Any], sha256: Iterable[str]) -> list[str]:
    """An id for each row's set: `prefix` and the first digits of the set's smallest sha256."""
    table = pd.DataFrame({"members": list(members), "sha256": list(sha256)})
    smallest = table.groupby("members")["sha256"].transform("min")
    return [prefix + digest[:ID_DIGITS] for digest in smallest]


def read_groups(
    path: Path, source_names: Mapping[str, str], *, skip_unknown: bool = False
) -> dict[str, str]:
    """Read known patients from a CSV with columns path and group; an empty group is unknown.

    Args:
        path: The CSV. A path in it is the one below the data folder, the one inside the source,
            or a file name that occurs once.
        source_names: The name inside the source ("" if none) of each path below the data folder.
        skip_unknown: Pass over paths that are there no longer instead of refusing them.

    Returns:
        The patient of each path below the data folder that is listed.

    Raises:
        UserError: Columns missing, a path unknown or ambiguous, or one path in two groups.
    """
    table = _read_table(path, ("path", "group"))
    by_name: dict[str, set[str]] = {}
    for target, source_name in source_names.items():
        for name in {target, source_name, PurePosixPath(target).name} - {""}:
            by_name.setdefault(name, set()).add(target)
        if source_name:
            by_name.setdefault(PurePosixPath(source_name).name, set()).add(target)
    patients: dict[str, str] = {}
    for row, (name, patient) in enumerate(zip(table["path"], table["group"], strict=True), 2):
        found = by_name.get(name.strip().replace("\\", "/").removeprefix("./"), set())
        where = f"{path} row {row}: {name!r}"
        if not found and skip_unknown:
            continue
        if not found:
            raise UserError(f"{where} is no image of the source; correct or remove the row")
        if len(found) > 1:
            raise UserError(
                f"{where} may be any of {len(found)} images ({', '.join(sorted(found)[:2])}, ...); "
                "write the path inside the source"
            )
        if not patient.strip():
            continue
        target = next(iter(found))
        if patients.setdefault(target, patient.strip()) != patient.strip():
            raise UserError(f"{where} is listed in group {patients[target]} too; keep one of them")
    return patients


def write_manifest(frame: pd.DataFrame, data_dir: Path) -> None:
    """Write the manifest; the same manifest again leaves the file untouched."""
    write_if_changed(manifest_path(data_dir), _format_manifest(frame))


def is_listed(frame: pd.DataFrame, data_dir: Path) -> bool:
    """Whether the manifest on disk is this one already: then the rest is complete too."""
    path = manifest_path(data_dir)
    return path.is_file() and path.read_bytes() == _format_manifest(frame).encode()


def _format_manifest(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.3f", lineterminator="\n")


def write_if_changed(path: Path, text: str) -> None:
    """Write `text` unless the file holds just that already."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def load_manifest(data_dir: Path) -> pd.DataFrame:
    """Read and check the manifest of a data folder.

    Returns:
        COLUMNS; ids, split and note are text, width and height int, mean float (NaN: unreadable).

    Raises:
        UserError: No manifest, columns missing, a path twice, an unknown split, a group in two
            splits, a number that is none; the line names the file and the row.
    """
    path = manifest_path(data_dir)
    if not path.is_file():
        raise UserError(
            f"{path} is missing: prepare the data first by `python prepare.py SOURCE`, or, for a "
            "try-out, `python prepare.py --phantom 600` and then `main.py --phantom`"
        )
    frame = _read_table(path, COLUMNS)[list(COLUMNS)]
    sizes = frame[["width", "height"]].apply(pd.to_numeric, errors="coerce")
    mean = pd.to_numeric(frame["mean"], errors="coerce")
    for column in sizes:
        wrong = (sizes[column] % 1) != 0  # no number is NaN here, and unequal to 0 as well
        _refuse_first(path, frame, wrong, str(column), "is no whole number")
    _refuse_first(path, frame, mean.isna() & (frame["mean"] != ""), "mean", "is no number")
    unknown = ~frame["split"].isin([*SPLITS, ""])
    _refuse_first(path, frame, unknown, "split", "is none of train, val, test")
    _refuse_first(path, frame, frame["path"].duplicated(), "path", "is listed twice")
    folder = frame["path"].str.rsplit("/", n=2).str[-2]
    is_elsewhere = (folder != frame["label"]) | folder.isin([".", ".."])
    _refuse_first(path, frame, is_elsewhere, "label", "is not the folder of its path")
    split = frame["split"].where(frame["split"] != "")
    divided = split.groupby(frame["group"]).transform("nunique") > 1
    _refuse_first(path, frame, divided, "group", "is in two splits")
    return frame.assign(
        width=sizes["width"].astype("int64"), height=sizes["height"].astype("int64"), mean=mean
    )


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A CSV as text, whatever its cells look like, with at least `columns`."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except OSError:
        raise
    except ValueError as error:  # not UTF-8, no columns, rows of unequal length
        raise UserError(f"{path}: not a CSV table ({str(error).splitlines()[0]})") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise UserError(f"{path}: column(s) missing: {', '.join(missing)}")
    return table.fillna("")


def _refuse_first(
    path: Path, frame: pd.DataFrame, wrong: "pd.Series[bool]", column: str, what: str
) -> None:
    if wrong.any():
        index = int(wrong.to_numpy().argmax())
        raise UserError(
            f"{path} row {index + 2}: {column} {frame[column].iloc[index]!r} {what}; "
            "run prepare.py again to write the manifest anew"
        )
