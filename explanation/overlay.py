"""Overlay of a heat map on its slice, with lines of text below."""

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from common.fonts import draw_text

STRENGTH = 0.6  # opacity where the map is 1, 0..1
MIN_SIDE_PX = 384  # of the shorter side, so that the text is legible
LINE_PX = 18
FONT_PX = 13
COLOURS = "inferno"


def blend_heatmap(
    pixels: NDArray[np.uint8], heatmap: NDArray[np.float32], strength: float = STRENGTH
) -> NDArray[np.uint8]:
    """Blend a colour map over a grey slice; the opacity grows with the map.

    Args:
        pixels: uint8 [H, W].
        heatmap: fp32 [H, W] in 0..1.
        strength: Opacity where the map is 1, 0..1.

    Returns:
        uint8 [H, W, 3]
    """
    colours = matplotlib.colormaps[COLOURS](heatmap)[..., :3] * 255
    opacity = (strength * heatmap)[..., None]
    return np.rint(pixels[..., None] * (1 - opacity) + colours * opacity).astype(np.uint8)


def draw_overlay(
    pixels: NDArray[np.uint8], heatmap: NDArray[np.float32], lines: list[str]
) -> Image.Image:
    """Draw a slice [H, W], the slice with its heat map beside it, and lines of text below."""
    plain = np.repeat(pixels[..., None], 3, axis=2)
    both = Image.fromarray(np.concatenate([plain, blend_heatmap(pixels, heatmap)], axis=1))
    if min(pixels.shape) < MIN_SIDE_PX:
        zoom = MIN_SIDE_PX / min(pixels.shape)
        both = both.resize((round(both.width * zoom), round(both.height * zoom)))
    sheet = Image.new("RGB", (both.width, both.height + LINE_PX * len(lines) + 8), "black")
    sheet.paste(both)
    draw = ImageDraw.Draw(sheet)
    for row, line in enumerate(lines):
        draw_text(draw, (6, both.height + 4 + row * LINE_PX), line, FONT_PX, "white")
    return sheet
