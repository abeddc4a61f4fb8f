"""The file of a duplicate search (.npz), written and read slice by slice."""

import hashlib
import zipfile
from pathlib import Path

import cv2
import numpy as np

from common.atomic_files import atomic_path
from common.row_file import RowFile, StoredRows
from duplicates.finder import FINDER_VERSION, Duplicates
from duplicates.neighbours import Neighbours
from duplicates.registration import Registrations
from duplicates.sift_features import VOCABULARY_FILE, Features
from imaging.reader import READER_VERSION

_DESCRIPTORS = "descriptors.npy"


def save_duplicates(duplicates: Duplicates, path: Path) -> None:
    """Write a result atomically."""
    features, descriptors = dict(vars(duplicates.features)), duplicates.features.descriptors
    del features["descriptors"]
    arrays = {
        "key": np.array(_build_key()),
        "digests": np.array(duplicates.digests, dtype="S64"),
        **features,
        **vars(duplicates.neighbours),
        **vars(duplicates.compared),
    }
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array)
        shape, dtype = (len(descriptors), *descriptors.file.shape), descriptors.file.dtype
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        with archive.open(_DESCRIPTORS, "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_2_0(stream, header)
            for row in range(len(descriptors)):
                stream.write(descriptors[row].tobytes())


def load_duplicates(path: Path) -> Duplicates | None:
    """Read a saved result; return None if it is absent, damaged or of another version."""
    try:
        with np.load(path) as saved:
            if str(saved["key"]) != _build_key():
                return None
            features = {name: saved[name] for name in ("counts", "points", "words")}
            neighbours = Neighbours(saved["codes"], saved["similarity"])
            compared = Registrations(*(saved[name] for name in Registrations.__dataclass_fields__))
            digests = [digest.decode() for digest in saved["digests"]]
        with zipfile.ZipFile(path) as archive:
            descriptors = _read_rows(archive, _DESCRIPTORS)
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return Duplicates(digests, Features(**features, descriptors=descriptors), neighbours, compared)


def _read_rows(archive: zipfile.ZipFile, name: str) -> StoredRows:
    """Read a table [N, ...] of an archive into a temporary file."""
    with archive.open(name) as stream:
        np.lib.format.read_magic(stream)
        (n_rows, *shape), _, dtype = np.lib.format.read_array_header_2_0(stream)
        file = RowFile(tuple(shape), dtype)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        places = [
            file.append(np.frombuffer(stream.read(n_bytes), dtype).reshape(shape))
            for _ in range(n_rows)
        ]
    return StoredRows(file, np.array(places, np.int64))


def _build_key() -> str:
    """Return what a result depends on besides the slices."""
    words = hashlib.sha256(VOCABULARY_FILE.read_bytes()).hexdigest()[:12]
    versions = f"finder {FINDER_VERSION}, reader {READER_VERSION}, opencv {cv2.__version__}"
    return f"{versions}, words {words}"
