"""Every option of every command: help, default, value and refusals."""

import contextlib
import dataclasses
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import app
import args
import export
import predict
from benchmarking.options import BenchmarkConfig, parse_benchmark
from helper import NOTICE, PROJECT_DIR
from preparation.options import PrepareConfig, parse_prepare
from tests.support.builders import Capture, Patch

Field = dataclasses.Field[Any]
HEAVY = {"torch", "torchvision", "pandas", "sklearn", "scipy", "matplotlib", "PIL", "seaborn"}


class Command(NamedTuple):
    """Parser, the dataclasses of its options, and its required arguments."""

    parse: Callable[[list[str]], Any]
    groups: tuple[Any, ...]
    required: tuple[str, ...] = ()


COMMANDS = {
    "main.py": Command(args.parse_train, tuple(args.TRAIN_GROUPS.values())),
    "evaluate.py": Command(args.parse_evaluate, (args.EvaluateConfig,), ("best.pt",)),
    "predict.py": Command(predict.parse_args, (predict.PredictConfig,), ("best.pt", "a.png")),
    "export.py": Command(export.parse_args, (export.ExportConfig,), ("best.pt",)),
    "app.py": Command(app.parse_args, (app.AppConfig,), ("best.pt",)),
    "prepare.py": Command(parse_prepare, (PrepareConfig,), ("source.zip",)),
    "benchmark.py": Command(parse_benchmark, (BenchmarkConfig,)),
}


OPTIONS = [
    (name, field)
    for name, command in COMMANDS.items()
    for group in command.groups
    for field in dataclasses.fields(group)
    if not field.metadata.get("positional")
]


def flag(field: Field) -> str:
    return "--" + field.name.replace("_", "-")


def kind_of(field: Field) -> str:
    """Return bool, int, float, str or Path, also where None is allowed."""
    return str(getattr(field.type, "__name__", field.type)).split(" | ")[0].split(".")[-1]


def list_wrong_values(field: Field) -> list[str]:
    """Return values of a wrong type, out of range, or not among the choices."""
    meta, kind = field.metadata, kind_of(field)
    wrong = {"bool": ["yes"], "int": ["x", "1.5", ""], "float": ["x", "nan", "inf", ""]}
    values = list(wrong.get(kind, []))
    if meta["choices"]:
        values.append("nonsense")
    for bound, direction in (("low", -1), ("high", 1)):
        if meta[bound] is not None:
            beyond = math.nextafter(meta[bound], direction * math.inf)
            values.append(str(meta[bound] + direction) if kind == "int" else repr(beyond))
    return values


def pick_value(field: Field) -> tuple[list[str], Any]:
    """Return an allowed value other than the default, as typed and as parsed."""
    meta, kind = field.metadata, kind_of(field)
    if kind == "bool":
        return [f"--no-{flag(field)[2:]}" if field.default else flag(field)], not field.default
    if kind == "tuple":
        return [flag(field), "a=0.5", flag(field), "b=1"], ("a=0.5", "b=1")
    if meta["choices"]:
        value: Any = next(choice for choice in meta["choices"] if choice != field.default)
    elif kind == "int":
        usual = (meta["low"] or 0) if field.default is None else int(str(field.default))
        value = usual + 7
    elif kind == "float":
        value = next(x for x in (meta["low"], meta["high"]) if x not in (None, field.default))
    else:
        words = ("cpu", "a-word-of-many-letters")
        fitting = next(word for word in words if re.fullmatch(meta["pattern"] or ".*", word))
        value = Path("some where") if kind == "Path" else fitting
    if field.default == ():
        value = "old=new" if meta["pattern"] else value
        return [flag(field), value], (value,)
    return [flag(field), str(value)], value


def flatten(config: Any) -> dict[str, Any]:
    """Return the values of all groups of a configuration."""
    parts = vars(config).values() if isinstance(config, args.TrainConfig) else [config]
    return {key: value for part in parts for key, value in vars(part).items()}


def refuse(parse: Callable[[list[str]], Any], *argv: str) -> str:
    """Check that the command line ends with status 2 and one line, which is returned."""
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as caught:
        parse(list(argv))
    line = stderr.getvalue()
    assert caught.value.code == 2, argv
    assert line.startswith("error: "), argv
    assert line.count("\n") == 1, argv
    return line


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_options_with_defaults(name: str, capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit) as caught:
        COMMANDS[name].parse(["--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert NOTICE in shown
    for group in COMMANDS[name].groups:
        for field in dataclasses.fields(group):
            expected = str(field.metadata["help"])
            if field.metadata.get("positional"):
                assert field.metadata["metavar"] in shown
            else:
                assert flag(field) in shown
                if isinstance(field.default, bool):
                    expected += f" (default: {'yes' if field.default else 'no'})"
                elif field.default not in (None, ()):
                    expected += f" (default: {field.default})"
            assert expected in shown


@pytest.mark.integration
@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_heavy(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(PROJECT_DIR / name), "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"usage: python {name}")
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in ended.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & HEAVY
    assert not list(tmp_path.iterdir())


def test_without_options_every_field_has_its_default() -> None:
    for command in COMMANDS.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            command.parse(list(command.required)).data = Path("elsewhere")
    for name, field in OPTIONS:
        values = flatten(COMMANDS[name].parse(list(COMMANDS[name].required)))
        assert values[field.name] == field.default


def test_each_option_sets_its_field_only() -> None:
    for name, field in OPTIONS:
        command, (typed, value) = COMMANDS[name], pick_value(field)
        others = {
            "dropout": ("--model", "net"),
            "keep_test": ("--folds", "5"),
            "slices": ("--batch-size", "4"),
            "teacher_weight": ("--teacher", "session/x"),
            "pretrained": ("--image-size", "160", "--epochs", "6"),  # other defaults from scratch
        }
        needed = others.get(field.name, ())
        expected = flatten(command.parse([*command.required, *needed])) | {field.name: value}
        required = command.required
        if name == "prepare.py" and field.name == "phantom":  # instead of a SOURCE
            required, expected["source"] = (), None
        assert flatten(command.parse([*required, *needed, *typed])) == expected, flag(field)


def test_options_of_several_values_stop_before_the_next_argument() -> None:
    written = ["--class-map", "a=b", "c d=e", "best.pt", "--class-map=f=g", "x=1/best.pt"]
    config = args.parse_evaluate(written)
    assert config.class_map == ("a=b", "c d=e", "f=g")
    assert config.checkpoints == (Path("best.pt"), Path("x=1/best.pt"))
    typed = predict.parse_args(["best.pt", "--threshold", "A=0.2", "B=.3", "slices", "more"])
    assert (typed.threshold, typed.images) == (("A=0.2", "B=.3"), (Path("slices"), Path("more")))
    assert "--class-map" in refuse(args.parse_evaluate, "best.pt", "--class-map", "a")
    assert "--threshold" in refuse(predict.parse_args, "best.pt", "a", "--threshold", "A=high")


def test_wrong_values_are_refused() -> None:
    wrong = [(*option, value) for option in OPTIONS for value in list_wrong_values(option[1])]
    assert len(wrong) > 200
    for name, field, value in wrong:
        command = COMMANDS[name]
        line = refuse(command.parse, *command.required, f"{flag(field)}={value}")
        assert line.startswith(f"error: {name}: ")
        assert flag(field) in line


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(OPTIONS),
    st.one_of(st.text(max_size=12), st.integers().map(str), st.floats().map(repr)),
)
def test_any_text_is_parsed_or_refused_in_one_line(option: tuple[str, Field], text: str) -> None:
    name, field = option
    command, stderr, status = COMMANDS[name], io.StringIO(), None
    try:
        with contextlib.redirect_stderr(stderr):
            command.parse([*command.required, f"{flag(field)}={text}"])
    except SystemExit as ended:
        status = ended.code
    lines = stderr.getvalue().splitlines()
    assert status in (None, 2)
    assert len(lines) == (1 if status else 0)
    assert all(line.startswith(f"error: {name}: ") for line in lines)


def test_unknown_options_are_refused() -> None:
    for command in COMMANDS.values():
        for argv in (["--nonsense"], ["--see", "1"], ["--device"], ["--name"]):
            refuse(command.parse, *command.required, *argv)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ("--resume session/a --epochs 0", "--epochs"),
        ("--resume session/a --config c.json", "--config"),
        ("--resume session/a --seed 0", "--seed"),  # the default, but given
        ("--resume session/a --phantom", "--phantom"),
        ("--resume session/a --no-pretrained", "--pretrained"),
        ("--resume session/a --dry-run", "--dry-run"),
        ("--phantom --data data", "--data"),
        ("--weights w.pth --no-pretrained", "--no-pretrained"),
        ("--model net --pretrained", "--pretrained"),
        ("--mixup 0.2 --cutmix 1", "--cutmix"),
        ("--freeze-epochs 2 --no-pretrained", "--freeze-epochs"),
        ("--freeze-epochs 2 --model net", "--freeze-epochs"),
        ("--dropout 0.5 --model resnet18", "--dropout"),
        ("--dropout 0.5", "--dropout"),
        ("--folds 1", "--folds"),
        ("--name a/b", "a/b"),
        ("--name a\\b", "--name"),
        ("--name ..", "--name"),
        ("--name .", "--name"),
        ("--name=", "--name"),
        ("--device warp", "--device"),
        ("surplus", "surplus"),
    ],
)
def test_contradictions_of_main_are_refused(argv: str, named: str) -> None:
    assert named in refuse(args.parse_train, *argv.split())


def test_contradictions_of_other_commands_are_refused() -> None:
    refuse(args.parse_evaluate)
    refuse(args.parse_evaluate, "best.pt", "--name", "a/b")
    assert "--stress" in refuse(args.parse_evaluate, "a.pt", "b.pt", "--stress")
    refuse(parse_prepare)
    refuse(parse_prepare, "a", "b")
    refuse(parse_prepare, "source.zip", "--phantom", "60")
    refuse(parse_prepare, "--phantom", "60", "--patients", "patients.csv")
    refuse(parse_prepare, "--phantom", "60", "--ignore-patients")
    refuse(parse_prepare, "source", "--patients", "patients.csv", "--ignore-patients")
    refuse(parse_benchmark, "a")
    refuse(export.parse_args)
    refuse(export.parse_args, "a.pt", "b.pt")
    assert "batch" in refuse(parse_benchmark, "--slices", "12", "--batch-size", "13")


def test_valid_combinations_are_accepted() -> None:
    for argv in ("--mixup 0 --cutmix 1", "--model net --no-pretrained", "--weights w --pretrained"):
        args.parse_train(argv.split())
    assert args.parse_evaluate(["a.pt", "b.pt"]).checkpoints == (Path("a.pt"), Path("b.pt"))


def test_a_dry_run_has_the_options_of_its_run() -> None:
    argv = ["--model", "net", "--epochs", "3"]
    dry = args.parse_train([*argv, "--dry-run"])
    assert isinstance(dry, args.DryRunConfig)
    assert dry.train == args.parse_train(argv)


def test_resume_accepts_device_and_debug() -> None:
    config = args.parse_train(["--resume", "session/a", "--device", "cpu", "--debug"])
    assert config == args.ResumeConfig(Path("session/a"), "cpu", True)
    assert args.parse_train(["--resume", "b"]) == args.ResumeConfig(Path("b"), "auto", False)
    config = args.parse_train(["--resume", "b", "--epochs", "3", "--data", "c"])
    assert config == args.ResumeConfig(Path("b"), epochs=3, data=Path("c"))


def test_a_configuration_survives_json() -> None:
    argv = "--no-flip --split-seed 4 --name run --threads 2 --split-by image --lr 1e-5"
    paths = ("--weights", "some/w.pth", "--data", "some/where")
    config = args.parse_train([*argv.split(), *paths])
    assert isinstance(config, args.TrainConfig)
    values = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert list(values) == ["data", "model", "train", "augment", "run"]
    again = args.TrainConfig.from_dict(values)
    assert again == config
    assert isinstance(again.data.data, Path)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("", (160, 6)),
        ("--model mobilenet_v2 --weights file.pth", (160, 6)),
        ("--model net", (224, 30)),
        ("--model net --weights net.pt", (160, 6)),
        ("--no-pretrained", (224, 30)),
        ("--no-pretrained --epochs 3", (224, 3)),
        ("--model net --image-size 96", (96, 30)),
        ("--model resnet18 --epochs 30", (160, 30)),
    ],
)
def test_size_and_epochs_follow_the_start(command: str, expected: tuple[int, int]) -> None:
    config = args.parse_train(command.split())
    assert isinstance(config, args.TrainConfig)
    assert (config.model.image_size, config.train.epochs) == expected
