"""model_card.md: intended use, data, results and limits of a model."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.atomic_files import write_text
from helper import NOTICE
from reporting.wording import AVERAGES, Context, list_headline, load_template, split_notes


def write_model_card(
    path: Path,
    report: Mapping[str, Any],
    checkpoints: Sequence[Mapping[str, Any]],
    context: Context,
) -> None:
    """Write the model card of one run, of the networks of its folds, or of an ensemble.

    Args:
        path: File to write.
        report: Content of metrics.json.
        checkpoints: One or more.
        context: Further statements.

    Source: Mitchell et al. 2019, Model cards for model reporting.
    """
    first = checkpoints[0]
    warnings, notes = split_notes(report["notes"])
    sizes_px = sorted({each["preprocess"]["image_size"] for each in checkpoints})
    card = load_template("model_card.md.jinja", finalize=_escape).render(
        report=report,
        notice=NOTICE,
        metrics=list_headline(report) | AVERAGES,
        networks=sorted({f"{each['model']}, started from {each['start']}" for each in checkpoints}),
        n_networks=len(checkpoints),
        best_epochs=", ".join(str(each["best"]["epoch"]) for each in checkpoints),
        sizes_px=", ".join(map(str, sizes_px)),
        split_by=first["config"]["data"]["split_by"],
        n_train=first["split"]["split"].count("train"),
        n_val=first["split"]["split"].count("val"),
        context=context,
        warnings=warnings,
        notes=notes,
    )
    write_text(path, card.rstrip() + "\n")


def _escape(value: Any) -> Any:
    """Escape a text, so that it adds no HTML, image, link or table column."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(\||`|!(?=\[)|\](?=\())", r"\\\1", html.escape(value, quote=False))
