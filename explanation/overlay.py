"""A heat map laid over its slice, with the words that must stand under it."""

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

STRENGTH = 0.6  # of the colour where the map is 1, 0..1
LEAST_PX = 384  # of the shorter side: words are legible
LINE_PX = 18
COLOURS = "inferno"


def blend_heatmap(
    pixels: NDArray[np.uint8], heatmap: NDArray[np.float32], strength: float = STRENGTH
) -> NDArray[np.uint8]:
    """A slice in grey under a map in colour, the more of it the hotter it is.

    Args:
        pixels: uint8 [H, W].
        heatmap: fp32 [H, W] in 0..1.
        strength: Share of the colour where the map is 1, 0..1.

    Returns:
        uint8 [H, W, 3]
    """
    colours = matplotlib.colormaps[COLOURS](heatmap)[..., :3] * 255
    share = (strength * heatmap)[..., None]
    return np.rint(pixels[..., None] * (1 - share) + colours * share).astype(np.uint8)


def draw_overlay(
    pixels: NDArray[np.uint8], heatmap: NDArray[np.float32], lines: list[str]
) -> Image.Image:
    """The slice beside itself under its heat map, and lines of text below.

    Args:
        pixels: uint8 [H, W].
        heatmap: fp32 [H, W] in 0..1.
        lines: What is said under it.
    """
    plain = np.repeat(pixels[..., None], 3, axis=2)
    both = Image.fromarray(np.concatenate([plain, blend_heatmap(pixels, heatmap)], axis=1))
    if min(pixels.shape) < LEAST_PX:
        times = LEAST_PX / min(pixels.shape)
        both = both.resize((round(both.width * times), round(both.height * times)))
    sheet = Image.new("RGB", (both.width, both.height + LINE_PX * len(lines) + 8), "black")
    sheet.paste(both)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for row, line in enumerate(lines):
        draw.text((6, both.height + 4 + row * LINE_PX), line, "white", font)
    return sheet
