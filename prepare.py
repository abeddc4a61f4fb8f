"""From an archive, a folder or a number of phantoms to class folders, manifest and split."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from args import DATA_DIR, PHANTOM_DIR, PrepareConfig, parse_prepare
from helper import NOTICE, UserError, log, run_verb

if TYPE_CHECKING:  # the real imports wait until the command line is known to be right
    import pandas as pd


def main(argv: list[str] | None = None) -> int:
    """Prepare a data folder and return the exit status."""
    config = parse_prepare(argv)
    return run_verb(prepare, config, config.debug)


def prepare(config: PrepareConfig) -> None:
    """Fill the data folder from the source, or with phantoms."""
    if config.phantom is not None:
        prepare_phantoms(config.phantom, config.data or PHANTOM_DIR, config.seed)
    elif config.source is not None:
        prepare_source(config.source, config.data or DATA_DIR, config.groups, config.seed)


def prepare_source(path: Path, data_dir: Path, groups: Path | None, seed: int) -> None:
    """Copy a source's pictures into class folders; everything is checked before the first write.

    Raises:
        UserError: The source, the data folder or the groups file is not as it must be.
    """
    from imaging.archive import check_clashes, open_source, plan_files
    from imaging.audit import build_audit
    from imaging.ingest import measure_source, write_image
    from imaging.manifest import build_manifest, list_images, measure_present, read_groups

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
        known = data_dir / "CSV" / "patients.csv"  # what an earlier --groups said
        patients = read_groups(known, names, skip_unknown=True) if known.exists() else {}
        if groups:
            patients |= read_groups(groups, names)
        frame = build_manifest(data_dir, seed, facts, patients)
        log.info("%s: %d images in the source, %d to write", images_dir, len(planned), len(missing))
        for file in missing:
            write_image(data_dir / file.target, file.entry.read())
    n_patients, n_others = len(set(patients.values())), len(facts) - len(planned)
    audit = build_audit(frame, facts, path.resolve().name, source.others, n_patients, n_others)
    _write_tables(data_dir, frame, audit, patients)
    option = "" if data_dir == DATA_DIR else f" --data {data_dir}"
    _print_summary(data_dir, audit, f"python main.py --model resnet18 --epochs 30{option}")


def prepare_phantoms(n_images: int, data_dir: Path, seed: int) -> None:
    """Fill a data folder with phantoms of known patient, slice and plane.

    Raises:
        UserError: The folder holds real slices or other phantoms, or they are too few to split.
    """
    from imaging.audit import build_audit
    from imaging.ingest import describe_plans, is_complete, render_phantoms
    from imaging.manifest import build_manifest, list_images, measure_images, write_if_changed
    from imaging.phantom import plan_phantoms
    from imaging.split import split_groups

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
    if is_complete(data_dir, plans):
        log.info("%s: all %d phantoms are there already", data_dir / "Images", n_images)
        audit = json.loads((data_dir / "CSV" / "audit.json").read_text("utf-8"))
    else:
        log.info("%s: making %d phantoms", data_dir / "Images", n_images)
        facts = measure_images(render_phantoms(plans, data_dir), len(plans), "phantoms")
        frame = build_manifest(data_dir, seed, facts, true_ids=ids)
        audit = build_audit(frame, facts, "phantoms", n_patients=frame["group"].nunique())
        audit |= {"phantom": True, "seed": seed, "n": n_images, "publisher": None}
        _write_tables(data_dir, frame, audit, {})
    option = "--phantom" if data_dir == PHANTOM_DIR else f"--data {data_dir}"
    _print_summary(data_dir, audit, f"python main.py --model net {option}")


def _phantom_table(data_dir: Path) -> Path:
    """The truth about phantoms; where it lies, everything is made up."""
    return data_dir / "CSV" / "phantoms.csv"


def _write_tables(
    data_dir: Path, frame: "pd.DataFrame", audit: dict[str, Any], patients: dict[str, str]
) -> None:
    """Write what lies in CSV/, the manifest last: where it is, the rest is complete."""
    import pandas as pd

    from imaging.manifest import write_if_changed, write_manifest

    if patients:
        table = pd.DataFrame(sorted(patients.items()), columns=["path", "group"])
        text = table.to_csv(index=False, lineterminator="\n")
        write_if_changed(data_dir / "CSV" / "patients.csv", text)
    text = json.dumps(audit, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_if_changed(data_dir / "CSV" / "audit.json", text)
    write_manifest(frame, data_dir)


def _print_summary(data_dir: Path, audit: dict[str, Any], next_command: str) -> None:
    from imaging.audit import describe_audit
    from imaging.manifest import manifest_path

    log.info("%s", "\n".join(describe_audit(audit)))
    log.info("listed in %s\nnext: %s\n%s", manifest_path(data_dir), next_command, NOTICE)


if __name__ == "__main__":
    raise SystemExit(main())
