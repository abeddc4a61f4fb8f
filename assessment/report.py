"""What people read: report.html, one file that opens from disk, and model_card.md."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from helper import NOTICE, write_text

LIMITS = (
    "A model names one of its classes for any picture; the published data set has no healthy one.",
    "Research use only. Not a medical device; no diagnosis rests on it.",
)
PUBLISHED_CLASSES = ["Glioma", "Menin", "Tumor"]
PUBLISHED_LIMITS = (
    "No class holds healthy brains: the model names a tumour for any picture.",
    "One public data set without patient identifiers, scanner or acquisition data; "
    "other hospitals' slices may be judged otherwise.",
    "The publisher of the Bangladesh Brain Cancer MRI Dataset does not say what its third class, "
    "Tumor, is.",
)
ATTRIBUTION = (
    "Bangladesh Brain Cancer MRI Dataset, Md Mizanur Rahman, Daffodil International University, "
    "version 1, 2024, doi 10.17632/mk56jw9rns.1."
)
HEADLINE = {
    "accuracy": "accuracy",
    "accuracy_per_slice": "accuracy per distinct slice",
    "precision_macro": "precision, macro",
    "recall_macro": "recall, macro",
    "f1_macro": "F1, macro",
    "roc_auc_macro": "ROC AUC, macro",
    "mcc": "Matthews correlation",
}
PICTURES = {
    "confusion_matrix.png": "Confusion matrix: counts and shares of each true class",
    "class_metrics.png": "Precision, recall and F1 of each class",
    "roc.png": "ROC curves, one class against the rest",
    "pr.png": "Precision-recall curves, one class against the rest",
    "training.png": "Training curves: losses, val scores, learning rate",
}
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #8886; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.warning { border-left: .4rem solid #d55e00; padding: .25rem 1rem; margin: .75rem 0; }
img { max-width: 100%; height: auto; background: white; }
"""


def write_report(path: Path, report: dict[str, Any], pictures_dir: Path) -> None:
    """Write report.html with the pictures inside; nothing in it is fetched.

    Args:
        path: The file to write.
        report: The content of metrics.json.
        pictures_dir: Where the plots lie.
    """
    title = html.escape(f"{report['run']}: {report['split']} split")
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>",
        f"<p class='warning'><strong>{html.escape(NOTICE)}</strong></p>",
        *(f"<p class='warning'>{html.escape(note)}</p>" for note in report["notes"]),
        f"<p>{report['n_images']} images of {report['n_slices']} distinct slices in "
        f"{report['n_groups']} groups.</p>",
        _build_table(["figure", "value"], _list_headline(report)),
        "<h2>Each class</h2>",
        _build_table(["class", "precision", "recall", "F1", "images"], _list_classes(report)),
        "<h2>Pictures</h2>",
        *(
            _build_figure(pictures_dir / name, text)
            for name, text in PICTURES.items()
            if (pictures_dir / name).exists()
        ),
        "<h2>Limits</h2><ul>",
        *(f"<li>{html.escape(limit)}</li>" for limit in _list_limits(report)),
        "</ul><h2>Where it comes from</h2>",
        _build_table(["environment", ""], report["environment"].items()),
        f"<p>{html.escape(_attribute(report))}</p></body></html>",
    ]
    write_text(path, "\n".join(parts) + "\n")


def write_model_card(
    path: Path, report: dict[str, Any], checkpoints: Sequence[dict[str, Any]]
) -> None:
    """Write model_card.md: what the model is, what it was made from, how it did, its limits.

    Args:
        path: The file to write.
        report: The content of metrics.json.
        checkpoints: The checkpoint, or those of all folds.

    Source: Mitchell et al. 2019, Model cards for model reporting.
    """
    headline = "\n".join(f"| {name} | {value} |" for name, value in _list_headline(report))
    notes = "\n".join(f"- {note}" for note in (*report["notes"], *_list_limits(report)))
    checkpoint = checkpoints[0]
    epochs = ", ".join(str(kept["best"]["epoch"]) for kept in checkpoints)
    lines = f"""# Model card: {report["run"]}

{NOTICE}

- Model: {checkpoint["model"]}, started from {checkpoint["start"]}, best epoch \
{epochs} by val macro-F1.
- Input: one grey slice of {checkpoint["preprocess"]["image_size"]} px. Classes: \
{", ".join(report["classes"])}.
- Data: {report["data"]}; divided by {checkpoint["config"]["data"]["split_by"]}; judged on the \
{report["split"]} split, {report["n_images"]} images in {report["n_groups"]} groups.
- Attribution: {_attribute(report)}

| figure | value |
|---|---|
{headline}

## Read before use

{notes}
"""
    write_text(path, lines)


def _is_published(report: dict[str, Any]) -> bool:
    phantom = any(note.startswith("PHANTOM") for note in report["notes"])
    return report["classes"] == PUBLISHED_CLASSES and not phantom


def _list_limits(report: dict[str, Any]) -> tuple[str, ...]:
    return (*PUBLISHED_LIMITS, *LIMITS[1:]) if _is_published(report) else LIMITS


def _attribute(report: dict[str, Any]) -> str:
    return ATTRIBUTION if _is_published(report) else f"slices of {report['data']}"


def _list_headline(report: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(name, _show(report[key]["value"])) for key, name in HEADLINE.items()]
    baselines = report["baselines"]
    return [
        *rows,
        ("accuracy of always naming the commonest class", _show(baselines["majority"])),
        ("accuracy of brightness alone", _show(baselines["brightness"])),
    ]


def _list_classes(report: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            *(_show(figures[key]["value"]) for key in ("precision", "recall", "f1")),
            str(figures["support"]),
        )
        for name, figures in report["per_class"].items()
    ]


def _build_table(head: list[str], rows: Iterable[Iterable[Any]]) -> str:
    cells = [f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr>"]
    cells += [
        f"<tr>{''.join(f'<td>{html.escape(str(value))}</td>' for value in row)}</tr>"
        for row in rows
    ]
    return f"<table>{''.join(cells)}</table>"


def _build_figure(path: Path, text: str) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f"<figure><img src='data:image/png;base64,{content}' alt='{html.escape(text)}'>"
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
    )


def _show(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
