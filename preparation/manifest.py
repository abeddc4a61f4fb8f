"""The manifest data/CSV/images.csv: one row for each image, written only by prepare.py.

Ids of duplicate sets and groups are derived from file contents, not from order or class names.
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
from common.row_file import RowFile, StoredMapping, StoredRow
from duplicates.clustering import connect, pair_equal
from duplicates.sift_features import THUMBNAIL_PX
from helper import UserError
from imaging.bit_depth import Ranges, ValueScaler
from imaging.grayscale import ImageError, ImageTooLargeError, resize_grey
from imaging.kinds import is_image_file, read_first_bytes
from imaging.reader import read_grey, read_mode, read_patient, read_study
from imaging.wrapping import is_wrapped
from preparation.published_split import keep_split
from preparation.splits import SPLITS, extend_split
from preparation.tables import read_table

COLUMNS = (
    *("path", "label", "width", "height", "sha256", "mean"),
    *("patient", "duplicate_set", "group", "split", "note"),
)
ID_DIGITS = 12
FILES_AT_ONCE = 16  # held in memory while the pool decodes


@dataclass(frozen=True)
class ImageFacts:
    """Properties of one file, computed from its bytes alone.

    Attributes:
        mean: Mean grey value, 0 to 255; NaN if the file cannot be read.
        patient: Pseudonym of the patient of a DICOM file, else "".
        study: Pseudonym of the study of a DICOM file, else "".
        series: Pseudonym of its series, or of the file that a picture was unpacked from, else "".
        thumbnail: uint8 [THUMBNAIL_PX, THUMBNAIL_PX], on disk; None if the file cannot be read.
        extremes: Smallest and largest values, if the file declares no bit depth (`ValueScaler`).
        is_wrapped: Whether 8-bit values look like those of more bits modulo 256.
        is_binary: Whether there are two grey values alone, as in a mask.
    """

    sha256: str
    width: int
    height: int
    mean: float
    mode: str
    note: str = ""
    patient: str = ""
    study: str = ""
    series: str = ""
    thumbnail: StoredRow | None = field(default=None, repr=False, compare=False)
    extremes: Ranges = field(default_factory=dict)
    is_wrapped: bool = False
    is_binary: bool = False


def manifest_path(data_dir: Path) -> Path:
    """Return the path of a data folder's manifest."""
    return data_dir / "CSV" / "images.csv"


def cache_path(data_dir: Path) -> Path:
    """Return the path of the result of a data folder's duplicate search."""
    return data_dir / "cache" / "duplicates.npz"


def list_images(data_dir: Path) -> list[str]:
    """List the images of data_dir/Images/<Class>/, relative to data_dir in POSIX form, sorted."""
    files = (path for path in (data_dir / "Images").glob("*/*") if path.is_file())
    images = (path for path in files if is_image_file(path.name, partial(read_first_bytes, path)))
    names = (path.relative_to(data_dir).as_posix() for path in images)
    return sorted(name for name in names if "/." not in name)


def open_thumbnails() -> RowFile:
    """Return an empty temporary file of thumbnails."""
    return RowFile((THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)


def measure_image(content: bytes, thumbnails: RowFile, ranges: Ranges | None = None) -> ImageFacts:
    """Decode one file and return its facts; the note of an unreadable file gives the reason.

    Args:
        content: Of the file.
        thumbnails: From `open_thumbnails`; the thumbnail is added.
        ranges: Scale of values without a declared bit depth (default: their own).

    Raises:
        ImageTooLargeError: Over the pixel limit.
    """
    sha256, scaler = hashlib.sha256(content).hexdigest(), ValueScaler(ranges)
    try:
        mode = read_mode(content)
        pixels = read_grey(content, scaler)
        patient, (study, series) = read_patient(content), read_study(content)
    except ImageTooLargeError:
        raise
    except ImageError as error:
        return ImageFacts(sha256, 0, 0, float("nan"), "", f"unreadable: {error.reason}")
    height, width = pixels.shape
    mean = round(float(pixels.mean()), 3)
    place = thumbnails.append(resize_grey(pixels, THUMBNAIL_PX))
    return ImageFacts(
        *(sha256, width, height, mean, mode),
        patient=patient,
        study=study,
        series=series,
        thumbnail=StoredRow(thumbnails, place),
        extremes=scaler.extremes,
        is_wrapped=not scaler.extremes and is_wrapped(pixels),
        is_binary=_is_binary(pixels),
    )


def _is_binary(pixels: npt.NDArray[np.uint8]) -> bool:
    low, high = pixels.min(), pixels.max()
    return bool(low < high and ((pixels == low) | (pixels == high)).all())


def measure_images(
    files: Iterable[tuple[str, bytes]],
    total: int,
    task: str = "reading",
    ranges: Ranges | None = None,
) -> dict[str, ImageFacts]:
    """Measure many files on all cores, with a progress bar on a terminal.

    Args:
        files: Name and content of each; few are held at a time.
        total: Number of files.
        task: Label of the progress bar.
        ranges: See `measure_image`.

    Raises:
        UserError: A file is over the pixel limit; names the first one.
    """
    measured: dict[str, ImageFacts] = {}
    thumbnails = open_thumbnails()
    remaining = iter(files)
    with (
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=total, desc=task, unit="image", disable=None if total else True) as bar,
    ):
        while chunk := list(itertools.islice(remaining, FILES_AT_ONCE)):
            futures = [
                (name, pool.submit(measure_image, content, thumbnails, ranges))
                for name, content in chunk
            ]
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
    """Measure every image of a data folder whose path is not `known`; see `measure_images`."""
    names = [name for name in list_images(data_dir) if name not in known]
    return measure_images(((name, (data_dir / name).read_bytes()) for name in names), len(names))


def collect_thumbnails(facts: Mapping[str, ImageFacts]) -> StoredMapping:
    """Return the thumbnail of every distinct readable file, by sha256."""
    return StoredMapping(
        {fact.sha256: fact.thumbnail for fact in facts.values() if fact.thumbnail is not None}
    )


def build_manifest(
    data_dir: Path,
    seed: int = 0,
    facts: Mapping[str, ImageFacts] | None = None,
    patients: Mapping[str, str] | None = None,
    studies: Mapping[str, str] | None = None,
    true_ids: Mapping[str, tuple[str, str, str]] | None = None,
    clusters: tuple[Mapping[str, int], Mapping[str, int]] | None = None,
    kept: Mapping[str, str] | None = None,
    published: Mapping[str, str] | None = None,
    evaluation_only: bool = False,
) -> pd.DataFrame:
    """Build the table of all images of a data folder, with ids and split; writes nothing.

    Args:
        data_dir: The folder that holds Images/.
        seed: Seed of the split.
        facts: Facts by path of files that are already measured or not yet written.
        patients: Known patients by path; images of one patient share a group.
        studies: Series or volumes by path; images of one study share a group.
        true_ids: Patient, duplicate set and group by path, of phantoms.
        clusters: Duplicate-set and group numbers by sha256 (`Duplicates.cluster`); without them
            only byte-identical files are duplicates.
        kept: Splits of an earlier manifest by sha256 (`extend_split`, `keep_split`).
        published: Published splits by path, to keep (`keep_split`).
        evaluation_only: All readable images are in the test split, of any number of classes.

    Returns:
        COLUMNS, sorted by path; unreadable rows have a note, no mean and no split.

    Raises:
        UserError: One class only, a class with too few groups to split, or as `keep_split`.
    """
    facts = dict(facts or {})
    facts |= measure_present(data_dir, facts)
    names = sorted(facts)
    frame = pd.DataFrame({"path": names})
    frame["label"] = [PurePosixPath(name).parent.name for name in names]
    for column in ("width", "height", "sha256", "mean", "note"):
        frame[column] = [getattr(facts[name], column) for name in names]
    if true_ids is not None:
        frame[["patient", "duplicate_set", "group"]] = [true_ids[name] for name in names]
    else:
        set_of, group_of = clusters or ({}, {})
        digests = frame["sha256"]
        frame["patient"] = [(patients or {}).get(name, "") for name in names]
        members = [str(set_of.get(digest, digest)) for digest in digests]
        frame["duplicate_set"] = name_sets("d", members, digests)
        related = [str(group_of.get(digest, "")) for digest in digests]
        study = [(studies or {}).get(name, "") for name in names]
        groups = link_groups(frame["duplicate_set"], related, frame["patient"], study)
        frame["group"] = name_sets("g", groups, digests)
    if evaluation_only:
        frame["split"] = _split_for_evaluation(frame, data_dir)
    else:
        _check_classes(frame, data_dir)
        if published is None:
            frame["split"] = _split_readable(frame, seed, kept or {})
        else:
            frame["split"] = keep_split(frame, published, data_dir / "Images", seed, kept)
    return frame[list(COLUMNS)]


def _split_for_evaluation(frame: pd.DataFrame, data_dir: Path) -> npt.NDArray[np.str_]:
    readable = frame["mean"].notna().to_numpy()
    if not readable.any():
        raise UserError(f"{data_dir / 'Images'}: none of its {len(frame)} images is readable")
    return np.where(readable, "test", "")


def _check_classes(frame: pd.DataFrame, data_dir: Path) -> None:
    classes = sorted(set(frame["label"][frame["mean"].notna()]))
    if len(classes) < 2:
        raise UserError(
            f"{data_dir / 'Images'}: {'one class only' if classes else 'no readable class'} "
            f"({', '.join(classes) or 'none'}); a classifier needs two or more class folders"
        )


def _split_readable(
    frame: pd.DataFrame, seed: int, kept: Mapping[str, str]
) -> npt.NDArray[np.str_]:
    readable = frame["mean"].notna().to_numpy()
    rows = frame[readable]
    splits = np.full(len(frame), "", dtype="<U5")
    earlier = [kept.get(digest, "") for digest in rows["sha256"]]
    labels, groups = (rows[column].to_numpy() for column in ("label", "group"))
    splits[readable] = extend_split(labels, groups, earlier, seed)
    return splits


def link_groups(duplicate_sets: Sequence[str], *links: Sequence[str]) -> npt.NDArray[np.intp]:
    """Return a group number for each row; rows connected by shared keys, also indirectly, share it.

    The keys are duplicate-set ids and any number of others, such as patients; "" links nothing.
    """
    pairs = [pair_equal(np.asarray(keys, dtype=str)) for keys in (duplicate_sets, *links)]
    return connect(np.concatenate(pairs), len(duplicate_sets))


def name_sets(prefix: str, members: Iterable[Any], sha256: Iterable[str]) -> list[str]:
    """Return an id for each row's set: `prefix` and the first digits of its smallest sha256."""
    table = pd.DataFrame({"members": list(members), "sha256": list(sha256)})
    smallest = table.groupby("members")["sha256"].transform("min")
    return [prefix + digest[:ID_DIGITS] for digest in smallest]


def write_manifest(frame: pd.DataFrame, data_dir: Path) -> None:
    """Write the manifest if the file is missing or different."""
    write_if_changed(manifest_path(data_dir), _format_manifest(frame))


def is_written(frame: pd.DataFrame, data_dir: Path) -> bool:
    """Return whether the manifest on disk equals this one, so that all other files are complete."""
    return _holds(manifest_path(data_dir), _format_manifest(frame))


def _format_manifest(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.3f", lineterminator="\n")


def write_if_changed(path: Path, text: str) -> None:
    """Write `text` if the file is missing or different."""
    if not _holds(path, text):
        write_text(path, text)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def load_manifest(data_dir: Path) -> pd.DataFrame:
    """Read and check the manifest of a data folder.

    Returns:
        COLUMNS; ids, split and note are text, width and height int, mean float (NaN: unreadable).

    Raises:
        UserError: The manifest or a column is missing, a path is listed twice, a split is invalid,
            or a number is; names the file and the row.
    """
    path = manifest_path(data_dir)
    if not path.is_file():
        raise UserError(
            f"{path} is missing: prepare the data first by `python prepare.py SOURCE`, or, for a "
            "try-out, `python prepare.py --phantom 600` and then `main.py --phantom`"
        )
    frame = read_table(path, COLUMNS, "run prepare.py again on its source")[list(COLUMNS)]
    sizes = frame[["width", "height"]].apply(pd.to_numeric, errors="coerce")
    mean = pd.to_numeric(frame["mean"], errors="coerce")
    folder = frame["path"].str.rsplit("/", n=2).str[-2]
    is_elsewhere = (folder != frame["label"]) | folder.isin([".", ".."])
    for column, is_wrong, problem in (
        ("width", (sizes["width"] % 1) != 0, "is not a whole number"),  # true of NaN as well
        ("height", (sizes["height"] % 1) != 0, "is not a whole number"),
        ("mean", mean.isna() & (frame["mean"] != ""), "is not a number"),
        ("split", ~frame["split"].isin([*SPLITS, ""]), "is not train, val or test"),
        ("path", frame["path"].duplicated(), "is listed twice"),
        ("label", is_elsewhere, "is not the folder of its path"),
    ):
        if is_wrong.any():
            index = int(is_wrong.to_numpy().argmax())
            raise UserError(
                f"{path} row {index + 2}: {column} {frame[column].iloc[index]!r} {problem}; "
                "run prepare.py again to rewrite the manifest"
            )
    return frame.assign(
        width=sizes["width"].astype("int64"), height=sizes["height"].astype("int64"), mean=mean
    )


def load_earlier_manifest(data_dir: Path) -> pd.DataFrame | None:
    """Return the manifest of a data folder, or None if it is missing or invalid."""
    try:
        return load_manifest(data_dir)
    except (OSError, UserError):
        return None
