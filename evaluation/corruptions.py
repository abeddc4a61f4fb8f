"""Changed copies of grey slices, to ask how far a trained network's answer depends on them.

Corruptions of five strengths, the eight positions, and two probes for shortcuts: slices without
their brain, and slices that all share one histogram.

Source: Hendrycks and Dietterich 2019, Benchmarking neural network robustness to common corruptions
and perturbations.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from helper import derive_seed
from imaging.grayscale import Pixels, resize_grey

STRENGTHS = range(1, 6)

# Mirrored left to right or not, then so many quarter turns against the clock.
POSITIONS: dict[str, tuple[bool, int]] = {
    "as stored": (False, 0),
    "turned 90": (False, 1),
    "turned 180": (False, 2),
    "turned 270": (False, 3),
    "mirrored": (True, 0),
    "mirrored and turned 90": (True, 1),
    "mirrored and turned 180": (True, 2),
    "mirrored and turned 270": (True, 3),
}

TISSUE_PERCENTILE = 98  # the brightest tissue: fat and vessels, but no single hot pixel
MAX_STEPS = 100
MAX_DARKNESS = 1 / 3  # a background brighter than this share of the foreground is tissue, not air
MIN_FOREGROUND = 10  # grey levels; a picture whose foreground is darker is empty
SMOOTHING = 0.008  # of the side: noise in the air is averaged before it is cut off
CLOSING, OPENING = 0.03, 0.04  # radii as share of the side: sinuses and bone; streaks
HEAD_SHARE = (0.06, 0.985)  # of the picture: a hull of less is no head, of more has no outline
RIM = 0.055  # scalp and skull, of the diameter of a disc of the head's area: 9 of 165 mm
N_QUANTILES = 256

Mask = npt.NDArray[np.bool_]
Reference = npt.NDArray[np.float64]
Rows = Sequence[int] | npt.NDArray[np.integer]
Change = Callable[[Pixels, float, np.random.Generator], npt.NDArray]


@dataclass(frozen=True)
class Corruption:
    """One kind of change: what it does to a slice, and how far at each strength.

    Attributes:
        change: Makes [H, W] of a slice [H, W], one of `levels` and a generator.
        levels: For strengths 1 to 5.
        text: A level in words and with its unit, as a format string.
    """

    change: Change
    levels: tuple[float, float, float, float, float]
    text: str


def place(pixels: Pixels, position: str) -> Pixels:
    """Flip and turn slices into one of POSITIONS; no grey level changes.

    Args:
        pixels: uint8 [N, H, W], H = W.
        position: A key of POSITIONS.

    Raises:
        ValueError: No such position, or no such pixels.
    """
    _check_pixels(pixels)
    if position not in POSITIONS:
        raise ValueError(f"position {position!r}: one of {', '.join(map(repr, POSITIONS))}")
    mirrored, turns = POSITIONS[position]
    flipped = pixels[:, :, ::-1] if mirrored else pixels
    return np.rot90(flipped, turns, (1, 2)).copy()


def corrupt(
    pixels: Pixels, name: str, strength: int, seed: int = 0, rows: Rows | None = None
) -> Pixels:
    """Change every slice by one corruption; what is random depends on the slice's row alone.

    Args:
        pixels: uint8 [N, H, W], H = W, at the network's input size.
        name: A key of CORRUPTIONS.
        strength: 1, hardly visible, to 5.
        seed: Not negative.
        rows: The slices' numbers in the whole set, [N]; 0 to N - 1 where None. A batch that names
            them is changed as the whole set would be.

    Returns:
        uint8 [N, H, W].

    Raises:
        ValueError: No such corruption, strength or pixels; not one row a slice.
    """
    _check_pixels(pixels)
    level = _find_level(name, strength)
    rows = range(len(pixels)) if rows is None else rows
    if len(rows) != len(pixels):
        raise ValueError(f"{len(rows)} rows for {len(pixels)} slices")
    change = CORRUPTIONS[name].change
    changed = np.empty_like(pixels)
    for slice_, picture, row in zip(changed, pixels, rows, strict=True):
        rng = np.random.default_rng(derive_seed(seed, name, int(strength), int(row)))
        slice_[:] = _round(change(picture, level, rng))
    return changed


def describe(name: str, strength: int) -> str:
    """A corruption of one strength in words and with its unit, such as "rotation 10 degrees".

    Raises:
        ValueError: No such corruption or strength.
    """
    level = _find_level(name, strength)
    return f"{name} {CORRUPTIONS[name].text.format(level)}"


def blank_interior(pixels: Pixels) -> tuple[Pixels, Mask]:
    """Blacken the inside of each head, so that only scalp, skull and what lies outside them stay.

    A network that still tells the classes apart reads the outline, the border or the compression,
    and not the brain. Where the picture's border cuts the head, black reaches the border.

    Args:
        pixels: uint8 [N, H, W], H = W.

    Returns:
        The slices, uint8 [N, H, W], and for which of them a head was found, bool [N]; the others
        are as they were.

    Raises:
        ValueError: No such pixels.
    """
    _check_pixels(pixels)
    blanked = pixels.copy()
    covered = np.zeros(len(pixels), bool)
    for number, picture in enumerate(blanked):
        inside = _find_interior(picture)
        if inside is not None:
            picture[inside] = 0
            covered[number] = True
    return blanked, covered


def compute_reference(pixels: Pixels) -> Reference:
    """The mean quantile function of the slices' foregrounds, for `match_brightness`.

    Args:
        pixels: uint8 [N, H, W], H = W.

    Returns:
        Grey levels 0 to 255, rising, [N_QUANTILES]: the quantiles 0.5 / N_QUANTILES and so on.

    Raises:
        ValueError: No such pixels, or no slice with a foreground.
    """
    _check_pixels(pixels)
    total, n_slices = np.zeros(N_QUANTILES), 0
    shares = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
    for picture in pixels:
        counts = _count_foreground(picture)
        if counts.any():
            total += np.searchsorted(counts.cumsum() / counts.sum(), shares)
            n_slices += 1
    if not n_slices:
        raise ValueError("the brightness of no foreground is undefined")
    return total / n_slices


def match_brightness(pixels: Pixels, reference: Reference | None = None) -> Pixels:
    """Give the foregrounds of all slices one and the same histogram; the background stays.

    Each grey level becomes the mean of the reference over the quantiles that the level takes up:
    the order of grey levels is kept, and every foreground has the mean of the reference. After it,
    brightness tells the classes apart no more, but for how much of the picture is foreground.

    Args:
        pixels: uint8 [N, H, W], H = W.
        reference: From `compute_reference`; where None, that of these slices.

    Returns:
        uint8 [N, H, W]; slices without foreground are as they were.

    Raises:
        ValueError: No such pixels or reference, or neither a reference nor a foreground.

    Source: Gonzalez and Woods 2018, Digital image processing, 3.3 (histogram specification).
    """
    _check_pixels(pixels)
    reference = compute_reference(pixels) if reference is None else reference
    if reference.shape != (N_QUANTILES,):
        raise ValueError(f"a reference of shape {reference.shape}, not ({N_QUANTILES},)")
    below = np.concatenate([[0.0], reference.cumsum()]) / N_QUANTILES  # integral of the quantiles
    grid = np.linspace(0, 1, N_QUANTILES + 1)
    matched = np.empty_like(pixels)
    for slice_, picture in zip(matched, pixels, strict=True):
        counts = _count_foreground(picture)
        table = np.arange(256.0)
        taken = counts > 0
        if taken.any():
            ends = np.concatenate([[0.0], counts.cumsum() / counts.sum()])
            integral = np.interp(ends, grid, below)
            means = np.diff(integral)[taken] / np.diff(ends)[taken]
            table[taken] = np.maximum.accumulate(means)  # equal but for the last bits, in places
        slice_[:] = _round(table)[picture]
    return matched


def find_background_level(picture: Pixels) -> int | None:
    """The highest grey level of the background; None where there is no air or no tissue.

    Args:
        picture: uint8 [H, W].

    Source: Li and Tam 1998, An iterative algorithm for minimum cross entropy thresholding.
    """
    counts = np.bincount(picture.ravel(), minlength=256)
    n_pixels, sums = counts.cumsum(), (counts * np.arange(256)).cumsum()
    level = int(sums[-1] / n_pixels[-1])
    for _ in range(MAX_STEPS):
        n_dark, n_bright = n_pixels[level], n_pixels[-1] - n_pixels[level]
        if not n_bright:
            return None  # one grey level alone
        dark, bright = sums[level] / n_dark, (sums[-1] - sums[level]) / n_bright
        # one more, for the logarithm of a background that is all zero
        previous, level = level, int((bright - dark) / np.log((bright + 1) / (dark + 1)) - 1)
        if level == previous:
            break
    return level if bright >= MIN_FOREGROUND and dark < MAX_DARKNESS * bright else None


def _rotate(picture: Pixels, angle_deg: float, rng: np.random.Generator) -> npt.NDArray:
    """Turn about the middle, either way; what comes in is black."""
    size_px = len(picture)
    sign = 1 if rng.random() < 0.5 else -1
    middle = ((size_px - 1) / 2, (size_px - 1) / 2)
    matrix = cv2.getRotationMatrix2D(middle, sign * angle_deg, 1.0)
    # linear would blur, which is another corruption
    return cv2.warpAffine(picture, matrix, (size_px, size_px), flags=cv2.INTER_CUBIC)


def _add_noise(picture: Pixels, share: float, rng: np.random.Generator) -> npt.NDArray:
    """The magnitude of the picture with Gaussian noise in both channels.

    The deviation is a share of the brightest tissue, as for the phantoms of BrainWeb: what matters
    is signal to noise, and slices differ in brightness.

    Source: Gudbjartsson and Patz 1995, The Rician distribution of noisy MRI data.
    """
    deviation = share * np.percentile(picture, TISSUE_PERCENTILE)
    real, imaginary = rng.standard_normal((2, *picture.shape), np.float32) * np.float32(deviation)
    return np.hypot(picture + real, imaginary)


def _blur(picture: Pixels, share: float, rng: np.random.Generator) -> npt.NDArray:
    return cv2.GaussianBlur(picture, (0, 0), share * len(picture))


def _reduce_contrast(picture: Pixels, factor: float, rng: np.random.Generator) -> npt.NDArray:
    mean = picture.mean()
    return mean + factor * (picture - mean)


def _change_gamma(picture: Pixels, gamma: float, rng: np.random.Generator) -> npt.NDArray:
    """Darken by a gamma over 1 or brighten by its inverse; black and white stay."""
    exponent = gamma if rng.random() < 0.5 else 1 / gamma
    return (255 * np.linspace(0, 1, 256) ** exponent)[picture]


def _compress(picture: Pixels, quality: float, rng: np.random.Generator) -> npt.NDArray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=int(quality))
    with Image.open(buffer) as image:
        return np.asarray(image)


def _downsample(picture: Pixels, share: float, rng: np.random.Generator) -> npt.NDArray:
    size_px = len(picture)
    return resize_grey(resize_grey(picture, max(1, round(share * size_px))), size_px)


CORRUPTIONS: dict[str, Corruption] = {
    "rotation": Corruption(_rotate, (2, 5, 10, 15, 25), "{:g} degrees"),
    "noise": Corruption(
        _add_noise, (0.02, 0.04, 0.06, 0.08, 0.12), "{:.0%} of the brightest tissue"
    ),
    "blur": Corruption(_blur, (0.004, 0.006, 0.008, 0.011, 0.015), "sigma {:.1%} of the side"),
    "contrast": Corruption(_reduce_contrast, (0.8, 0.65, 0.5, 0.35, 0.25), "{:.0%}"),
    "gamma": Corruption(_change_gamma, (1.1, 1.2, 1.35, 1.5, 1.75), "{0:g} or 1/{0:g}"),
    "jpeg": Corruption(_compress, (70, 45, 30, 20, 12), "quality {:g}"),
    "downsample": Corruption(_downsample, (0.8, 0.65, 0.5, 0.4, 0.3), "to {:.0%} of the side"),
}


def _check_pixels(pixels: Pixels) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or not 0 < pixels.shape[1] == pixels.shape[2]:
        raise ValueError(f"pixels: uint8 [N, H, H] are wanted, not {pixels.dtype} {pixels.shape}")


def _find_level(name: str, strength: int) -> float:
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption {name!r}: one of {', '.join(CORRUPTIONS)}")
    if strength not in STRENGTHS:
        raise ValueError(f"strength {strength!r}: a whole number from 1 to 5")
    return CORRUPTIONS[name].levels[int(strength) - 1]


def _round(values: npt.NDArray) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _count_foreground(picture: Pixels) -> npt.NDArray[np.int64]:
    """How many pixels of the foreground have each grey level, [256]."""
    level = find_background_level(picture)
    counts = np.bincount(picture.ravel(), minlength=256)
    counts[: 256 if level is None else level + 1] = 0
    return counts


def _find_interior(picture: Pixels) -> Mask | None:
    """Where the head's inside lies, [H, W]; None where no head is found."""
    size_px = len(picture)
    smooth = np.asarray(cv2.GaussianBlur(picture, (0, 0), max(0.3, SMOOTHING * size_px)), np.uint8)
    level = find_background_level(smooth)
    if level is None:
        return None
    tissue = (smooth > level).astype(np.uint8)
    closed = cv2.morphologyEx(tissue, cv2.MORPH_CLOSE, _build_disc(CLOSING * size_px))
    filled = cv2.drawContours(np.zeros_like(tissue), _find_outlines(closed), -1, 1, cv2.FILLED)
    # beyond the picture is air: a streak along the border is as thin as it looks
    disc = _build_disc(OPENING * size_px)
    eroded = cv2.erode(filled, disc, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    outlines = _find_outlines(cv2.dilate(eroded, disc))
    if not outlines:
        return None
    hull = cv2.convexHull(max(outlines, key=cv2.contourArea))
    head = cv2.fillConvexPoly(np.zeros_like(tissue), hull, 1)
    area_px = cv2.countNonZero(head)
    if not HEAD_SHARE[0] <= area_px / size_px**2 <= HEAD_SHARE[1]:
        return None
    rim_px = RIM * np.sqrt(4 * area_px / np.pi)
    # to the nearest pixel outside the head within the picture: a border that cuts it is no skull
    return np.asarray(cv2.distanceTransform(head, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > rim_px)


def _find_outlines(mask: npt.NDArray) -> Sequence[npt.NDArray]:
    """The outer outlines of the parts of a mask, without those of their holes."""
    return cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]


def _build_disc(radius_px: float) -> npt.NDArray[np.uint8]:
    side_px = 2 * max(1, round(radius_px)) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side_px, side_px)), np.uint8)
