"""A folder of four classes that has nothing in common with the published set, to be used as is."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("brain_tumor", "No Finding", "left lobe", "ring like")
N_TRAINING, N_TESTING = 10, 5
SIZES_PX = ((48, 48), (64, 40), (36, 56), (80, 80))
ORIENTATION_TAG, TURNED = 0x0112, 6


def write_four_class_folder(root: Path) -> int:
    """Write 60 small pictures, a drawn shape for each class, and return how many files there are.

    PNG, JPEG, BMP and TIFF; grey, RGB, palette and 16 bit; some turned by EXIF; Training/ and
    Testing/ have equal file names.
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
    """One shape at a random place over noise; grey, darker than its noise is bright."""
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
    buffer = io.BytesIO()
    if number == 0:
        name = f"scan {number}.png"
        image.save(buffer, "PNG")
    elif number == 1:
        name = f"scan {number}.png"
        image.convert("RGB").save(buffer, "PNG")
    elif number == 2:
        name = f"scan {number}.png"
        deep = np.asarray(image).astype(np.uint16) * 257
        Image.fromarray(deep).save(buffer, "PNG")
    elif number == 3:
        name = f"scan {number}.jpg"
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = TURNED
        turned = image.transpose(Image.Transpose.ROTATE_90)  # EXIF turns it back
        turned.convert("RGB").save(buffer, "JPEG", quality=95, exif=exif)
    elif number == 4:
        name = f"scan {number}.tif"
        image.save(buffer, "TIFF")
    elif number == 5:
        name = f"scan {number}.bmp"
        image.convert("P").save(buffer, "BMP")
    else:
        name = f"scan {number}.{'JPG' if number % 2 else 'jpeg'}"
        image.convert("RGB" if number % 2 else "L").save(buffer, "JPEG", quality=95)
    return name, buffer.getvalue()
