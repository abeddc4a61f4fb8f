"""prepare.py --keep-split: the published split as it is, and how far it leaks."""

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

import dataset
import main
from evaluation.predictions import PUBLISHED_SPLIT
from helper import UserError
from preparation.audit import read_audit
from preparation.manifest import load_manifest
from preparation.published_split import describe_split, keep_split, measure_leak
from tests.support.builders import Capture, Run, expect_refusal
from tests.support.sources import make_picture, refuse, run, take_snapshot, write_folder


def build(*splits: str, n_each: int = 4) -> dict[str, bytes]:
    """Pictures that all differ, in SPLIT/CLASS/NUMBER.png."""
    return {
        f"{split}/{label}/{place}{number}.png": make_picture(1000 * place + 100 * column + number)
        for place, split in enumerate(splits)
        for column, label in enumerate("AB")
        for number in range(n_each)
    }


def count(data: Path) -> dict[str, int]:
    return dict(Counter(load_manifest(data)["split"]))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "valid", "test"), {"train": 8, "val": 8, "test": 8}),
        (("Training", "Testing"), {"train": 6, "val": 2, "test": 8}),
        (("TRAIN_SET", "Val", "test_set"), {"train": 8, "val": 8, "test": 8}),
    ],
    ids=["three", "val from training", "other names"],
)
def test_the_published_split_is_kept_and_remembered(
    names: tuple[str, ...], expected: dict[str, int], tmp_path: Path, capsys: Capture
) -> None:
    source, data = write_folder(tmp_path / "in", build(*names)), tmp_path / "data"
    assert run(source, "--data", data, "--keep-split") == 0
    assert count(data) == expected
    out = capsys.readouterr().out
    assert "kept" in out
    assert "none of its 8 test images" in out
    assert "no group is in two splits" not in out
    before = take_snapshot(data / "CSV")
    for again in (source, data):  # without the option, also from the folder itself
        assert run(again, "--data", data) == 0
        assert take_snapshot(data / "CSV").keys() == before.keys()
        assert count(data) == expected
        assert "kept" in capsys.readouterr().out


def test_without_the_option_it_is_dissolved_and_its_leak_is_told(
    tmp_path: Path, capsys: Capture
) -> None:
    files = build("train", "test")
    files["train/A/copy.png"] = files["test/A/10.png"]
    source, data = write_folder(tmp_path / "in", files), tmp_path / "data"
    assert run(source, "--data", data) == 0
    out = capsys.readouterr().out
    assert "published split (train 9, test 8) dissolved" in out
    assert "leaks: of its 8 test images, 1 (12%) have a duplicate (1 of them byte" in out
    assert sum(count(data).values()) == 17


def test_repeated_files_leave_training_and_test_keeps_its_own(
    tmp_path: Path, capsys: Capture
) -> None:
    files = build("train", "valid", "test")
    files["train/A/copy.png"] = files["test/A/20.png"]
    files["train/B/copy.png"] = files["valid/B/10.png"]
    files["valid/B/copy.png"] = files["test/B/20.png"]
    source, data = write_folder(tmp_path / "in", files), tmp_path / "data"
    assert run(source, "--data", data, "--keep-split") == 0
    assert "3 files that repeat val or test images byte for byte" in capsys.readouterr().out
    table = dataset.load_table(data)
    assert dict(Counter(table["split"])) == {"train": 8, "val": 8, "test": 8}
    assert table["sha256"].is_unique
    assert run(data, "--data", data) == 0  # a copy stays out when only its content is known
    assert dataset.load_table(data).equals(table)


def test_patients_on_both_sides_are_a_finding(tmp_path: Path, capsys: Capture) -> None:
    files = build("train", "valid", "test")
    table = tmp_path / "patients.csv"
    rows = [f"{name},{Path(name).stem[-1]}" for name in files]
    table.write_text("\n".join(["path,patient", *rows]))
    source, data = write_folder(tmp_path / "in", files), tmp_path / "data"
    assert run(source, "--data", data, "--keep-split", "--patients", table) == 0
    out = capsys.readouterr().out
    assert "8 (100%) have an image of their patient in train and val; figures" in out
    assert "8 (100%) have an image of their patient in train; figures" in out
    assert count(data) == {"train": 8, "val": 8, "test": 8}
    assert read_audit(data)["published_split"]["leak"]["test"]["patient"] == 8


def make_frame(splits: str, groups: str = "", labels: str = "") -> pd.DataFrame:
    numbers = [str(number) for number in range(len(splits))]
    return pd.DataFrame(
        {
            **{"path": numbers, "sha256": numbers, "duplicate_set": numbers, "patient": ""},
            **{"label": list(labels or "AB" * (len(splits) // 2)), "mean": 1.0},
            **{"group": list(groups) if groups else numbers, "split": ""},
        }
    )


def name_splits(letters: str) -> dict[str, str]:
    names = {"r": "train", "v": "val", "t": "test"}
    return {str(number): names[letter] for number, letter in enumerate(letters) if letter in names}


@pytest.mark.parametrize(
    ("splits", "labels", "words"),
    [
        ("rrvv", "", "no test images (only train 2, val 2)"),
        ("vvtt", "", "no train images"),
        ("rr.rtt", "", "1 images are in no folder of the published split (2)"),
        ("rrrrrrtt", "ABABABAA", "class B without test images"),
        ("rrrrtt", "AAABAB", "class B without train images"),  # its only group became val
    ],
)
def test_splits_that_cannot_be_kept_are_refused(splits: str, labels: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        keep_split(make_frame(splits, labels=labels), name_splits(splits), Path("in"), 0)
    assert words in str(caught.value)


def test_val_takes_whole_groups_of_training() -> None:
    splits, groups = "r" * 28 + "tt", "".join(chr(97 + number // 4) for number in range(28)) + "xy"
    frame = make_frame(splits, groups)
    kept = keep_split(frame, name_splits(splits), Path("in"), 0)
    assert set(kept) == {"train", "val", "test"}
    in_val, in_train = (set(frame["group"][kept == name]) for name in ("val", "train"))
    assert not in_val & in_train
    assert list(kept[-2:]) == ["test", "test"]
    seeds = {tuple(keep_split(frame, name_splits(splits), Path("in"), seed)) for seed in range(9)}
    assert len(seeds) > 1


def test_the_leak_is_counted_by_kind() -> None:
    splits = "rrvttt"
    frame = make_frame(splits)
    frame.loc[[0, 3], ["duplicate_set", "group"]] = "x"
    frame.loc[[1, 4], "group"] = "y"
    frame.loc[[4, 5], "duplicate_set"] = "z"  # inside test alone: no leak
    measured = measure_leak(frame, name_splits(splits), kept=False)
    assert measured is not None
    expected = {"identical": 0, "duplicate": 1, "related": 2, "patient": 0}
    assert measured["leak"] == {"test": expected, "val": dict.fromkeys(expected, 0)}
    assert "33%" in describe_split(measured)[1]
    assert "67%" in describe_split(measured)[1]
    assert measure_leak(frame, {}, kept=False) is None


def test_val_alone_is_measured_too() -> None:
    frame = make_frame("rrvv")
    frame.loc[[0, 2], "group"] = "x"
    lines = describe_split(measure_leak(frame, name_splits("rrvv"), kept=False) or {})
    assert "dissolved: the images are split anew by groups" in lines[0]
    assert "--keep-split" not in lines[0]  # there is no test to keep
    assert "of its 2 val images, 1 (50%)" in lines[1]


def test_what_was_published_is_remembered(tmp_path: Path, capsys: Capture) -> None:
    """After a file is removed, moved or added, test and val stay, and so does the finding."""
    files = build("train", "test", n_each=8)
    for number in range(3):
        files[f"train/A/copy{number}.png"] = files[f"test/A/1{number}.png"]
    source, data = write_folder(tmp_path / "in", files), tmp_path / "data"
    assert run(source, "--data", data, "--keep-split") == 0
    before = load_manifest(data).set_index("sha256")["split"]
    leak = read_audit(data)["published_split"]
    assert (leak["leak"]["test"]["identical"], leak["left_out"]) == (3, 3)
    (data / "CSV" / "audit.json").write_text("damaged")  # the split is not forgotten with it
    (data / "Images" / "A" / "07.png").unlink()
    moved = data / "Images" / "B" / "moved.png"
    (data / "Images" / "A" / "06.png").rename(moved)
    assert run(data, "--data", data) == 0
    again = read_audit(data)["published_split"]
    assert again["leak"] == leak["leak"]
    assert again["images"] == {**leak["images"], "train": leak["images"]["train"] - 1}
    frame = load_manifest(data)
    later = frame[frame["split"] != ""].set_index("sha256")["split"]
    known = before[before != ""]
    known = known[~known.index.duplicated() & known.index.isin(later.index)]
    assert later.loc[known.index].to_dict() == known.to_dict()
    # another training image joins train, and val stays
    more = write_folder(tmp_path / "more", {"train/A/new.png": make_picture(9999), **files})
    capsys.readouterr()
    assert run(more, "--data", data) == 0
    assert "changed their split" not in capsys.readouterr().out
    frame = load_manifest(data).set_index("path")
    assert frame.loc["Images/A/new.png", "split"] == "train"
    after = frame[frame["split"] != ""].set_index("sha256")["split"]
    assert after.loc[known.index].to_dict() == known.to_dict()


def test_what_contradicts_a_kept_split_is_refused(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source, data = write_folder(tmp_path / "in", build("train", "test")), tmp_path / "data"
    others = {name: made for name, made in build("p", "q", "x").items() if name.startswith("x")}
    plain = write_folder(tmp_path / "plain", others)
    refuse(tmp_path, capsys, "no folder of the source", plain, "--data", data, "--keep-split")
    assert run(source, "--data", data, "--keep-split") == 0
    refuse(tmp_path, capsys, "in no folder of the published split", plain, "--data", data)
    assert run(plain, "--data", "other") == 0
    refuse(tmp_path, capsys, "without --keep-split", source, "--data", "other", "--keep-split")
    for options in ("--folds 2", "--split-seed 1", "--split-by image"):
        argv = ["--model", "net", "--data", str(data), "--name", "x", "--device", "cpu"]
        line = expect_refusal(capsys, main.main([*argv, *options.split()]))
        assert f"which {options.removesuffix(' 1').removesuffix(' 2')} would replace" in line


def test_folds_beside_a_kept_test_are_allowed(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", build("train", "test", n_each=12))
    assert run(source, "--data", tmp_path / "data", "--keep-split") == 0
    tables = dataset.load_fold_tables(tmp_path / "data", "group", None, 3, keep_test=True)
    assert all(len(table) == 24 for table in tables)


@pytest.mark.parametrize("options", [("--evaluation-only",), ("--phantom", "60")])
def test_options_that_contradict_are_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    source = () if options[0] == "--phantom" else (tmp_path,)
    with pytest.raises(SystemExit) as caught:
        run(*source, "--keep-split", *options)
    assert caught.value.code == 2


def test_results_say_that_the_split_is_published(
    trained: Run, tmp_path: Path, capsys: Capture
) -> None:
    from evaluation.predictions import list_warnings
    from modeling import members

    source, data = write_folder(tmp_path / "in", build("train", "test")), tmp_path / "data"
    assert run(source, "--data", data, "--keep-split") == 0
    checkpoint = members.load_best(trained.root / "session" / "first" / "best.pt")
    warnings = list_warnings(checkpoint, dataset.load_table(data), "test", data)
    assert PUBLISHED_SPLIT in warnings
