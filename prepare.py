"""Prepare a data folder from an archive, a folder or generated phantoms."""

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from args import DATA_DIR, PHANTOM_DIR
from common import atomic_files
from common.portable_names import quote
from helper import NOTICE, UserError, log, run_command
from preparation.options import PrepareConfig, parse_prepare

if TYPE_CHECKING:  # imported late, so that --help and errors of the command line are quick
    from collections.abc import Iterator, Mapping

    import pandas as pd

    from preparation.manifest import ImageFacts


def main(argv: list[str] | None = None) -> int:
    """Prepare a data folder and return the exit status."""
    config = parse_prepare(argv)
    return run_command(prepare, config, config.debug)


def prepare(config: PrepareConfig) -> None:
    """Fill the data folder from the source or with phantoms."""
    data_dir = config.data or (DATA_DIR if config.phantom is None else PHANTOM_DIR)
    with _lock(data_dir):
        if config.phantom is not None:
            prepare_phantoms(config.phantom, data_dir, config.seed)
        elif config.source is not None:
            source = _check_source(config.source, data_dir)
            prepare_source(source, data_dir, config)


@contextlib.contextmanager
def _lock(data_dir: Path) -> "Iterator[None]":
    """Lock a data folder; remove it at the end if it was created for this and is empty."""
    is_new = not data_dir.exists()
    data_dir.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_files.lock(
            data_dir, f"{data_dir}: another prepare.py is running there; wait until it ends"
        ):
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # not empty
                data_dir.rmdir()


def _check_source(path: Path, data_dir: Path) -> Path:
    """Return the source (Images/ if it is the data folder itself); refuse folders of phantoms."""
    for folder in (data_dir, path, path.parent):
        if _phantom_table(folder).exists():
            raise UserError(f"{folder} holds phantoms; use another --data for real slices")
    images_dir = data_dir / "Images"
    return images_dir if images_dir.is_dir() and path.resolve() == data_dir.resolve() else path


def prepare_source(path: Path, data_dir: Path, config: PrepareConfig) -> None:
    """Copy a source's images into class folders; everything is checked before the first write."""
    from duplicates import finder, result_file
    from preparation import (
        against,
        audit,
        audit_text,
        contact_sheets,
        ingest,
        manifest,
        outlines,
        patients,
        plan,
        published_split,
        sources,
        targets,
    )

    images_dir, seed = data_dir / "Images", config.seed
    in_place = path.resolve() == images_dir.resolve()
    evaluation_only = audit.choose_purpose(data_dir, config.evaluation_only)
    other = against.load_other(config.against, data_dir) if config.against else None
    if config.ignore_patients and audit.has_given_patients(data_dir):
        raise UserError(
            f"{data_dir}: its manifest remembers patients of --patients or --against, which "
            "--ignore-patients would delete; choose another --data"
        )
    skip = None if in_place else data_dir
    with sources.open_source(path, skip, follow_links=config.follow_links) as source:
        planned = plan.plan_source(
            source, path, config, in_place=in_place, one_class=evaluation_only
        )
        earlier, earlier_splits = audit.read_audit(data_dir), audit.read_splits(data_dir)
        keeps_published = published_split.choose_split(
            data_dir,
            planned.splits,
            keep_split=config.keep_split,
            is_prepared=manifest.manifest_path(data_dir).is_file(),
        )
        targets.check_clashes(planned.files, manifest.list_images(data_dir), data_dir)
        for line in planned.notes:
            log.info("%s", line)
        facts, missing = ingest.measure_source(
            planned.files, path, data_dir, allow_empty=config.allow_empty
        )
        facts |= manifest.measure_present(data_dir, facts)
        facts, ranges = ingest.rescale(facts, planned.files, data_dir)
        names = dict.fromkeys(facts, "") | {file.target: file.entry.name for file in planned.files}
        containers = {
            file.target: file.entry.container for file in planned.files if file.entry.container
        }
        named = (
            patients.read_patients(config.patients, names, containers) if config.patients else {}
        )
        cache = manifest.cache_path(data_dir)
        known = result_file.load_duplicates(cache) if audit.keeps_scale(earlier, ranges) else None
        thumbnails = manifest.collect_thumbnails(facts)
        duplicates = finder.find_duplicates(thumbnails, known)
        copies = against.compare_with_other(facts, duplicates, other) if other else None
        inherited = copies.inherit_patients() if copies else {}
        identified = patients.KnownPatients()
        if not config.ignore_patients:
            stated = (planned.patient_source, planned.patients)
            identified = patients.collect_patients(
                *(data_dir, facts, named, inherited, stated),
                were_given=audit.has_given_patients(data_dir),
            )
        digests = {path: fact.sha256 for path, fact in facts.items()}
        published = published_split.recall_split(data_dir, digests, planned.splits)
        knows_seed = bool(earlier) or not keeps_published
        kept = earlier_splits if audit.keeps_splits(earlier, seed) or not knows_seed else {}
        frame = manifest.build_manifest(
            *(data_dir, seed, facts, identified.patients, identified.studies),
            clusters=duplicates.cluster(*identified.list_by_digest(facts)),
            kept=kept,
            published=published if keeps_published else None,
            evaluation_only=evaluation_only,
        )
        log.info(
            "%s: %d images in the source, %d to write", images_dir, len(planned.files), len(missing)
        )
        for file in missing:
            ingest.write_image(data_dir / file.target, file.entry.read())
    outlines.write_outlines(data_dir, planned.outlines)
    if duplicates is not known:
        result_file.save_duplicates(duplicates, cache)
    path_of = frame.drop_duplicates("sha256").set_index("sha256")["path"]
    links = duplicates.to_frame(path_of.to_dict())
    sheets = data_dir / "audit"
    is_unchanged = bool(earlier) and manifest.is_written(frame, data_dir)
    shortcut = earlier["shortcut"] if is_unchanged else None
    if not is_unchanged and not evaluation_only:
        shortcut = _measure_shortcut(frame, facts)
    leak = published_split.measure_leak(frame, published, kept=keeps_published)
    if is_unchanged and not published:
        leak = earlier.get("published_split")
    summary = audit.build_audit(
        frame,
        facts,
        path.resolve().name,
        seed,
        others=source.others,
        left_out=planned.left_out,
        n_not_in_source=len(facts) - len(planned.files),
        links=links,
        ranges=ranges,
        shortcut=shortcut,
        patient_sources=identified.sources,
        published_split=leak,
        evaluation_only=evaluation_only,
    )
    if not is_unchanged or not sheets.is_dir():
        contact_sheets.draw_sheets(duplicates, thumbnails, frame, sheets)
    if copies:
        summary["against"] = against.write_comparison(copies, thumbnails, data_dir)
    elif is_unchanged and "against" in earlier:
        summary["against"] = earlier["against"]
    else:
        against.delete_comparison(data_dir)
    if keeps_published:
        table = published_split.format_split(frame, published)
        manifest.write_if_changed(published_split.split_path(data_dir), table)
    links_text = links.to_csv(index=False, lineterminator="\n")
    manifest.write_if_changed(data_dir / "CSV" / "links.csv", links_text)
    _write_tables(data_dir, frame, summary)
    _print_summary(data_dir, summary, "python main.py --model resnet18 --epochs 30")
    if sheets.is_dir():
        log.info("contact sheets of duplicates and groups: %s", quote(sheets))
    if earlier and not audit.keeps_scale(earlier, ranges):
        log.info("%s", audit_text.describe_rescaled(earlier, summary))
    for line in audit_text.describe_moved(frame, earlier_splits):
        log.info("%s", line)


def prepare_phantoms(n_images: int, data_dir: Path, seed: int) -> None:
    """Fill a data folder with phantoms of known patient, slice and plane."""
    from preparation import audit, ingest, manifest, splits

    plans = ingest.plan_phantom_files(n_images, seed)
    truth_path, truth = _phantom_table(data_dir), ingest.describe_plans(plans)
    present = manifest.list_images(data_dir)
    if not truth_path.exists() and (present or (data_dir / "CSV").exists()):
        raise UserError(f"{data_dir} holds real slices; phantoms need another --data")
    if truth_path.exists() and truth_path.read_text("utf-8") != truth:
        raise UserError(
            f"{data_dir} holds other phantoms (another number or --seed); choose another --data, "
            "or remove the folder"
        )
    if unknown := set(present) - set(plans):
        raise UserError(f"{data_dir / min(unknown)} is not a phantom; move it elsewhere")
    labels, patients = zip(*((plan.label, plan.patient) for plan in plans.values()), strict=True)
    splits.split_groups(labels, patients, seed)  # check before the first write
    manifest.write_if_changed(truth_path, truth)
    summary = audit.read_audit(data_dir)
    if summary and ingest.is_complete(data_dir, plans):
        log.info("%s: all %d phantoms exist already", data_dir / "Images", n_images)
    else:
        log.info("%s: generating %d phantoms", data_dir / "Images", n_images)
        frame, facts = ingest.ingest_phantoms(plans, data_dir, seed)
        shortcut = _measure_shortcut(frame, facts)
        summary = audit.build_audit(frame, facts, "phantoms", seed, shortcut=shortcut)
        summary |= {"phantom": True, "n": n_images, "publisher": None}
        _write_tables(data_dir, frame, summary)
    _print_summary(data_dir, summary, "python main.py --model net")


def _phantom_table(data_dir: Path) -> Path:
    """Return the path of the true properties of phantoms; only folders of phantoms have it."""
    return data_dir / "CSV" / "phantoms.csv"


def _measure_shortcut(
    frame: "pd.DataFrame", facts: "Mapping[str, ImageFacts]"
) -> dict[str, float] | None:
    """Return cross-validated accuracies of the brightness and majority-class baselines."""
    import numpy as np

    from evaluation.baselines import cross_validate_brightness
    from imaging.brightness import compute_brightness_statistics

    readable = frame[frame["mean"].notna()]
    thumbnails = (facts[path].thumbnail for path in readable["path"])
    statistics = np.concatenate(
        [compute_brightness_statistics(row.read()[None]) for row in thumbnails if row is not None]
    )
    labels = np.unique(readable["label"], return_inverse=True)[1]
    return cross_validate_brightness(statistics, labels, readable["group"].to_numpy(dtype=str))


def _write_tables(data_dir: Path, frame: "pd.DataFrame", summary: dict[str, Any]) -> None:
    """Write audit and manifest, the manifest last: where it exists, the others are complete."""
    from preparation.manifest import write_if_changed, write_manifest

    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_if_changed(data_dir / "CSV" / "audit.json", text)
    atomic_files.flush_all()
    write_manifest(frame, data_dir)


def _print_summary(data_dir: Path, summary: dict[str, Any], next_command: str) -> None:
    """Print the audit and the next command, with the option that selects this data folder.

    Data for evaluation only have another one.
    """
    from preparation import against
    from preparation.audit_text import describe_audit
    from preparation.manifest import manifest_path

    options = {DATA_DIR: "", PHANTOM_DIR: " --phantom"}
    if summary.get("evaluation_only"):
        next_command, options = "python evaluate.py session/RUN", {}
    next_command += options.get(data_dir, f" --data {quote(data_dir)}")
    copies = against.describe(summary["against"]) if "against" in summary else []
    log.info("%s", "\n".join([*describe_audit(summary), *copies]))
    table = quote(manifest_path(data_dir))
    log.info("listed in %s\nnext: %s\n%s", table, next_command, NOTICE)


if __name__ == "__main__":
    raise SystemExit(main())
