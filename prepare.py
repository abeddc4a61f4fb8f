"""From an archive, a folder or a number of phantoms to class folders, manifest and split."""

import contextlib
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from args import DATA_DIR, PHANTOM_DIR, PrepareConfig, parse_prepare
from common import atomic_files
from helper import NOTICE, UserError, log, run_verb

if TYPE_CHECKING:  # the real imports wait until the command line is known to be right
    from collections.abc import Iterator, Mapping

    import pandas as pd

    from preparation.manifest import ImageFacts


def main(argv: list[str] | None = None) -> int:
    """Prepare a data folder and return the exit status."""
    config = parse_prepare(argv)
    return run_verb(prepare, config, config.debug)


def prepare(config: PrepareConfig) -> None:
    """Fill the data folder from the source, or with phantoms."""
    data_dir = config.data or (DATA_DIR if config.phantom is None else PHANTOM_DIR)
    with hold(data_dir):
        if config.phantom is not None:
            prepare_phantoms(config.phantom, data_dir, config.seed)
        elif config.source is not None:
            prepare_source(config.source, data_dir, config.groups, config.seed)


@contextlib.contextmanager
def hold(data_dir: Path) -> "Iterator[None]":
    """Fill a folder as the only program; one that was made for it and stays empty goes again.

    Raises:
        UserError: Another program fills it.
    """
    is_new = not data_dir.exists()
    data_dir.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_files.lock(
            data_dir, f"{data_dir}: another prepare.py is at work there; let it end"
        ):
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it holds something
                data_dir.rmdir()


def prepare_source(path: Path, data_dir: Path, groups: Path | None, seed: int) -> None:
    """Copy a source's pictures into class folders; everything is checked before the first write.

    Raises:
        UserError: The source, the data folder or the groups file is not as it must be.
    """
    from duplicates.finder import find_copies, load_copies, save_copies
    from preparation.audit import build_audit, describe_moved, keeps_splits, read_audit, read_splits
    from preparation.contact_sheets import draw_sheets
    from preparation.ingest import measure_source, write_image
    from preparation.manifest import (
        build_manifest,
        collect_thumbnails,
        is_listed,
        list_images,
        measure_present,
    )
    from preparation.sources import check_clashes, open_source, plan_files

    for folder in (data_dir, path, path.parent):
        if _phantom_table(folder).exists():
            raise UserError(f"{folder} holds phantoms; keep real slices apart, in another --data")
    images_dir = data_dir / "Images"
    if images_dir.is_dir() and path.resolve() == data_dir.resolve():
        path = images_dir
    itself = path.resolve() == images_dir.resolve()
    with open_source(path, skip=None if itself else data_dir) as source:
        planned = plan_files(source.entries, path, use_aliases=not itself)
        present = list_images(data_dir)
        check_clashes(planned, present, data_dir)
        facts, missing = measure_source(planned, path, data_dir)
        facts |= measure_present(data_dir, facts)
        names = dict.fromkeys(facts, "") | {file.target: file.entry.name for file in planned}
        told = _read_told(data_dir, names, groups)
        patients = _collect_patients(facts) | told
        cache = data_dir / "cache" / "copies.npz"
        known_copies, splits = load_copies(cache), read_splits(data_dir)
        thumbnails = collect_thumbnails(facts)
        copies = find_copies(thumbnails, known_copies)
        kept = splits if keeps_splits(data_dir, seed) else {}
        frame = build_manifest(data_dir, seed, facts, patients, found=copies.number(), kept=kept)
        log.info("%s: %d images in the source, %d to write", images_dir, len(planned), len(missing))
        for file in missing:
            write_image(data_dir / file.target, file.entry.read())
    if copies is not known_copies:
        save_copies(copies, cache)
    links, earlier = copies.tabulate(), read_audit(data_dir)
    listed = bool(earlier) and is_listed(frame, data_dir)
    audit = build_audit(
        frame,
        facts,
        path.resolve().name,
        seed,
        others=source.others,
        n_patients=len(set(patients.values())),
        n_not_in_source=len(facts) - len(planned),
        links=links,
        shortcut=earlier["shortcut"] if listed else _measure_shortcut(frame, facts),
    )
    sheets = data_dir / "audit"
    if not listed or not sheets.is_dir():
        draw_sheets(copies, thumbnails, frame, sheets)
    _write_tables(data_dir, frame, audit, told, links)
    option = "" if data_dir == DATA_DIR else f" --data {shlex.quote(str(data_dir))}"
    _print_summary(data_dir, audit, f"python main.py --model resnet18 --epochs 30{option}")
    if sheets.is_dir():
        log.info("look at the copies that were found: %s", sheets)
    for line in describe_moved(frame, splits):
        log.info("%s", line)


def prepare_phantoms(n_images: int, data_dir: Path, seed: int) -> None:
    """Fill a data folder with phantoms of known patient, slice and plane.

    Raises:
        UserError: The folder holds real slices or other phantoms, or they are too few to split.
    """
    from phantoms.generator import plan_phantoms
    from preparation.audit import build_audit, read_audit
    from preparation.ingest import describe_plans, is_complete, render_phantoms
    from preparation.manifest import build_manifest, list_images, measure_images, write_if_changed
    from preparation.splits import split_groups

    plans = {f"Images/{plan.label}/{plan.name}": plan for plan in plan_phantoms(n_images, seed)}
    ids = {name: (f"s{plan.slice:06d}", f"g{plan.patient:06d}") for name, plan in plans.items()}
    truth_path, truth = _phantom_table(data_dir), describe_plans(plans)
    if not truth_path.exists() and (list_images(data_dir) or (data_dir / "CSV").exists()):
        raise UserError(f"{data_dir} holds real slices; phantoms need another --data")
    if truth_path.exists() and truth_path.read_text("utf-8") != truth:
        raise UserError(
            f"{data_dir} holds other phantoms (another number or --seed); choose another --data, "
            "or remove the folder"
        )
    if strangers := set(list_images(data_dir)) - set(plans):
        raise UserError(f"{data_dir / min(strangers)} is no phantom; move it elsewhere")
    split_groups(  # refuses too few of them before anything is written
        [plan.label for plan in plans.values()], [group for _, group in ids.values()], seed
    )
    write_if_changed(truth_path, truth)
    audit = read_audit(data_dir)
    if audit and is_complete(data_dir, plans):
        log.info("%s: all %d phantoms are there already", data_dir / "Images", n_images)
    else:
        log.info("%s: making %d phantoms", data_dir / "Images", n_images)
        facts = measure_images(render_phantoms(plans, data_dir), len(plans), "phantoms")
        frame = build_manifest(data_dir, seed, facts, true_ids=ids)
        n_patients, shortcut = frame["group"].nunique(), _measure_shortcut(frame, facts)
        audit = build_audit(
            frame, facts, "phantoms", seed, n_patients=n_patients, shortcut=shortcut
        )
        audit |= {"phantom": True, "n": n_images, "publisher": None}
        _write_tables(data_dir, frame, audit, {})
    option = "--phantom" if data_dir == PHANTOM_DIR else f"--data {data_dir}"
    _print_summary(data_dir, audit, f"python main.py --model net {option}")


def _phantom_table(data_dir: Path) -> Path:
    """The truth about phantoms; where it lies, everything is made up."""
    return data_dir / "CSV" / "phantoms.csv"


def _read_told(data_dir: Path, names: dict[str, str], groups: Path | None) -> dict[str, str]:
    """The patients by path that --groups tells, and before it those that earlier ones told."""
    from preparation.manifest import read_groups

    known = data_dir / "CSV" / "patients.csv"
    earlier = read_groups(known, names, skip_unknown=True) if known.exists() else {}
    return earlier | (read_groups(groups, names) if groups else {})


def _collect_patients(facts: "Mapping[str, ImageFacts]") -> dict[str, str]:
    """The patients by path that DICOM files name, by pseudonyms.

    A number that every picture has was put there to hide the patient, and ties nothing together.
    """
    patients = {path: fact.patient for path, fact in facts.items() if fact.patient}
    n_patients, n_readable = len(set(patients.values())), sum(not f.note for f in facts.values())
    if n_patients == 1 and 1 < len(patients) == n_readable:
        log.info("PatientID is the same in all %d DICOM files: passed over", n_readable)
        return {}
    if patients:
        log.info("%d patients by the PatientID of %d DICOM files", n_patients, len(patients))
    return patients


def _measure_shortcut(
    frame: "pd.DataFrame", facts: "Mapping[str, ImageFacts]"
) -> dict[str, float] | None:
    """What brightness alone reaches on groups that it has not seen."""
    import numpy as np

    from evaluation.baselines import compute_brightness_statistics, cross_validate_brightness

    readable = frame[frame["mean"].notna()]
    thumbnails = [facts[path].thumbnail for path in readable["path"]]
    statistics = [
        compute_brightness_statistics(pixels[None]) for pixels in thumbnails if pixels is not None
    ]
    labels = np.unique(readable["label"], return_inverse=True)[1]
    return cross_validate_brightness(
        np.concatenate(statistics), labels, readable["group"].to_numpy(dtype=str)
    )


def _write_tables(
    data_dir: Path,
    frame: "pd.DataFrame",
    audit: dict[str, Any],
    told: dict[str, str],
    links: "pd.DataFrame | None" = None,
) -> None:
    """Write what lies in CSV/, the manifest last: where it is, the rest is complete."""
    import pandas as pd

    from preparation.manifest import write_if_changed, write_manifest

    tables = {}
    if told:
        tables["patients.csv"] = pd.DataFrame(sorted(told.items()), columns=["path", "group"])
    if links is not None:
        paths = frame.drop_duplicates("sha256").set_index("sha256")["path"]
        ends = {end: links[end].map(paths) for end in ("first", "second")}
        tables["links.csv"] = links.assign(**ends)
    for name, table in tables.items():
        text = table.to_csv(index=False, lineterminator="\n")
        write_if_changed(data_dir / "CSV" / name, text)
    text = json.dumps(audit, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_if_changed(data_dir / "CSV" / "audit.json", text)
    atomic_files.flush_all()
    write_manifest(frame, data_dir)


def _print_summary(data_dir: Path, audit: dict[str, Any], next_command: str) -> None:
    from preparation.audit import describe_audit
    from preparation.manifest import manifest_path

    log.info("%s", "\n".join(describe_audit(audit)))
    log.info("listed in %s\nnext: %s\n%s", manifest_path(data_dir), next_command, NOTICE)


if __name__ == "__main__":
    raise SystemExit(main())
