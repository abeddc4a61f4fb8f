"""Collect known patients from a table, the published data set, DICOM and an earlier manifest."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from helper import UserError, log
from imaging.dicom import DIGEST_DIGITS
from preparation.manifest import ImageFacts, manifest_path
from preparation.published import find_published_patients
from preparation.tables import (
    FILE_COLUMNS,
    PATIENT_COLUMNS,
    find_column,
    list_tails,
    read_table,
    read_user_table,
)

FOLDERS, STATED = "the folders of the source", "the MATLAB files"
MAX_STUDIES = 10  # of one patient in several classes
_PSEUDONYM = re.compile(f"p[0-9a-f]{{{DIGEST_DIGITS}}}")  # of imaging.dicom.hash_patient

# sources of a patient; the earlier manifest remembers what was given
GIVEN, EARLIER, PUBLISHED, DICOM = (
    "--patients or --against",
    "an earlier run",
    "the table of the published data set",
    "the PatientID of DICOM files",
)


@dataclass(frozen=True)
class KnownPatients:
    """What is known about the patients of a data folder.

    Attributes:
        patients: Patient by path; paths without a known patient are absent.
        studies: Pseudonym of the DICOM study by path, for images without a known patient, and for
            the other images of their study if these are of one known patient.
        sources: Number of images by the source of their patient.
    """

    patients: dict[str, str] = field(default_factory=dict)
    studies: dict[str, str] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)

    def list_by_digest(self, facts: Mapping[str, ImageFacts]) -> list[dict[str, str]]:
        """Return patients and studies by the SHA-256 of the files."""
        return [
            {facts[path].sha256: name for path, name in names.items()}
            for names in (self.patients, self.studies)
        ]


def collect_patients(
    data_dir: Path,
    facts: Mapping[str, ImageFacts],
    named: Mapping[str, str],
    inherited: Mapping[str, str],
    stated: tuple[str, Mapping[str, str]] = ("", {}),
    *,
    were_given: bool = False,
) -> KnownPatients:
    """Collect the known patients of the images of a data folder.

    The table of --patients takes precedence over --against, that over options about the source,
    that over the published table, that over DICOM files, that over the folders of the source, and
    that over the earlier manifest; if its patients were given by --patients or --against, it comes
    before the options. If slices of a patient inherit one other name, the whole patient takes it,
    so that nobody is divided into two patients.

    Args:
        data_dir: The data folder, for its earlier manifest.
        facts: `ImageFacts` by path below the data folder.
        named: Patients by path in the table of --patients, from `read_patients`.
        inherited: Patients by path of the copies of another folder's slices.
        stated: How the names of the source tell patients (an option or FOLDERS), and the patients
            by path.
        were_given: Whether --patients or --against told the patients of the earlier manifest.
    """
    is_before = manifest_path(data_dir).is_file()
    earlier = _read_earlier(data_dir, facts) if is_before else {}
    published = find_published_patients(fact.sha256 for fact in facts.values())
    by_source = {  # by rising precedence
        DICOM: _collect_pseudonyms(facts),
        PUBLISHED: {
            path: published[fact.sha256] for path, fact in facts.items() if fact.sha256 in published
        },
    }
    source, by_name = stated
    if source == FOLDERS:
        by_source = {source: dict(by_name), **by_source}
    elif source:
        by_source[source] = dict(by_name)
    if not were_given:
        by_source, earlier = {EARLIER: earlier, **by_source}, {}
    own = {path: name for found in (*by_source.values(), earlier) for path, name in found.items()}
    by_source[GIVEN] = {**earlier, **_rename_whole_patients(own, inherited), **named}
    patients: dict[str, str] = {}
    for found in by_source.values():
        patients |= found
    # the earlier manifest repeats the other sources, so the first that agrees is named
    sources = Counter(
        next(name for name, found in by_source.items() if found.get(path) == patient)
        for path, patient in patients.items()
    )
    return KnownPatients(patients, _collect_studies(facts, patients), dict(sources))


def _rename_whole_patients(own: Mapping[str, str], inherited: Mapping[str, str]) -> dict[str, str]:
    """Add to inherited patients the other slices of each own patient who inherits one name."""
    names: dict[str, set[str]] = {}
    for path, name in inherited.items():
        if path in own:
            names.setdefault(own[path], set()).add(name)
    renamed = {known: min(found) for known, found in names.items() if len(found) == 1}
    others = {path: renamed[known] for path, known in own.items() if known in renamed}
    return {**others, **inherited}


def _read_earlier(data_dir: Path, facts: Mapping[str, ImageFacts]) -> dict[str, str]:
    """Return the patients in the earlier manifest, except of DICOM files, which are read again.

    Files are recognised by their content: a patient follows a file that was moved to another class,
    and is not given to another file of the same name.
    """
    columns = ("path", "sha256", "patient")
    try:
        rows = read_table(manifest_path(data_dir), columns, "give --patients again")
    except UserError as error:
        log.warning("known patients of an earlier run are not used: %s", error)
        return {}
    rows = rows[rows["patient"] != ""]
    by_file = rows.set_index(["path", "sha256"])["patient"].to_dict()
    of_content = rows.groupby("sha256")["patient"].agg(["nunique", "first"])
    by_content = of_content["first"][of_content["nunique"] == 1].to_dict()
    known = {
        path: by_file.get((path, fact.sha256)) or by_content.get(fact.sha256, "")
        for path, fact in facts.items()
    }
    return {
        path: name
        for path, name in known.items()
        if name and not (facts[path].patient and _PSEUDONYM.fullmatch(name))
    }


def _collect_pseudonyms(facts: Mapping[str, ImageFacts]) -> dict[str, str]:
    """Return the pseudonyms of DICOM files by path, except of a PatientID that names nobody."""
    patients = {path: fact.patient for path, fact in facts.items() if fact.patient}
    n_readable = sum(not fact.note for fact in facts.values())
    by_patient: dict[str, list[str]] = {}
    for path, patient in patients.items():
        by_patient.setdefault(patient, []).append(path)
    for patient, paths in by_patient.items():
        n_classes = len({PurePosixPath(path).parent.name for path in paths})
        n_studies = len({facts[path].study or facts[path].series for path in paths})
        is_only = len(by_patient) == 1 < len(paths)
        if is_only and (len(paths) == n_readable or min(n_classes, n_studies) > 1):
            log.info("PatientID is the same in all %d DICOM files: ignored", len(paths))
        elif n_classes > 1 and n_studies > MAX_STUDIES:
            log.info(
                "one PatientID names %d studies of %d classes (%d DICOM files): taken for a "
                "placeholder and ignored",
                *(n_studies, n_classes, len(paths)),
            )
        else:
            continue
        patients = {path: name for path, name in patients.items() if name != patient}
    if patients:
        n_patients = len(set(patients.values()))
        log.info("%d patients by the PatientID of %d DICOM files", n_patients, len(patients))
    return patients


def _collect_studies(
    facts: Mapping[str, ImageFacts], patients: Mapping[str, str]
) -> dict[str, str]:
    """Return the DICOM studies that hold images without a patient; {} if one holds all images.

    A file without a study has its series instead, and so have all if they name one study. The
    other images of such a study are included if they have one known patient, so that all its
    images are in one group. Studies of several patients join none of them.
    """
    readable = {path: fact for path, fact in facts.items() if not fact.note}
    study_of = {fact.series: fact.study for fact in readable.values() if fact.study and fact.series}
    name_of = {
        path: fact.study or study_of.get(fact.series) or fact.series
        for path, fact in readable.items()
    }
    n_readable = len(readable)
    if len(set(name_of.values())) == 1:
        name_of = {path: fact.series or fact.study for path, fact in readable.items()}
    studies = {path: name for path, name in name_of.items() if name and path not in patients}
    n_studies = len(set(studies.values()))
    if n_studies == 1 and len(studies) == n_readable:
        log.info("all %d files are of one study or series: ignored", n_readable)
        return {}
    if 1 < n_studies == len(studies):
        log.info(
            "%d images name no patient, and each another study, series or file: nothing ties them",
            n_studies,
        )
    elif studies:
        log.info(
            "%d images name no patient (or a placeholder), but a study, a series or a file of "
            "several pictures; each of these %d stays in one split",
            *(len(studies), n_studies),
        )
    named = {path: name_of[path] for path in patients if path in readable}
    patients_of: dict[str, set[str]] = {}
    for path, study in named.items():
        patients_of.setdefault(study, set()).add(patients[path])
    unnamed = set(studies.values())
    if n_mixed := sum(len(patients_of.get(study, ())) > 1 for study in unnamed):
        log.warning(
            "%d studies hold images of several patients and of none: the latter are in groups of "
            "their own; give their patients by --patients",
            n_mixed,
        )
    return studies | {
        path: study
        for path, study in named.items()
        if study in unnamed and len(patients_of[study]) == 1
    }


def read_patients(
    table: Path, source_names: Mapping[str, str], containers: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Read known patients from a table with columns path and patient; "" means unknown.

    Args:
        table: The table, as for `read_user_table`. A path in it is relative to the data folder or
            to the source or to a folder in it, or a file name; it must fit one image. It may name
            a file of several pictures.
        source_names: The name inside the source ("" if none) of each path below the data folder.
        containers: The file of several pictures in the source, by path below the data folder.

    Returns:
        The patient of each path below the data folder that the table lists.

    Raises:
        UserError: Columns are missing, a path is unknown or ambiguous, or has two patients.
    """
    remedy = "write a CSV with the header path,patient"
    rows = read_user_table(table, remedy)
    by_patient = find_column(rows, PATIENT_COLUMNS)
    by_path = find_column(rows, FILE_COLUMNS)
    if by_path is None or by_patient is None:
        missing = "paths" if by_path is None else "patients"
        raise UserError(
            f"{table}: no column of {missing} among {', '.join(map(repr, rows))}; {remedy}"
        )
    targets: dict[str, set[str]] = {}
    whole = _list_by_container(containers or {})
    for target, source_name in source_names.items():
        for name in {*list_tails(target), *list_tails(source_name)} - {""}:
            targets.setdefault(name, set()).add(target)
    patients: dict[str, str] = {}
    for row, name, patient in zip(rows.index, rows[by_path], rows[by_patient], strict=True):
        key = name.replace("\\", "/").removeprefix("./")
        is_whole = key in whole and key not in targets
        found = whole[key] if is_whole else sorted(targets.get(key, ()))
        where = f"{table} row {row}: {name!r}"
        if not found:
            raise UserError(f"{where} is not an image of the source; correct or remove the row")
        if len(found) > 1 and not is_whole:
            raise UserError(
                f"{where} may be any of {len(found)} images ({', '.join(found[:2])}, ...); "
                "write the path inside the source"
            )
        for path in found if patient else []:
            if (known := patients.setdefault(path, patient)) != patient:
                raise UserError(f"{where} is listed with patient {known} too; keep one of them")
    return patients


def _list_by_container(containers: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the pictures of each file of several, by its path and its name, if unique."""
    by_path: dict[str, list[str]] = {}
    for target, container in containers.items():
        by_path.setdefault(container, []).append(target)
    counts = Counter(PurePosixPath(container).name for container in by_path)
    by_name = {PurePosixPath(path).name: found for path, found in by_path.items()}
    return by_path | {name: found for name, found in by_name.items() if counts[name] == 1}
