"""Made-up MRI slices with known truth: patient, slice, plane and lesion mask.

A data set of phantoms is a plan (cheap, plain values) and a picture rendered for each of its rows
from that row alone: any process may render any row in any order and gets the same bytes.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from helper import UserError, derive_seed
from phantoms.anatomy import (
    BRAIN_CM,
    CENTRE_CM,
    DEPTH_AXIS,
    GRID_PX,
    PLANES,
    SELLA_CM,
    Array,
    Head,
    Point,
    View,
    ball,
    build_field,
    build_head,
    compute_hindbrain,
    paint,
    render_head,
    resize,
)

CLASSES = ("Glioma", "Menin", "Tumor")
SIZE_PX = 512
IMAGES_PER_PATIENT = 6.5
MARGIN_PX = 128  # how far streaks are drawn out of the border
COPIED_SHARE = 0.92  # share of slices that have a copy, as measured on the real set
DIAMETER_PX = {"Glioma": (78, 138), "Menin": (74, 112), "Tumor": (44, 66)}


@dataclass(frozen=True)
class PhantomPlan:
    """One row of a planned data set: what is true of a phantom, and what it is made from.

    `patient` and `slice` count through the data set; `copy` is 0 for the slice itself and counts
    its siblings from 1; `step` runs from -1 to 1 through the patient's slices.
    """

    index: int
    name: str
    label: str
    plane: str
    patient: int
    slice: int
    step: float
    copy: int
    quality: int
    seed: int

    @property
    def sibling(self) -> bool:
        """Whether it is a turned, flipped or shifted copy of another row's slice."""
        return self.copy > 0


@dataclass(frozen=True)
class Lesion:
    """Where a lesion lies and how large it is (head's frame, cm), and how it looks.

    `brightness` and `core` are relative to white matter; `ragged` is the unevenness of a glioma's
    edge; `on_falx` says that a meningioma sits on the midline and not under the skull.
    """

    label: str
    centre: Point
    axes: Point
    brightness: float
    core: float
    ragged: float
    on_falx: bool


@dataclass(frozen=True)
class Patient:
    """Everything the slices of one patient share; `gain` is the grey value of white matter."""

    head: Head
    lesion: Lesion
    px_per_cm: float
    tilt_rad: float
    offset_cm: tuple[float, float]
    gain: float
    gamma: float
    noise: float
    bias: float


def plan_phantoms(n_images: int, seed: int) -> list[PhantomPlan]:
    """Plan `n_images` phantoms over classes that differ by one image at most.

    Patients number about n_images / 6.5, each with 2 to 5 slices where `n_images` allows, of one
    plane; planes are dealt evenly within a class. Most slices have siblings. Nothing is rendered.

    Raises:
        UserError: Fewer than 6 are asked for.
    """
    if n_images < 6:
        raise UserError(f"{n_images} phantoms are too few for three classes; ask for 6 or more")
    rows: list[PhantomPlan] = []
    patient = slice_ = 0
    for class_index, label in enumerate(CLASSES):
        rng = np.random.default_rng(derive_seed(seed, "plan", label))
        count = n_images // len(CLASSES) + (class_index < n_images % len(CLASSES))
        names = iter(rng.permutation(count) + 1)
        for turn, copies_of in enumerate(_deal_images(count, rng)):
            plane = PLANES[(turn + seed) % len(PLANES)]
            steps = np.linspace(-1, 1, len(copies_of)) if len(copies_of) > 1 else [0.0]
            for step, n_copies in zip(steps, copies_of, strict=True):
                for copy in range(n_copies + 1):
                    rows.append(
                        PhantomPlan(
                            index=len(rows),
                            name=f"phantom_{label.lower()}_{next(names):05d}.jpg",
                            label=label,
                            plane=plane,
                            patient=patient,
                            slice=slice_,
                            step=float(step),
                            copy=copy,
                            quality=int(rng.integers(60, 96)),
                            seed=seed,
                        )
                    )
                slice_ += 1
            patient += 1
    return rows


def _deal_images(count: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """For each patient of a class the number of copies of each of its slices; `count` in all."""
    n_patients = max(min(3, count), round(count / IMAGES_PER_PATIENT))
    n_slices = rng.choice([2, 3, 4, 5], size=n_patients, p=[0.45, 0.3, 0.15, 0.1])
    while n_slices.sum() > count:
        n_slices[np.argmax(n_slices)] -= 1
    owner = np.repeat(np.arange(n_patients), n_slices)
    spare = count - len(owner)
    copied = rng.permutation(len(owner))[: round(COPIED_SHARE * len(owner))]
    copies = np.zeros(len(owner), dtype=int)
    copies[copied[:spare]] = 1
    if spare > len(copied):
        np.add.at(copies, rng.choice(copied, spare - len(copied)), 1)
    for number in range(n_patients):
        yield copies[owner == number].tolist()


def render_phantom(plan: PhantomPlan) -> tuple[Array, Array]:
    """The picture (uint8 [512, 512]) and its lesion mask (bool [512, 512]) of one planned row.

    A sibling is made from its slice's picture, and the mask moves with it.
    """
    patient = _build_patient(plan)
    picture, mask = _render_slice(plan, patient)
    if plan.sibling:
        rng = np.random.default_rng(derive_seed(plan.seed, "copy", plan.slice, plan.copy))
        return _move(picture, mask, rng)
    return picture, mask


def encode_phantom(plan: PhantomPlan, picture: Array) -> bytes:
    """A grey picture as the real files are stored: RGB JPEG, equal channels, the row's quality."""
    buffer = io.BytesIO()
    Image.fromarray(picture).convert("RGB").save(buffer, "JPEG", quality=plan.quality)
    return buffer.getvalue()


def _build_patient(plan: PhantomPlan) -> Patient:
    """Draw the patient of a row; only the lesion depends on the class."""
    rng = np.random.default_rng(derive_seed(plan.seed, "patient", plan.patient))
    px_per_cm = rng.uniform(18.5, 23.5)
    head = build_head(rng)
    return Patient(
        head=head,
        lesion=_build_lesion(plan, head, px_per_cm, rng),
        px_per_cm=px_per_cm,
        tilt_rad=rng.normal(0, 0.07),
        offset_cm=tuple(rng.normal(0, 0.5, 2).tolist()),
        gain=rng.uniform(56, 100),
        gamma=rng.uniform(0.85, 1.2),
        noise=rng.uniform(0.02, 0.07),
        bias=rng.uniform(0.06, 0.22),
    )


def _build_lesion(
    plan: PhantomPlan, head: Head, px_per_cm: float, rng: np.random.Generator
) -> Lesion:
    radius = rng.uniform(*DIAMETER_PX[plan.label]) / 2 / px_per_cm
    side = float(rng.choice([-1.0, 1.0]))
    on_falx = False
    if plan.label == "Glioma":
        centre = np.array([side * rng.uniform(2.2, 3.6), rng.uniform(-4.5, 3.8), 0.0])
        temporal = -0.5 < centre[1] < 2.5  # elsewhere the floor of the skull is higher
        centre[2] = rng.uniform(-1.5 if temporal else 0.5, 3.0)
    elif plan.label == "Menin":
        on_falx = bool(plan.plane != "sagittal" and rng.random() < 0.25)
        if on_falx:
            centre = np.array([side * 0.7 * radius, rng.uniform(-4, 4), rng.uniform(2.8, 4.2)])
        else:
            out = _draw_direction(plan.plane, side, rng)
            centre = CENTRE_CM + np.array(BRAIN_CM) * head.size * out - 0.5 * radius * out
    else:
        centre = SELLA_CM + rng.normal(0, 0.12, 3) + [0, 0, 0.35 * radius]
    return Lesion(
        label=plan.label,
        centre=tuple(centre.tolist()),
        axes=tuple((radius * rng.uniform(0.88, 1.12, 3)).tolist()),
        brightness=rng.uniform(1.6, 2.1),
        core=rng.uniform(0.5, 0.8),
        ragged=rng.uniform(0.1, 0.2),
        on_falx=on_falx,
    )


def _draw_direction(plane: str, side: float, rng: np.random.Generator) -> Array:
    """A unit vector [3] to the vault, near enough to the plane for a slice to show a broad base."""
    axis = DEPTH_AXIS[plane]
    direction = rng.normal(size=3)
    direction[2] = abs(direction[2])
    direction[axis] = 0.0
    direction *= 0.85 / np.linalg.norm(direction)
    lowest = 0.1 if plane == "axial" and direction[1] > 0 else -0.2  # the floor is high in front
    direction[axis] = rng.uniform(lowest, 0.55) * (1.0 if plane == "axial" else side)
    return direction / np.linalg.norm(direction)


def _build_view(plan: PhantomPlan, patient: Patient, rng: np.random.Generator) -> View:
    """The plane of a slice, lying on its side as the real ones do, with an uneven head outline."""
    lesion = patient.lesion
    axis = DEPTH_AXIS[plan.plane]
    depth = lesion.centre[axis] + plan.step * min(0.9, 0.5 * lesion.axes[axis])
    grid = (np.arange(GRID_PX, dtype=np.float32) - GRID_PX / 2 + 0.5) * 2 / patient.px_per_cm
    down = grid[:, None] + patient.offset_cm[0]
    right = grid[None, :] + patient.offset_cm[1]
    cos, sin = math.cos(patient.tilt_rad), math.sin(patient.tilt_rad)
    across, along = cos * down - sin * right, sin * down + cos * right
    across = across + 0.15 * build_field(rng, (6, 6), depth, 0.15)
    along = along + 0.15 * build_field(rng, (6, 6), depth, 0.15)
    level = np.array(depth, dtype=np.float32)
    if plan.plane == "axial":
        return View((across, -along, level), depth)
    if plan.plane == "coronal":
        return View((across, level, -along - 2.0), depth)
    return View((level, -across, -along - 1.5), depth)


def _render_slice(plan: PhantomPlan, patient: Patient) -> tuple[Array, Array]:
    rng = np.random.default_rng(derive_seed(plan.seed, "fields", plan.patient))
    view = _build_view(plan, patient, rng)
    image, cerebrum = render_head(view, patient.head, rng)
    inside = _paint_lesion(image, view, patient, cerebrum, rng)
    image *= np.clip(1.45 + view.points[2] / 15, 0.4, 1.0)  # the coil ends at the neck
    image *= 1.0 + patient.bias * build_field(rng, (3, 3), 0.0, 0.0)
    scan = np.random.default_rng(derive_seed(plan.seed, "noise", plan.slice))
    real, imaginary = scan.standard_normal((2, GRID_PX, GRID_PX), dtype=np.float32) * patient.noise
    image = np.hypot(np.clip(image, 0, 4) + real, imaginary)
    picture = resize(patient.gain * image**patient.gamma, SIZE_PX)
    mask = resize(inside.astype(np.float32), SIZE_PX) > 0
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8), mask


def _paint_lesion(
    image: Array, view: View, patient: Patient, cerebrum: Array, rng: np.random.Generator
) -> Array:
    """Paint the lesion and return the distance in cm to its edge [H, W], positive inside."""
    lesion = patient.lesion
    rough = build_field(rng, (16, 16), view.depth_cm, 0.5)
    fine = build_field(rng, (40, 40), view.depth_cm, 0.5)
    radius = min(lesion.axes)
    reach = 1 - ball(view, lesion.centre, lesion.axes) / radius  # 0 in the middle, 1 at the edge
    if lesion.label == "Glioma":
        broad = build_field(rng, (9, 9), view.depth_cm, 0.4)
        return _paint_glioma(image, lesion, reach, cerebrum - 0.15, (broad, rough, fine))
    if lesion.label == "Menin":
        cavity = np.maximum(cerebrum, compute_hindbrain(view, patient.head))
        edge = np.minimum((1 - reach * (1 + 0.04 * rough)) * radius, cavity)
        if lesion.on_falx:
            edge = np.minimum(edge, view.points[0] * np.sign(lesion.centre[0]))
        paint(image, np.minimum(edge + 0.12, cavity), 0.6, 0.15)  # a cleft of fluid around it
        paint(image, edge, lesion.brightness + 0.04 * fine, 0.12)
        return edge
    edge = (1 - reach * np.clip(1 + 0.12 * rough, 0.8, 1.2)) * radius
    paint(image, edge, lesion.brightness + 0.09 * fine, 0.15)
    return edge


def _paint_glioma(
    image: Array, lesion: Lesion, reach: Array, brain: Array, noise: tuple[Array, Array, Array]
) -> Array:
    """Dark oedema, a bright ragged ring and a dark core; none of it leaves the cerebrum."""
    broad, rough, fine = noise
    radius = min(lesion.axes)
    oedema = np.clip((1.8 - reach * (1 + 0.2 * broad)) / 0.5, 0, 1) * np.clip(brain / 0.4, 0, 1)
    image -= 0.32 * oedema * image
    reach = reach * np.clip(1 + 0.6 * lesion.ragged * (broad + rough), 0.7, 1.4)
    edge = np.minimum((1 - reach) * radius, brain)
    paint(image, edge, lesion.brightness * (0.85 + 0.15 * broad) + 0.12 * fine, 0.35)
    width = 0.24 + 0.07 * fine + 0.07 * rough
    hollow = np.minimum((1 - width - reach) * radius, brain)
    paint(image, hollow, lesion.core + 0.08 * fine + 0.06 * rough, 0.35)
    return edge


def _move(picture: Array, mask: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Flip, turn, shift and zoom picture and mask alike; what was outside is black or streaked."""
    flip_rows, flip_columns = (-1 if rng.random() < 0.5 else 1 for _ in range(2))
    quarters = int(rng.integers(4)) if rng.random() < 0.3 else 0
    any_angle = rng.random() < 0.15
    angle_rad = rng.uniform(-math.pi, math.pi) if any_angle else rng.normal(0, 0.12)
    zoom = rng.uniform(0.94, 1.06)
    streaked = rng.random() < 0.5

    cos, sin = math.cos(angle_rad) / zoom, math.sin(angle_rad) / zoom
    right_px, down_px = SIZE_PX / 2 + rng.uniform(-18, 18), SIZE_PX / 2 + rng.uniform(-18, 18)

    def place(array: Array, resampling: Image.Resampling, margin_px: int) -> Array:
        turned = np.rot90(array[::flip_rows, ::flip_columns], quarters)
        middle = SIZE_PX / 2 + margin_px
        padded = np.pad(turned, margin_px, mode="edge")
        matrix = (
            *(cos, sin, middle - cos * right_px - sin * down_px),
            *(-sin, cos, middle + sin * right_px - cos * down_px),
        )
        size = (SIZE_PX, SIZE_PX)
        image = Image.fromarray(padded)
        return np.asarray(image.transform(size, Image.Transform.AFFINE, matrix, resampling))

    moved = place(picture, Image.Resampling.BILINEAR, MARGIN_PX if streaked else 0)
    return moved, place(mask.astype(np.uint8), Image.Resampling.NEAREST, 0) > 0
