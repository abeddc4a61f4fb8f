"""The notebook: it runs on phantoms, and what is saved in it shows no patient."""

import os
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "data exploration" / "exploration.ipynb"
PLOTS = {"classes", "brightness", "samples", "copies", "leak"}  # too few groups for the shortcut


def collect_text(notebook: Any) -> str:
    """Everything that the cells printed or show as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = [output.get("text", "") for output in outputs]
    shown = [output["data"].get("text/plain", "") for output in outputs if "data" in output]
    return "\n".join(printed + shown)


@pytest.mark.filterwarnings("ignore")  # the kernel's own remarks on how it talks to this process
def test_it_runs_on_phantoms(
    tmp_path: Path, phantom_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data exploration"
    folder.mkdir()
    shutil.copy(NOTEBOOK, folder)
    monkeypatch.setenv("BRAIN_MRI_EXPLORE", str(phantom_dir))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(folder / NOTEBOOK.name, as_version=4)
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
    client.execute()
    assert {path.stem for path in (folder / "plots").iterdir()} == PLOTS
    assert all(path.stat().st_size > 5000 for path in (folder / "plots").iterdir())
    text = collect_text(notebook)
    assert "PHANTOM: 60 images" in text
    assert "no links.csv" in text
    assert "too few groups" in text
    assert os.fspath(tmp_path) not in text


def test_it_is_saved_with_outputs_and_without_patients() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in ran)
    outputs = [output for cell in ran for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    text = collect_text(notebook)
    assert "distinct slices" in text
    assert not any(part in text for part in ("/tmp/", "/home/", "/root/", "/work/", "Users"))
    drawing = [cell for cell in ran if "imshow" in cell.source]
    assert len(drawing) == 1
    assert 'os.environ.get("BRAIN_MRI_SHOW") == "1"' in drawing[0].source
    assert NOTEBOOK.stat().st_size < 1_500_000
