"""Every option of every verb: its help, its value, its refusals."""

import contextlib
import dataclasses
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import app
import args
import benchmark
import evaluate
import export
import main
import predict
import prepare
from helper import PROJECT_DIR

Groups = tuple[Any, ...]


class Verb(NamedTuple):
    """A parser, the dataclasses that it is made from, and the least that it must be given."""

    parse: Callable[[list[str]], Any]
    groups: Groups
    least: tuple[str, ...]


VERBS = {
    "main.py": Verb(args.parse_train, tuple(args.TRAIN_GROUPS.values()), ()),
    "evaluate.py": Verb(args.parse_evaluate, (args.EvaluateConfig,), ("best.pt",)),
    "predict.py": Verb(predict.parse_args, (predict.PredictConfig,), ("best.pt", "a.png")),
    "export.py": Verb(export.parse_args, (export.ExportConfig,), ("best.pt",)),
    "app.py": Verb(app.parse_args, (app.AppConfig,), ("best.pt",)),
    "prepare.py": Verb(args.parse_prepare, (args.PrepareConfig,), ("source.zip",)),
    "benchmark.py": Verb(args.parse_benchmark, (args.BenchmarkConfig,), ()),
}
MAINS = {
    "main.py": main.main,
    "evaluate.py": evaluate.main,
    "predict.py": predict.main,
    "export.py": export.main,
    "app.py": app.main,
    "prepare.py": prepare.main,
    "benchmark.py": benchmark.main,
}
HEAVY = {"torch", "torchvision", "pandas", "sklearn", "scipy", "matplotlib", "PIL", "seaborn"}


def list_options() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for name, verb in VERBS.items():
        for group in verb.groups:
            for field in dataclasses.fields(group):
                if not field.metadata.get("positional"):
                    yield name, field


def flag(field: dataclasses.Field[Any]) -> str:
    return "--" + field.name.replace("_", "-")


def kind_of(field: dataclasses.Field[Any]) -> str:
    """bool, int, float, str or Path, whether it may be None or not."""
    return str(getattr(field.type, "__name__", field.type)).split(" | ")[0].split(".")[-1]


def list_wrong_values() -> Iterator[tuple[str, str]]:
    for verb, field in list_options():
        meta, kind = field.metadata, kind_of(field)
        wrong = {"bool": ["yes"], "int": ["x", "1.5", ""], "float": ["x", "nan", "inf", ""]}
        values = list(wrong.get(kind, []))
        if meta["choices"]:
            values.append("nonsense")
        for bound, away in (("low", -1), ("high", 1)):
            if meta[bound] is not None:
                beyond = math.nextafter(meta[bound], away * math.inf)
                values.append(str(meta[bound] + away) if kind == "int" else repr(beyond))
        for value in values:
            yield verb, f"{flag(field)}={value}"


def pick_value(field: dataclasses.Field[Any]) -> tuple[list[str], Any]:
    """A value that is allowed and not the default: as typed, and as parsed."""
    meta, kind = field.metadata, kind_of(field)
    if kind == "bool":
        return [flag(field) if not field.default else f"--no-{flag(field)[2:]}"], not field.default
    if meta["choices"]:
        value: Any = next(choice for choice in meta["choices"] if choice != field.default)
    elif kind == "int":
        value = (0 if field.default is None else int(str(field.default))) + 7
    elif kind == "float":
        value = next(x for x in (meta["low"], meta["high"]) if x not in (None, field.default))
    else:
        value = Path("some where") if kind == "Path" else "cpu"
    return [flag(field), str(value)], value


def refuse(
    capsys: pytest.CaptureFixture[str], parse: Callable[[list[str]], Any], *argv: str
) -> str:
    """The command line ends with status 2 and one line, which is returned."""
    with pytest.raises(SystemExit) as caught:
        parse(list(argv))
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("name", VERBS)
def test_help_lists_every_option_with_its_default(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit) as caught:
        MAINS[name](["--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for group in VERBS[name].groups:
        for field in dataclasses.fields(group):
            expected = str(field.metadata["help"])
            if field.metadata.get("positional"):
                assert field.metadata["metavar"] in shown
            else:
                assert flag(field) in shown
                if isinstance(field.default, bool):
                    expected += f" (default: {'yes' if field.default else 'no'})"
                elif field.default is not None:
                    expected += f" (default: {field.default})"
            assert expected in shown


@pytest.mark.parametrize("name", VERBS)
def test_help_as_typed_imports_nothing_heavy(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(PROJECT_DIR / name), "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"usage: python {name}")
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in ended.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & HEAVY
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", VERBS)
def test_nothing_given_is_every_default(name: str) -> None:
    verb = VERBS[name]
    config = verb.parse(list(verb.least))
    parts = list(vars(config).values()) if name == "main.py" else [config]
    for part, group in zip(parts, verb.groups, strict=True):
        for field in dataclasses.fields(group):
            if not field.metadata.get("positional"):
                assert getattr(part, field.name) == field.default
    with pytest.raises(dataclasses.FrozenInstanceError):
        parts[0].data = Path("elsewhere")


@pytest.mark.parametrize(
    ("name", "field"), [pytest.param(*case, id=case[0] + flag(case[1])) for case in list_options()]
)
def test_each_option_reaches_its_field_alone(name: str, field: dataclasses.Field[Any]) -> None:
    verb = VERBS[name]
    least = () if field.name == "phantom" and name == "prepare.py" else verb.least
    typed, value = pick_value(field)

    def flatten(config: Any) -> dict[str, Any]:
        parts = vars(config).values() if name == "main.py" else [config]
        return {key: entry for part in parts for key, entry in vars(part).items()}

    needed = ("--model", "net") if field.name == "dropout" else ()  # it is of that network alone
    least = (*least, *needed)
    expected = flatten(verb.parse([*verb.least, *needed])) | {field.name: value}
    if not least:
        expected |= {"source": None} if name == "prepare.py" else {}
    assert flatten(verb.parse([*least, *typed])) == expected


@pytest.mark.parametrize(("name", "option"), list(list_wrong_values()))
def test_wrong_values_are_refused(
    name: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refuse(capsys, VERBS[name].parse, *VERBS[name].least, option)
    assert line.startswith(f"error: {name}: ")
    assert option.split("=")[0] in line


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(list(list_options())),
    st.one_of(st.text(max_size=12), st.integers().map(str), st.floats().map(repr)),
)
def test_whatever_is_typed_is_taken_or_refused_in_a_line(
    option: tuple[str, dataclasses.Field[Any]], text: str
) -> None:
    name, field = option
    said, verb = io.StringIO(), VERBS[name]
    try:
        with contextlib.redirect_stderr(said):
            verb.parse([*verb.least, f"{flag(field)}={text}"])
        said.write(f"error: {name}: \n")
        status: Any = 2
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert said.getvalue().startswith(f"error: {name}: ")
    assert len(said.getvalue().splitlines()) == 1


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.parametrize("argv", [["--nonsense"], ["--see", "1"], ["--device"], ["--name"]])
def test_what_no_verb_knows_is_refused(
    name: str, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(capsys, VERBS[name].parse, *VERBS[name].least, *argv)


def test_only_evaluate_takes_several(capsys: pytest.CaptureFixture[str]) -> None:
    assert args.parse_evaluate(["a.pt", "b.pt"]).checkpoints == (Path("a.pt"), Path("b.pt"))
    for parse in (args.parse_train, args.parse_prepare, args.parse_benchmark):
        refuse(capsys, parse, "a", "b", "c")


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ("--resume session/a --epochs 3", "--epochs"),
        ("--resume session/a --seed 0", "--seed"),  # the default, but given
        ("--resume session/a --phantom", "--phantom"),
        ("--resume session/a --no-pretrained", "--pretrained"),
        ("--phantom --data data", "--data"),
        ("--weights w.pth --no-pretrained", "--no-pretrained"),
        ("--model net --pretrained", "--pretrained"),
        ("--model net --weights w.pth", "--weights"),
        ("--mixup 0.2 --cutmix 1", "--cutmix"),
        ("--freeze-epochs 2 --no-pretrained", "--freeze-epochs"),
        ("--freeze-epochs 2 --model net", "--freeze-epochs"),
        ("--dropout 0.5 --model resnet18", "--dropout"),
        ("--dropout 0.5", "--dropout"),
        ("--name a/b", "a/b"),
        ("--name a\\b", "--name"),
        ("--name ..", "--name"),
        ("--name .", "--name"),
        ("--name=", "--name"),
        ("--device warp", "--device"),
    ],
)
def test_contradictions_are_refused(
    argv: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in refuse(capsys, args.parse_train, *argv.split())


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        ("--mixup 0 --cutmix 1", "cutmix", 1.0),
        ("--model net --no-pretrained", "pretrained", False),
        ("--model net --dropout 0.5", "dropout", 0.5),
        ("--weights w.pth --pretrained", "weights", Path("w.pth")),
    ],
)
def test_what_only_looks_contradictory_is_taken(argv: str, field: str, value: Any) -> None:
    config = args.parse_train(argv.split())
    assert isinstance(config, args.TrainConfig)
    assert (vars(config.model) | vars(config.augment))[field] == value


@pytest.mark.parametrize(
    ("parse", "argv"),
    [
        (args.parse_evaluate, []),
        (args.parse_evaluate, ["best.pt", "--name", "a/b"]),
        (args.parse_prepare, []),
        (args.parse_prepare, ["source.zip", "--phantom", "60"]),
        (args.parse_prepare, ["--phantom", "60", "--groups", "patients.csv"]),
        (args.parse_benchmark, ["--slices", "12", "--batch-size", "13"]),
    ],
)
def test_other_verbs_refuse_contradictions(
    parse: Callable[[list[str]], Any], argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refuse(capsys, parse, *argv)


def test_resume_takes_device_and_debug_alone() -> None:
    config = args.parse_train(["--resume", "session/a", "--device", "cpu", "--debug"])
    assert config == args.ResumeConfig(Path("session/a"), "cpu", True)
    assert args.parse_train(["--resume", "b"]) == args.ResumeConfig(Path("b"), "auto", False)


@pytest.mark.parametrize(
    "argv",
    [
        "",
        "--model net --no-flip --split-seed 4 --name run --threads 2 --split-by image",
        "--weights some/w.pth --data some/where --lr 1e-5 --class-weights balanced --mixup 0.3",
    ],
)
def test_configuration_survives_json(argv: str) -> None:
    config = args.parse_train(argv.split())
    assert isinstance(config, args.TrainConfig)
    values = config.to_dict()
    assert list(values) == ["data", "model", "train", "augment", "run"]
    assert args.TrainConfig.from_dict(values) == config
    again = args.TrainConfig.from_dict(json.loads(json.dumps(values, allow_nan=False)))
    assert again == config
    assert isinstance(again.data.data, Path)
