"""Full and read-only disks, file names of every kind, programs that start at once."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

import main
import predict
import prepare
from common import atomic_files
from modeling import checkpoint
from tests.support.builders import (
    ON_CPU,
    QUICK,
    ROOT,
    Capture,
    expect_refusal,
    list_files,
    make_data_folder,
    read_metrics,
    run_python,
)
from tests.support.sources import build_files, write_zip

pytestmark = pytest.mark.timeout(300)
CPU = ("--device", "cpu", "--threads", "1")
MOUNTING = ["unshare", "-rm", "sh", "-c"]  # a namespace in which every user may mount


def run_on_small_disk(options: str, workplace: Path) -> tuple[subprocess.CompletedProcess, Path]:
    """Run main.py with a small disk mounted at session/; return a copy of what it left there."""
    disk, copy = workplace / "session", workplace / "copy"
    disk.mkdir(exist_ok=True)
    test = [*MOUNTING, f"mount -t tmpfs -o size=1m tmpfs {disk}"]
    if shutil.which("unshare") is None or subprocess.run(test, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    script = (
        f"mount -t tmpfs -o {options} tmpfs session; "
        f'"$0" "$@"; status=$?; cp -r session copy; exit $status'
    )
    program = [sys.executable, str(ROOT / "main.py"), *QUICK, *ON_CPU, "--name", "run"]
    command = [*MOUNTING, script, *program]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=workplace, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended, copy


@pytest.mark.integration
def test_a_full_disk_keeps_the_last_checkpoint(workplace: Path) -> None:
    # the first last.pt needs 9 MB; the next, of 17, is written beside it
    ended, copy = run_on_small_disk("size=24m", workplace)
    line = [line for line in ended.stderr.splitlines() if "Warning" not in line][-1]
    assert line.startswith("error: session/run/last.pt: No space left on device")
    assert "--resume session/run" in line
    assert checkpoint.load_run(copy / "run" / "last.pt")["epoch"] == 0
    assert sorted(list_files(copy)) == ["run/config.json", "run/last.pt", "run/split.csv"]
    (workplace / "session").rmdir()
    copy.rename(workplace / "session")
    assert main.main(["--resume", "session/run", "--device", "cpu"]) == 0


@pytest.mark.integration
def test_a_read_only_disk_is_one_line(workplace: Path) -> None:
    ended, copy = run_on_small_disk("size=30m,ro", workplace)
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: session/")
    assert line.endswith("Read-only file system")
    assert list(copy.iterdir()) == []


@pytest.mark.usefixtures("trained")
def test_a_table_on_a_full_disk_is_not_finished() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    Path("predictions.csv.part").symlink_to("/dev/full")
    shutil.copy(next(Path("data/phantom/Images/Glioma").iterdir()), "one.jpg")
    assert predict.main(["session/first/best.pt", "one.jpg", "--overwrite", *CPU]) == 1
    assert not Path("predictions.csv").exists()


NAMES = ["with space", 'it\'s "quoted"', "größe-脑", "=1+1", "#1%20&<b>", "x" * 251]


def test_file_names_of_every_kind(empty_dir: Path) -> None:
    source = make_data_folder(empty_dir / "my source", n_each=9) / "Images"
    shutil.rmtree(source.parent / "CSV")
    for name, path in zip(NAMES, sorted((source / "A").iterdir()), strict=False):
        path.rename(path.with_name(f"{name}.png"))
    (source / "B").rename(source / "B & co's")
    data = empty_dir / "my dätä"
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
    assert len(table) == 18
    assert table["error"].isna().all()
    assert len(list(Path("my maps").rglob("*.png"))) == 18


OPEN_CACHE = """
import sys, time
from pathlib import Path
import dataset
from loading import pixel_cache
decode = pixel_cache._decode
def decode_slowly(*arguments):
    print("written")
    time.sleep(1)
    return decode(*arguments)
pixel_cache._decode = decode_slowly
data = Path(sys.argv[1])
pixels = pixel_cache.open_pixels(dataset.load_table(data), data, 24).pixels
print(int(pixels.astype("int64").sum()))
"""


def run_twice(*command: object) -> "list[subprocess.CompletedProcess[str]]":
    """Run two processes at once; return them in the order of their status."""
    with ThreadPoolExecutor() as pool:
        ended = pool.map(lambda _: run_python(*command), range(2))
    return sorted(ended, key=lambda process: process.returncode)


@pytest.mark.integration
def test_two_programs_write_the_cache_once(tmp_path: Path) -> None:
    one, other = run_twice("-c", OPEN_CACHE, make_data_folder(tmp_path / "data"))
    assert (one.returncode, other.returncode) == (0, 0), other.stderr
    lines = sorted([*one.stdout.splitlines(), *other.stdout.splitlines()])
    assert lines == [lines[0], lines[0], "written"]


@pytest.mark.integration
def test_two_runs_of_one_name_do_not_share_a_folder(workplace: Path) -> None:
    command = [*QUICK, *ON_CPU, "--epochs", "1", "--name", "run"]
    one, other = run_twice(ROOT / "main.py", *command)
    assert (one.returncode, other.returncode) == (0, 1), one.stderr
    assert "session/run exists" in other.stderr
    assert "--resume session/run" in other.stderr
    assert read_metrics(workplace, "run")["n_images"] > 0


def test_two_programs_cannot_fill_one_data_folder(tmp_path: Path, capsys: Capture) -> None:
    source, data = write_zip(tmp_path / "source.zip", build_files()), tmp_path / "data"
    data.mkdir()
    with atomic_files.lock(data, "busy"):
        line = expect_refusal(capsys, prepare.main([str(source), "--data", str(data)]))
    assert f"{data}: another prepare.py" in line
    assert list(data.iterdir()) == []
    assert prepare.main([str(source), "--data", str(data)]) == 0
    assert not list(data.glob(".*"))
