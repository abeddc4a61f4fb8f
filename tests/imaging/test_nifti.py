"""NIfTI volumes: recognition, planes, orientation, scale, and refusals without patient data."""

import gzip
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from imaging import nifti
from imaging.grayscale import ImageError, ImageTooLargeError
from imaging.nifti import NIFTI_START_BYTES, is_nifti, open_volume

SECRET = "DOE^JANE"
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 3000, (6, 7, 8), dtype=np.int16)
IMAGES: dict[str, Any] = {
    "1": nibabel.Nifti1Image,
    "2": nibabel.Nifti2Image,
    "pair": nibabel.Nifti1Pair,
}


def encode(
    values: npt.NDArray,
    affine: npt.NDArray | None = None,
    version: str = "1",
    big: bool = False,
    **header: Any,
) -> bytes:
    """Return the content of a .nii file; other arguments are fields of its header."""
    image = IMAGES[version](values, np.eye(4) if affine is None else affine, dtype=values.dtype)
    fields = image.header.as_byteswapped(">") if big else image.header
    fields["descrip"], fields["intent_name"] = SECRET, SECRET
    fields["vox_offset"] = {"1": 352, "2": 544, "pair": 0}[version]
    for name, value in header.items():
        fields[name] = value
    stored = values.astype(values.dtype.newbyteorder(">" if big else "<"))
    return fields.binaryblock + bytes(4) + stored.tobytes(order="F")


def build_affine(codes: str, sizes_mm: tuple[float, float, float] = (1, 1, 1)) -> npt.NDArray:
    """Return the affine of voxels stored towards e.g. L, P, S, with their sizes in that order."""
    towards_ras = nibabel.orientations.axcodes2ornt(codes)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for stored, ((axis, sign), size_mm) in enumerate(zip(towards_ras, sizes_mm, strict=True)):
        affine[int(axis), stored] = sign * size_mm
    return affine


def build_head() -> npt.NDArray:
    """Voxels [R, A, S] of a block with a brighter right, front and top."""
    head = np.zeros((20, 24, 28), np.int16)
    head[4:16, 4:20, 4:24] = 100
    head[12:16, 4:20, 4:24] += 1000  # right
    head[4:16, 16:20, 4:24] += 400  # anterior
    head[4:16, 4:20, 20:24] += 2000  # superior
    return head


# ---- recognition


@pytest.mark.parametrize("version", ["1", "2", "pair"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_volumes_are_recognised_by_content(version: str, big: bool, zipped: bool) -> None:
    content = encode(NOISE, version=version, big=big)
    content = gzip.compress(content) if zipped else content
    assert is_nifti(content[:NIFTI_START_BYTES])


def test_a_gzipped_volume_with_a_long_name_is_recognised() -> None:
    stream = io.BytesIO()
    with gzip.GzipFile("n" * 250 + ".nii", "wb", fileobj=stream) as target:
        target.write(encode(NOISE))
    assert is_nifti(stream.getvalue()[:NIFTI_START_BYTES])


@pytest.mark.parametrize(
    "content",
    [b"", b"\x1f\x8b", gzip.compress(b"a tar or a text" * 50), b"\x5c\x01\0\0" + bytes(400), b"PK"],
    ids=["empty", "gzip start", "gzipped text", "header size only", "zip"],
)
def test_other_content_is_no_volume(content: bytes) -> None:
    assert not is_nifti(content)
    with pytest.raises(ImageError):
        open_volume(content)


# ---- values


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        *((kind, kind) for kind in ("uint8", "int16", "uint16", "float32")),
        *(
            ("int8", "int16"),
            ("int32", "uint16"),
            ("uint32", "uint16"),
            ("int64", "uint16"),
            ("float64", "float32"),
        ),
    ],
)
def test_values_are_those_of_nibabel(
    version: str, big: bool, stored: str, expected: str, tmp_path: Path
) -> None:
    scale = 120 if stored == "int8" else 250 if stored == "uint8" else 40_000
    values = RANDOM.uniform(1, min(scale, 32_000 if stored == "int16" else scale), (5, 6, 7))
    path = tmp_path / "a.nii"
    path.write_bytes(encode(values.astype(stored), build_affine("LPS"), version, big))
    reference = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    slices = dict(open_volume(path, "axial").read_slices())
    assert list(slices) == list(range(1, 8))
    assert {each.dtype.name for each in slices.values()} == {expected}
    for number, each in slices.items():
        assert np.array_equal(each, reference[::-1, ::-1, number - 1].T.astype(expected))


@pytest.mark.parametrize(
    ("slope", "intercept", "expected", "kind"),
    [
        *((0, 7, 30_000, "int16"), (float("nan"), 0, 30_000, "int16")),
        *((1, 0, 30_000, "int16"), (1, -1024, 28_976, "int16"), (2, 0, 60_000, "uint16")),
        *((100, 0, 3_000_000, "int32"), (0.5, 1, 15_001, "float32"), (1e6, 0, 3e10, "float32")),
    ],
)
def test_slope_and_intercept_are_applied_without_overflow(
    slope: float, intercept: float, expected: float, kind: str
) -> None:
    values = np.arange(8 * 8 * 3, dtype=np.int16).reshape(8, 8, 3)
    values[3, 3, 1] = 30_000
    volume = open_volume(encode(values, scl_slope=slope, scl_inter=intercept))
    middle = dict(volume.read_slices())[2]
    assert middle.max() == expected
    assert middle.dtype == kind


def test_nan_is_background_and_no_warning() -> None:
    values = RANDOM.random((8, 8, 3)).astype(np.float32)
    values[:, :, 0] = np.nan
    values[0, 0, 1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        volume = open_volume(encode(values))
        assert [number for number, _ in volume.read_slices()] == [2, 3]
        assert volume.find_empty() == [1]


# ---- planes and orientation


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR", "ASL"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_are_upright_with_the_right_side_left(codes: str, plane: nifti.Plane) -> None:
    head = nibabel.Nifti1Image(build_head(), np.eye(4))
    stored = head.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(np.eye(4)),
            nibabel.orientations.axcodes2ornt(codes),
        )
    )
    volume = open_volume(encode(np.asarray(stored.dataobj), stored.affine), plane)
    middle = dict(volume.read_slices())[volume.n_slices // 2].astype(int)
    top, bottom = np.array_split(middle, 2)
    left, right = np.array_split(middle, 2, axis=1)
    assert top.sum() > bottom.sum()  # anterior, or superior
    assert left.sum() > right.sum()  # the patient's right, or the face


@pytest.mark.parametrize(
    ("codes", "sizes_mm", "expected", "spacing_mm"),
    [
        ("RAS", (1, 1, 1), "axial", (1, 1)),
        ("RAS", (1, 1, 1.005), "axial", (1, 1)),
        ("LPS", (0.5, 1, 5), "axial", (1, 0.5)),
        ("PIR", (0.9, 0.8, 6), "sagittal", (0.8, 0.9)),
        ("RSA", (0.9, 0.8, 4), "coronal", (0.8, 0.9)),
        ("SAR", (3, 3, 1), "axial", (3, 1)),
    ],
)
def test_slices_lie_along_the_largest_voxel_size(
    codes: str,
    sizes_mm: tuple[float, float, float],
    expected: str,
    spacing_mm: tuple[float, float],
) -> None:
    volume = open_volume(encode(NOISE, build_affine(codes, sizes_mm)))
    assert volume.plane == expected
    assert volume.spacing_mm == pytest.approx(spacing_mm)


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 1, 1)])
def test_a_single_slice_is_read(shape: tuple[int, ...]) -> None:
    values = RANDOM.integers(0, 99, shape, dtype=np.int16)
    volume = open_volume(encode(values, build_affine("RAS", (2, 2, 1))))
    assert [each.shape for _, each in volume.read_slices()] == [(8, 9)]


def test_empty_slices_are_left_out_and_numbers_stay() -> None:
    values = build_head()
    values[:, :, 24:] = RANDOM.integers(0, 9, (20, 24, 4))  # noise of the background
    values[0, 0, 1] = 500  # a single voxel
    volume = open_volume(encode(values))
    assert volume.find_empty() == [1, 2, 3, 4, 25, 26, 27, 28]
    assert [number for number, _ in volume.read_slices()] == list(range(5, 25))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (NOISE, False),
        (NOISE % 4, True),
        ((NOISE % 4).astype(np.float64), True),
        ((NOISE % 4 + 0.5).astype(np.float32), False),
        (NOISE % 40, False),
    ],
)
def test_segmentations_are_known(values: npt.NDArray, expected: bool) -> None:
    assert open_volume(encode(values)).is_label_volume is expected


# ---- refusals


def damage_rgb() -> bytes:
    values = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return encode(values)


REFUSED: dict[str, tuple[bytes, str]] = {
    "pair": (encode(NOISE, version="pair"), "pair of .hdr and .img"),
    "analyze": (bytes(nibabel.AnalyzeImage(NOISE, None).header.binaryblock), "pair of .hdr"),
    "volumes": (encode(RANDOM.integers(0, 9, (4, 4, 4, 3), dtype=np.int16)), "3 volumes"),
    "vectors": (encode(np.ones((4, 4, 4, 1, 3), np.float32)), "3 volumes"),
    "colour": (damage_rgb(), "colour"),
    "complex": (encode(NOISE.astype(np.complex64)), "complex"),
    "type": (encode(NOISE, datatype=999), "type of values"),
    "dimensions": (encode(NOISE, dim=[3, 0, 4, 4, 1, 1, 1, 1]), "dimensions"),
    "more dimensions": (encode(NOISE, dim=[9, 4, 4, 4, 1, 1, 1, 1]), "dimensions"),
    "truncated": (encode(NOISE)[:-1], "truncated"),
    "header alone": (encode(NOISE)[:348], "truncated"),
    "truncated gzip": (gzip.compress(encode(NOISE))[:-20], "truncated"),
    "cut checksum": (gzip.compress(encode(NOISE))[:-5], "truncated"),
    "constant": (encode(np.full((4, 4, 4), 7, np.int16)), "without content"),
    "no number": (encode(np.full((4, 4, 4), np.nan, np.float32)), "finite"),
    "orientation": (
        encode(NOISE, sform_code=1, srow_x=[0] * 4, srow_y=[np.nan] * 4),
        "orientation",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line_without_text_of_the_header(
    name: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    content, words = REFUSED[name]
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    with caplog.at_level(logging.DEBUG), pytest.raises(ImageError, match=words) as refused:
        open_volume(path)
    assert len(str(refused.value).splitlines()) == 1
    assert str(path) in str(refused.value)
    assert SECRET not in str(refused.value) + caplog.text


def test_a_damaged_checksum_is_refused() -> None:
    content = bytearray(gzip.compress(encode(NOISE)))
    content[-8] ^= 1
    with pytest.raises(ImageError, match="gzip"):
        open_volume(bytes(content))


def test_large_volumes_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageTooLargeError, match="MiB"):
        open_volume(encode(NOISE, dim=[3, 4000, 4000, 4000, 1, 1, 1, 1]))
    with pytest.raises(ImageTooLargeError, match="MiB"):
        open_volume(encode(NOISE, vox_offset=2.0**30))
    with pytest.raises(ImageTooLargeError, match="million"):
        open_volume(encode(NOISE, dim=[3, 30_000, 30_000, 1, 1, 1, 1, 1]))
    monkeypatch.setattr(nifti, "MAX_VOLUME_BYTES", 4096)
    with pytest.raises(ImageTooLargeError, match="inflates"):
        open_volume(gzip.compress(encode(NOISE) + bytes(10_000)))
