"""MATLAB files: both versions alike, classes, patients, outlines, and refusals in one line."""

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from scipy.io import loadmat

from helper import UserError
from imaging import mat_files
from imaging.dicom import hash_patient
from imaging.grayscale import ImageError, ImageTooLargeError
from imaging.mat_files import is_matlab, open_variables
from imaging.matlab import MatFields, parse_fields, read_mat
from tests.support.mat_files import HDF5_HEADER, build_cheng, encode_v5, encode_v73

Encode = Callable[[dict[str, Any]], bytes]

VALUES = np.random.default_rng(0).integers(0, 30_000, (20, 30), dtype=np.int16)
VERSIONS = pytest.mark.parametrize(
    "encode", [encode_v5, lambda variables: encode_v5(variables, False), encode_v73]
)
FIELDS = MatFields("im", "class", "who")


# ---- files of Cheng et al.


@VERSIONS
@pytest.mark.parametrize("kind", ["int16", "uint16", "uint8"])
def test_images_are_the_same_in_both_versions(encode: Encode, kind: str) -> None:
    values = (VALUES % 256 if kind == "uint8" else VALUES).astype(kind)
    content = encode(build_cheng(values))
    assert is_matlab(content[:128])
    read = read_mat(content)
    assert read.values.dtype == kind
    assert np.array_equal(read.values, values)
    assert read.values.flags.c_contiguous


@VERSIONS
@pytest.mark.parametrize(
    ("label", "expected"), [(1, "meningioma"), (2, "glioma"), (3, "pituitary"), (4, "4")]
)
def test_classes_have_their_names(encode: Encode, label: int, expected: str) -> None:
    assert read_mat(encode(build_cheng(VALUES, label))).label == expected


@VERSIONS
@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        *(("100360", "100360"), (np.float64(100360), "100360"), ("MR040243b", "MR040243")),
        (np.array([[49.0, 48.0, 48.0]]), "100"),  # codes of a text that lost its class
    ],
)
def test_patients_are_pseudonyms_however_stored(encode: Encode, stored: Any, expected: str) -> None:
    assert read_mat(encode(build_cheng(VALUES, patient=stored))).patient == hash_patient(expected)


@VERSIONS
@pytest.mark.parametrize("swapped", [False, True])
def test_the_mask_decides_which_coordinate_is_first(encode: Encode, swapped: bool) -> None:
    outline = read_mat(encode(build_cheng(VALUES, swapped=swapped))).outline
    assert outline == "12.0,4.0 22.0,4.0 22.0,9.0 12.0,9.0"


@VERSIONS
@pytest.mark.parametrize("border", [np.zeros((0, 0)), np.full((8, 1), 1.5), np.full((8, 1), 1e9)])
def test_a_wrong_border_is_replaced_by_the_outline_of_the_mask(
    encode: Encode, border: npt.NDArray
) -> None:
    variables = build_cheng(VALUES)
    variables["cjdata"]["tumorBorder"] = border
    corners = read_mat(encode(variables)).outline.split()
    assert sorted(corners) == sorted(["12.0,4.0", "22.0,4.0", "22.0,9.0", "12.0,9.0"])


def test_without_mask_and_border_there_is_no_outline() -> None:
    variables = build_cheng(VALUES)
    del variables["cjdata"]["tumorBorder"], variables["cjdata"]["tumorMask"]
    assert read_mat(encode_v5(variables)).outline == ""


# ---- other files


@VERSIONS
@pytest.mark.parametrize(
    ("stored", "kind"),
    [
        *(("int8", "int16"), ("uint32", "uint16"), ("int32", "uint16"), ("int64", "uint16")),
        *(("float64", "float32"), ("float32", "float32")),
    ],
)
def test_named_variables_are_read_with_their_values(encode: Encode, stored: str, kind: str) -> None:
    values = (VALUES % 100 - 50 if stored == "int8" else VALUES.astype(int) + 20_000).astype(stored)
    variables = {"im": values, "class": "Glioma", "who": "A-7", "more": {"deep": {"x": 1.0}}}
    read = read_mat(encode(variables), FIELDS)
    assert read.values.dtype == kind
    assert np.array_equal(read.values, values)
    assert (read.label, read.patient) == ("Glioma", hash_patient("A-7"))


@VERSIONS
def test_unknown_variables_are_listed_with_the_option(encode: Encode, tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(encode({"scan": {"vol": VALUES, "name": "SECRET"}, "n": 3.0}))
    with pytest.raises(ImageError) as refused:
        read_mat(path)
    message = str(refused.value)
    assert all(part in message for part in ("scan.vol (20x30 int16)", "n (1x1", "--mat-fields"))
    assert "SECRET" not in message
    with pytest.raises(ImageError, match=r"no variable im.*scan\.vol"):
        read_mat(path, FIELDS)
    assert np.array_equal(read_mat(path, MatFields("scan.vol")).values, VALUES)


def test_variables_are_those_of_scipy() -> None:
    names = np.empty((2, 1), object)
    names[:, 0] = "a", "bc"
    variables = {
        **{"x": VALUES[:3, :4], "y": np.arange(6.0).reshape(1, 2, 3), "flag": np.array([[True]])},
        **{
            "z": np.ones((2, 2), complex),
            "text": "αβ ü",
            "cells": names,
            "empty": np.empty((0, 0)),
        },
    }
    for order in ("<", ">"):
        content = encode_v5(variables) if order == "<" else _write_big_endian(VALUES[:3, :4])
        loaded = loadmat(io.BytesIO(content))
        with open_variables(content) as found:
            assert set(found) == {name for name in loaded if not name.startswith("__")}
            for name, variable in found.items():
                assert variable.shape == loaded[name].shape or variable.kind == "char"
                if variable.read and variable.kind != "char":
                    assert np.array_equal(variable.read(), loaded[name])
    with open_variables(encode_v5(variables)) as found:
        assert found["z"].read is found["cells"].read is None
        assert found["text"].read is not None
        assert "".join(map(chr, found["text"].read().ravel())) == "αβ ü"


def _write_big_endian(values: npt.NDArray) -> bytes:
    """Return a file of version 5 with one int16 matrix, as a big-endian machine writes it."""
    data = values.astype(">i2").tobytes(order="F")
    parts = [
        *(_tag(6, np.array([10, 0], ">u4").tobytes()), _tag(5, np.array([3, 4], ">i4").tobytes())),
        *(_tag(1, b"x"), _tag(3, data)),
    ]
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\1\0MI"
    return header + _tag(14, b"".join(parts))


def _tag(kind: int, content: bytes) -> bytes:
    sizes = np.array([kind, len(content)], ">u4").tobytes()
    return sizes + content + bytes(-len(content) % 8)


# ---- refusals


def encode_object(kind: int) -> bytes:
    """Return a file whose only variable has another class of version 5."""
    content = bytearray(encode_v5({"im": VALUES}, compressed=False))
    content[144] = kind  # class in the flags of the first matrix
    return bytes(content)


def encode_external(tmp_path: Path) -> bytes:
    """Return a file of version 7.3 whose matrix lies in another file."""
    other = tmp_path / "secret.bin"
    other.write_bytes(bytes(6000))
    stream = io.BytesIO()
    with h5py.File(stream, "w", userblock_size=512) as root:
        external = [(str(other), 0, 1200)]
        root.create_dataset("im", (30, 20), np.int16, external=external)
    return HDF5_HEADER + stream.getvalue()[512:]


def test_a_matrix_in_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="other files"):
        read_mat(encode_external(tmp_path), MatFields("im"))


def test_a_link_to_another_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "other.mat").write_bytes(encode_v73({"im": VALUES}))
    stream = io.BytesIO()
    with h5py.File(stream, "w", userblock_size=512) as root:
        root["im"] = h5py.ExternalLink(str(tmp_path / "other.mat"), "/im")
    with pytest.raises(ImageError, match="no variable im"):
        read_mat(HDF5_HEADER + stream.getvalue()[512:], MatFields("im"))


@pytest.mark.parametrize("kind", [1, 3, 5, 16, 17])
def test_objects_and_functions_are_refused(kind: int) -> None:
    with pytest.raises(ImageError):
        read_mat(encode_object(kind), MatFields("im"))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("im", np.zeros((4, 5, 3), np.uint8), "4x5x3 uint8"),
        ("im", "text", "char"),
        ("im", np.ones((4, 5), bool), "logical"),
        ("im", np.ones((4, 5), complex), "complex"),
        ("class", np.float64(1.5), "whole number"),
        ("class", np.array([[1.0, 2.0]]), "2 numbers"),
        ("class", np.ones((30, 30)), "neither"),
        ("who", "a\nb", "unprintable"),
    ],
)
def test_variables_of_another_kind_are_refused(name: str, value: Any, words: str) -> None:
    variables = {"im": VALUES, "class": "x", "who": "y", name: value}
    with pytest.raises(ImageError, match=words):
        read_mat(encode_v5(variables), FIELDS)


@pytest.mark.parametrize("encode", [encode_v5, encode_v73])
@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.9])
def test_truncated_files_are_refused(encode: Encode, share: float, tmp_path: Path) -> None:
    content = encode(build_cheng(VALUES))
    path = tmp_path / "a.mat"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImageError) as refused:
        read_mat(path)
    assert len(str(refused.value).splitlines()) == 1


def test_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mat_files, "MAX_INFLATED_BYTES", 2**16)
    zeros = np.zeros((512, 512), np.int16)
    for encode in (encode_v5, encode_v73):
        with pytest.raises(ImageTooLargeError, match="MiB"):
            read_mat(encode({"im": zeros}), MatFields("im"))


def test_deep_and_many_structures_end() -> None:
    deep: dict[str, Any] = {"x": 1.0}
    for _ in range(30):
        deep = {"s": deep}
    for encode in (encode_v5, encode_v73):
        with open_variables(encode(deep)) as found:
            assert all(name.count(".") <= mat_files.MAX_DEPTH for name in found)
    with pytest.raises(ImageError, match="1000"):
        read_mat(encode_v5({f"x{number}": 1.0 for number in range(1001)}))


def test_damaged_compression_is_refused() -> None:
    content = bytearray(encode_v5({"im": VALUES}))
    content[-6] ^= 255
    with pytest.raises(ImageError):
        read_mat(bytes(content), MatFields("im"))
    assert zlib.decompress(encode_v5({"im": VALUES})[136:])  # the position of the compressed part


# ---- the option


def test_the_option_names_variables() -> None:
    assert parse_fields("image=a.b, label=c") == MatFields("a.b", "c")
    for text in ("", "label=c", "image=", "image=a,colour=b", "a.b"):
        with pytest.raises(UserError, match="image=NAME") as refused:
            parse_fields(text)
        assert refused.value.status == 2
