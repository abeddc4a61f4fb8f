"""Synthetic pictures that are not brain slices: chest film, page of text, photograph."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

SIZE_PX = 512
WORDS = ["the", "patient", "was", "seen", "on", "monday", "and", "asks", "for", "an", "opinion"]


def draw_chest_film(seed: int) -> np.ndarray:
    """Draw two dark lungs in a grey trunk with ribs, spine and heart; uint8 [H, W]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIZE_PX, 0:SIZE_PX] / SIZE_PX
    columns = columns + rng.normal(0, 0.02)
    trunk = 150 + 40 * np.cos(3 * (columns - 0.5)) - 30 * rows
    lungs = np.zeros_like(rows)
    for centre in (0.31, 0.69):
        width, height = rng.uniform(0.14, 0.18), rng.uniform(0.28, 0.34)
        lungs += ((columns - centre) / width) ** 2 + ((rows - 0.45) / height) ** 2 < 1
    film = np.where(lungs > 0, 60.0, trunk)
    ribs = np.sin(2 * np.pi * (9 * rows + 6 * (columns - 0.5) ** 2 * 4)) > 0.55
    film += 35 * (ribs & (lungs > 0))
    film += 60 * np.exp(-(((columns - 0.5) / 0.035) ** 2))
    heart = ((columns - 0.56) / 0.13) ** 2 + ((rows - 0.62) / 0.16) ** 2 < 1
    film[heart] = 190
    film = ndimage.gaussian_filter(film, 3) + rng.normal(0, 5, film.shape)
    return np.clip(film, 0, 255).astype(np.uint8)


def draw_text_scan(seed: int) -> np.ndarray:
    """Draw a page of dark text on light paper; uint8 [H, W]."""
    rng = np.random.default_rng(seed)
    page = Image.new("L", (SIZE_PX, 720), int(rng.integers(225, 250)))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=int(rng.integers(12, 20)))
    for row in range(30, 690, int(rng.integers(20, 30))):
        draw.text((30, row), " ".join(rng.choice(WORDS, size=9)), int(rng.integers(10, 60)), font)
    return np.asarray(page)


def draw_photograph(seed: int) -> np.ndarray:
    """Draw sky, ground and objects over noise with the spectrum of photographs; uint8 [H, W]."""
    rng = np.random.default_rng(seed)
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(640), np.fft.fftfreq(SIZE_PX)))
    frequencies[0, 0] = 1
    noise = np.fft.fft2(rng.normal(size=(SIZE_PX, 640))) / frequencies
    noise[0, 0] = 0
    scene = np.real(np.fft.ifft2(noise))
    scene = 120 + 45 * scene / scene.std()
    horizon = int(rng.integers(180, 330))
    scene[:horizon] = 0.4 * scene[:horizon] + 130
    picture = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        left, top = rng.integers(0, 560), rng.integers(100, 420)
        width, height = rng.integers(30, 140, 2)
        box = (int(left), int(top), int(left + width), int(top + height))
        shape = draw.rectangle if rng.random() < 0.6 else draw.ellipse
        shape(box, fill=int(rng.integers(0, 256)))
    return ndimage.gaussian_filter(np.asarray(picture), 0.7)


OOD_PICTURES: dict[str, Callable[[int], np.ndarray]] = {
    "chest film": draw_chest_film,
    "page of text": draw_text_scan,
    "photograph": draw_photograph,
}
