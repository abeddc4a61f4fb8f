"""Phantoms: what the plan promises, and that the pictures keep it."""

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

Rendered = list[tuple[PhantomPlan, np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    return [(plan, *render_phantom(plan)) for plan in plan_phantoms(240, seed=0)]


@pytest.mark.parametrize("n_images", [6, 7, 8, 61, 600])
def test_plan_has_the_number_asked_balanced_and_unique(n_images: int) -> None:
    plans = plan_phantoms(n_images, seed=3)
    counts = Counter(plan.label for plan in plans)
    assert len(plans) == n_images
    assert set(counts) == set(CLASSES)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert [plan.index for plan in plans] == list(range(n_images))
    assert len({plan.name.casefold() for plan in plans}) == n_images
    assert all(60 <= plan.quality <= 95 for plan in plans)


def test_too_few_are_refused() -> None:
    with pytest.raises(UserError, match="5 phantoms are too few"):
        plan_phantoms(5, seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_sixty_phantoms_have_three_patients_a_class(seed: int) -> None:
    patients = defaultdict(set)
    for plan in plan_phantoms(60, seed):
        patients[plan.label].add(plan.patient)
    assert all(len(patients[label]) >= 3 for label in CLASSES)


def test_patients_slices_and_siblings_are_nested() -> None:
    plans = plan_phantoms(3000, seed=1)
    by_slice = defaultdict(list)
    by_patient = defaultdict(list)
    for plan in plans:
        by_slice[plan.slice].append(plan)
        by_patient[plan.patient].append(plan)
    for copies in by_slice.values():
        assert [plan.copy for plan in copies] == list(range(len(copies)))
        assert [plan.sibling for plan in copies] == [False] + [True] * (len(copies) - 1)
        assert len({(plan.patient, plan.step) for plan in copies}) == 1
    for rows in by_patient.values():
        assert len({(plan.label, plan.plane) for plan in rows}) == 1
        assert 2 <= len({plan.slice for plan in rows}) <= 5
    assert len(by_patient) >= 3000 / 8
    copied = np.mean([len(copies) > 1 for copies in by_slice.values()])
    assert copied == pytest.approx(0.92, abs=0.01)


def test_planes_are_balanced_over_classes() -> None:
    patients = {plan.patient: (plan.label, plan.plane) for plan in plan_phantoms(900, seed=2)}
    counts = Counter(patients.values())
    assert set(counts) == set(itertools.product(CLASSES, PLANES))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_pictures_depend_on_seed_and_row_alone() -> None:
    plans = plan_phantoms(18, seed=4)
    forward = [render_phantom(plan) for plan in plans]
    backward = [render_phantom(plan) for plan in reversed(plan_phantoms(18, seed=4))][::-1]
    for (picture, mask), (again, mask_again) in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(picture, again)
        np.testing.assert_array_equal(mask, mask_again)
    other = [render_phantom(plan)[0] for plan in plan_phantoms(18, seed=5)]
    pictures = [picture.tobytes() for picture, _ in forward] + [p.tobytes() for p in other]
    assert len(set(pictures)) == 36


def test_lesions_are_whole_and_large_enough(rendered: Rendered) -> None:
    smallest_px = {"Glioma": 45, "Menin": 45, "Tumor": 26}
    for plan, picture, mask in rendered:
        assert picture.dtype == np.uint8
        assert mask.dtype == bool
        assert picture.shape == mask.shape == (512, 512)
        diameter_px = 2 * np.sqrt(mask.sum() / np.pi)
        assert smallest_px[plan.label] <= diameter_px <= 160, plan
        assert mask.sum() == mask[1:-1, 1:-1].sum()


def test_lesions_look_like_their_class(rendered: Rendered) -> None:
    for plan, picture, mask in rendered:
        core = ndimage.binary_erosion(mask, iterations=max(2, int(0.28 * np.sqrt(mask.sum()))))
        rim = mask & ~ndimage.binary_erosion(mask, iterations=10)
        around = ndimage.binary_dilation(mask, iterations=14) & ~mask
        if plan.label == "Menin":
            assert picture[mask].mean() > 1.2 * np.median(picture[around]), plan
        if plan.label == "Glioma" and core.sum() > 50:
            assert picture[core].mean() < 0.95 * picture[rim].mean(), plan


def test_sellar_masses_lie_near_the_midline_of_the_head() -> None:
    for plan in plan_phantoms(240, seed=6):
        if plan.label == "Tumor" and plan.plane != "sagittal" and not plan.sibling:
            picture, mask = render_phantom(plan)
            head = ndimage.binary_opening(picture > 25, iterations=3)
            middle_row = ndimage.center_of_mass(head)[0]  # the head lies on its side
            assert abs(ndimage.center_of_mass(mask)[0] - middle_row) < 40, plan


def test_the_mask_moves_with_the_sibling(rendered: Rendered) -> None:
    levels = defaultdict(list)
    for plan, picture, mask in rendered:
        levels[plan.slice].append((picture[mask].mean(), mask.sum(), picture.tobytes()))
    for copies in levels.values():
        brightness, area_px, pictures = zip(*copies, strict=True)
        assert np.ptp(brightness) < 3  # grey levels of 255
        assert max(area_px) < 1.3 * min(area_px)
        assert len(set(pictures)) == len(pictures)


def test_neighbouring_slices_are_alike_but_not_equal() -> None:
    originals = [plan for plan in plan_phantoms(60, seed=0) if not plan.sibling]
    pictures = {plan.slice: render_phantom(plan)[0].astype(float) for plan in originals}
    same: list[float] = []
    other: list[float] = []
    for first, second in itertools.combinations(originals, 2):
        score = np.corrcoef(pictures[first.slice].ravel(), pictures[second.slice].ravel())[0, 1]
        (same if first.patient == second.patient else other).append(score)
    assert np.median(same) > np.median(other) + 0.1
    assert max(same) < 0.999


def test_jpegs_are_grey_in_rgb_and_reproducible() -> None:
    plans = plan_phantoms(12, seed=0)
    for plan in plans[:4]:
        picture, _ = render_phantom(plan)
        content = encode_phantom(plan, picture)
        decoded = np.asarray(Image.open(io.BytesIO(content)))
        assert decoded.shape == (512, 512, 3)
        assert (decoded == decoded[:, :, :1]).all()
        assert np.abs(decoded[:, :, 0].astype(int) - picture).mean() < 4
        assert content == encode_phantom(plan, picture)


def test_brightness_alone_does_not_tell_the_classes(rendered: Rendered) -> None:
    statistics = [
        [picture.mean(), picture.std(), *np.percentile(picture, [10, 25, 50, 75, 90])]
        for _, picture, _ in rendered
    ]
    labels = np.array([plan.label for plan, _, _ in rendered])
    patients = [plan.patient for plan, _, _ in rendered]
    forest = RandomForestClassifier(100, random_state=0)
    folds = GroupKFold(5)
    guesses = cross_val_predict(forest, statistics, labels, groups=patients, cv=folds)
    assert (guesses == labels).mean() <= 0.6
