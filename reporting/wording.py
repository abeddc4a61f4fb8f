"""Words that page, model card and terminal share: figures, limits, the publisher."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

LIMITS = (
    "A model names one of its classes for any picture; the published data set has no healthy one.",
    "A prediction set or a confidence is about slices like those of val, not about other scanners.",
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
    "f1_macro": "F1, macro",
}
AVERAGES = {
    "precision_macro": "precision, macro",
    "recall_macro": "recall, macro",
    "roc_auc_macro": "ROC AUC, macro",
    "mcc": "Matthews correlation",
}


@dataclass(frozen=True)
class Context:
    """What page and card tell beside the figures.

    Attributes:
        made_from: Whose slices the network was trained on.
        judged_on: Whose slices it was judged on.
        output: What its probabilities are.
        audit: Lines of what prepare found; empty where unknown.
        leaky: Accuracy of the same training on a random split of images, with its interval and the
            run's name as `run`; None where there is none.
        heatmap_method: How the heat maps of the gallery were made.
    """

    made_from: str
    judged_on: str
    output: str
    audit: Sequence[str] = ()
    leaky: Mapping[str, Any] | None = None
    heatmap_method: str = ""


# A note that begins with such a word is a warning, and stands above the figures.
WARNING = re.compile(r"[A-Z]{4,}")


def load_template(name: str, **options: Any) -> jinja2.Template:
    """A template of this folder in which a missing value is an error.

    Args:
        name: Of the file.
        options: Of jinja2's Environment: how values are escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        **options,
    )
    environment.filters |= {"show": show, "figure": show_figure, "percent": "{:.1%}".format}
    return environment.get_template(name)


def part_notes(notes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Warnings, and the other notes."""
    warnings = [note for note in notes if WARNING.match(note)]
    return warnings, [note for note in notes if note not in warnings]


def is_published(report: Mapping[str, Any]) -> bool:
    """Whether the figures are of the published classes, and not of phantoms."""
    phantom = any(note.startswith("PHANTOM") for note in report["notes"])
    return report["classes"] == PUBLISHED_CLASSES and not phantom


def list_limits(report: Mapping[str, Any]) -> tuple[str, ...]:
    """What no figure here tells, the gravest first."""
    return (*PUBLISHED_LIMITS, *LIMITS[1:]) if is_published(report) else LIMITS


def attribute(data: str, classes: Sequence[str], phantom: bool) -> str:
    """Whose slices lie in a folder that a run was trained on."""
    if list(classes) == PUBLISHED_CLASSES and not phantom:
        return ATTRIBUTION
    return f"{'generated phantoms' if phantom else 'slices'} of {data}"


def show_interval(figure: Mapping[str, Any]) -> str:
    """The 95 % interval: [0.9712, 0.9931]; empty where there is none."""
    if figure["ci95"] is None:
        return ""
    low, high = figure["ci95"]
    return f"[{low:.4f}, {high:.4f}]"


def show(value: float | None) -> str:
    """A figure to four places, or the word for none."""
    return "undefined" if value is None else f"{value:.4f}"


def show_figure(figure: Mapping[str, Any]) -> str:
    """A figure with its interval: 0.9876 [0.9712, 0.9931]."""
    return f"{show(figure['value'])} {show_interval(figure)}".strip()
