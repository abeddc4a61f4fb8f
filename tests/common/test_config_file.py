"""`--config`: the options of an earlier run, overridden by the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

import args
from tests.support.builders import Capture, Patch


def write(path: Path, argv: str = "", **changes: Any) -> Path:
    """Write the config.json of a run with these options, with some groups changed."""
    config = args.parse_train(argv.split())
    assert isinstance(config, args.TrainConfig)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config.to_dict() | changes), "utf-8")
    return path


def parse(path: Path, argv: str = "") -> args.TrainConfig:
    config = args.parse_train(["--config", str(path), *argv.split()])
    assert isinstance(config, args.TrainConfig)
    return config


def test_a_run_is_repeated_and_overridden(tmp_path: Path) -> None:
    argv = "--model mobilenet_v2 --epochs 7 --no-flip --lr 1e-4 --weights /w.pth --seed 3"
    path = write(tmp_path / "config.json", f"{argv} --name first")
    assert parse(path) == args.parse_train(argv.split())  # a new run has a name of its own
    changed = argv.replace("--epochs 7 --no-flip", "--epochs 9")
    assert parse(path, "--epochs 9 --flip") == args.parse_train(changed.split())
    dry = args.parse_train(["--config", str(path), "--dry-run"])
    assert isinstance(dry, args.DryRunConfig)


def test_a_part_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"train": {"epochs": 3}}', "utf-8")
    assert parse(path) == args.parse_train(["--epochs", "3"])


@pytest.mark.parametrize("argv", ["--model net", "--model net --epochs 6 --image-size 160", ""])
def test_size_and_epochs_are_those_of_the_run(argv: str, tmp_path: Path) -> None:
    """Also where they are the defaults of another start."""
    path = write(tmp_path / "config.json", argv)
    assert parse(path) == args.parse_train(argv.split())


@pytest.mark.parametrize(
    ("of_file", "typed", "result"),
    [
        ("--phantom", "--data d", "--data d"),
        ("--data d", "--phantom", "--phantom"),
        ("--model net --dropout 0.5", "--model resnet18", "--image-size 224 --epochs 30"),
        ("--mixup 0.2", "--cutmix 1", "--cutmix 1"),
        ("--weights w.pth", "--no-pretrained", "--no-pretrained --image-size 160 --epochs 6"),
        ("--no-pretrained --epochs 6", "--weights w.pth", "--weights w.pth --image-size 224"),
        ("--freeze-epochs 2", "--model net", "--model net --image-size 160 --epochs 6"),
    ],
)
def test_what_the_command_line_contradicts_is_left_out(
    of_file: str, typed: str, result: str, tmp_path: Path, capsys: Capture
) -> None:
    path = write(tmp_path / "config.json", of_file)
    assert parse(path, typed) == args.parse_train(result.split())
    assert "because the command line contradicts: --" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": {"epoch": 3}}, "train.epoch: no such option; did you mean epochs?"),
        ({"training": {}}, "training: no such option; did you mean train?"),
        ({"train": {"epochs": "many"}}, "epochs must be of type int"),
        ({"train": {"lr": 50.0}}, "above the maximum"),
        ({"train": 3}, "groups of options"),
        ({"augment": {"mixup": 0.2, "cutmix": 1.0}}, "--mixup and --cutmix"),
    ],
)
def test_wrong_files_are_refused(
    changes: dict[str, Any], words: str, tmp_path: Path, capsys: Capture
) -> None:
    path = write(tmp_path / "config.json", **changes)
    refuse(path, words, capsys)


def refuse(path: Path, words: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(path)
    line = capsys.readouterr().err
    assert caught.value.code == 1
    assert line.count("\n") == 1
    assert words in line


def test_other_files_are_refused(tmp_path: Path, capsys: Capture) -> None:
    refuse(tmp_path / "none.json", "none.json: No such file", capsys)
    (tmp_path / "text.json").write_text("{", "utf-8")
    refuse(tmp_path / "text.json", "not JSON", capsys)
    write(tmp_path / "session/a/config.json", "--folds 3")
    fold = write(tmp_path / "session/a/fold_1/config.json")
    refuse(fold, "the options of one fold", capsys)


def test_paths_are_those_of_the_run_and_told(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    (tmp_path / "run/mine").mkdir(parents=True)
    (tmp_path / "run/data/phantom").mkdir(parents=True)
    path = write(tmp_path / "run/session/a/config.json", "--data mine")
    phantom = write(tmp_path / "run/session/b/config.json", "--phantom")
    monkeypatch.chdir(tmp_path / "run")
    assert parse(path).data_dir == Path("mine")
    assert "--data mine is relative to the current folder" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert parse(path).data_dir == tmp_path / "run/mine"
    assert parse(phantom).data_dir == tmp_path / "run/data/phantom"
