"""A folder of four classes in many file formats, unrelated to the published data set."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("brain_tumor", "No Finding", "left lobe", "ring like")
N_TRAINING, N_TESTING = 10, 5
SIZES_PX = ((48, 48), (64, 40), (36, 56), (80, 80))


def write_four_class_folder(root: Path) -> int:
    """Write 60 small images, one drawn shape per class, and return the number of files.

    PNG, JPEG, BMP and TIFF; grey, RGB, palette and 16 bit; some rotated by EXIF; Training/ and
    Testing/ share file names.
    """
    rng = np.random.default_rng(0)
    for label in CLASSES:
        for part, count in (("Training", N_TRAINING), ("Testing", N_TESTING)):
            folder = root / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                name, content = _encode(_draw(label, SIZES_PX[number % 4], rng), number)
                (folder / name).write_bytes(content)
    return len(CLASSES) * (N_TRAINING + N_TESTING)


def _draw(label: str, size_px: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Draw one bright shape at a random place over dark noise."""
    width, height = size_px
    image = Image.fromarray(rng.integers(0, 60, (height, width), dtype=np.uint8))
    pen = ImageDraw.Draw(image)
    radius = min(size_px) // 4
    left, top = (int(rng.integers(1, side - 2 * radius)) for side in size_px)
    box = (left, top, left + 2 * radius, top + 2 * radius)
    if label == "brain_tumor":
        pen.ellipse(box, fill=230)
    elif label == "No Finding":
        pen.rectangle(box, fill=230)
    elif label == "left lobe":
        pen.line((left, top, *box[2:]), fill=230, width=4)
        pen.line((left, box[3], box[2], top), fill=230, width=4)
    else:
        pen.ellipse(box, outline=230, width=3)
    return image


def _encode(image: Image.Image, number: int) -> tuple[str, bytes]:
    """Return file name and content; the format depends on the number."""
    suffixes = ("png", "png", "png", "jpg", "tif", "bmp", "jpeg", "JPG", "jpeg", "JPG")
    exif = Image.Exif()
    if number == 2:
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif number == 3:
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6  # the EXIF tag that restores the orientation
    elif number == 5:
        image = image.convert("P")
    if number % 2 and number != 5:
        image = image.convert("RGB")
    buffer = io.BytesIO()
    kind = {"png": "PNG", "tif": "TIFF", "bmp": "BMP"}.get(suffixes[number], "JPEG")
    image.save(buffer, kind, **({"quality": 95, "exif": exif} if kind == "JPEG" else {}))
    return f"scan {number}.{suffixes[number]}", buffer.getvalue()
