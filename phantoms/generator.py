"""Generate synthetic MRI slices with known patient, duplicate set, plane and lesion mask.

A data set is a list of `PhantomPlan`s. Each image depends on its own plan alone, so the plans can
be rendered in any order and by any process.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from helper import UserError, derive_seed
from phantoms import anatomy
from phantoms.anatomy import GRID_PX, Array, Head, Point, Rng, View

CLASSES = ("Glioma", "Menin", "Tumor")
SIZE_PX = 512
PATIENTS_PER_IMAGE = 0.5
SLICES_PER_IMAGE = 0.6  # the other images are duplicates, at most one per slice
MARGIN_PX = 128  # width of the repeated border pixels around a streaked duplicate
DIAMETER_PX = {"Glioma": (78, 138), "Menin": (74, 112), "Tumor": (44, 66)}


@dataclass(frozen=True)
class PhantomPlan:
    """Everything needed to render one image of a planned data set.

    Attributes:
        plane: Plane of all slices of the patient.
        patient: Number of the patient in the data set.
        duplicate_set: Number of the slice in the data set; its duplicate has the same number.
        step: Depth of the slice in the lesion, from -1 to 1.
        is_duplicate: True for a rotated, flipped or shifted copy of the slice.
        quality: JPEG quality.
    """

    name: str
    label: str
    plane: str
    patient: int
    duplicate_set: int
    step: float
    is_duplicate: bool
    quality: int
    seed: int


@dataclass(frozen=True)
class Lesion:
    """Position and size of a lesion in head coordinates (cm), and its appearance.

    `brightness` and `core` are relative to white matter. `ragged` is the roughness of the edge of
    a glioma. `on_falx` is True for a meningioma at the midline instead of under the skull.
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
    """Properties shared by all slices of a patient; `gain` is the grey level of white matter."""

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
    """Plan a data set of phantoms without rendering any.

    Class sizes differ by one image at most. Half as many patients as images, with 1 to 4 images
    each: one or two slices of one plane, most of them with a duplicate. Planes are balanced
    within each class.

    Raises:
        UserError: `n_images` is below 6.
    """
    if n_images < 6:
        raise UserError(f"{n_images} phantoms are too few for three classes; generate 6 or more")
    plans: list[PhantomPlan] = []
    patient = duplicate_set = 0
    for class_index, label in enumerate(CLASSES):
        rng = np.random.default_rng(derive_seed(seed, "plan", label))
        count = n_images // len(CLASSES) + (class_index < n_images % len(CLASSES))
        numbers = iter(rng.permutation(count) + 1)
        for index, duplicated in enumerate(_distribute_images(count, rng)):
            steps = np.linspace(-1, 1, len(duplicated)) if len(duplicated) > 1 else [0.0]
            for step, has_duplicate in zip(steps, duplicated, strict=True):
                plans += [
                    PhantomPlan(
                        name=f"phantom_{label.lower()}_{next(numbers):05d}.jpg",
                        label=label,
                        plane=anatomy.PLANES[(index + seed) % len(anatomy.PLANES)],
                        patient=patient,
                        duplicate_set=duplicate_set,
                        step=float(step),
                        is_duplicate=is_duplicate,
                        quality=int(rng.integers(60, 96)),
                        seed=seed,
                    )
                    for is_duplicate in ((False, True) if has_duplicate else (False,))
                ]
                duplicate_set += 1
            patient += 1
    return plans


def _distribute_images(count: int, rng: Rng) -> list[list[bool]]:
    """Return, for each patient of a class, whether each of the slices has a duplicate."""
    n_patients = max(min(3, count), round(count * PATIENTS_PER_IMAGE))
    n_slices = max(n_patients, round(count * SLICES_PER_IMAGE))
    owners = np.append(np.arange(n_patients), rng.permutation(n_patients)[: n_slices - n_patients])
    duplicated = rng.permutation(n_slices) < count - n_slices
    return [duplicated[owners == patient].tolist() for patient in range(n_patients)]


def render_phantom(plan: PhantomPlan) -> tuple[Array, Array]:
    """Render an image (uint8 [512, 512]) and its lesion mask (bool [512, 512])."""
    image, mask = _render_slice(plan, _build_patient(plan))
    if plan.is_duplicate:
        rng = np.random.default_rng(derive_seed(plan.seed, "duplicate", plan.duplicate_set))
        return _transform(image, mask, rng)
    return image, mask


def encode_phantom(plan: PhantomPlan, image: Array) -> bytes:
    """Encode a grey image as the real files are: an RGB JPEG with equal channels."""
    buffer = io.BytesIO()
    Image.fromarray(image).convert("RGB").save(buffer, "JPEG", quality=plan.quality)
    return buffer.getvalue()


def _build_patient(plan: PhantomPlan) -> Patient:
    """Draw the patient at random; only the lesion depends on the class."""
    rng = np.random.default_rng(derive_seed(plan.seed, "patient", plan.patient))
    px_per_cm = rng.uniform(18.5, 23.5)
    head = anatomy.build_head(rng)
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


def _build_lesion(plan: PhantomPlan, head: Head, px_per_cm: float, rng: Rng) -> Lesion:
    radius = rng.uniform(*DIAMETER_PX[plan.label]) / 2 / px_per_cm
    side = float(rng.choice([-1.0, 1.0]))
    on_falx = False
    if plan.label == "Glioma":
        centre = np.array([side * rng.uniform(2.2, 3.6), rng.uniform(-4.5, 3.8), 0.0])
        temporal = -0.5 < centre[1] < 2.5  # the skull base is lower here
        centre[2] = rng.uniform(-1.5 if temporal else 0.5, 3.0)
    elif plan.label == "Menin":
        on_falx = bool(plan.plane != "sagittal" and rng.random() < 0.25)
        if on_falx:
            centre = np.array([side * 0.7 * radius, rng.uniform(-4, 4), rng.uniform(2.8, 4.2)])
        else:
            outward = _draw_direction(plan.plane, side, rng)
            surface = anatomy.CENTRE_CM + np.array(anatomy.BRAIN_CM) * head.size * outward
            centre = surface - 0.5 * radius * outward
    else:
        centre = anatomy.SELLA_CM + rng.normal(0, 0.12, 3) + [0, 0, 0.35 * radius]
    return Lesion(
        label=plan.label,
        centre=tuple(centre.tolist()),
        axes=tuple((radius * rng.uniform(0.88, 1.12, 3)).tolist()),
        brightness=rng.uniform(1.6, 2.1),
        core=rng.uniform(0.5, 0.8),
        ragged=rng.uniform(0.1, 0.2),
        on_falx=on_falx,
    )


def _draw_direction(plane: str, side: float, rng: Rng) -> Array:
    """Draw a unit vector [3] to the vault, near the plane so that slices show a broad base."""
    axis = anatomy.DEPTH_AXIS[plane]
    direction = rng.normal(size=3)
    direction[2] = abs(direction[2])
    direction[axis] = 0.0
    direction *= 0.85 / np.linalg.norm(direction)
    lowest = 0.1 if plane == "axial" and direction[1] > 0 else -0.2  # higher skull base in front
    direction[axis] = rng.uniform(lowest, 0.55) * (1.0 if plane == "axial" else side)
    return direction / np.linalg.norm(direction)


def _build_view(plan: PhantomPlan, patient: Patient, rng: Rng) -> View:
    """Return the plane of a slice, rotated by 90 degrees as in the real data set."""
    lesion = patient.lesion
    axis = anatomy.DEPTH_AXIS[plan.plane]
    depth = lesion.centre[axis] + plan.step * min(0.9, 0.5 * lesion.axes[axis])
    grid = (np.arange(GRID_PX, dtype=np.float32) - GRID_PX / 2 + 0.5) * 2 / patient.px_per_cm
    down = grid[:, None] + patient.offset_cm[0]
    right = grid[None, :] + patient.offset_cm[1]
    cos, sin = math.cos(patient.tilt_rad), math.sin(patient.tilt_rad)
    across, along = cos * down - sin * right, sin * down + cos * right
    across = across + 0.15 * anatomy.build_field(rng, (6, 6), depth, 0.15)
    along = along + 0.15 * anatomy.build_field(rng, (6, 6), depth, 0.15)
    level = np.array(depth, dtype=np.float32)
    if plan.plane == "axial":
        return View((across, -along, level), depth)
    if plan.plane == "coronal":
        return View((across, level, -along - 2.0), depth)
    return View((level, -across, -along - 1.5), depth)


def _render_slice(plan: PhantomPlan, patient: Patient) -> tuple[Array, Array]:
    """Render the slice (uint8) and its lesion mask (bool), each [512, 512]."""
    rng = np.random.default_rng(derive_seed(plan.seed, "fields", plan.patient))
    view = _build_view(plan, patient, rng)
    image, cerebrum = anatomy.render_head(view, patient.head, rng)
    inside = _paint_lesion(image, view, patient, cerebrum, rng)
    image *= np.clip(1.45 + view.points[2] / 15, 0.4, 1.0)  # the signal falls off at the neck
    image *= 1.0 + patient.bias * anatomy.build_field(rng, (3, 3), 0.0, 0.0)
    noise = np.random.default_rng(derive_seed(plan.seed, "noise", plan.duplicate_set))
    real, imaginary = noise.standard_normal((2, GRID_PX, GRID_PX), dtype=np.float32) * patient.noise
    image = np.hypot(np.clip(image, 0, 4) + real, imaginary)
    grey = anatomy.resize(patient.gain * image**patient.gamma, SIZE_PX)
    mask = anatomy.resize(inside.astype(np.float32), SIZE_PX) > 0
    return np.clip(grey + 0.5, 0, 255).astype(np.uint8), mask


def _paint_lesion(image: Array, view: View, patient: Patient, cerebrum: Array, rng: Rng) -> Array:
    """Paint the lesion and return the signed distance [H, W] in cm to its edge, positive inside."""
    lesion = patient.lesion
    rough = anatomy.build_field(rng, (16, 16), view.depth_cm, 0.5)
    fine = anatomy.build_field(rng, (40, 40), view.depth_cm, 0.5)
    radius = min(lesion.axes)
    # 0 at the centre, 1 at the edge
    reach = 1 - anatomy.ball(view, lesion.centre, lesion.axes) / radius
    if lesion.label == "Glioma":
        broad = anatomy.build_field(rng, (9, 9), view.depth_cm, 0.4)
        return _paint_glioma(image, lesion, reach, cerebrum - 0.15, (broad, rough, fine))
    if lesion.label == "Menin":
        cavity = np.maximum(cerebrum, anatomy.compute_hindbrain(view, patient.head))
        edge = np.minimum((1 - reach * (1 + 0.04 * rough)) * radius, cavity)
        if lesion.on_falx:
            edge = np.minimum(edge, view.points[0] * np.sign(lesion.centre[0]))
        anatomy.paint(image, np.minimum(edge + 0.12, cavity), 0.6, 0.15)  # CSF cleft
        anatomy.paint(image, edge, lesion.brightness + 0.04 * fine, 0.12)
        return edge
    edge = (1 - reach * np.clip(1 + 0.12 * rough, 0.8, 1.2)) * radius
    anatomy.paint(image, edge, lesion.brightness + 0.09 * fine, 0.15)
    return edge


def _paint_glioma(
    image: Array, lesion: Lesion, reach: Array, brain: Array, noise: tuple[Array, Array, Array]
) -> Array:
    """Paint dark oedema, a bright ragged ring and a dark core within the cerebrum."""
    broad, rough, fine = noise
    radius = min(lesion.axes)
    oedema = np.clip((1.8 - reach * (1 + 0.2 * broad)) / 0.5, 0, 1) * np.clip(brain / 0.4, 0, 1)
    image -= 0.32 * oedema * image
    reach = reach * np.clip(1 + 0.6 * lesion.ragged * (broad + rough), 0.7, 1.4)
    edge = np.minimum((1 - reach) * radius, brain)
    anatomy.paint(image, edge, lesion.brightness * (0.85 + 0.15 * broad) + 0.12 * fine, 0.35)
    width = 0.24 + 0.07 * fine + 0.07 * rough
    hollow = np.minimum((1 - width - reach) * radius, brain)
    anatomy.paint(image, hollow, lesion.core + 0.08 * fine + 0.06 * rough, 0.35)
    return edge


def _transform(image: Array, mask: Array, rng: Rng) -> tuple[Array, Array]:
    """Flip, rotate, shift and zoom image and mask; the new border is black or streaked."""
    flip_rows, flip_columns = (-1 if rng.random() < 0.5 else 1 for _ in range(2))
    quarters = int(rng.integers(4)) if rng.random() < 0.3 else 0
    any_angle = rng.random() < 0.15
    angle_rad = rng.uniform(-math.pi, math.pi) if any_angle else rng.normal(0, 0.12)
    zoom = rng.uniform(0.94, 1.06)
    streaked = rng.random() < 0.5
    cos, sin = math.cos(angle_rad) / zoom, math.sin(angle_rad) / zoom
    right_px, down_px = SIZE_PX / 2 + rng.uniform(-18, 18), SIZE_PX / 2 + rng.uniform(-18, 18)

    def transform(array: Array, resampling: Image.Resampling, margin_px: int) -> Array:
        rotated = np.rot90(array[::flip_rows, ::flip_columns], quarters)
        padded = Image.fromarray(np.pad(rotated, margin_px, mode="edge"))
        middle = SIZE_PX / 2 + margin_px
        matrix = (
            *(cos, sin, middle - cos * right_px - sin * down_px),
            *(-sin, cos, middle + sin * right_px - cos * down_px),
        )
        size = (SIZE_PX, SIZE_PX)
        return np.asarray(padded.transform(size, Image.Transform.AFFINE, matrix, resampling))

    moved = transform(image, Image.Resampling.BILINEAR, MARGIN_PX if streaked else 0)
    return moved, transform(mask.astype(np.uint8), Image.Resampling.NEAREST, 0) > 0
