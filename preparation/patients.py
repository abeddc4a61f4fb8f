"""Collect known patients from a table, from an earlier manifest and from DICOM files."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from helper import UserError, log
from imaging.dicom import DIGEST_DIGITS
from preparation.manifest import ImageFacts, manifest_path, read_table

_PSEUDONYM = re.compile(f"p[0-9a-f]{{{DIGEST_DIGITS}}}")  # of imaging.dicom.hash_patient


def collect_patients(
    data_dir: Path,
    facts: Mapping[str, ImageFacts],
    source_names: Mapping[str, str],
    table: Path | None,
) -> dict[str, str]:
    """Return the known patient of each path below the data folder.

    `table`, the CSV of --patients, takes precedence over the earlier manifest, and that over DICOM
    files. `source_names` are the names inside the source by path, for `read_patients`.
    """
    earlier = _read_earlier(data_dir) if manifest_path(data_dir).is_file() else {}
    patients = _collect_pseudonyms(facts)
    patients |= {path: patient for path, patient in earlier.items() if path in facts}
    return patients | (read_patients(table, source_names) if table else {})


def _read_earlier(data_dir: Path) -> dict[str, str]:
    """Return the patients in the earlier manifest, except pseudonyms, which are read again."""
    try:
        rows = read_table(manifest_path(data_dir), ("path", "patient"), "give --patients again")
    except UserError as error:
        log.warning("known patients of an earlier run are not used: %s", error)
        return {}
    known = zip(rows["path"], rows["patient"], strict=True)
    return {path: name for path, name in known if name and not _PSEUDONYM.fullmatch(name)}


def _collect_pseudonyms(facts: Mapping[str, ImageFacts]) -> dict[str, str]:
    """Return the pseudonyms of DICOM files by path; {} if all are equal (anonymised files)."""
    patients = {path: fact.patient for path, fact in facts.items() if fact.patient}
    n_patients, n_readable = len(set(patients.values())), sum(not f.note for f in facts.values())
    if n_patients == 1 and 1 < len(patients) == n_readable:
        log.info("PatientID is the same in all %d DICOM files: ignored", n_readable)
        return {}
    if patients:
        log.info("%d patients by the PatientID of %d DICOM files", n_patients, len(patients))
    return patients


def read_patients(table: Path, source_names: Mapping[str, str]) -> dict[str, str]:
    """Read known patients from a CSV with columns path and patient; "" means unknown.

    Args:
        table: The CSV. A path in it is relative to the data folder or to the source, or a file
            name that occurs once.
        source_names: The name inside the source ("" if none) of each path below the data folder.

    Returns:
        The patient of each path below the data folder that the table lists.

    Raises:
        UserError: Columns are missing, a path is unknown or ambiguous, or has two patients.
    """
    rows = read_table(table, ("path", "patient"), "write a CSV with the header path,patient")
    targets: dict[str, set[str]] = {}
    for target, source_name in source_names.items():
        file_names = {PurePosixPath(target).name, PurePosixPath(source_name).name}
        for name in {target, source_name, *file_names} - {""}:
            targets.setdefault(name, set()).add(target)
    patients: dict[str, str] = {}
    for row, (name, patient) in enumerate(zip(rows["path"], rows["patient"], strict=True), 2):
        found = sorted(targets.get(name.strip().replace("\\", "/").removeprefix("./"), ()))
        where = f"{table} row {row}: {name!r}"
        if not found:
            raise UserError(f"{where} is not an image of the source; correct or remove the row")
        if len(found) > 1:
            raise UserError(
                f"{where} may be any of {len(found)} images ({', '.join(found[:2])}, ...); "
                "write the path inside the source"
            )
        known = patients.setdefault(found[0], patient.strip()) if patient.strip() else ""
        if known != patient.strip():
            raise UserError(f"{where} is listed with patient {known} too; keep one of them")
    return patients
