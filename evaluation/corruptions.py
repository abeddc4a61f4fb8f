"""Changes of grey slices for robustness tests: corruptions, orientations and shortcut probes.

The probes blank the inside of the head, or give all slices one histogram. Public functions take
uint8 slices [N, H, W] with H = W, and raise ValueError for other arrays, names and strengths.

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

# Mirrored left to right or not, then rotated by this number of quarter turns, anticlockwise.
ORIENTATIONS: dict[str, tuple[bool, int]] = {
    "as stored": (False, 0),
    "rotated 90": (False, 1),
    "rotated 180": (False, 2),
    "rotated 270": (False, 3),
    "mirrored": (True, 0),
    "mirrored and rotated 90": (True, 1),
    "mirrored and rotated 180": (True, 2),
    "mirrored and rotated 270": (True, 3),
}

TISSUE_PERCENTILE = 98  # the brightest tissue: fat and vessels, without single bright pixels
MAX_STEPS = 100
MAX_DARKNESS = 1 / 3  # of the foreground mean; a brighter background is tissue, not air
MIN_FOREGROUND = 10  # grey levels; an image with a darker foreground is empty
SMOOTHING = 0.008  # of the side: averages the noise in air before the threshold
CLOSING, OPENING = 0.03, 0.04  # radii / side: fill sinuses and bone, remove border streaks
HEAD_SHARE = (0.06, 0.985)  # of the image: a smaller hull is not a head, a larger one is cut off
RIM = 0.055  # scalp and skull as a share of the head's equivalent diameter: 9 of 165 mm
N_QUANTILES = 256

Mask = npt.NDArray[np.bool_]
Reference = npt.NDArray[np.float64]
Change = Callable[[Pixels, float, np.random.Generator], npt.NDArray]


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        change: Maps a slice [H, W], one of `levels` and a generator to a slice [H, W].
        levels: For strengths 1 to 5.
        text: Format string of a level with its unit.
    """

    change: Change
    levels: tuple[float, float, float, float, float]
    text: str


def orient(pixels: Pixels, name: str) -> Pixels:
    """Mirror and rotate slices losslessly to one of ORIENTATIONS."""
    _check_pixels(pixels)
    if name not in ORIENTATIONS:
        raise ValueError(f"orientation {name!r}: one of {', '.join(map(repr, ORIENTATIONS))}")
    mirrored, turns = ORIENTATIONS[name]
    return np.rot90(pixels[:, :, ::-1] if mirrored else pixels, turns, (1, 2)).copy()


def corrupt(pixels: Pixels, name: str, strength: int) -> Pixels:
    """Apply one corruption to every slice; the random draws depend on its index only.

    Args:
        pixels: At the input size of the network.
        name: A key of CORRUPTIONS.
        strength: 1, hardly visible, to 5.
    """
    _check_pixels(pixels)
    level, change = _get_level(name, strength), CORRUPTIONS[name].change
    corrupted = np.empty_like(pixels)
    for row, picture in enumerate(pixels):
        rng = np.random.default_rng(derive_seed(0, name, int(strength), row))
        corrupted[row] = _round(change(picture, level, rng))
    return corrupted


def describe(name: str, strength: int) -> str:
    """Return a corruption with its level and unit, such as "rotation 10 degrees"."""
    level = _get_level(name, strength)
    return f"{name} {CORRUPTIONS[name].text.format(level)}"


def blank_interior(pixels: Pixels) -> tuple[Pixels, Mask]:
    """Blacken the inside of each head; scalp, skull and everything outside remain.

    A network that still separates the classes uses outline, border or compression, not the brain.
    Where the image border cuts the head, black extends to the border.

    Returns:
        The slices [N, H, W], and whether a head was found, bool [N]; slices without a head are
        unchanged.
    """
    _check_pixels(pixels)
    blanked = pixels.copy()
    has_head = np.zeros(len(pixels), bool)
    for row, picture in enumerate(blanked):
        inside = _find_interior(picture)
        if inside is not None:
            picture[inside] = 0
            has_head[row] = True
    return blanked, has_head


def compute_reference(pixels: Pixels) -> Reference:
    """Compute the mean quantile function of the foregrounds, for `match_brightness`.

    Returns:
        Grey levels 0 to 255, ascending, [N_QUANTILES], at quantiles 0.5 / N_QUANTILES and so on.

    Raises:
        ValueError: No slice has a foreground.
    """
    _check_pixels(pixels)
    quantiles = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
    total, n_slices = np.zeros(N_QUANTILES), 0
    for picture in pixels:
        counts = _count_foreground(picture)
        if counts.any():
            total += np.searchsorted(counts.cumsum() / counts.sum(), quantiles)
            n_slices += 1
    if not n_slices:
        raise ValueError("no slice has a foreground")
    return total / n_slices


def match_brightness(pixels: Pixels, reference: Reference) -> Pixels:
    """Give the foregrounds of all slices the same histogram; the background is unchanged.

    Each grey level is replaced by the mean of the reference over its quantiles: the order of grey
    levels is kept, and every foreground has the mean of the reference. Afterwards brightness
    separates classes only by the area of the foreground. Slices without a foreground are unchanged.

    Source: Gonzalez and Woods 2018, Digital image processing, 3.3 (histogram specification).
    """
    _check_pixels(pixels)
    if reference.shape != (N_QUANTILES,):
        raise ValueError(f"reference: shape {reference.shape}, not ({N_QUANTILES},)")
    integral = np.concatenate([[0.0], reference.cumsum()]) / N_QUANTILES
    grid = np.linspace(0, 1, N_QUANTILES + 1)
    matched = np.empty_like(pixels)
    for row, picture in enumerate(pixels):
        counts = _count_foreground(picture)
        table = np.arange(256.0)
        is_used = counts > 0
        if is_used.any():
            ends = np.concatenate([[0.0], counts.cumsum() / counts.sum()])
            means = np.diff(np.interp(ends, grid, integral))[is_used] / np.diff(ends)[is_used]
            table[is_used] = np.maximum.accumulate(means)  # rounding may break the order
        matched[row] = _round(table)[picture]
    return matched


def find_background_level(picture: Pixels) -> int | None:
    """Return the highest grey level of the background of a slice [H, W].

    None if it has no air or no tissue.

    Source: Li and Tam 1998, An iterative algorithm for minimum cross entropy thresholding.
    """
    counts = np.bincount(picture.ravel(), minlength=256)
    n_pixels, sums = counts.cumsum(), (counts * np.arange(256)).cumsum()
    level = int(sums[-1] / n_pixels[-1])
    for _ in range(MAX_STEPS):
        n_dark, n_bright = n_pixels[level], n_pixels[-1] - n_pixels[level]
        if not n_bright:
            return None  # all pixels have one grey level
        dark, bright = sums[level] / n_dark, (sums[-1] - sums[level]) / n_bright
        # plus one, because the background may be all zero
        previous, level = level, int((bright - dark) / np.log((bright + 1) / (dark + 1)) - 1)
        if level == previous:
            break
    return level if bright >= MIN_FOREGROUND and dark < MAX_DARKNESS * bright else None


def _rotate(picture: Pixels, angle_deg: float, rng: np.random.Generator) -> npt.NDArray:
    """Rotate about the centre in a random direction; the corners are filled with black."""
    size_px = len(picture)
    sign = 1 if rng.random() < 0.5 else -1
    centre = ((size_px - 1) / 2, (size_px - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, sign * angle_deg, 1.0)
    # linear interpolation would blur, which is another corruption
    return cv2.warpAffine(picture, matrix, (size_px, size_px), flags=cv2.INTER_CUBIC)


def _add_noise(picture: Pixels, share: float, rng: np.random.Generator) -> npt.NDArray:
    """Add Rician noise: Gaussian in the real and the imaginary channel, then the magnitude.

    The deviation is a share of the brightest tissue, as in the BrainWeb phantoms, so that the
    signal-to-noise ratio does not depend on the brightness of the slice.

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
    """Darken by a gamma above 1 or brighten by its inverse; black and white are unchanged."""
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
        raise ValueError(f"pixels: {pixels.dtype} {pixels.shape}, not uint8 [N, H, H]")


def _get_level(name: str, strength: int) -> float:
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption {name!r}: one of {', '.join(CORRUPTIONS)}")
    if strength not in STRENGTHS:
        raise ValueError(f"strength {strength!r}: a whole number from 1 to 5")
    return CORRUPTIONS[name].levels[int(strength) - 1]


def _round(values: npt.NDArray) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _count_foreground(picture: Pixels) -> npt.NDArray[np.int64]:
    """Count the foreground pixels of each grey level, [256]."""
    level = find_background_level(picture)
    counts = np.bincount(picture.ravel(), minlength=256)
    counts[: 256 if level is None else level + 1] = 0
    return counts


def _find_interior(picture: Pixels) -> Mask | None:
    """Return the mask of the inside of the head, [H, W]; None if no head is found."""
    size_px = len(picture)
    smooth = np.asarray(cv2.GaussianBlur(picture, (0, 0), max(0.3, SMOOTHING * size_px)), np.uint8)
    level = find_background_level(smooth)
    if level is None:
        return None
    tissue = (smooth > level).astype(np.uint8)
    closed = cv2.morphologyEx(tissue, cv2.MORPH_CLOSE, _build_disc(CLOSING * size_px))
    filled = cv2.drawContours(np.zeros_like(tissue), _find_outlines(closed), -1, 1, cv2.FILLED)
    # outside the image is air, so that the opening removes streaks along the border
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
    # distance to the nearest pixel outside the head; the image border does not count as skull
    return np.asarray(cv2.distanceTransform(head, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > rim_px)


def _find_outlines(mask: npt.NDArray) -> Sequence[npt.NDArray]:
    """Return the outer outline of each component of a mask."""
    return cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]


def _build_disc(radius_px: float) -> npt.NDArray[np.uint8]:
    side_px = 2 * max(1, round(radius_px)) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side_px, side_px)), np.uint8)
