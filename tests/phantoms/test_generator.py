"""Phantoms: numbers of patients and duplicates, and what the images show."""

import io
import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict

from helper import UserError
from phantoms.anatomy import PLANES
from phantoms.generator import CLASSES, PhantomPlan, encode_phantom, plan_phantoms, render_phantom
from preparation.splits import split_groups

Rendered = list[tuple[PhantomPlan, np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    return [(plan, *render_phantom(plan)) for plan in plan_phantoms(90, seed=0)]


# ---- plans


@pytest.mark.parametrize("n_images", [6, 7, 8, 61, 600])
def test_plans_are_balanced_and_unique(n_images: int) -> None:
    plans = plan_phantoms(n_images, seed=3)
    counts = Counter(plan.label for plan in plans)
    assert len(plans) == n_images
    assert set(counts) == set(CLASSES)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({plan.name.casefold() for plan in plans}) == n_images
    with pytest.raises(UserError, match="5 phantoms are too few"):
        plan_phantoms(5, seed=0)


@pytest.mark.parametrize(("n_images", "n_patients"), [(9, 3), (60, 10), (900, 150)])
def test_patients_and_duplicates(n_images: int, n_patients: int) -> None:
    patients, duplicate_sets = defaultdict(list), defaultdict(list)
    for plan in plan_phantoms(n_images, seed=1):
        patients[plan.patient].append(plan)
        duplicate_sets[plan.duplicate_set].append(plan)
    for plans in duplicate_sets.values():
        assert [plan.is_duplicate for plan in plans] == [False, True][: len(plans)]
        assert len({(plan.patient, plan.step) for plan in plans}) == 1
    for plans in patients.values():
        assert len({(plan.label, plan.plane) for plan in plans}) == 1
        assert 1 <= len(plans) <= 4
    counts = Counter((plans[0].label, plans[0].plane) for plans in patients.values())
    assert sum(counts.values()) == 3 * n_patients
    assert set(counts) == set(itertools.product(CLASSES, PLANES))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_demo_has_enough_val_patients_for_prediction_sets() -> None:
    plans = plan_phantoms(900, seed=0)
    labels = np.array([plan.label for plan in plans])
    patients = np.array([str(plan.patient) for plan in plans])
    is_val = split_groups(labels, patients, seed=0) == "val"
    for label in CLASSES:
        # alpha = 0.05 needs 1 / 0.05 - 1 = 19
        assert len(set(patients[is_val & (labels == label)])) >= 21


# ---- images


def test_images_depend_on_their_plan_alone() -> None:
    plans = plan_phantoms(6, seed=4)
    forward = [render_phantom(plan) for plan in plans]
    backward = [render_phantom(plan) for plan in reversed(plans)][::-1]
    for first, second in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(first, second)
    other = [render_phantom(plan) for plan in plan_phantoms(6, seed=5)]
    assert len({image.tobytes() for image, _ in [*forward, *other]}) == 12


def test_lesions(rendered: Rendered) -> None:
    min_diameter_px = {"Glioma": 45, "Menin": 45, "Tumor": 26}
    for plan, image, mask in rendered:
        assert image.dtype == np.uint8
        assert mask.dtype == np.bool_
        assert image.shape == mask.shape == (512, 512)
        diameter_px = 2 * np.sqrt(mask.sum() / np.pi)
        assert min_diameter_px[plan.label] <= diameter_px <= 160, plan
        assert mask.sum() == mask[1:-1, 1:-1].sum()
        if plan.label == "Menin":
            around = ndimage.binary_dilation(mask, iterations=14) & ~mask
            assert image[mask].mean() > 1.2 * np.median(image[around]), plan
        if plan.label == "Glioma":
            core = ndimage.binary_erosion(mask, iterations=max(2, int(0.28 * np.sqrt(mask.sum()))))
            rim = mask & ~ndimage.binary_erosion(mask, iterations=10)
            assert core.sum() <= 50 or image[core].mean() < 0.95 * image[rim].mean(), plan
        if plan.label == "Tumor" and plan.plane != "sagittal" and not plan.is_duplicate:
            head = ndimage.binary_opening(image > 25, iterations=3)
            middle_row = ndimage.center_of_mass(head)[0]  # the head is rotated by 90 degrees
            assert abs(ndimage.center_of_mass(mask)[0] - middle_row) < 40, plan


def test_mask_moves_with_the_duplicate(rendered: Rendered) -> None:
    duplicate_sets = defaultdict(list)
    for plan, image, mask in rendered:
        duplicate_sets[plan.duplicate_set].append((image[mask].mean(), mask.sum(), image.tobytes()))
    for members in duplicate_sets.values():
        levels, areas_px, images = zip(*members, strict=True)
        assert np.ptp(levels) < 3  # grey levels
        assert max(areas_px) < 1.3 * min(areas_px)
        assert len(set(images)) == len(images)


def test_slices_of_a_patient_are_similar_but_not_equal(rendered: Rendered) -> None:
    slices = [(plan.patient, image) for plan, image, _ in rendered if not plan.is_duplicate]
    same: list[float] = []
    other: list[float] = []
    for (first, a), (second, b) in itertools.combinations(slices[:60], 2):
        correlation = np.corrcoef(a[::4, ::4].ravel(), b[::4, ::4].ravel())[0, 1]
        (same if first == second else other).append(correlation)
    assert np.median(same) > np.median(other) + 0.1
    assert max(same) < 0.999


def test_jpegs_are_grey_in_rgb(rendered: Rendered) -> None:
    plan, image, _ = rendered[0]
    decoded = np.asarray(Image.open(io.BytesIO(encode_phantom(plan, image))))
    assert decoded.shape == (512, 512, 3)
    assert (decoded == decoded[:, :, :1]).all()
    assert np.abs(decoded[:, :, 0].astype(int) - image).mean() < 4


def test_brightness_does_not_show_the_class(rendered: Rendered) -> None:
    statistics = [
        [image.mean(), image.std(), *np.percentile(image, [10, 25, 50, 75, 90])]
        for _, image, _ in rendered
    ]
    labels = np.array([plan.label for plan, _, _ in rendered])
    patients = [plan.patient for plan, _, _ in rendered]
    forest = RandomForestClassifier(100, random_state=0)
    predicted = cross_val_predict(forest, statistics, labels, groups=patients, cv=GroupKFold(5))
    assert (predicted == labels).mean() <= 0.6
