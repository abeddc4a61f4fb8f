"""Render slices of a three-dimensional head model.

Lengths are in cm in head coordinates: x to one side, y to the front, z to the top, the origin near
the centre of the brain. Brightness is relative to white matter after contrast (1.0). Slices are
rendered on a grid of GRID_PX and enlarged later, like those of a scanner of that resolution.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

GRID_PX = 256
PLANES = ("axial", "coronal", "sagittal")
DEPTH_AXIS = {"axial": 2, "coronal": 1, "sagittal": 0}
CENTRE_CM = (0.0, -0.2, 0.4)
BRAIN_CM = (6.6, 8.3, 6.3)  # half-axes of the cerebrum
SELLA_CM = (0.0, 1.6, -2.3)

Array = np.ndarray
Rng = np.random.Generator
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Head:
    """Anatomy of one patient, the same in all slices; `scalp` in cm, the others are factors."""

    size: Point
    ventricles: float
    atrophy: float
    fold_contrast: float
    scalp: float
    fat: float
    vessels: float
    texture: float
    marrow: float


@dataclass(frozen=True)
class View:
    """Head coordinates (x, y, z) of the grid points of one slice, in cm.

    Two of `points` are arrays [H, W]; the one perpendicular to the slice is 0-dimensional.
    """

    points: tuple[Array, Array, Array]
    depth_cm: float

    def part(self, box: tuple[slice, slice]) -> "View":
        """Return some rows and columns of the slice."""
        x, y, z = (p[box] if p.ndim else p for p in self.points)
        return View((x, y, z), self.depth_cm)

    def mirrored(self) -> "View":
        """Return the slice with |x| for x, to paint a structure on both sides at once."""
        x, y, z = self.points
        return View((abs(x), y, z), self.depth_cm)


def build_head(rng: Rng) -> Head:
    """Draw a head at random, independent of the class."""
    return Head(
        size=tuple(rng.uniform(0.93, 1.06, 3).tolist()),
        ventricles=rng.uniform(0.7, 1.35),
        atrophy=rng.uniform(0.0, 1.0),
        fold_contrast=rng.uniform(0.4, 1.2),
        scalp=rng.uniform(0.45, 0.85),
        fat=rng.uniform(1.7, 2.7),
        vessels=rng.uniform(0.3, 1.0),
        texture=rng.uniform(0.6, 1.1),
        marrow=rng.uniform(0.25, 0.9),
    )


def build_field(rng: Rng, cells: tuple[int, int], depth_cm: float, rate: float) -> Array:
    """Return smooth Gaussian noise [H, W] of about unit variance that changes slowly with depth.

    Two fixed fields are mixed by an angle that grows with depth, so neighbouring slices are
    correlated and all slices have the same statistics.

    Args:
        rng: Draws the fields.
        cells: Rows and columns of the coarse noise.
        depth_cm: Depth of the slice.
        rate: Radians per cm.
    """
    first, second = rng.standard_normal((2, *cells), dtype=np.float32)
    cos, sin = np.float32(math.cos(depth_cm * rate)), np.float32(math.sin(depth_cm * rate))
    return resize(cos * first + sin * second, GRID_PX) * np.float32(1.2)


def resize(values: Array, size_px: int) -> Array:
    """Resize a float array to a square by bicubic interpolation."""
    resized = Image.fromarray(values).resize((size_px, size_px), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def ball(view: View, centre: Point, axes: Point) -> Array:
    """Return the approximate signed distance [H, W] in cm to an ellipsoid, positive inside."""
    terms = [((p - c) / a) ** 2 for p, c, a in zip(view.points, centre, axes, strict=True)]
    return (1.0 - np.sqrt(terms[0] + terms[1] + terms[2])) * min(axes)


def paint(image: Array, inside_cm: Array, value: Array | float, soft_cm: float = 0.14) -> None:
    """Blend `value` into `image` where `inside_cm` is positive, with an edge `soft_cm` wide."""
    opacity = inside_cm * np.float32(1 / soft_cm) + np.float32(0.5)
    np.clip(opacity, 0, 1, out=opacity)
    opacity *= value - image
    image += opacity


def paint_ball(
    image: Array, view: View, centre: Point, axes: Point, value: float, soft_cm: float = 0.14
) -> None:
    """Paint an ellipsoid, limited to its bounding box in the slice."""
    for point, middle, axis in zip(view.points, centre, axes, strict=True):
        if not point.ndim and abs(point - middle) >= axis:
            return
    stride = 8
    if not (coarse := ball(view.part(np.s_[::stride, ::stride]), centre, axes) > -0.8).any():
        return
    rows, columns = (np.flatnonzero(coarse.any(axis=axis)) * stride for axis in (1, 0))
    box = np.s_[
        max(rows[0] - stride, 0) : rows[-1] + stride + 1,
        max(columns[0] - stride, 0) : columns[-1] + stride + 1,
    ]
    paint(image[box], ball(view.part(box), centre, axes), value, soft_cm)


def smooth_maximum(first: Array, second: Array, width_cm: float) -> Array:
    """Return the maximum of two distances, smoothed over `width_cm` where they are equal."""
    overlap = np.maximum(width_cm - np.abs(first - second), 0)
    return np.maximum(first, second) + overlap * overlap / (4 * width_cm)


def compute_cerebrum(view: View, head: Head) -> Array:
    """Return the signed distance in cm to the supratentorial surface, positive inside."""
    wide, long, high = head.size
    _, y, z = view.points
    axes = (BRAIN_CM[0] * wide, BRAIN_CM[1] * long, BRAIN_CM[2] * high)
    vault = ball(view, CENTRE_CM, axes)
    front = -1.3 + 0.1 * np.clip(y - 3, 0, 3)
    floor = front + np.clip(-0.8 - y, 0, 1) * (_compute_tentorium(y) - front)
    upper = np.minimum(vault, 0.9 * (z - floor))
    lobe = ball(view.mirrored(), (3.5 * wide, 0.4, -1.7), (2.9, 4.0, 2.3))
    return smooth_maximum(upper, np.minimum(lobe, vault), 0.5)


def compute_hindbrain(view: View, head: Head) -> Array:
    """Return the signed distance in cm to the surface of the posterior fossa, positive inside."""
    wide, long, _ = head.size
    fossa = ball(view, (0.0, -4.0 * long, -3.0), (5.2 * wide, 4.1 * long, 3.4))
    _, y, z = view.points
    return np.minimum(fossa, 0.9 * (_compute_tentorium(y) - z))


def _compute_tentorium(y: Array) -> Array:
    """Return the height of the tentorium in cm, which rises to the front."""
    return -0.9 + 0.24 * np.clip(y + 4.5, -4, 3.5)


def render_head(view: View, head: Head, rng: Rng) -> tuple[Array, Array]:
    """Render a slice without a lesion.

    Returns:
        Relative brightness [H, W], and the depth below the surface of the cerebrum in cm [H, W].
    """
    cerebrum = compute_cerebrum(view, head)
    hindbrain = compute_hindbrain(view, head)
    image = np.zeros((GRID_PX, GRID_PX), dtype=np.float32)
    _paint_soft_parts(image, view, head, rng)
    _paint_neck(image, view)
    _paint_skull(image, view, head, np.maximum(cerebrum, hindbrain), rng)
    _paint_face(image, view, head)
    _paint_cerebrum(image, view, head, cerebrum, rng)
    _paint_hindbrain(image, view, hindbrain, rng)
    _paint_ventricles(image, view, head, rng)
    _paint_midline(image, view, head, cerebrum)
    return image, cerebrum


def _paint_soft_parts(image: Array, view: View, head: Head, rng: Rng) -> None:
    """Paint the outline of the head with scalp and fat, and muscle, fat planes and bone below."""
    wide, long, high = head.size
    x, y, z = view.points
    vault = ball(view, CENTRE_CM, (7.3 * wide, 9.1 * long, 7.0 * high))
    face = ball(view, (0.0, 3.4, -6.5), (5.9 * wide, 6.0, 7.5))
    nose = ball(view, (0.0, 8.2, -5.2), (1.4, 2.6, 3.2))
    chin = ball(view, (0.0, 7.4, -12.0), (2.5, 1.8, 1.6))
    brow = ball(view.mirrored(), (2.7, 5.5, -2.6), (2.3, 3.1, 2.3))
    neck = np.minimum((1.0 - np.hypot(x / (5.6 * wide), (y + 1.8) / 5.6)) * 5, -3.0 - z)
    outline = smooth_maximum(smooth_maximum(vault, face, 1.5), neck, 2.0)
    outline = smooth_maximum(outline, np.maximum(np.maximum(nose, chin), brow), 1.0) + head.scalp
    streaks = build_field(rng, (56, 30), view.depth_cm, 0.5)
    patches = build_field(rng, (16, 12), view.depth_cm, 0.4)
    if x.ndim:  # mostly symmetric
        streaks = 0.35 * streaks + 0.65 * (streaks + streaks[::-1]) / np.float32(1.4)
        patches = 0.35 * patches + 0.65 * (patches + patches[::-1]) / np.float32(1.4)
    inner = 1.05 + 0.3 * np.clip(patches, -2, 2) + 0.2 * streaks
    inner += 0.4 * head.fat * np.clip(streaks * patches - 0.5, 0, 0.8)
    inner += 0.14 * head.fat * np.clip(0.25 - np.abs(streaks), 0, 0.25) * (patches > -0.4) / 0.25
    paint(image, outline, 1.0)
    paint(image, outline - 0.12, head.fat * (0.9 + 0.09 * patches + 0.05 * streaks))
    paint(image, outline - head.scalp, np.maximum(inner, 0.12) * head.texture, 0.3)


def _paint_neck(image: Array, view: View) -> None:
    """Paint tongue, throat and vertebrae."""
    paint_ball(image, view, (0.0, 4.6, -9.4), (2.6, 3.4, 1.9), 0.95, 0.3)
    paint_ball(image, view, (0.0, 5.6, -7.2), (2.2, 2.6, 0.25), 0.15, 0.2)
    paint_ball(image, view, (0.0, 1.4, -8.5), (0.9, 0.6, 3.4), 0.06)
    for height in (-7.6, -9.5, -11.4, -13.3):
        paint_ball(image, view, (0.0, -0.9, height), (1.5, 1.2, 0.95), 0.4, 0.2)
        paint_ball(image, view, (0.0, -0.9, height), (1.3, 1.05, 0.75), 0.85, 0.4)
    paint_ball(image, view, (0.0, -3.0, -11.0), (0.9, 0.8, 8.0), 0.35)
    paint_ball(image, view, (0.0, -3.0, -11.0), (0.5, 0.45, 7.8), 0.95)


def _paint_face(image: Array, view: View, head: Head) -> None:
    """Paint orbits, nose, sinuses and the bones of the skull base, over the skull."""
    both = view.mirrored()
    paint_ball(image, both, (0.0, 6.6, -4.4), (2.2, 3.2, 2.4), 1.0, 0.4)
    paint_ball(image, both, (0.85, 6.4, -4.3), (0.75, 2.7, 2.0), 0.08)
    paint_ball(image, both, (1.1, 6.2, -3.5), (0.4, 2.3, 0.6), 1.3, 0.2)
    paint_ball(image, both, (1.2, 6.3, -5.1), (0.5, 2.3, 0.5), 1.5, 0.2)
    paint_ball(image, both, (2.9, 6.0, -6.0), (1.3, 1.7, 1.4), 0.08, 0.2)  # maxillary sinus
    paint_ball(image, both, (0.8, 8.3, -0.4), (0.9, 0.5, 1.0), 0.08, 0.2)  # frontal sinus
    paint_ball(image, both, (3.1, 5.6, -2.9), (1.8, 3.1, 1.6), 0.25, 0.4)
    paint_ball(image, both, (3.1, 5.5, -2.9), (1.5, 2.7, 1.3), 0.7 * head.fat, 0.6)
    paint_ball(image, both, (3.1, 7.1, -2.9), (1.25, 1.25, 1.2), 1.2, 0.2)  # eye
    paint_ball(image, both, (3.1, 7.1, -2.9), (1.05, 1.05, 1.0), 0.35, 0.2)
    paint_ball(image, both, (2.6, 4.4, -2.9), (0.28, 2.0, 0.28), 0.95, 0.2)  # optic nerve
    paint_ball(image, both, (4.3, 5.2, -2.9), (0.25, 1.8, 0.5), 0.95, 0.2)  # eye muscle
    paint_ball(image, view, (0.0, 0.4, -4.2), (1.2, 1.2, 2.0), 1.2, 0.5)  # clivus
    paint_ball(image, both, (0.6, 2.8, -3.5), (0.7, 1.2, 0.8), 0.06)  # sphenoid sinus
    paint_ball(image, both, (4.6, -0.9, -4.4), (1.8, 1.0, 0.9), 0.25, 0.6)  # petrous bone


def _paint_skull(image: Array, view: View, head: Head, cavity: Array, rng: Rng) -> None:
    """Paint dark bone with marrow, then dura and CSF."""
    patches = build_field(rng, (20, 20), view.depth_cm, 0.5)
    bone = 0.6 + 0.06 * patches
    paint(image, cavity + bone, 0.14)
    marrow = np.minimum(cavity + bone - 0.22, -0.2 - cavity)
    paint(image, marrow, head.marrow * (1 + 0.3 * patches), 0.3)
    paint(image, np.minimum(cavity + 0.08, 0.12 - cavity), 0.9, 0.1)
    paint(image, cavity, 0.4, 0.1)


def _paint_hindbrain(image: Array, view: View, hindbrain: Array, rng: Rng) -> None:
    """Paint the cerebellum with its folia, brain stem and fourth ventricle."""
    _, y, z = view.points
    wobble = build_field(rng, (14, 14), view.depth_cm, 0.5)
    leaves = np.sin(8.5 * np.hypot(y + 1.5, 1.3 * (z + 2.5)) + 2.5 * wobble)
    outer = np.clip(1.8 - hindbrain, 0, 1)
    paint(image, hindbrain - 0.15, 0.95 + (0.05 * leaves - 0.03) * outer)
    paint_ball(image, view, (0.0, -0.8, -3.2), (1.75, 1.6, 2.9), 0.5, 0.4)
    paint_ball(image, view, (0.0, -1.3, -1.6), (1.5, 1.0, 1.5), 1.0)
    paint_ball(image, view, (0.0, -1.1, -3.3), (1.55, 1.3, 1.3), 1.0)
    paint_ball(image, view, (0.0, -1.9, -5.6), (0.75, 0.7, 2.2), 0.98)
    paint_ball(image, view, (0.0, -2.8, -3.3), (0.8, 0.5, 0.9), 0.42)  # fourth ventricle


def _paint_cerebrum(image: Array, view: View, head: Head, cerebrum: Array, rng: Rng) -> None:
    """Paint white matter, cortex along sulci, CSF in the sulci and a few vessels."""
    first, second = (p for p in view.points if p.ndim)
    bend = build_field(rng, (9, 9), view.depth_cm, 0.6)
    winding = 0.85 * build_field(rng, (20, 20), view.depth_cm, 0.9)
    winding = np.abs(winding + 0.75 * np.sin(15 * np.arctan2(first, second) + 1.5 * bend))
    veins = np.abs(build_field(rng, (24, 24), view.depth_cm, 0.9))
    gate = build_field(rng, (16, 16), view.depth_cm, 0.7)
    reach = np.clip((1.7 + 0.7 * gate - cerebrum) / 0.8, 0.0, 1.0)
    rind = np.clip((0.45 - cerebrum) / 0.2, 0, 1)
    reach *= np.clip(np.hypot(first, second) - 3.0, 0, 1)  # sulci would meet at the centre
    grey = np.maximum(np.clip((0.55 - winding) / 0.25, 0, 1) * reach, rind)
    fluid = np.clip(((0.02 + 0.16 * head.atrophy) - winding) / 0.12, 0, 1) * reach
    vessel = np.clip((0.09 - veins) / 0.08, 0, 1) * (gate > 1.1) * head.vessels
    brain = 1.0 - 0.16 * head.fold_contrast * grey
    brain = brain - 0.5 * head.fold_contrast * fluid + 0.8 * vessel
    paint(image, cerebrum - 0.12 - 0.2 * head.atrophy * fluid, brain)


def _paint_ventricles(image: Array, view: View, head: Head, rng: Rng) -> None:
    """Paint lateral and third ventricles, choroid plexus, Sylvian fissure and corpus callosum."""
    x, y, z = view.points
    bends = 0.25 * build_field(rng, (12, 12), view.depth_cm, 0.5)
    bowed = View((np.abs(x) - 0.05 * (y - 0.4) ** 2 + bends, y, z + bends), view.depth_cm)
    both = view.mirrored()
    size = head.ventricles
    fluid = 0.42
    paint_ball(image, both, (4.7, 1.2, -0.4), (0.8, 2.4, 0.12 + 0.15 * head.atrophy), 0.6, 0.4)
    if not x.ndim and abs(x) < 0.6:
        paint_ball(image, view, (0.0, 0.2, 1.7), (9.0, 3.7, 1.7), 1.08)  # corpus callosum
        paint_ball(image, view, (0.0, 0.2, 1.1), (9.0, 3.1, 1.5), 0.62, 0.3)
        paint_ball(image, view, (0.0, -0.1, 0.1), (9.0, 1.3, 0.8), 0.9, 0.4)  # thalamus
    paint_ball(image, bowed, (0.75, 0.4, 1.9), (0.75 * size, 3.3, 0.6 * size), fluid)
    paint_ball(image, bowed, (1.0, 2.9, 1.4), (0.5 * size, 1.3, 0.9 * size), fluid)
    paint_ball(image, bowed, (1.5, -3.0, 1.1), (0.7 * size, 2.1, 0.9 * size), fluid)
    paint_ball(image, both, (3.3, -0.6, -1.6), (0.35 * size, 1.6, 0.4 * size), fluid)
    paint_ball(image, bowed, (1.4, -2.4, 1.2), (0.22, 0.9, 0.25), 1.6, 0.25)
    paint_ball(image, view, (0.0, 0.0, -0.1), (0.22 * size, 1.4, 0.9), fluid)


def _paint_midline(image: Array, view: View, head: Head, cerebrum: Array) -> None:
    """Paint suprasellar CSF, carotids, pituitary gland, falx and sagittal sinus."""
    paint_ball(image, view, (0.0, 0.7, -1.8), (1.3, 1.3, 0.6), 0.45, 0.3)
    paint_ball(image, view.mirrored(), (1.3, 1.6, -2.4), (0.35, 0.8, 0.5), 1.3, 0.3)  # carotid
    paint_ball(image, view, SELLA_CM, (0.6, 0.45, 0.35), 1.4)
    x, _, z = view.points
    if x.ndim:
        deep = np.minimum(cerebrum, np.maximum(z - 2.6, 2.8 - cerebrum))
        cleft = np.minimum(0.05 + 0.12 * head.atrophy - np.abs(x), deep)
        paint(image, np.minimum(cleft, z + 0.8), 0.62)
        paint(image, np.minimum(np.minimum(0.04 - np.abs(x), deep), z + 0.8), 1.2, 0.12)
    sinus = (0.38 if x.ndim else 0.16) - np.hypot(
        np.abs(x) + 0.5 * np.maximum(-0.05 - cerebrum, 0), 1.2 * cerebrum
    )
    paint(image, np.minimum(sinus, z - 0.5), 1.9)
