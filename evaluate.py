"""Evaluate a checkpoint: `python evaluate.py session/RUN/best.pt`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import args
import helper
from helper import UserError, log

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

RESULTS_DIR = Path("results")
METRICS_SCHEMA = 1
LEAKY_SPLIT = (
    "LEAKY SPLIT (--split-by image): copies of one slice stand in training and test; "
    "these figures measure the leak, not the classifier"
)
BYTE_COPIES_ONLY = (
    "groups hold byte copies and known patients only: altered copies of a slice may stand in "
    "training and test, so these figures are likely too high"
)
PHANTOM = "PHANTOM: generated slices; nothing here says anything about patients"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = args.parse_evaluate(argv)
    return helper.run_verb(evaluate, config, config.debug)


def evaluate(config: args.EvaluateConfig) -> None:
    """A checkpoint's figures on one split, as files under results/ and a summary on the screen."""
    import checkpoint as checkpoints
    import dataset
    import model
    from assessment import baselines, metrics

    checkpoint = checkpoints.load_run(config.checkpoint)
    if not checkpoint["best"]:
        raise UserError(
            f"{config.checkpoint}: no epoch is finished; go on with python main.py --resume "
            f"{config.checkpoint.parent}"
        )
    helper.set_threads(config.threads or checkpoint["threads"])
    device = helper.resolve_device(config.device)
    network = checkpoints.restore_model(checkpoint, config.checkpoint).to(device)
    classes = checkpoint["classes"]
    data_dir = config.data or Path(checkpoint["data"])

    table = dataset.assign_split(dataset.load_table(data_dir), checkpoint["split"])
    rows = select_rows(table, checkpoint, config.split, data_dir)
    image_size = network.preprocess.image_size
    slices = dataset.take_slices(table, config.split, data_dir, classes, image_size)
    logits = model.infer(network, slices.iterate(config.batch_size))[0].numpy()
    labels = slices.labels.numpy()

    figures = metrics.compute_metrics(
        logits, labels, rows["slice"].to_numpy(), rows["group"].to_numpy(), classes
    )
    pixels = slices.pixels.squeeze(1).numpy()
    figures["baselines"] = baselines.compute_baseline_accuracies(
        checkpoint["baselines"], pixels, labels
    )
    figures["notes"] = [*list_warnings(checkpoint, table, config.split, data_dir)] + figures[
        "notes"
    ]
    report = {
        "schema": METRICS_SCHEMA,
        "run": checkpoint["run"],
        "checkpoint": config.checkpoint.as_posix(),
        "data": data_dir.as_posix(),
        "split": config.split,
        **figures,
        "environment": helper.describe_environment(device, sys.argv),
    }
    results_dir = RESULTS_DIR / name_results(config, checkpoint)
    check_results_dir(results_dir, report)
    write_results(results_dir, report, tabulate(rows, logits, classes), checkpoint, logits, labels)
    summarise(report, results_dir)


def select_rows(
    table: "pd.DataFrame", checkpoint: dict[str, Any], split: str, data_dir: Path
) -> "pd.DataFrame":
    """The rows of the split that the run itself recorded; all of them must be there.

    Raises:
        UserError: Slices of the split are missing, or a class is unknown to the checkpoint.
    """
    import dataset

    rows = table if split == "all" else table[table["split"] == split]
    if split != "all":
        dataset.check_complete(table, checkpoint["split"], split, data_dir, checkpoint["run"])
    unknown = sorted(set(rows["label"]) - set(checkpoint["classes"]))
    if unknown:
        raise UserError(
            f"{data_dir}: class {', '.join(unknown)} is unknown to the checkpoint, which was "
            f"trained on {', '.join(checkpoint['classes'])}; rename or remove that folder"
        )
    return rows


def list_warnings(
    checkpoint: dict[str, Any], table: "pd.DataFrame", split: str, data_dir: Path
) -> list[str]:
    """What a reader of the figures must know first."""
    import dataset

    warnings = []
    if checkpoint["phantom"] or dataset.is_phantom(data_dir):
        warnings.append(PHANTOM)
    if checkpoint["config"]["data"]["split_by"] == "image":
        warnings.append(LEAKY_SPLIT)
    elif not checkpoint["phantom"]:
        warnings.append(BYTE_COPIES_ONLY)
    known = int((table["split"] != "").sum())
    learnt = int((table["split"] == "train").sum())
    if split in {"train", "val"}:
        warnings.append(f"these are the {split} slices: the run has seen them")
    elif split == "all" and not known:
        warnings.append("none of these slices belongs to the run: other data than it was made from")
    elif split == "all":
        warnings.append(
            f"{known} of these {len(table)} slices belong to the run; it was trained on {learnt}"
        )
    return warnings


def name_results(config: args.EvaluateConfig, checkpoint: dict[str, Any]) -> str:
    """The folder under results/: the run's own for its test split alone."""
    name = config.name or checkpoint["run"]
    if config.checkpoint.stem != "best":
        name = f"{name}-{config.checkpoint.stem}"
    data_dir = config.data or Path(checkpoint["data"])
    if data_dir.resolve() != Path(checkpoint["data"]).resolve():
        name = f"{name}-on-{data_dir.resolve().name}"
    return name if config.split == "test" else f"{name}-{config.split}"


def check_results_dir(results_dir: Path, report: dict[str, Any]) -> None:
    """Results of another checkpoint, split or data are never overwritten.

    Raises:
        UserError: The folder holds such results.
    """
    path = results_dir / "metrics.json"
    if not path.exists():
        return
    there = json.loads(path.read_text("utf-8"))
    for key in ("checkpoint", "split", "data"):
        if Path(there[key]).resolve() != Path(report[key]).resolve():
            raise UserError(
                f"{results_dir} holds results of {key} {there[key]}, not {report[key]}; choose "
                "another --name, or move that folder"
            )


def tabulate(rows: "pd.DataFrame", logits: "np.ndarray", classes: list[str]) -> "pd.DataFrame":
    """predictions.csv: a row a slice; prediction set and referral come with calibration."""
    from assessment import metrics

    probs = metrics.softmax(logits)  # [N, K]
    verdicts = rows[["path", "sha256", "slice", "group", "label"]].reset_index(drop=True)
    verdicts["predicted"] = [classes[index] for index in logits.argmax(1)]
    verdicts["confidence"] = probs.max(1).round(6)
    for index, name in enumerate(classes):
        verdicts[f"p_{name}"] = probs[:, index].round(6)
    return verdicts.assign(set="", refer="")


def write_results(
    results_dir: Path,
    report: dict[str, Any],
    predictions: "pd.DataFrame",
    checkpoint: dict[str, Any],
    logits: "np.ndarray",
    labels: "np.ndarray",
) -> None:
    """Every file of results/RUN."""
    import numpy as np
    import pandas as pd

    from assessment import metrics, plots
    from assessment.report import write_model_card, write_report

    classes, probs = report["classes"], metrics.softmax(logits)
    stamp = "PHANTOM" if PHANTOM in report["notes"] else None
    (results_dir / "metrics.json").unlink(missing_ok=True)
    with helper.atomic_path(results_dir / "predictions.csv") as temporary:
        predictions.to_csv(temporary, index=False)
    pictures = results_dir / "plots"
    plots.plot_confusion_matrix(
        np.array(report["confusion_matrix"]),
        classes,
        pictures / "confusion_matrix.png",
        stamp=stamp,
    )
    plots.plot_class_metrics(report["per_class"], pictures / "class_metrics.png", stamp=stamp)
    plots.plot_roc_curves(probs, labels, classes, pictures / "roc.png", stamp=stamp)
    plots.plot_pr_curves(probs, labels, classes, pictures / "pr.png", stamp=stamp)
    history, best_epoch = pd.DataFrame(checkpoint["history"]), checkpoint["best"]["epoch"]
    plots.plot_training_curves(history, best_epoch, pictures / "training.png", stamp=stamp)
    write_report(results_dir / "report.html", report, pictures)
    write_model_card(results_dir / "model_card.md", report, checkpoint)
    helper.write_json(results_dir / "metrics.json", report)  # last: where it is, all is


def summarise(report: dict[str, Any], results_dir: Path) -> None:
    """The headline on the screen, its warnings first."""
    for note in report["notes"]:
        log.info("note: %s", note)
    log.info(
        "%s, %s split: accuracy %.4f (per slice %.4f), macro-F1 %.4f on %d images of %d groups; "
        "knowing nothing %.4f, brightness alone %.4f",
        report["run"],
        report["split"],
        report["accuracy"]["value"],
        report["accuracy_per_slice"]["value"],
        report["f1_macro"]["value"],
        report["n_images"],
        report["n_groups"],
        report["baselines"]["majority"],
        report["baselines"]["brightness"],
    )
    log.info("%s", helper.NOTICE)
    log.info("open %s and %s", results_dir / "report.html", results_dir / "plots")


if __name__ == "__main__":
    sys.exit(main())
