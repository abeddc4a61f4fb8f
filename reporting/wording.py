"""Texts and number formats that the report, the model card and the terminal share."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

PUBLISHED_CLASSES = ["Glioma", "Menin", "Tumor"]
ATTRIBUTION = (
    "Bangladesh Brain Cancer MRI Dataset, Md Mizanur Rahman, Daffodil International University, "
    "version 1, 2024, doi 10.17632/mk56jw9rns.1."
)
LIMITS = (
    "Confidence and prediction sets hold for slices like those of the val split, not for slices "
    "of other scanners.",
    "Research use only. Not a medical device. Do not base a diagnosis on it.",
)
GENERAL_LIMITS = (
    "The model assigns one of its classes to every image; the published data set has no healthy "
    "class.",
)
PUBLISHED_LIMITS = (
    "There is no healthy class: the model names a tumour for every image.",
    "The data are one public data set without patient identifiers, scanner or acquisition data. "
    "Results on slices of other hospitals may differ.",
    "The publisher of the Bangladesh Brain Cancer MRI Dataset does not define its third class, "
    "Tumor.",
)
HEADLINE = {
    "accuracy": "accuracy",
    "accuracy_per_slice": "accuracy per distinct slice",
    "f1_macro": "F1, macro",
}
AVERAGES = {
    "precision_macro": "precision, macro",
    "recall_macro": "recall, macro",
    "roc_auc_macro": "ROC AUC, macro",
    "mcc": "Matthews correlation",
}
WARNING = re.compile(r"[A-Z]{4,}")  # a note that starts with such a word is shown above the results


@dataclass(frozen=True)
class Context:
    """Statements of the report and the model card besides the metrics.

    Attributes:
        training_data: Origin of the slices that the network was trained on.
        evaluation_data: Origin of the slices that it was evaluated on.
        output: Kind of the probabilities, such as calibrated.
        limits: Limits of use, the most important first.
        audit: Lines of the audit by prepare.py; empty if unknown.
        heatmap_method: Method of the heat maps in the galleries; empty without galleries.
    """

    training_data: str
    evaluation_data: str
    output: str
    limits: Sequence[str] = (*GENERAL_LIMITS, *LIMITS)
    audit: Sequence[str] = ()
    heatmap_method: str = ""


def load_template(name: str, **options: Any) -> jinja2.Template:
    """Load a template in which a missing value is an error.

    Args:
        name: File in the folder templates.
        options: Options of jinja2.Environment that control escaping.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        **options,
    )
    environment.filters |= {
        "number": format_number,
        "estimate": format_estimate,
        "percent": "{:.1%}".format,
    }
    return environment.get_template(name)


def split_notes(notes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate warnings from the other notes."""
    warnings = [note for note in notes if WARNING.match(note)]
    return warnings, [note for note in notes if note not in warnings]


def describe_origin(data: str, classes: Sequence[str], phantom: bool) -> str:
    """Describe the origin of the slices in a data folder."""
    if is_published(classes, phantom):
        return ATTRIBUTION
    return f"{'generated phantoms' if phantom else 'slices'} of {data}"


def list_limits(classes: Sequence[str], phantom: bool) -> tuple[str, ...]:
    """List the limits of use, the most important first."""
    return (*(PUBLISHED_LIMITS if is_published(classes, phantom) else GENERAL_LIMITS), *LIMITS)


def is_published(classes: Sequence[str], phantom: bool) -> bool:
    """Return whether these are the classes of the published data set, and no phantoms."""
    return list(classes) == PUBLISHED_CLASSES and not phantom


def format_interval(estimate: Mapping[str, Any]) -> str:
    """Format the 95 % interval as [0.9712, 0.9931]; empty if there is none."""
    if estimate["ci95"] is None:
        return ""
    low, high = estimate["ci95"]
    return f"[{low:.4f}, {high:.4f}]"


def format_number(value: float | None) -> str:
    """Format a number with four decimals; None is undefined."""
    return "undefined" if value is None else f"{value:.4f}"


def format_figure(figure: Mapping[str, Any] | float | None) -> str:
    """Format a number, or a value with its interval."""
    return format_estimate(figure) if isinstance(figure, Mapping) else format_number(figure)


def format_estimate(estimate: Mapping[str, Any]) -> str:
    """Format a value with its interval as 0.9876 [0.9712, 0.9931]."""
    return f"{format_number(estimate['value'])} {format_interval(estimate)}".strip()
