"""The preprocessing of the graph gives the pixels of the program."""

import dataclasses
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch

from args import INTENSITIES
from imaging.orientation import find_orientation, orient_and_letterbox
from model import build_model
from onnx_export import exporter, parity
from onnx_export.preprocessing_graph import (
    PreprocessingGraph,
    find_orientations,
    orient_and_letterbox_batch,
)
from tests.onnx_export.conftest import SHAPES, make_noise


@pytest.mark.parametrize("size_px", [16, 96, 224])
def test_squares_have_the_same_grey_levels(size_px: int) -> None:
    for shape in SHAPES:
        images = make_noise(*shape)
        actual = orient_and_letterbox_batch(torch.from_numpy(images), size_px).numpy()
        expected = np.stack([orient_and_letterbox(pixels, size_px) for pixels in images])
        is_elongated = max(shape) > 2 * min(shape)
        if is_elongated and int(PIL.__version__.split(".")[0]) < 13:  # it resized columns first
            assert np.abs(actual - expected).max() <= 1, shape
        else:
            assert np.array_equal(actual, expected), shape


def test_orientations_are_the_same_for_equal_halves() -> None:
    for shape in ((1, 1), (1, 2), (2, 2), (3, 2), (3, 3), (4, 5)):
        images = np.random.default_rng(0).integers(0, 2, (300, *shape), dtype=np.uint8)
        found = torch.stack(find_orientations(torch.from_numpy(images)), dim=1).tolist()
        assert found == [list(find_orientation(pixels)) for pixels in images]


def test_sums_of_a_large_white_image_are_exact() -> None:
    images = np.full((1, 6000, 6000), 255, np.uint8)  # the sum of a half exceeds 2**31
    images[0, -1, -1] = 254
    found = [part.item() for part in find_orientations(torch.from_numpy(images))]
    assert found == [False, False, False]
    images[0, 0, 0] = 253
    found = [part.item() for part in find_orientations(torch.from_numpy(images))]
    assert found == [True, True, False]


@pytest.mark.integration
@pytest.mark.parametrize("intensity", [name for name in INTENSITIES if name != "raw"])
def test_the_file_normalises_like_the_program(tmp_path: Path, intensity: str) -> None:
    torch.manual_seed(0)
    network = build_model("net", 3, 96).eval()
    network.preprocess = dataclasses.replace(network.preprocess, intensity=intensity)
    graph = PreprocessingGraph([network], 1.0, None)
    exporter.write_onnx(tmp_path / "a.onnx", graph, {"model": "net"})
    session = exporter.open_onnx(tmp_path / "a.onnx", 1)
    seen = []
    for shape in ((1, 1), (40, 40), (97, 33), (96, 96), (224, 223)):
        images = np.concatenate([make_noise(*shape), np.full((2, *shape), 7, np.uint8)])
        images[-1] = 0
        [probs] = exporter.run_session(session, list(images))
        with torch.no_grad():
            expected = graph(torch.from_numpy(images).unsqueeze(1))[0].numpy()
        np.testing.assert_allclose(probs, expected, atol=parity.TOLERANCE)
        seen.append(expected)
    assert np.ptp(np.concatenate(seen), axis=0).max() > 100 * parity.TOLERANCE
