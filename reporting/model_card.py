"""model_card.md: what a model is, what it was made from, how it did, what it is not for."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.atomic_files import write_text
from helper import NOTICE
from reporting.wording import AVERAGES, HEADLINE, Context, list_limits, load_template, part_notes


def write_model_card(
    path: Path,
    report: Mapping[str, Any],
    checkpoints: Sequence[Mapping[str, Any]],
    context: Context,
) -> None:
    """Write the card of one run, of the networks of its folds, or of an ensemble.

    Args:
        path: The file to write.
        report: The content of metrics.json.
        checkpoints: The checkpoint, or all of them.
        context: What else there is to tell.

    Source: Mitchell et al. 2019, Model cards for model reporting.
    """
    first = checkpoints[0]
    warnings, notes = part_notes(report["notes"])
    card = load_template("model_card.md.jinja", finalize=_escape).render(
        report=report,
        notice=NOTICE,
        headline=HEADLINE | AVERAGES,
        networks=sorted({f"{kept['model']}, started from {kept['start']}" for kept in checkpoints}),
        n_networks=len(checkpoints),
        best_epochs=", ".join(str(kept["best"]["epoch"]) for kept in checkpoints),
        sizes_px=", ".join(
            str(size) for size in sorted({kept["preprocess"]["image_size"] for kept in checkpoints})
        ),
        split_by=first["config"]["data"]["split_by"],
        n_train=sum(name == "train" for name in first["split"]["split"]),
        n_val=sum(name == "val" for name in first["split"]["split"]),
        made_from=context.made_from,
        judged_on=context.judged_on,
        output=context.output,
        limits=list_limits(report),
        warnings=warnings,
        notes=notes,
    )
    write_text(path, card.rstrip() + "\n")


def _escape(value: Any) -> Any:
    """Names are text, whatever they hold: no HTML, no picture or link, no column of a table."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(\||`|!(?=\[)|\](?=\())", r"\\\1", html.escape(value, quote=False))
