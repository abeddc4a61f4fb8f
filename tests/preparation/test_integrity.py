"""Pictures that are not what prepare.py listed: noticed by content, before they are used."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

import evaluate
import main
import prepare
from helper import UserError
from preparation import integrity
from preparation.manifest import load_manifest
from tests.support.builders import ON_CPU, QUICK, Run, expect_refusal, make_data_folder

BEST = "session/first/best.pt"


def alter(path: Path) -> None:
    """Another picture of the same length: only its content tells."""
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def test_changes_are_found_and_named(tmp_path: Path) -> None:
    data = make_data_folder(tmp_path / "data")
    assert len(integrity.find_changes(data, load_manifest(data))) == 0
    integrity.check_all(data)
    alter(data / "Images/A/1.png")
    (data / "Images/A/2.png").unlink()
    shutil.copy(data / "Images/B/0.png", data / "Images/B/new.png")
    changes = integrity.find_changes(data, load_manifest(data))
    assert changes.changed == ["Images/A/1.png"]
    assert changes.missing == ["Images/A/2.png"]
    assert changes.added == ["Images/B/new.png"]
    with pytest.raises(UserError) as caught:
        integrity.check_all(data)
    line = str(caught.value)
    assert "1 changed, 1 missing, 1 added since prepare.py ran (Images/A/1.png, " in line
    assert f"python prepare.py {data / 'Images'} --data {data}" in line
    for number in range(9):
        alter(data / f"Images/B/{number % 6}.png")
        alter(data / f"Images/A/{number % 2}.png")
    assert " and " in integrity.find_changes(data, load_manifest(data)).describe(data)


def test_the_way_on_that_is_named_goes_on(tmp_path: Path) -> None:
    data = make_data_folder(tmp_path / "data", n_each=12)
    assert prepare.main([str(data / "Images"), "--data", str(data)]) == 0
    alter(data / "Images/A/1.png")
    with pytest.raises(UserError):
        integrity.check_all(data)
    assert prepare.main([str(data / "Images"), "--data", str(data)]) == 0
    integrity.check_all(data)


@pytest.fixture
def moved(trained: Run, phantom_dir: Path) -> pd.DataFrame:
    """A finished run whose data folder may be changed; its split."""
    Path("data/phantom").unlink()
    shutil.copytree(phantom_dir, "data/phantom")
    return pd.read_csv("session/first/split.csv")


def test_training_begins_with_what_was_prepared(
    moved: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    alter(Path("data/phantom", moved["path"].iloc[0]))
    for command in (
        [*QUICK, *ON_CPU, "--name", "second"],
        [*QUICK, *ON_CPU, "--name", "second", "--folds", "2"],
        ["--resume", "session/first", "--device", "cpu"],
    ):
        line = expect_refusal(capsys, main.main(command))
        assert f"data/phantom: 1 changed since prepare.py ran ({moved['path'].iloc[0]})" in line
    assert not Path("session/second").exists()


def test_evaluation_rests_on_what_it_judges(
    moved: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [BEST, "--device", "cpu"]
    train, test = (moved["path"][moved["split"] == name].iloc[0] for name in ("train", "test"))
    alter(Path("data/phantom", train))
    shutil.copy(Path("data/phantom", test), Path("data/phantom", test).with_name("new.png"))
    capsys.readouterr()
    assert evaluate.main(command) == 0
    assert (
        "note: data/phantom: 1 pictures are not listed, and not used: Images/"
        in capsys.readouterr().out
    )
    before = Path("results/first/metrics.json").read_bytes()
    alter(Path("data/phantom", test))
    line = expect_refusal(capsys, evaluate.main(command))
    assert f"data/phantom: 1 changed since prepare.py ran ({test})" in line
    Path("data/phantom", test).unlink()
    line = expect_refusal(capsys, evaluate.main(command))
    assert f"data/phantom: 1 missing since prepare.py ran ({test})" in line
    assert Path("results/first/metrics.json").read_bytes() == before


def test_other_data_is_no_change(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_data_folder(Path("other"), ("Glioma", "Menin", "Tumor"))
    command = [BEST, "--device", "cpu", "--data", str(other), "--split", "all", "--name", "other"]
    assert evaluate.main(command) == 0
    assert "since prepare.py ran" not in capsys.readouterr().out
