"""The notebook: it runs on any prepared folder, and what is saved in it shows no patient."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import prepare
from evaluation.baselines import N_STATISTICS, cross_validate_brightness

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "data exploration" / "exploration.ipynb"
PLOTS = {"classes", "brightness", "samples", "copies", "leak"}  # too few groups for the shortcut
N_PLOTS = 7
# Runs before the notebook's first cell: titles are pixels otherwise.
TELL_TITLES = """
from matplotlib.figure import Figure
plain_suptitle = Figure.suptitle
def suptitle(figure, title, **options):
    print("title:", title)
    return plain_suptitle(figure, title, **options)
Figure.suptitle = suptitle
"""


def read_notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def run(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, n_cells: int | None = None
) -> tuple[str, list[str]]:
    """Run the notebook in a folder outside the repository; what it printed, and its titles."""
    folder.mkdir()
    monkeypatch.setenv("BRAIN_MRI_EXPLORE", os.path.relpath(data, folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read_notebook()
    cells = notebook.cells[:n_cells]
    notebook.cells = [nbformat.v4.new_code_cell(TELL_TITLES), *cells]
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    client.execute()
    outputs = collect_outputs(notebook)
    assert not [output for output in outputs if output.get("name") == "stderr"]
    text = "\n".join(output.get("text", "") for output in outputs)
    assert os.fspath(folder.parent) not in describe(notebook)
    return text, re.findall(r"^title: (.*)", text, re.MULTILINE)


def collect_outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def describe(notebook: Any) -> str:
    """All that a person can read in it: everything but the plots."""
    plain = json.loads(nbformat.writes(notebook))
    for cell in plain["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    return json.dumps(plain)


def list_plots(folder: Path) -> set[str]:
    plots = list((folder / "plots").iterdir())
    assert all(path.suffix == ".png" and path.stat().st_size > 5000 for path in plots)
    return {path.stem for path in plots}


def fill_in_shortcut(path: Path) -> dict[str, Any]:
    """Give an audit of too few groups the shortcut of noise, in the form that prepare.py writes."""
    audit: dict[str, Any] = json.loads(path.read_text("utf-8"))
    assert audit["shortcut"] is None
    statistics = np.random.default_rng(0).random((60, N_STATISTICS))
    audit["shortcut"] = cross_validate_brightness(statistics, np.arange(60) % 3, np.arange(60))
    path.write_text(json.dumps(audit), "utf-8")
    return audit


def test_it_runs_on_phantoms(
    tmp_path: Path, phantom_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown are pictures of the folder, which are phantoms too."""
    monkeypatch.setenv("BRAIN_MRI_SHOW", "1")
    folder = tmp_path / "data exploration"
    text, titles = run(folder, phantom_dir, monkeypatch)
    assert list_plots(folder) == PLOTS
    assert len(titles) == len(PLOTS)
    assert all(title.startswith("PHANTOM: ") for title in titles)
    for line in (
        "PHANTOM: 60 images, ",
        "folder: phantom\n",
        "PHANTOM: slices of the folder",
        "no copies in audit.json",
        "no links.csv",
        "no shortcut in audit.json: too few groups",
    ):
        assert line in text


def test_it_opens_no_slice_unless_asked(
    tmp_path: Path, phantom_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that pass for real ones are prepared, and taken away before the notebook runs."""
    monkeypatch.delenv("BRAIN_MRI_SHOW", raising=False)
    data, folder = tmp_path / "data", tmp_path / "data exploration"
    shutil.copytree(phantom_dir / "Images", tmp_path / "source")
    assert prepare.main([str(tmp_path / "source"), "--data", str(data)]) == 0
    shutil.rmtree(data / "Images")
    audit = fill_in_shortcut(data / "CSV" / "audit.json")
    text, titles = run(folder, data, monkeypatch)
    assert list_plots(folder) == PLOTS | {"link_scores", "shortcut"}
    assert [title for title in titles if "PHANTOM" in title] == ["PHANTOM: Samples"]
    assert "PHANTOM: generated pictures" in text
    assert "PHANTOM: 60 images" not in text
    links = audit["copies"]["links"]
    n_links = links["slice"]["count"] + links["group"]["count"]
    n_across = links["slice"]["across_classes"] + links["group"]["across_classes"]
    assert n_links > 0
    assert f"{n_across} of {n_links} links join two classes" in text
    assert f"largest slice: {audit['copies']['largest_slice']} files" in text


def test_a_folder_that_is_not_prepared_is_not_replaced_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CellExecutionError, match=r"absent.*images\.csv is missing"):
        run(tmp_path / "data exploration", tmp_path / "absent", monkeypatch, n_cells=3)


def test_it_is_saved_with_outputs_and_without_patients() -> None:
    notebook = read_notebook()
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 1_500_000
    assert notebook.metadata.kernelspec.name == "python3"
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    assert not [cell for cell in ran if "execution" in cell.metadata]  # when it ran, to the second
    outputs = collect_outputs(notebook)
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == N_PLOTS
    text = describe(notebook)
    assert "5451 images, 2049 distinct slices" in text
    machine = ("/tmp", "/home", "/root", "/work", "/Users", ":\\\\")
    assert not [part for part in machine if part in text]
    reading = [cell for cell in ran if "read_grey(" in cell.source]
    assert len(reading) == 1
    printed = "".join(output.get("text", "") for output in reading[0].outputs)
    assert printed.startswith("PHANTOM: generated pictures")  # else slices were shown
    assert sum("imshow" in cell.source for cell in ran) == 1
