"""Wrapped intensities are detected; pictures, phantoms, masks and text are not taken for them."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from imaging.grayscale import scale_to_8_bit
from imaging.reader import read_grey
from imaging.wrapping import is_wrapped
from phantoms.generator import plan_phantoms, render_phantom

PHANTOMS = [render_phantom(plan)[0] for plan in plan_phantoms(12, 0)[::3]]


def deepen(pixels: npt.NDArray[np.uint8], n_bits: int) -> npt.NDArray[np.int64]:
    """Return a picture with values of more bits, with noise instead of steps."""
    noise = np.random.default_rng(0).uniform(0, 1, pixels.shape)
    return ((pixels + noise) * 2 ** (n_bits - 8)).astype(np.int64)


@pytest.mark.parametrize("pixels", PHANTOMS)
@pytest.mark.parametrize("n_bits", [12, 16])
def test_values_modulo_256_are_detected(pixels: npt.NDArray[np.uint8], n_bits: int) -> None:
    values = deepen(pixels, n_bits)
    wrapped = (values % 256).astype(np.uint8)
    assert is_wrapped(wrapped)
    stream = io.BytesIO()
    Image.fromarray(wrapped).save(stream, "JPEG", quality=82)
    assert is_wrapped(read_grey(stream.getvalue()))
    assert not is_wrapped(scale_to_8_bit(values, 0, 2**n_bits - 1))


def draw_text() -> npt.NDArray[np.uint8]:
    image = Image.fromarray(PHANTOMS[0])
    for row in range(0, 512, 128):
        ImageDraw.Draw(image).text((10, row), "L 512 x 512  SE 2 IM 12", fill=255)
    return np.asarray(image)


@pytest.mark.parametrize(
    "pixels",
    [
        *PHANTOMS,
        draw_text(),
        ((np.indices((64, 64)).sum(axis=0) // 8 % 2) * 255).astype(np.uint8),
        np.zeros((9, 9), np.uint8),
        np.full((1, 1), 255, np.uint8),
    ],
)
def test_other_pictures_are_not(pixels: npt.NDArray[np.uint8]) -> None:
    assert not is_wrapped(pixels)
