"""The notebook runs on any prepared folder, and its saved outputs show no patient."""

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
from evaluation.baselines import cross_validate_brightness
from imaging.brightness import N_STATISTICS
from tests.support.builders import ROOT, Patch

NOTEBOOK = ROOT / "data exploration" / "exploration.ipynb"
PLOTS = {"classes", "brightness", "samples", "duplicates", "leak"}  # of every folder
LINK_PLOTS = {"link_scores", "shortcut"}  # need links and enough groups
PATIENT_PLOT = "patients"  # needs known patients
# Runs before the first cell, because the titles of saved plots are pixels.
PRINT_TITLES = """
from matplotlib.figure import Figure
original = Figure.suptitle
def suptitle(figure, title, **options):
    print("title:", title)
    return original(figure, title, **options)
Figure.suptitle = suptitle
"""


def run(
    folder: Path, data: Path, monkeypatch: Patch, n_cells: int | None = None
) -> tuple[str, list[str]]:
    """Run the notebook outside the repository; return its printed text and the plot titles."""
    folder.mkdir()
    monkeypatch.setenv("BRAIN_MRI_EXPLORE", os.path.relpath(data, folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [nbformat.v4.new_code_cell(PRINT_TITLES), *notebook.cells[:n_cells]]
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute()
    outputs = collect_outputs(notebook)
    assert not [output for output in outputs if output.get("name") == "stderr"]
    text = "\n".join(output.get("text", "") for output in outputs)
    assert os.fspath(folder.parent) not in read_text(notebook)
    return text, re.findall(r"^title: (.*)", text, re.MULTILINE)


def collect_outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def read_text(notebook: Any) -> str:
    """Everything in the notebook except the images."""
    plain = json.loads(nbformat.writes(notebook))
    for cell in plain["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    return json.dumps(plain)


def list_plots(folder: Path) -> set[str]:
    plots = list((folder / "plots").iterdir())
    assert all(path.suffix == ".png" and path.stat().st_size > 5000 for path in plots)
    return {path.stem for path in plots}


@pytest.mark.integration
def test_it_runs_on_phantoms(tmp_path: Path, phantom_dir: Path, monkeypatch: Patch) -> None:
    """The samples are images of the folder, which are phantoms."""
    monkeypatch.setenv("BRAIN_MRI_SHOW", "1")
    folder = tmp_path / "data exploration"
    text, titles = run(folder, phantom_dir, monkeypatch)
    assert list_plots(folder) >= PLOTS | {PATIENT_PLOT}
    assert "patients in more than one split: 0" in text
    assert {title.partition(": ")[0] for title in titles} == {"PHANTOM"}
    for line in (
        *("PHANTOM: 60 images, ", "folder: phantom\n", "PHANTOM: slices of the folder"),
        *("no duplicate search in audit.json", "no links.csv"),
    ):
        assert line in text


@pytest.mark.integration
def test_no_slice_is_read_by_default(tmp_path: Path, phantom_dir: Path, monkeypatch: Patch) -> None:
    """Images that count as real ones are removed after preparation, before the notebook runs."""
    monkeypatch.delenv("BRAIN_MRI_SHOW", raising=False)
    data, folder = tmp_path / "data", tmp_path / "data exploration"
    shutil.copytree(phantom_dir / "Images", tmp_path / "source")
    assert prepare.main([str(tmp_path / "source"), "--data", str(data)]) == 0
    shutil.rmtree(data / "Images")
    path = data / "CSV" / "audit.json"
    audit = json.loads(path.read_text("utf-8"))
    statistics = np.random.default_rng(0).random((60, N_STATISTICS))
    audit["shortcut"] = cross_validate_brightness(statistics, np.arange(60) % 3, np.arange(60))
    path.write_text(json.dumps(audit), "utf-8")
    text, titles = run(folder, data, monkeypatch)
    assert list_plots(folder) == PLOTS | LINK_PLOTS
    assert [title for title in titles if "PHANTOM" in title] == ["PHANTOM: Samples"]
    assert "PHANTOM: generated images" in text
    assert "no patient is known" in text
    assert "PHANTOM: 60 images" not in text
    found = audit["duplicates"]
    n_links, n_across = (
        sum(found["links"][kind][key] for kind in ("duplicate", "related"))
        for key in ("count", "across_classes")
    )
    assert n_links > 0
    assert f"{n_across} of {n_links} links connect two classes" in text
    assert f"largest duplicate set: {found['largest_duplicate_set']} files" in text


@pytest.mark.integration
def test_a_folder_that_is_not_prepared_is_refused(tmp_path: Path, monkeypatch: Patch) -> None:
    with pytest.raises(CellExecutionError, match=r"absent.*images\.csv"):
        run(tmp_path / "data exploration", tmp_path / "absent", monkeypatch, n_cells=3)


def test_it_is_saved_with_outputs_and_without_patients() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 1_500_000
    assert notebook.metadata.kernelspec.name == "python3"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [cell for cell in cells if "execution" in cell.metadata]  # the time of execution
    outputs = collect_outputs(notebook)
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    n_plots = sum("image/png" in output.get("data", {}) for output in outputs)
    assert n_plots == len(PLOTS | LINK_PLOTS | {PATIENT_PLOT})
    text = read_text(notebook)
    assert "4474 images, " in text
    assert "patients in more than one split: 0" in text
    machine = ("/tmp", "/home", "/root", "/work", "/Users", ":\\\\")
    assert not [part for part in machine if part in text]
    [reading] = [cell for cell in cells if "read_grey(" in cell.source]
    printed = "".join(output.get("text", "") for output in reading.outputs)
    assert printed.startswith("PHANTOM: generated images")  # otherwise slices would be shown
    assert sum("imshow" in cell.source for cell in cells) == 1
