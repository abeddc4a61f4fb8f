"""NIfTI and MATLAB files from the source to the manifest, and the same grey in predict."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd

from imaging.bit_depth import Ranges, ValueScaler
from imaging.pages import unpack
from imaging.reader import read_frames, read_grey
from imaging.volumes import VolumeOptions
from preparation.audit import read_audit
from preparation.manifest import load_manifest
from tests.imaging.test_nifti import NOISE, build_affine, encode
from tests.support.builders import Capture
from tests.support.mat_files import build_cheng, encode_v5, encode_v73
from tests.support.sources import run, write_folder

RANGES: Ranges = {"integers": [-1024, 4095], "floats": [0.0, 4000.0]}
RANDOM = np.random.default_rng(0)


def draw() -> np.ndarray:
    return RANDOM.integers(0, 3000, (24, 32), dtype=np.int16)


def test_matlab_files_need_no_class_folders(tmp_path: Path, capsys: Capture) -> None:
    source, data = tmp_path / "source", tmp_path / "data"
    files = {
        f"{number}.mat": (encode_v5, encode_v73)[number % 2](
            build_cheng(draw(), number % 3 + 1, f"P{number // 6}{'ab'[number % 2]}")
        )
        for number in range(24)
    }
    write_folder(source, files)
    assert run(source, "--data", data) == 0
    frame = load_manifest(data)
    assert frame["label"].value_counts().to_dict() == {
        **{"glioma": 8, "meningioma": 8, "pituitary": 8}
    }
    assert frame["patient"].nunique() == 4
    assert frame.groupby("patient")["split"].nunique().max() == 1
    outlines = pd.read_csv(data / "CSV" / "lesions.csv")
    assert set("Images/" + outlines["path"]) == set(frame["path"])
    assert read_audit(data)["value_ranges"] == {"integers": [0, 4095]}
    assert "MATLAB" in capsys.readouterr().out
    before = (data / "CSV" / "images.csv").read_bytes()
    assert run(source, "--data", data) == 0
    assert (data / "CSV" / "images.csv").read_bytes() == before


def test_named_variables_and_class_folders(tmp_path: Path, capsys: Capture) -> None:
    source, data = tmp_path / "source", tmp_path / "data"
    write_folder(
        source,
        {f"{c}/{n}.mat": encode_v5({"im": draw(), "id": n}) for c in "ab" for n in range(4)},
    )
    assert run(source, "--data", data) == 1
    assert run(source, "--data", data, "--mat-fields", "label=im") == 2
    assert run(source, "--data", data, "--mat-fields", "image=im") == 0
    assert set(load_manifest(data)["label"]) == {"a", "b"}


def test_slices_of_a_volume_share_a_group(tmp_path: Path, capsys: Capture) -> None:
    source, data = tmp_path / "source", tmp_path / "data"
    volumes = {}
    for label in "ab":
        for number in range(4):
            voxels = RANDOM.integers(1, 3000, (16, 20, 4), dtype=np.int16)
            voxels[:, :, 3] = 0
            content = encode(voxels, build_affine("LPS", (1, 1, 5)))
            volumes[f"{label}/{label}{number}.nii.gz"] = gzip.compress(content)
    write_folder(source, volumes)
    assert run(source, "--data", data) == 0
    assert "8 empty slices" in capsys.readouterr().out
    frame = load_manifest(data)
    assert len(frame) == 24
    assert set(zip(frame["width"], frame["height"], strict=True)) == {(16, 20)}
    names = frame["path"].str.extract(r"/(\w\d)_\d{4}\.tif$")[0]
    assert (frame.groupby(names)["group"].nunique() == 1).all()
    assert (frame.groupby(names)["split"].nunique() == 1).all()


def test_written_slices_have_the_grey_that_predict_reads() -> None:
    files = [
        encode(NOISE),
        encode(NOISE, scl_slope=1, scl_inter=-1024),
        encode(NOISE.astype(np.float64) * 1.37),
        encode_v73(build_cheng(draw())),
    ]
    for content in files:
        for ranges in (None, RANGES):
            options = VolumeOptions("coronal")
            inside = list(read_frames(content, ValueScaler(ranges), options))
            written = [
                read_grey(page.content, ValueScaler(ranges)) for page in unpack(content, options)
            ]
            assert len(inside) == len(written)
            assert all(np.array_equal(*pair) for pair in zip(inside, written, strict=True))
