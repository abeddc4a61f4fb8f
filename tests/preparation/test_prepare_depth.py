"""One scale for the files without a declared bit depth, from prepare.py to predict.py."""

from pathlib import Path

import numpy as np
import pytest
import torch

import dataset
from helper import UserError
from inference import image_stream
from inference.predictor import load_predictor
from loading.pixel_cache import open_pixels
from modeling import checkpoint as checkpoints
from preparation.audit import read_audit
from preparation.manifest import load_manifest
from runs import lifecycle
from tests.support.builders import Capture, make_config
from tests.support.fuzz_corpus import encode
from tests.support.sources import build_files, run, write_folder

TISSUE = 800


def draw(number: int, brightest: int) -> bytes:
    """Return a 16-bit PNG of noise and one tissue, with one voxel of this value."""
    values = np.random.default_rng(number).integers(0, 500, (16, 16), dtype=np.uint16)
    values[4:12, 4:12] = TISSUE
    values[0, 0] = brightest
    return encode(values, "PNG")


def build_deep(first: int, brightest: int) -> dict[str, bytes]:
    """Return six files in each of two classes, each with another maximum."""
    return {
        f"top/{label}/{first + number}.png": draw(seed + first + number, brightest - number)
        for label, seed in (("A", 0), ("B", 100))
        for number in range(6)
    }


def read_tissue(data: Path) -> set[int]:
    """Return the most frequent grey of each slice, as training reads them."""
    table = dataset.load_table(data)
    pixels = open_pixels(table, data, 16, ranges=dataset.read_ranges(data)).pixels
    return {int(np.bincount(slice_.ravel()).argmax()) for slice_ in pixels}


def test_all_files_have_one_scale_and_a_new_one_is_said(tmp_path: Path, capsys: Capture) -> None:
    data, source = tmp_path / "data", tmp_path / "source"
    write_folder(source, build_deep(0, 1000))
    assert run(source, "--data", data) == 0
    assert "12 files declare no bit depth" in capsys.readouterr().out
    audit = read_audit(data)
    assert audit["value_ranges"] == {"integers": [0, 1023]}
    assert audit["undeclared_depth"] == 12
    before = load_manifest(data).set_index("path")["mean"]
    # 800 * 255 / 1023 = 199.4
    assert read_tissue(data) == {199}

    assert run(source, "--data", data) == 0
    assert "now scaled by" not in capsys.readouterr().out

    write_folder(source, build_deep(10, 4000))
    assert run(source, "--data", data) == 0
    assert "now scaled by 0 to 4095 (integers), before by 0 to 1023" in capsys.readouterr().out
    assert read_audit(data)["value_ranges"] == {"integers": [0, 4095]}
    after = load_manifest(data).set_index("path")["mean"]
    assert after[before.index].tolist() == pytest.approx(before / 4, abs=0.5)
    assert read_tissue(data) == {50}
    assert len(list((data / "cache").glob("16px-*-brightness.npy"))) == 2


def test_files_of_8_bits_need_no_scale(tmp_path: Path, capsys: Capture) -> None:
    source, data = write_folder(tmp_path / "source", build_files()), tmp_path / "data"
    assert run(source, "--data", data) == 0
    assert read_audit(data)["value_ranges"] == {}
    assert "bit depth" not in capsys.readouterr().out
    write_folder(source, build_deep(10, 4000))
    assert run(source, "--data", data) == 0  # the first files with a scale change no others
    assert "now scaled by" not in capsys.readouterr().out


def train(folder: Path, data: Path, name: str) -> Path:
    """Write the checkpoint of a network that has seen no slice, and return its path."""
    config = make_config(data=data, image_size=16, threads=1)
    table, device = dataset.load_table(data), torch.device("cpu")
    trainer = lifecycle.build_new_trainer(config, table, folder / name, name, device)
    (folder / name).mkdir()
    trainer.history.best = {"epoch": 1}
    trainer.save(improved=True)
    return folder / name / "best.pt"


def test_a_model_keeps_the_scale_of_its_training(tmp_path: Path) -> None:
    bright = write_folder(tmp_path / "bright", {"4000.png": draw(0, 4000), "500.png": draw(0, 500)})
    paths = {}
    for name, files in (("deep", build_deep(0, 1000)), ("plain", build_files())):
        source = write_folder(tmp_path / f"{name} source", files)
        assert run(source, "--data", tmp_path / name) == 0
        paths[name] = train(tmp_path, tmp_path / name, f"run_{name}")
    deep, plain = (load_predictor([path], "cpu", 1) for path in paths.values())
    assert deep.value_ranges == {"integers": [0, 1023]}
    assert plain.value_ranges == {}
    notes, greys = {}, {}
    for name, predictor in (("deep", deep), ("plain", plain)):
        deep_files = sorted(bright.iterdir())
        [batch] = image_stream.read_batches(
            deep_files,
            lambda pixels: int(pixels[5, 5]),
            9,
            overlap=False,
            ranges=predictor.value_ranges,
        )
        notes[name] = [picture.note for picture in batch]
        greys[name] = [picture.prepared for picture in batch]
    assert greys["deep"] == [199, 199]
    assert "clipped" in notes["deep"][0]
    assert notes["deep"][1] == ""
    assert greys["plain"] == [50, 199]
    assert all("its own maximum" in note for note in notes["plain"])

    assert load_predictor([*paths.values()], "cpu", 1).value_ranges == deep.value_ranges
    checkpoint = checkpoints.load_run(paths["deep"])
    checkpoint["preprocess"]["value_ranges"] = {"integers": [0, 4095]}
    checkpoints.save_checkpoint(tmp_path / "other.pt", checkpoint)
    with pytest.raises(UserError, match=r"other\.pt scales integers.*4095.*1023.*one at a time"):
        load_predictor([paths["deep"], tmp_path / "other.pt"], "cpu", 1)


def test_evaluation_says_if_the_scales_differ(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", build_deep(0, 1000))
    assert run(source, "--data", tmp_path / "data") == 0
    data = tmp_path / "data"
    assert dataset.compare_ranges({"integers": [0, 1023]}, data) == []
    [line] = dataset.compare_ranges({}, data)
    assert line.startswith("BRIGHTNESS: ")
    assert "none in training" in line
    [line] = dataset.compare_ranges({"integers": [0, 4095]}, data)
    assert "as in training, by 0 to 4095" in line
    assert "0 to 1023" in line
