"""Every command runs to its end under Windows' file rules."""

import ast
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dataset
import evaluate
import main
import predict
import prepare
from common.atomic_files import lock
from helper import UserError
from loading import memory_budget
from modeling.weight_files import load_tensors
from tests.support.builders import (
    ON_CPU,
    QUICK,
    RESULT_FILES,
    ROOT,
    SESSION_FILES,
    Capture,
    Patch,
    expect_refusal,
    raise_in_step,
)
from tests.support.sources import build_files, make_picture, write_folder, write_zip
from tests.support.windows_rules import windows_rules
from tests.test_architecture import COMMANDS, MODULES

TRAIN = (*QUICK, *ON_CPU, "--epochs", "1", "--name", "run")


# ---- the rules themselves


def test_files_in_use_stay(windows: Path) -> None:
    path, other = windows / "folder" / "a.npy", windows / "b.npy"
    path.parent.mkdir()
    for target in (path, other):
        np.save(target, np.zeros(4096, np.uint8))
    shutil.copy(path, windows / "c.npy")
    mapped = np.load(path, mmap_mode="r")
    with other.open("rb"):
        for use in (
            path.unlink,
            other.unlink,
            lambda: path.parent.rename(windows / "moved"),
            lambda: shutil.rmtree(path.parent),
            lambda: other.replace(windows / "d.npy"),
            lambda: (windows / "c.npy").replace(path),
        ):
            with pytest.raises(PermissionError):
                use()
        with pytest.raises(OSError, match="mapped"):
            path.write_bytes(b"")
    del mapped
    with pytest.raises(FileExistsError):
        other.rename(path)
    other.replace(path)
    shutil.rmtree(path.parent)


@pytest.mark.parametrize(
    "name", ["a:b", "a?", "con", "NUL.txt", "Com1.png", "a.", "a ", "x" * 240, "RUN"]
)
def test_names_are_refused(windows: Path, name: str) -> None:
    (windows / "run").touch()
    with pytest.raises(OSError):  # noqa: PT011  of several kinds
        (windows / name).touch()
    assert not (windows / name).exists()
    (windows / "console.txt").touch()


def test_the_program_lacks_what_windows_lacks(windows: Path) -> None:
    lookup = compile("getattr(module, name, None)", str(Path(main.__file__)), "eval")
    for module, name in ((os, "fork"), (os, "sync"), (signal, "SIGKILL")):
        assert eval(lookup, {"module": module, "name": name}) is None
        assert getattr(module, name) is not None  # for libraries
    with pytest.raises(OSError, match="privilege"):
        (windows / "link").symlink_to(windows)
    with pytest.raises(ImportError):
        exec("import fcntl", {"__file__": main.__file__})


def test_locks(windows: Path) -> None:
    with lock(windows, "busy"), pytest.raises(UserError, match="busy"), lock(windows, "busy"):
        pass
    with lock(windows):
        waiting = (windows / ".lock").open("rb")  # as another program would
    assert (windows / ".lock").exists()
    waiting.close()
    with lock(windows):
        pass
    assert not (windows / ".lock").exists()


# ---- the commands


@pytest.mark.usefixtures("windows")
def test_train_stop_resume_evaluate_and_predict(monkeypatch: Patch, capsys: Capture) -> None:
    with monkeypatch.context() as patch:
        raise_in_step(patch, 1, KeyboardInterrupt())
        assert "--resume" in expect_refusal(capsys, main.main([*TRAIN]), 130)
    assert main.main(["--resume", "session/run", "--device", "cpu"]) == 0, capsys.readouterr().err
    assert {path.name for path in Path("session/run").iterdir()} == SESSION_FILES
    assert {path.name for path in Path("results/run").iterdir()} == {*RESULT_FILES, "plots"}
    assert evaluate.main(["session/run/best.pt", "--device", "cpu"]) == 0
    images = sorted(Path("data/phantom/Images").glob("*/*"))[:2]
    command = ["session/run/best.pt", *map(str, images), "--heatmaps", "maps", "--device", "cpu"]
    assert predict.main(command) == 0
    assert predict.main([*command, "--overwrite"]) == 0
    assert len(list(Path("maps").rglob("*.png"))) == 2
    written = [
        path for path in Path().rglob("*") if path.suffix in {".csv", ".json", ".txt", ".md"}
    ]
    assert len(written) > 8
    assert [path for path in written if b"\r" in path.read_bytes()] == []


def test_splits_have_the_same_fingerprint_on_every_system(phantom_dir: Path) -> None:
    table = dataset.load_table(phantom_dir)
    on_linux = dataset.compute_fingerprint(table)
    with windows_rules(phantom_dir):
        assert dataset.compute_fingerprint(table) == on_linux


@pytest.mark.usefixtures("windows", "no_evaluation")
def test_a_run_from_disk(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(memory_budget, "measure_host_budget_mib", lambda _: 0.0)
    for name in ("one", "two"):
        assert main.main([*TRAIN[:-1], name]) == 0, capsys.readouterr().err
        assert "read from disk" in capsys.readouterr().out


@pytest.mark.usefixtures("windows")
def test_folds(capsys: Capture) -> None:
    assert main.main([*TRAIN, "--folds", "2"]) == 0, capsys.readouterr().err
    assert main.main(["--resume", "session/run", "--device", "cpu"]) == 0
    names = {path.relative_to("session/run").as_posix() for path in Path("session").rglob("*.*")}
    assert names == {"config.json", "split.csv", "ensemble.json"} | {
        f"fold_{fold}/{name}" for fold in (1, 2) for name in SESSION_FILES
    }


@pytest.mark.usefixtures("windows")
def test_the_name_of_a_failed_start_can_be_used_again(capsys: Capture) -> None:
    status = main.main([*TRAIN, "--weights", "none.pth", "--model", "resnet18"])
    assert "none.pth" in expect_refusal(capsys, status)
    assert main.main([*TRAIN]) == 0
    assert not list(Path("session").rglob("failed.txt"))


def test_prepare_twice(windows: Path, capsys: Capture) -> None:
    files = build_files()
    for source in (write_zip(windows / "a.zip", files), write_folder(windows / "source", files)):
        for _ in range(2):
            status = prepare.main([str(source), "--data", "data/new"])
            assert status == 0, capsys.readouterr().err
    assert {path.name for path in Path("data/new").iterdir()} == {"Images", "CSV", "cache"}


@pytest.mark.usefixtures("windows")
def test_phantoms_twice(capsys: Capture) -> None:
    for _ in range(2):
        assert prepare.main(["--phantom", "30", "--data", "data/new"]) == 0, capsys.readouterr().err
    # verified.json is written if the files are old enough, as on a slow machine
    assert {path.name for path in Path("data/new").iterdir()} - {"cache"} == {"Images", "CSV"}


def test_a_refused_source_leaves_no_folder(windows: Path, capsys: Capture) -> None:
    source = write_zip(windows / "a.zip", {"A/1.png": make_picture(1)})
    expect_refusal(capsys, prepare.main([str(source), "--data", "data/new"]))
    assert not Path("data/new").exists()


def test_names_that_windows_does_not_allow(windows: Path, capsys: Capture) -> None:
    names = ("CON.png", "a:b.png", "a_b.png", "c?.png", "e.PNG", "E.png")
    files = build_files() | {
        f"top/A/{name}": make_picture(index) for index, name in enumerate(names)
    }
    source = write_zip(windows / "a.zip", files)
    for _ in range(2):
        assert prepare.main([str(source), "--data", "data/new"]) == 0, capsys.readouterr().err
    written = {path.name: path.read_bytes() for path in Path("data/new/Images/A").iterdir()}
    for index, name in enumerate(("_CON", "a_b_2", "a_b", "c_", "e", "E")):
        assert make_picture(index) in written.values(), name
    assert len(written) == 6 + len(names)
    assert written["a_b.png"] == make_picture(2)
    for label in ("nul", "COM1.x", "a:b", "B.", "B "):
        files = build_files((label, "C"))
        refused = prepare.main([str(write_zip(windows / "b.zip", files)), "--data", "data/other"])
        assert "Windows" in expect_refusal(capsys, refused)


def test_a_folder_in_place_of_a_file(windows: Path) -> None:
    with pytest.raises(UserError, match="a folder"):
        load_tensors(windows / "data", "checkpoint")


def test_a_path_that_is_too_long(windows: Path, capsys: Capture) -> None:
    data = "/".join(["folder" * 20] * 2)
    line = expect_refusal(capsys, prepare.main(["--phantom", "30", "--data", data]))
    assert "characters" in line
    assert "259" in line


def test_no_more_processes_than_windows_can_wait_for(monkeypatch: Patch, windows: Path) -> None:
    started: list[int] = []

    def start(n_processes: int, *_: object, **__: object) -> None:
        started.append(n_processes)
        raise RuntimeError

    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr("multiprocessing.pool.Pool", start)
    assert prepare.main(["--phantom", "2000", "--data", str(windows / "data/new")]) == 1
    assert started == [60]  # 63 handles, less those of the pool itself


# ---- the console


@pytest.mark.integration
@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_on_any_console(name: str, encoding: str) -> None:
    console = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    ended = subprocess.run(
        [sys.executable, ROOT / f"{name}.py", "--help"],
        env=console,
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"usage: " in ended.stdout


@pytest.mark.integration
def test_messages_on_any_console(tmp_path: Path) -> None:
    console = {**os.environ, "PYTHONIOENCODING": "cp1252:strict"}
    command = [sys.executable, str(ROOT / "prepare.py")]
    for source, data, status in (("--phantom=30", "\u0142", 0), ("\u0142\u2192.zip", "x", 1)):
        ended = subprocess.run(
            [*command, source, "--data", str(tmp_path / data)],
            env=console,
            capture_output=True,
            check=False,
        )
        assert ended.returncode == status
        assert b"\\u0142" in ended.stdout + ended.stderr
        assert b"Traceback" not in ended.stderr
        assert b"Logging error" not in ended.stderr


def list_calls_without_encoding(source: str) -> list[int]:
    """Lines where text is read, written or received in the encoding of the system."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        given = {word.arg: word.value for word in node.keywords}
        is_text = name in {"read_text", "write_text"} and not node.args[name == "write_text" :]
        is_text |= "text" in given or "universal_newlines" in given
        if is_text and "encoding" not in given and not ast.unparse(node).startswith("atomic"):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("module", sorted(MODULES))
def test_text_has_a_known_encoding(module: str) -> None:
    assert list_calls_without_encoding(MODULES[module].read_text("utf-8")) == []


def test_calls_without_encoding_are_found() -> None:
    for call in ("p.read_text()", "p.write_text(t)", "run(c, text=True)"):
        assert list_calls_without_encoding(call) == [1]
    for call in ("p.read_text('utf-8')", "p.write_text(t, 'utf-8')", "run(c, encoding='utf-8')"):
        assert list_calls_without_encoding(call) == []
