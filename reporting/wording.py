"""Texts and number formats that the report, the model card and the terminal share."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from evaluation.patients import PARTLY_KNOWN, UNKNOWN

PUBLISHED_CLASSES = ["Glioma", "Menin", "Tumor"]
ATTRIBUTION = (
    "Bangladesh Brain Cancer MRI Dataset, Md Mizanur Rahman, Daffodil International University, "
    "version 1, 2024, doi 10.17632/mk56jw9rns.1."
)
LIMITS = (
    "Confidence and prediction sets hold for slices like those that they were fitted on, not for "
    "slices of other scanners.",
    "Research use only. Not a medical device. Do not base a diagnosis on it.",
)
GENERAL_LIMITS = (
    "The model assigns one of its classes to every image; the published data set has no healthy "
    "class.",
)
PUBLISHED_LIMITS = (
    "There is no healthy class: the model names a tumour for every image.",
    "The data are one public data set; its archive does not name patients, scanner or acquisition. "
    "Results on slices of other hospitals may differ.",
    "The publisher of the Bangladesh Brain Cancer MRI Dataset does not define its third class, "
    "Tumor. Its slices are duplicates of the pituitary tumours of Cheng et al. (figshare, doi "
    "10.6084/m9.figshare.1512427).",
)
HEADLINE = {
    "accuracy": "accuracy",
    "accuracy_per_slice": "accuracy per distinct slice",
    "accuracy_per_patient": "accuracy per patient",
    "f1_macro": "macro-F1",
}
BASELINES = {"brightness": "brightness baseline", "majority": "majority-class baseline"}
AVERAGES = {
    "precision_macro": "precision, macro",
    "recall_macro": "recall, macro",
    "roc_auc_macro": "ROC AUC, macro",
    "mcc": "Matthews correlation",
}
SEEN_SPLITS = {"train", "all"}  # they are not held out, or not of the run
WARNING = re.compile(r"[A-Z]{4,}")  # a note that starts with such a word is shown above the results


@dataclass(frozen=True)
class Context:
    """Statements of the report and the model card besides the metrics.

    Attributes:
        training_data: Origin of the slices that the network was trained on.
        evaluation_data: Origin of the slices that it was evaluated on.
        patients: Whether the patients of the evaluated slices are known.
        output: Kind of the probabilities, such as calibrated.
        limits: Limits of use, the most important first.
        audit: Lines of the audit by prepare.py; empty if unknown.
        heatmaps: Method of the heat maps in the galleries, and how often they point at a tumour;
            empty without galleries.
    """

    training_data: str
    evaluation_data: str
    patients: str
    output: str
    limits: Sequence[str] = (*GENERAL_LIMITS, *LIMITS)
    audit: Sequence[str] = ()
    heatmaps: str = ""


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


def describe_patients(report: Mapping[str, Any], n_known: int, n_related: int) -> str:
    """Describe whether the patients of the evaluated slices are known, and what follows.

    Args:
        report: Content of metrics.json.
        n_known: Number of slices whose patient is known.
        n_related: Number of slices that are related to a training slice of the run.
    """
    n_images, n_patients, status = (report[key] for key in ("n_images", "n_patients", "patients"))
    is_held_out = report["split"] not in SEEN_SPLITS
    if status == UNKNOWN:
        leak = "the accuracy on new patients is probably lower, and " if is_held_out else ""
        return (
            "UNKNOWN PATIENTS: no patient of these slices is known, so there is no accuracy per "
            f"patient. Groups found in pictures are not patients: {leak}the intervals are too "
            "narrow; if you know the patients, run prepare.py with --patients FILE"
        )
    if status == PARTLY_KNOWN:
        return (
            f"Patients: known for {n_known} of {n_images} slices, those of {n_patients} patients; "
            "the accuracy per patient is over these. The other slices are in groups found in "
            "pictures, which are not patients"
        )
    text = f"Patients: known for all {n_images} slices, those of {n_patients} patients"
    if is_held_out and not n_related:
        text += "; none of them is known to have a slice in the training split"
    return text


def list_headline(report: Mapping[str, Any]) -> dict[str, str]:
    """Return key and name of the main metrics, without the one per patient if none is known."""
    return {key: name for key, name in HEADLINE.items() if report[key]["value"] is not None}


def list_differences(comparison: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return name and paired comparison of every two runs: per image, then per patient."""
    names = [f"{pair['first']} minus {pair['second']}" for pair in comparison["pairs"]]
    per_patient = [pair["per_patient"] for pair in comparison["pairs"]]
    return [
        *zip(names, comparison["pairs"], strict=True),
        *(
            (f"{name}, per patient", pair)
            for name, pair in zip(names, per_patient, strict=True)
            if pair
        ),
    ]


def describe_spread(comparison: Mapping[str, Any]) -> str:
    """Describe how the accuracy varies over the compared runs."""
    spreads = {
        "accuracy": comparison["spread"],
        "accuracy per patient": comparison["spread_per_patient"],
    }
    return "Over the runs: " + "; ".join(
        f"{name} {spread['mean']:.4f} on average, standard deviation "
        f"{spread['standard_deviation']:.4f}, from {spread['least']:.4f} to "
        f"{spread['greatest']:.4f}"
        for name, spread in spreads.items()
        if spread
    )


def format_headline(report: Mapping[str, Any]) -> str:
    """Format the main metrics as accuracy 0.98 [0.97, 0.99], per patient 0.97 [0.93, 0.99]."""
    first, *others = (
        f"{name} {format_estimate(report[key])}" for key, name in list_headline(report).items()
    )
    return ", ".join([first, *(text.removeprefix("accuracy ") for text in others)])


def tabulate_headline(report: Mapping[str, Any]) -> list[str]:
    """Return the main metrics and the baselines as lines of one table, for a terminal."""
    rows = [
        (name, format_number(report[key]["value"]), format_interval(report[key]))
        for key, name in list_headline(report).items()
    ]
    rows += [
        (f"accuracy of the {name}", format_number(report["baselines"][key]), "")
        for key, name in BASELINES.items()
    ]
    width = max(len(name) for name, *_ in rows)
    return [f"  {name:<{width}}  {value}  {interval}".rstrip() for name, value, interval in rows]


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
