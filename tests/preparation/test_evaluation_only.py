"""prepare.py --evaluation-only: one class and few images suffice, and none is trained on."""

from pathlib import Path

import pytest

import evaluate
import main
from helper import UserError
from preparation.audit import choose_purpose, read_audit
from preparation.manifest import build_manifest, load_manifest
from tests.support.builders import Capture, Patch, Run, expect_refusal, read_metrics, skip_plots
from tests.support.sources import build_files, make_picture, run, write_folder

ONE = {"glioma_tumor/0.png": make_picture(1)}


@pytest.mark.parametrize(
    "files",
    [ONE, build_files(("A",), 3), build_files(("A", "B", "C", "D"), 1)],
    ids=["one image", "one class", "one image a class"],
)
def test_few_images_are_all_in_the_test_split(
    files: dict[str, bytes], tmp_path: Path, capsys: Capture
) -> None:
    source, data = write_folder(tmp_path / "in", files), tmp_path / "a b"
    assert "evaluation-only" in _refuse(capsys, run(source, "--data", data)) or len(files) > 3
    assert run(source, "--data", data, "--evaluation-only") == 0
    assert f'evaluate.py session/RUN --data "{data.as_posix()}"' in capsys.readouterr().out
    assert set(load_manifest(data)["split"]) == {"test"}
    assert len(load_manifest(data)) == len(files)
    audit = read_audit(data)
    assert audit["evaluation_only"]
    assert audit["leak"] is audit["shortcut"] is None
    # the folder remembers its purpose
    before = load_manifest(data)
    assert run(data, "--data", data) == 0
    assert load_manifest(data).equals(before)


def _refuse(capsys: Capture, status: int) -> str:
    return expect_refusal(capsys, status)


def test_unreadable_images_are_not_enough(tmp_path: Path) -> None:
    write_folder(tmp_path / "Images", {"A/0.png": make_picture(1)[:30]})
    with pytest.raises(UserError, match="none of its 1 images"):
        build_manifest(tmp_path, evaluation_only=True)


def test_purposes_are_not_mixed(tmp_path: Path, capsys: Capture) -> None:
    source, data = write_folder(tmp_path / "in", build_files()), tmp_path / "data"
    assert not choose_purpose(data, False)
    assert run(source, "--data", data) == 0
    line = expect_refusal(capsys, run(source, "--data", data, "--evaluation-only"))
    assert "choose another --data" in line


def test_such_data_are_evaluated_and_not_trained_on(
    trained: Run, capsys: Capture, monkeypatch: Patch
) -> None:
    skip_plots(monkeypatch)
    assert run(write_folder(Path("in"), ONE), "--data", "one", "--evaluation-only") == 0
    for options in ((), ("--folds", "2"), ("--dry-run",)):
        argv = ["--model", "net", "--data", "one", "--name", "x", "--device", "cpu", *options]
        line = expect_refusal(capsys, main.main(argv))
        assert "evaluate.py session/RUN --data one" in line
    assert not Path("session/x").exists()
    argv = ["session/first", "--data", "one", "--device", "cpu", "--gallery", "0"]
    line = expect_refusal(capsys, evaluate.main(argv))
    assert "--class-map glioma_tumor=Glioma" in line
    assert evaluate.main([*argv, "--class-map", "glioma_tumor=Glioma"]) == 0
    report = read_metrics(trained.root, "first-on-one-all")
    assert (report["n_images"], report["per_class"]["Glioma"]["support"]) == (1, 1)
    assert any(note.startswith("OTHER DATA: copies") for note in report["notes"])
