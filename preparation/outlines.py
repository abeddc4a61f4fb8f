"""Write the outlines of tumours that files state, as `experiments.pointing_game` reads them."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from preparation.manifest import write_if_changed
from preparation.tables import read_table

COLUMNS = ("path", "outline")


def outlines_path(data_dir: Path) -> Path:
    """Return the path of the outlines of a data folder."""
    return data_dir / "CSV" / "lesions.csv"


def write_outlines(data_dir: Path, outlines: Mapping[str, str]) -> int:
    """Write the outlines of images; those of other images that are still there are kept.

    Args:
        data_dir: Data folder.
        outlines: x,y pairs in px of the picture, separated by blanks, by path below the folder.

    Returns:
        Number of outlines in the file, which is not made for none.
    """
    path = outlines_path(data_dir)
    known: dict[str, str] = {}
    if path.is_file():
        rows = read_table(path, COLUMNS, "delete it; prepare.py writes it again")
        known = dict(zip(rows["path"], rows["outline"], strict=True))
    found = {f"Images/{name}": text for name, text in known.items()} | dict(outlines)
    kept = {name: text for name, text in found.items() if text and (data_dir / name).is_file()}
    if kept or path.is_file():
        table = pd.DataFrame(
            [(name.removeprefix("Images/"), kept[name]) for name in sorted(kept)],
            columns=list(COLUMNS),
        )
        write_if_changed(path, table.to_csv(index=False, lineterminator="\n"))
    return len(kept)
