"""results/index.html: the list of all runs, with their main metrics and links to their reports."""

import json
from pathlib import Path
from typing import Any

from common.atomic_files import write_text
from helper import NOTICE
from reporting.wording import HEADLINE, format_estimate, format_number, load_template


def write_index(results_dir: Path) -> None:
    """List every run below a folder that has a report, the last evaluated first.

    Args:
        results_dir: The folder that holds the folders of results.
    """
    reports = [path for path in results_dir.glob("*/report.html") if path.is_file()]
    rows = [
        {"name": path.parent.name, **_read_run(path.with_name("metrics.json"))}
        for path in sorted(reports, key=lambda path: (-path.stat().st_mtime, path.parent.name))
    ]
    page = load_template("index.html.jinja", autoescape=True).render(
        rows=rows, columns=list(HEADLINE.values()), notice=NOTICE
    )
    write_text(results_dir / "index.html", page + "\n")


def _read_run(path: Path) -> dict[str, Any]:
    """Return split, number of images and metrics of a run; dashes if its file is unreadable."""
    try:
        report = json.loads(path.read_text("utf-8"))
        return {
            "split": report["split"],
            "n_images": report["n_images"],
            "metrics": [format_estimate(report[key]) for key in HEADLINE],
            "brightness": format_number(report["baselines"]["brightness"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        dashes = dict.fromkeys(("split", "n_images", "brightness"), "–")
        return {**dashes, "metrics": ["–"] * len(HEADLINE)}
