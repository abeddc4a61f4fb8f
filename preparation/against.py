"""Compare a data folder with another one: which files are copies of its slices, and of whom.

`prepare.py SOURCE --against OTHER` writes the result to CSV/against.csv and audit/against.png. The
patient of a slice is inherited by its copies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from common.atomic_files import write_text
from duplicates.clustering import GROUP_SCORE, STRONG_SCORE
from duplicates.finder import Duplicates, find_duplicates
from duplicates.registration import Registrations
from duplicates.result_file import load_duplicates
from duplicates.set_comparison import compare_sets
from helper import UserError, log
from preparation import contact_sheets, integrity
from preparation.manifest import (
    ImageFacts,
    cache_path,
    collect_thumbnails,
    load_manifest,
    measure_images,
    measure_present,
)

COLUMNS = (
    *("path", "sha256", "other_path", "score", "second_score", "mirrored", "rotation_deg", "zoom"),
    *("patient", "label", "other_label", "status"),
)
MARGIN = 10  # by which a score must exceed that with any slice of another patient
COPY, CONFLICT, AMBIGUOUS, NONE = "copy", "label conflict", "ambiguous", "none"  # column `status`
MAX_LISTED = 20  # label conflicts in the audit
PAIRS_SHOWN = {CONFLICT: 9, AMBIGUOUS: 9, COPY: 12, NONE: 6}  # on the contact sheet
SHEET, TABLE = "audit/against.png", "CSV/against.csv"


@dataclass(frozen=True)
class OtherData:
    """The folder to compare with.

    Attributes:
        folder: As given on the command line.
        duplicates: Features and links of its readable slices.
        slices: Manifest row of each slice, in the order of `duplicates.digests`.
    """

    folder: Path
    duplicates: Duplicates
    slices: pd.DataFrame


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Attributes:
        other: The other folder.
        table: COLUMNS, a row for each readable file.
        matrices: From the thumbnail of each sha256, mirrored or not, to that of `other_path`.
    """

    other: OtherData
    table: pd.DataFrame
    matrices: dict[str, npt.NDArray[np.float32]]

    @property
    def is_copy(self) -> "pd.Series[bool]":
        """Whether each file is a copy of one slice, and of no slice of another patient."""
        return self.table["status"].isin([COPY, CONFLICT])

    def inherit_patients(self) -> dict[str, str]:
        """Return the patient of each path that is a copy of a slice of a known patient."""
        known = self.table[self.table["patient"] != ""]
        return dict(zip(known["path"], known["patient"], strict=True))


def load_other(folder: Path, data_dir: Path) -> OtherData:
    """Load the features and the manifest of the folder to compare with.

    The features are computed from the images if the cache of the duplicate search is missing.

    Raises:
        UserError: It is the folder to write, is not prepared, holds phantoms, or has changed.
    """
    if folder.resolve() == data_dir.resolve():
        raise UserError(f"--against {folder}: this is the folder to write; give another one")
    if (folder / "CSV" / "phantoms.csv").exists():
        raise UserError(f"--against {folder} holds phantoms; give a folder of real slices")
    integrity.check_all(folder)
    frame = load_manifest(folder)
    known = frame[frame["patient"] != ""].groupby("sha256")["patient"].agg(["nunique", "first"])
    patient_of = known["first"].where(known["nunique"] == 1, "")  # of several: unknown
    slices = frame[frame["width"] > 0].drop_duplicates("sha256").sort_values("sha256")
    slices["patient"] = slices["sha256"].map(patient_of).fillna("")
    duplicates = load_duplicates(cache_path(folder))
    if duplicates is None or not set(duplicates.digests).issuperset(slices["sha256"]):
        log.info("%s: computing its features, as they are not in its cache", folder)
        duplicates = find_duplicates(collect_thumbnails(measure_present(folder)))
    return OtherData(folder, duplicates.restrict(slices["sha256"]), slices.reset_index(drop=True))


def compare_with_other(
    facts: Mapping[str, ImageFacts], duplicates: Duplicates, other: OtherData
) -> Comparison:
    """Find the files that are copies of slices of another folder.

    Args:
        facts: Facts of the own files by path.
        duplicates: Result of the duplicate search on these files.
        other: The folder to compare with.
    """
    best, second_scores = choose_best(compare_sets(duplicates, other.duplicates), other.slices)
    digests = np.array(duplicates.digests, dtype=object)[best.pairs[:, 0]]
    found = other.slices.iloc[best.pairs[:, 1]].reset_index(drop=True)
    matches = pd.DataFrame(
        {
            "sha256": digests,
            "other_path": found["path"],
            "score": best.scores,
            "second_score": second_scores,
            **best.describe_transforms(),
            "patient": found["patient"],
            "other_label": found["label"],
        }
    )
    files = pd.DataFrame(
        [
            (path, PurePosixPath(path).parent.name, fact.sha256)
            for path, fact in sorted(facts.items())
            if not fact.note
        ],
        columns=["path", "label", "sha256"],
    )
    table = files.merge(matches[matches["score"] > 0], "left", "sha256")
    names, counts = ["other_path", "patient", "other_label"], ["score", "second_score"]
    table[names] = table[names].fillna("")
    table[counts] = table[counts].fillna(0).astype(int)
    table["mirrored"] = table["mirrored"].astype("Int64")
    is_clear = table["score"] - table["second_score"] >= MARGIN
    table["status"] = np.select(
        [table["score"] < STRONG_SCORE, ~is_clear], [NONE, AMBIGUOUS], default=COPY
    )
    copies = table[table["status"] == COPY]
    in_conflict = find_conflicts(copies["label"], copies["other_label"])
    table.loc[copies.index[in_conflict], "status"] = CONFLICT
    table.loc[table["status"].isin([NONE, AMBIGUOUS]), "patient"] = ""
    matrices = dict(zip(digests.tolist(), best.matrices, strict=True))
    return Comparison(other, table[list(COLUMNS)], matrices)


def choose_best(
    compared: Registrations, slices: pd.DataFrame
) -> tuple[Registrations, npt.NDArray[np.int16]]:
    """Return the best pair of each first row, and its best score with another patient's slice.

    Slices are of two patients if their patients differ, or their groups where one is unknown.

    Args:
        compared: From `compare_sets`.
        slices: Columns `patient` and `group` of the second set.
    """
    order = np.lexsort((compared.pairs[:, 1], -compared.scores, compared.pairs[:, 0]))
    ranked = compared.take(order)
    starts = np.flatnonzero(np.diff(ranked.pairs[:, 0], prepend=-1))
    best = ranked.take(starts)
    if not len(starts):
        return best, best.scores
    n_candidates = np.diff(np.append(starts, len(ranked.scores)))
    own, others = np.repeat(best.pairs[:, 1], n_candidates), ranked.pairs[:, 1]
    patients, groups = (slices[name].to_numpy(dtype=str) for name in ("patient", "group"))
    are_known = (patients[own] != "") & (patients[others] != "")
    is_rival = np.where(are_known, patients[own] != patients[others], groups[own] != groups[others])
    return best, np.maximum.reduceat(np.where(is_rival, ranked.scores, 0), starts)


def find_conflicts(labels: "pd.Series[str]", other_labels: "pd.Series[str]") -> npt.NDArray:
    """Return which copies have another label than their slice, bool [N].

    Class names differ between data sets. Two classes correspond if most copies of one of them are
    of the other one.
    """
    if labels.empty:
        return np.zeros(0, bool)
    counts = pd.crosstab(labels, other_labels)
    agrees = (labels.map(counts.idxmax(axis=1)) == other_labels) | (
        other_labels.map(counts.idxmax(axis=0)) == labels
    )
    return (~agrees).to_numpy()


def summarise(comparison: Comparison) -> dict[str, Any]:
    """Return the entry `against` of audit.json."""
    table, other = comparison.table, comparison.other
    copies = table[comparison.is_copy]
    conflicts = table[table["status"] == CONFLICT]
    counts = pd.crosstab(copies["label"], copies["other_label"])
    return {
        "other": other.folder.as_posix(),
        "other_files": len(other.slices),
        "other_patients": other.slices["patient"].replace("", np.nan).nunique(),
        "total": _count(table, other),
        "by_class": {label: _count(rows, other) for label, rows in table.groupby("label")},
        "scores": None
        if copies.empty
        else {
            "lowest": int(copies["score"].min()),
            "median": float(copies["score"].median()),
            "lowest_margin": int((copies["score"] - copies["second_score"]).min()),
        },
        "classes": {
            str(label): {str(name): int(n) for name, n in row.items() if n}
            for label, row in counts.iterrows()
        },
        "label_conflicts": {
            "count": len(conflicts),
            "first": conflicts[["path", "other_path", "label", "other_label", "score"]]
            .head(MAX_LISTED)
            .to_dict("records"),
        },
    }


def _count(rows: pd.DataFrame, other: OtherData) -> dict[str, Any]:
    """Count files by status; `slices` and `patients` are those of the other folder."""
    copies = rows[rows["status"].isin([COPY, CONFLICT])]
    set_of = other.slices.set_index("path")["duplicate_set"]
    return {
        "files": len(rows),
        "copies": len(copies),
        "share": round(len(copies) / len(rows), 4) if len(rows) else None,
        "slices": int(set_of[copies["other_path"]].nunique()),
        "patients": int(copies["patient"].replace("", np.nan).nunique()),
        "with_patient": int((copies["patient"] != "").sum()),
        "ambiguous": int((rows["status"] == AMBIGUOUS).sum()),
        "none": int((rows["status"] == NONE).sum()),
    }


def describe(summary: Mapping[str, Any]) -> list[str]:
    """Return the entry `against` of audit.json as lines of text."""
    other = summary["other"]
    known = f", {summary['other_patients']} known patients" if summary["other_patients"] else ""
    rows = [("class", "files", "copies", "share", "slices", "patients", "ambiguous", "none")]
    named = {**summary["by_class"], "all": summary["total"]}
    for label, counts in named.items():
        share = "–" if counts["share"] is None else f"{counts['share']:.1%}"
        keys = ("slices", "patients", "ambiguous", "none")
        rows.append((label, counts["files"], counts["copies"], share, *(counts[k] for k in keys)))
    width = max(len(str(row[0])) for row in rows)
    lines = [f"  copies of slices of {other} ({summary['other_files']} distinct files{known}):"]
    lines += [
        f"    {row[0]:<{width}} {row[1]:>6} {row[2]:>6} {row[3]:>6} {row[4]:>6} {row[5]:>8} "
        f"{row[6]:>9} {row[7]:>5}"
        for row in rows
    ]
    if scores := summary["scores"]:
        lines.append(
            f"    score of the copies: lowest {scores['lowest']}, median {scores['median']:g}; at "
            f"least {scores['lowest_margin']} more than with any slice of another patient"
        )
    for label, counts in summary["classes"].items():
        name, n_most = max(counts.items(), key=lambda item: item[1])
        n_copies = sum(counts.values())
        lines.append(f"    {label} corresponds to {name}: {n_most} of {n_copies} copies")
    if n_conflicts := summary["label_conflicts"]["count"]:
        lines.append(f"    {n_conflicts} copies have another label than their slice, such as")
        lines += [
            f"      {row['path']} of {row['other_path']} (score {row['score']})"
            for row in summary["label_conflicts"]["first"][:3]
        ]
    if n_inherited := summary["total"]["with_patient"]:
        lines.append(f"    the patients of {n_inherited} files are taken from {other}")
    return [*lines, f"    every file: {TABLE}; pairs to check: {SHEET}"]


def write_comparison(
    comparison: Comparison, thumbnails: Mapping[str, npt.NDArray], data_dir: Path
) -> dict[str, Any]:
    """Write TABLE and SHEET into a data folder; return the entry `against` of audit.json."""
    text = comparison.table.to_csv(index=False, lineterminator="\n")
    table, sheet = data_dir / TABLE, data_dir / SHEET
    is_drawn = sheet.is_file() and table.is_file() and table.read_bytes() == text.encode()
    if not is_drawn:
        draw_sheet(comparison, thumbnails, sheet)
        write_text(table, text)
    return summarise(comparison)


def delete_comparison(data_dir: Path) -> None:
    """Delete the files of an earlier comparison."""
    for name in (TABLE, SHEET):
        (data_dir / name).unlink(missing_ok=True)


def draw_sheet(comparison: Comparison, thumbnails: Mapping[str, npt.NDArray], path: Path) -> None:
    """Draw files beside the slices of the other folder, those that need a check first.

    Label conflicts and ambiguous files come first, then the weakest copies, and then the most
    similar files that are no copies.
    """
    chosen = _choose_shown(comparison.table)
    folder = comparison.other.folder
    names = chosen["other_path"].unique().tolist()
    others = measure_images(((name, (folder / name).read_bytes()) for name in names), len(names))
    pairs = []
    for row in chosen.to_dict("records"):
        other = others[row["other_path"]].thumbnail
        assert other is not None  # its features are known
        title = (
            f"{row['status']}, score {row['score']}, next {row['second_score']}: "
            f"{row['label']}/{PurePosixPath(row['path']).name} and "
            f"{row['other_label']}/{PurePosixPath(row['other_path']).name}"
        )
        pairs.append(
            contact_sheets.draw_pair(
                thumbnails[row["sha256"]],
                other.read(),
                comparison.matrices[row["sha256"]],
                mirrored=bool(row["mirrored"]),
                title=title,
            )
        )
    contact_sheets.save_sheet(path, pairs, columns=3)


def _choose_shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the contact sheet."""
    similar = table[table["score"] >= GROUP_SCORE]
    parts: Sequence[pd.DataFrame] = [
        similar[similar["status"] == status]
        .sort_values(["score", "path"], ascending=[status != NONE, True])
        .head(n_shown)
        for status, n_shown in PAIRS_SHOWN.items()
    ]
    return pd.concat(parts)
