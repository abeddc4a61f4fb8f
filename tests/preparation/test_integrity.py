"""Images that differ from what prepare.py listed are found before they are used."""

import hashlib
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest

import evaluate
import main
import prepare
from helper import UserError
from preparation import integrity
from preparation.manifest import load_manifest
from tests.support.builders import (
    ON_CPU,
    QUICK,
    Capture,
    Patch,
    Run,
    expect_refusal,
    make_data_folder,
)


def change(path: Path) -> None:
    """Change the content but not the length."""
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def test_changes_are_found_and_named(tmp_path: Path) -> None:
    data = make_data_folder(tmp_path / "data")
    integrity.check_all(data)
    change(data / "Images/A/1.png")
    (data / "Images/A/2.png").unlink()
    shutil.copy(data / "Images/B/0.png", data / "Images/B/new.png")
    changes = integrity.find_changes(data, load_manifest(data))
    assert changes.changed == ["Images/A/1.png"]
    assert changes.missing == ["Images/A/2.png"]
    assert changes.added == ["Images/B/new.png"]
    with pytest.raises(UserError, match=r"1 changed, 1 missing, 1 added .*\(Images/A/1.png, "):
        integrity.check_all(data)
    many = integrity.Changes([f"{number}.png" for number in range(9)], [], [])
    assert "9 changed" in many.describe(data)
    assert " and 4 more" in many.describe(data)


def age(data: Path) -> None:
    """Make every image older than the resolution of modification times."""
    for path in (data / "Images").rglob("*.png"):
        os.utime(path, ns=(1, path.stat().st_mtime_ns - 10 * integrity.MIN_AGE_NS))


def count_hashes(monkeypatch: Patch) -> Mock:
    sha256 = Mock(wraps=hashlib.sha256)
    monkeypatch.setattr(hashlib, "sha256", sha256)
    return sha256


def test_a_file_is_hashed_again_if_its_size_or_time_has_changed(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    data = make_data_folder(tmp_path / "data")
    age(data)
    hashed = count_hashes(monkeypatch)
    integrity.check_all(data)
    assert hashed.call_count == 12
    integrity.check_all(data)
    integrity.check_used(data, ["Images/A/0.png"])
    assert hashed.call_count == 12
    path = data / "Images/A/1.png"
    change(path)  # the same size
    with pytest.raises(UserError, match="1 changed"):
        integrity.check_all(data)
    change(path)  # as it was, at a new time
    for n_hashed in (14, 15):  # too new to be stored
        integrity.check_all(data)
        assert hashed.call_count == n_hashed
    age(data)
    (data / "cache/verified.json").write_text("[]")  # damaged
    integrity.check_all(data)
    assert hashed.call_count == 27


def test_a_file_is_hashed_again_if_another_one_is_listed(tmp_path: Path) -> None:
    data = make_data_folder(tmp_path / "data")
    age(data)
    integrity.check_all(data)
    listed = load_manifest(data).assign(sha256="0" * 64)
    assert len(integrity.find_changes(data, listed).changed) == 12


@pytest.mark.skipif(os.name == "nt", reason="Windows records no time of a change of the file")
def test_a_change_that_restores_size_and_modification_time_is_found(tmp_path: Path) -> None:
    data = make_data_folder(tmp_path / "data")
    age(data)
    integrity.check_all(data)
    path = data / "Images/A/1.png"
    time_ns = path.stat().st_mtime_ns
    change(path)
    os.utime(path, ns=(1, time_ns))
    with pytest.raises(UserError, match="1 changed"):
        integrity.check_all(data)


def test_a_folder_that_cannot_be_written_is_hashed_each_time(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    data = make_data_folder(tmp_path / "data")
    age(data)
    monkeypatch.setattr(integrity, "write_text", Mock(side_effect=PermissionError))
    hashed = count_hashes(monkeypatch)
    for n_hashed in (12, 24):
        integrity.check_all(data)
        assert hashed.call_count == n_hashed


def test_the_command_that_is_named_repairs_the_folder(tmp_path: Path) -> None:
    data = make_data_folder(tmp_path / "data", n_each=12)
    assert prepare.main([str(data / "Images"), "--data", str(data)]) == 0
    change(data / "Images/A/1.png")
    command = f"python prepare.py {data / 'Images'} --data {data}"
    with pytest.raises(UserError, match=command):
        integrity.check_all(data)
    assert prepare.main(command.split()[2:]) == 0
    integrity.check_all(data)


def test_only_images_that_are_used_matter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = make_data_folder(tmp_path / "data")
    used = ["Images/A/0.png", "Images/B/0.png"]
    change(data / "Images/A/1.png")
    integrity.check_used(data, used)
    assert not caplog.records
    shutil.copy(data / "Images/B/0.png", data / "Images/B/new.png")
    caplog.set_level("INFO")
    integrity.check_used(data, used)
    assert "1 images are not listed and not used: Images/B/new.png" in caplog.text
    change(data / used[0])
    (data / used[1]).unlink()
    with pytest.raises(UserError, match=rf"1 changed, 1 missing .*\({used[0]}, {used[1]}\)"):
        integrity.check_used(data, used)


def test_commands_refuse_changed_images(
    trained: Run, phantom_dir: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    Path("data/phantom").unlink()
    shutil.copytree(phantom_dir, "data/phantom")
    split = pd.read_csv("session/first/split.csv")
    path = split["path"][split["split"] == "test"].iloc[0]
    change(Path("data/phantom", path))
    before = Path("results/first/metrics.json").read_bytes()
    words = f"data/phantom: 1 changed since prepare.py ran ({path})"
    status = evaluate.main(["session/first/best.pt", "--device", "cpu"])
    assert words in expect_refusal(capsys, status)
    monkeypatch.setattr(evaluate, "evaluate", pytest.fail)  # main.py refuses before training
    second = [*QUICK, *ON_CPU, "--name", "second"]
    for argv in (second, [*second, "--folds", "2"], ["--resume", "session/first"]):
        assert words in expect_refusal(capsys, main.main(argv))
    assert not Path("session/second").exists()
    assert Path("results/first/metrics.json").read_bytes() == before
