"""Disks that are full or closed, names of every kind, programs that start at once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import main
import predict
import prepare
from common import atomic_files
from modeling import checkpoint
from tests.support.builders import ON_CPU, QUICK, ROOT, Run, expect_refusal, make_data_folder
from tests.support.sources import build_files, write_zip

CPU = ("--device", "cpu", "--threads", "1")
# a name space of its own, in which even a user who is not root may mount
MOUNTING = ["unshare", "-rm", "sh", "-c"]


def can_mount(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    command = f"mount -t tmpfs -o size=1m tmpfs {folder}"
    return subprocess.run([*MOUNTING, command], capture_output=True, check=False).returncode == 0


def run_within(
    options: str, workplace: Path, *argv: str
) -> tuple[subprocess.CompletedProcess, Path]:
    """main.py with a small disk at session/, and a copy of what it left there."""
    disk, copy = workplace / "session", workplace / "copy"
    disk.mkdir(exist_ok=True)
    if not can_mount(disk):
        pytest.skip("no small disk can be mounted here")
    script = (
        f"mount -t tmpfs -o {options} tmpfs session; "
        f'"$0" "$@"; status=$?; cp -r session copy; exit $status'
    )
    command = [*MOUNTING, script, sys.executable, str(ROOT / "main.py"), *argv, *ON_CPU]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=workplace, check=False)
    return ended, copy


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(workplace: Path) -> None:
    # the first last.pt takes 9 MB; the next, of 17, stands beside it until it is whole
    ended, copy = run_within("size=24m", workplace, *QUICK, "--name", "run")
    assert ended.returncode == 1, ended.stderr
    errors = [line for line in ended.stderr.splitlines() if "Warning" not in line]
    assert errors[-1] == (
        "error: session/run/last.pt: No space left on device; make room, and go on with --resume "
        "session/run: what was saved before is whole"
    )
    assert "Traceback" not in ended.stderr
    kept = checkpoint.load_run(copy / "run" / "last.pt")
    assert kept["epoch"] == 0
    assert sorted(path.name for path in (copy / "run").iterdir()) == [
        *("config.json", "last.pt", "split.csv"),
    ]
    (workplace / "session").rmdir()
    copy.rename(workplace / "session")
    assert main.main(["--resume", "session/run", "--device", "cpu"]) == 0


def test_a_disk_that_is_closed_is_one_line(workplace: Path) -> None:
    ended, copy = run_within("size=30m,ro", workplace, *QUICK, "--name", "run")
    assert ended.returncode == 1, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: session/")
    assert line.endswith("Read-only file system")
    assert list(copy.iterdir()) == []


def test_a_table_on_a_full_disk_keeps_its_name_for_later(trained: Run) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    Path("predictions.csv.part").symlink_to("/dev/full")
    shutil.copy(next(Path("data/phantom/Images/Glioma").iterdir()), "one.jpg")
    status = predict.main(["session/first/best.pt", "one.jpg", "--overwrite", *CPU])
    assert status == 1
    assert not Path("predictions.csv").exists()


NAMES = ["with space", 'it\'s "quoted"', "größe-脑", "=1+1", "#1%20&<b>", "x" * 251]


def test_names_of_every_kind_go_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = make_data_folder(tmp_path / "my source", n_each=18) / "Images"
    shutil.rmtree(source.parent / "CSV")
    for name, path in zip(NAMES, sorted((source / "A").iterdir()), strict=False):
        path.rename(path.with_name(f"{name}.png"))
    (source / "B").rename(source / "B & co's")
    data = tmp_path / "my dätä"
    assert prepare.main([str(source), "--data", str(data)]) == 0
    command = ["--model", "net", "--image-size", "32", "--epochs", "1", "--data", str(data)]
    assert main.main([*command, *ON_CPU, "--name", "run"]) == 0
    listed = pd.read_csv("results/run/predictions.csv")["path"].tolist()
    assert set(listed) <= set(pd.read_csv(data / "CSV/images.csv")["path"])
    page = Path("results/run/report.html").read_text("utf-8")
    assert "B &amp; co" in page
    assert "B & co" not in page
    options = ["--out", "the table.csv", "--heatmaps", "my maps", *CPU]
    assert predict.main(["session/run/best.pt", str(data / "Images"), *options]) == 0
    table = pd.read_csv("the table.csv")
    assert len(table) == 36
    assert table["error"].isna().all()
    assert len(list(Path("my maps").rglob("*.png"))) == 36


PREPARE_TWICE = """
import sys, time
from pathlib import Path
import dataset
write = dataset._write_cache
def count(*given):
    with open("made.txt", "a") as file:
        file.write("once\\n")
    time.sleep(1)
    write(*given)
dataset._write_cache = count
data = Path(sys.argv[1])
pixels, _ = dataset.open_pixels(dataset.load_table(data), data, 24)
print(int(pixels.astype("int64").sum()))
"""


def start(workplace: Path, *command: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=workplace,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_programs_make_the_cache_once(tmp_path: Path) -> None:
    data = make_data_folder(tmp_path / "data")
    both = [start(tmp_path, "-c", PREPARE_TWICE, str(data)) for _ in range(2)]
    said = [each.communicate() for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert (tmp_path / "made.txt").read_text() == "once\n"


def test_two_runs_of_one_name_never_share_a_folder(workplace: Path) -> None:
    command = [str(ROOT / "main.py"), *QUICK, *ON_CPU, "--name", "run"]
    both = [start(workplace, *command) for _ in range(2)]
    said = [each.communicate() for each in both]
    assert sorted(each.returncode for each in both) == [0, 1], said
    lost = next(text for each, (_, text) in zip(both, said, strict=True) if each.returncode)
    assert "session/run exists; go on with it by --resume session/run" in lost
    report = json.loads((workplace / "results/run/metrics.json").read_text("utf-8"))
    assert report["n_images"] > 0


def test_two_programs_never_fill_one_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, data = write_zip(tmp_path / "source.zip", build_files()), tmp_path / "data"
    data.mkdir()
    with atomic_files.lock(data, "taken"):
        line = expect_refusal(capsys, prepare.main([str(source), "--data", str(data)]))
    assert f"{data}: another prepare.py is at work there; let it end" in line
    assert list(data.iterdir()) == []
    assert prepare.main([str(source), "--data", str(data)]) == 0
    assert not list(data.glob(".*"))
