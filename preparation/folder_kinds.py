"""Recognise folder and file names that say something else than a class."""

import re
from collections.abc import Collection, Sequence
from enum import Enum
from pathlib import PurePosixPath

FEW_FOLDERS = 10  # numbered folders up to here may be classes: 1, 2, 3 or grade1 ... grade4
MANY_FOLDERS = 30  # more than the classes of a data set
_SPLITS = {
    "train": r"train(?:ing)?",
    "val": r"val(?:id(?:ation)?)?|dev(?:elopment)?",
    "test": r"test(?:ing)?|hold ?out",
}
_SPLIT_ENDINGS = r"(?: ?(?:set|data|dataset|images?|split|cases|\d++))*+"
_SEQUENCE_WORDS = {
    *("t1", "t1w", "t1wi", "t1c", "t1ce", "t1gd", "t1n", "t1post", "t1pre", "t1wce", "t1km"),
    *("t2", "t2w", "t2wi", "t2f", "pd", "pdw", "flair", "t2flair", "dwi", "adc", "swi", "dti"),
    *("asl", "mra", "mrs", "perfusion", "spgr", "mprage", "gre", "tse", "fse", "tof", "stir"),
    *("axial", "ax", "tra", "transverse", "transversal", "sagittal", "sag", "coronal", "cor"),
    *("b0", "b50", "b500", "b800", "b1000", "b2000", "map", "trace"),
    *("weighted", "post", "pre", "contrast", "gd", "ce", "se", "ir", "3d", "2d"),
}
_MASKS = {
    *("mask", "masks", "seg", "segs", "segmentation", "segmentations", "segmented", "gt", "gts"),
    *("label", "labels", "annotation", "annotations", "roi", "rois", "contour", "contours"),
    *("groundtruth", "truth"),
}
_PICTURES = {
    *("image", "images", "img", "imgs", "picture", "pictures", "slice", "slices", "scan", "scans"),
    *("jpegimages", "png", "jpg", "jpeg", "dicom", "dcm", "nifti"),
}
_UNLABELLED = r"pred(?:ict(?:ions?)?)?|unlabel+ed|unknown labels?|inference"
# numbered parts of a data set that are no patients: fold_0, hospital_1, batch2, 1.5T
_PARTS_OF_DATA = re.compile(
    r"(?:(?:cross ?)?fold|batch|part|chunk|shard|split|(?:sub|data ?)?set|group|version|round"
    r"|site|hospital|cent(?:er|re)|clinic|institut(?:ion|e)|scanner|machine|vendor|source"
    r"|level|grade|stage|augmented|aug|rot(?:ated?)?) ?\d+|\d+(?: \d+)? ?t(?:esla)?"
)
_PATIENT_WORDS = r"(?:patient|pat|subject|subj|sub|case|person|pid)[ _-]?\d"
_MASK_FILE = re.compile(rf"(.*[^a-z])(?:{'|'.join(sorted(_MASKS))})(?:[ _-]?\d{{1,3}})?")
_MASK_START = re.compile(rf"(?:{'|'.join(sorted(_MASKS))})[ _.-]+(.+)")
_SUFFIXES = (".nii.gz",)  # of two parts


class FolderKind(Enum):
    """What the name of a folder says."""

    SPLIT = "published split"
    PICTURES = "folder of pictures beside other files"
    MASKS = "masks"
    SEQUENCE = "sequence or plane"
    UNLABELLED = "images without a class"
    PLAIN = "class, patient or centre"


def find_folder_kind(name: str) -> FolderKind:
    """Return what a folder name says by itself, whatever its case and separators."""
    plain = _normalise(name)
    words = plain.split()
    if find_split(name):
        return FolderKind.SPLIT
    if words and set(words) <= _SEQUENCE_WORDS:
        return FolderKind.SEQUENCE
    if words and words[-1] in _MASKS:
        return FolderKind.MASKS
    if plain in _PICTURES:
        return FolderKind.PICTURES
    if re.fullmatch(_UNLABELLED, plain):
        return FolderKind.UNLABELLED
    return FolderKind.PLAIN


def find_split(name: str) -> str:
    """Return train, val or test for the name of a folder of a published split, else ""."""
    plain = _normalise(name)
    for split, pattern in _SPLITS.items():
        if re.fullmatch(f"(?:{pattern}){_SPLIT_ENDINGS}", plain):
            return split
    return ""


def are_identifiers(names: Collection[str]) -> bool:
    """Return whether names differ by their numbers alone, as those of patients do.

    Every name has a digit, and without digits few different ones are left: patient_00, patient_01;
    TCGA_CS_4941_19960909, TCGA_DU_5849_19950405.
    """
    patterns = {re.sub(r"\d+", "#", name.casefold()) for name in names}
    return all(re.search(r"\d", name) for name in names) and len(patterns) <= max(
        1, len(names) // 2
    )


def are_patients(names: Collection[str]) -> bool:
    """Return whether identifiers can only be patients: `patient_00`, or long numbers."""
    return are_identifiers(names) and all(
        is_global_identifier(name) or re.match(_PATIENT_WORDS, name.casefold()) for name in names
    )


def is_part_of_data(name: str) -> bool:
    """Return whether a folder is a numbered fold, batch, site or scanner, and no patient."""
    return _PARTS_OF_DATA.fullmatch(_normalise(name)) is not None


def is_global_identifier(name: str) -> bool:
    """Return whether a patient folder has so long a number that it means one patient everywhere."""
    return len(re.findall(r"\d", name)) >= 4


def split_mask_name(name: str) -> str:
    """Return a file name without an ending such as `_mask` or a start such as `mask_`, else "".

    Args:
        name: Name of a file without folders, such as `benign (1)_mask.png`.
    """
    stem = strip_suffix(name).casefold()
    if found := _MASK_FILE.fullmatch(stem):
        return found[1].rstrip(" _-.")
    found = _MASK_START.fullmatch(stem)
    return found[1] if found else ""


def strip_suffix(name: str) -> str:
    """Return a file name without its suffix."""
    lower = name.casefold()
    for suffix in _SUFFIXES:
        if lower.endswith(suffix):
            return name[: -len(suffix)]
    return PurePosixPath(name).stem


def list_first(names: Sequence[str], n_shown: int = 4) -> str:
    """Return the first names as text, with the number of the others."""
    shown = ", ".join(names[:n_shown])
    return f"{shown} and {len(names) - n_shown} others" if len(names) > n_shown else shown


def _normalise(name: str) -> str:
    return re.sub(r"[ _.\-]+", " ", name.casefold()).strip()
