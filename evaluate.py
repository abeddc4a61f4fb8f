"""Evaluate a checkpoint: `python evaluate.py session/RUN/best.pt`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
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
COPIES_UNKNOWN = (
    "copies were not searched for in this data: they may stand in training and test, so these "
    "figures are likely too high; run prepare.py again"
)
PHANTOM = "PHANTOM: generated slices; nothing here says anything about patients"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    config = args.parse_evaluate(argv)
    return helper.run_verb(evaluate, config, config.debug)


@dataclass
class Verdicts:
    """What one checkpoint says of the slices of one split.

    Attributes:
        path: The checkpoint's.
        checkpoint: Its content.
        rows: The manifest's rows of the slices.
        logits: [N, K].
        labels: Class indices [N].
        baselines: Accuracies of the two that know no anatomy.
        n_related: How many of them have a copy or likely neighbour among the training slices.
        warnings: What a reader must know first.
    """

    path: Path
    checkpoint: dict[str, Any]
    rows: "pd.DataFrame"
    logits: "np.ndarray"
    labels: "np.ndarray"
    baselines: dict[str, float]
    n_related: int
    warnings: list[str]


def evaluate(config: args.EvaluateConfig) -> None:
    """A checkpoint's figures on one split, as files under results/ and a summary on the screen.

    Of a run with --folds, the figures of all its checkpoints together: each judges the slices that
    it has not seen.
    """
    from assessment import metrics

    paths = list_fold_checkpoints(config.checkpoint) or [config.checkpoint]
    if len(paths) > 1 and config.split != "test":
        raise UserError(
            f"{config.checkpoint}: pooled folds are judged on the slices that each has not seen; "
            "leave out --split, or name the best.pt of one fold"
        )
    judged = [judge(path, config) for path in paths]
    first = judged[0].checkpoint
    pooled = pool(judged)
    figures = metrics.compute_metrics(
        pooled.logits,
        pooled.labels,
        pooled.rows["slice"].to_numpy(),
        pooled.rows["group"].to_numpy(),
        first["classes"],
    )
    figures["baselines"] = pooled.baselines
    figures["notes"] = [*pooled.warnings, *describe_leak(pooled), *figures["notes"]]
    data_dir = config.data or Path(first["data"])
    report = {
        "schema": METRICS_SCHEMA,
        "run": config.checkpoint.resolve().name if len(paths) > 1 else first["run"],
        "checkpoint": config.checkpoint.as_posix(),
        "data": data_dir.as_posix(),
        "split": config.split,
        **figures,
        "environment": helper.describe_environment(helper.resolve_device(config.device), sys.argv),
    }
    results_dir = RESULTS_DIR / name_results(config, report["run"], Path(first["data"]))
    check_results_dir(results_dir, report)
    write_results(results_dir, report, pooled, [verdicts.checkpoint for verdicts in judged])
    summarise(report, results_dir)


def list_fold_checkpoints(run_dir: Path) -> list[Path]:
    """The best.pt of every fold of a run with --folds; none where the path is no such run's.

    Raises:
        UserError: A fold is missing or has not finished an epoch.
    """
    if not run_dir.is_dir() or not (run_dir / "config.json").is_file():
        return []
    kept = json.loads((run_dir / "config.json").read_text("utf-8"))
    n_folds = args.TrainConfig.from_dict(kept).data.folds or 0
    paths = [run_dir / f"fold_{fold}" / "best.pt" for fold in range(1, n_folds + 1)]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing; go on with python main.py --resume {run_dir}")
    return paths


def judge(path: Path, config: args.EvaluateConfig) -> Verdicts:
    """Load one checkpoint and let it judge the slices of its split.

    Raises:
        UserError: No finished epoch, slices missing, a class that it does not know.
    """
    import checkpoint as checkpoints
    import dataset
    import model
    from assessment import baselines

    checkpoint = checkpoints.load_run(path)
    if not checkpoint["best"]:
        raise UserError(
            f"{path}: no epoch is finished; go on with python main.py --resume {path.parent}"
        )
    helper.set_threads(config.threads or checkpoint["threads"])
    device = helper.resolve_device(config.device)
    network = checkpoints.restore_model(checkpoint, path).to(device)
    data_dir = config.data or Path(checkpoint["data"])
    table = dataset.assign_split(dataset.load_table(data_dir), checkpoint["split"])
    rows = select_rows(table, checkpoint, config.split, data_dir)
    slices = dataset.take_slices(
        table, config.split, data_dir, checkpoint["classes"], network.preprocess.image_size
    )
    logits = model.infer(network, slices.iterate(config.batch_size))[0].numpy()
    labels = slices.labels.numpy()
    known_nothing = baselines.compute_baseline_accuracies(
        checkpoint["baselines"], slices.pixels.squeeze(1).numpy(), labels
    )
    is_own = config.split in {"test", "val"}
    n_related = dataset.count_relatives(table, rows) if is_own else 0
    warnings = list_warnings(checkpoint, table, config.split, data_dir)
    return Verdicts(path, checkpoint, rows, logits, labels, known_nothing, n_related, warnings)


def pool(judged: list[Verdicts]) -> Verdicts:
    """The verdicts of several folds as one; baselines are averaged over the slices.

    Raises:
        UserError: A slice is judged by more than one fold.
    """
    import numpy as np
    import pandas as pd

    if len(judged) == 1:
        return judged[0]
    weights = [len(verdicts.labels) for verdicts in judged]
    rows = pd.concat([verdicts.rows for verdicts in judged], ignore_index=True)
    if rows["path"].duplicated().any():
        raise UserError(f"{judged[0].path.parent.parent}: its folds overlap; start a new run")
    warnings = list(dict.fromkeys(line for verdicts in judged for line in verdicts.warnings))
    return Verdicts(
        path=judged[0].path.parent.parent,
        checkpoint=judged[0].checkpoint,
        rows=rows,
        logits=np.concatenate([verdicts.logits for verdicts in judged]),
        labels=np.concatenate([verdicts.labels for verdicts in judged]),
        baselines={
            name: float(
                np.average([verdicts.baselines[name] for verdicts in judged], weights=weights)
            )
            for name in judged[0].baselines
        },
        n_related=sum(verdicts.n_related for verdicts in judged),
        warnings=[
            *warnings,
            f"pooled over {len(judged)} folds: each slice is judged once, by the "
            "network that was not trained on its fold",
        ],
    )


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
    checkpoint: dict[str, Any],
    table: "pd.DataFrame",
    split: str,
    data_dir: Path,
) -> list[str]:
    """What a reader of the figures must know first."""
    import dataset

    warnings = []
    if checkpoint["phantom"] or dataset.is_phantom(data_dir):
        warnings.append(PHANTOM)
    if checkpoint["config"]["data"]["split_by"] == "image":
        warnings.append(LEAKY_SPLIT)
    if not dataset.has_found_copies(data_dir):
        warnings.append(COPIES_UNKNOWN)
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


def describe_leak(verdicts: Verdicts) -> list[str]:
    """The warning of a leak, where slices judged have relatives among those learnt from."""
    if not verdicts.n_related:
        return []
    return [
        f"LEAK: {verdicts.n_related} of these {len(verdicts.labels)} slices have a copy or likely "
        "neighbour among the training slices of the run; the figures are too high"
    ]


def name_results(config: args.EvaluateConfig, run: str, trained_on: Path) -> str:
    """The folder under results/: the run's own for its test split alone."""
    name = config.name or run
    if not config.checkpoint.is_dir() and config.checkpoint.stem != "best":
        name = f"{name}-{config.checkpoint.stem}"
    data_dir = config.data or trained_on
    if data_dir.resolve() != trained_on.resolve():
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
    verdicts: Verdicts,
    checkpoints: list[dict[str, Any]],
) -> None:
    """Every file of results/RUN; training curves of a single run alone."""
    import numpy as np
    import pandas as pd

    from assessment import metrics, plots
    from assessment.report import write_model_card, write_report

    classes, labels = report["classes"], verdicts.labels
    probs = metrics.softmax(verdicts.logits)
    stamps = {"PHANTOM": PHANTOM, "LEAKY SPLIT": LEAKY_SPLIT}
    stamp = " · ".join(word for word, note in stamps.items() if note in report["notes"]) or None
    (results_dir / "metrics.json").unlink(missing_ok=True)
    with helper.atomic_path(results_dir / "predictions.csv") as temporary:
        tabulate(verdicts.rows, verdicts.logits, classes).to_csv(temporary, index=False)
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
    if len(checkpoints) == 1:
        history = pd.DataFrame(checkpoints[0]["history"])
        best_epoch = checkpoints[0]["best"]["epoch"]
        plots.plot_training_curves(history, best_epoch, pictures / "training.png", stamp=stamp)
    write_report(results_dir / "report.html", report, pictures)
    write_model_card(results_dir / "model_card.md", report, checkpoints)
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
