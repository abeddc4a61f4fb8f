"""Augmentation: limits of each change, value range, and reproducible random numbers."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from args import AugmentOptions
from helper import build_generator
from training.augmentation import Augmentation, _build_grid

ALL = dataclasses.asdict(AugmentOptions())  # the defaults: all but erase, mixup and cutmix
OFF: dict[str, Any] = {name: type(value)() for name, value in ALL.items()}


def make_batch(n_slices: int = 16, size_px: int = 9) -> torch.Tensor:
    return torch.rand(n_slices, 1, size_px, size_px, generator=build_generator(0, "batch"))


def build(**values: Any) -> Augmentation:
    return Augmentation(AugmentOptions(**(OFF | values)))


def augment(batch: torch.Tensor, seed: int = 0, **values: Any) -> torch.Tensor:
    augmentation = build(**values)
    draws = augmentation.draw(len(batch), build_generator(seed, "augment"))
    return augmentation.augment(batch, draws)


@pytest.mark.parametrize(
    ("flips", "turns"), [((False, True), range(4)), ((False, True), [0]), ((False,), range(4))]
)
def test_flips_and_turns_are_equally_frequent(flips: Iterable[bool], turns: Iterable[int]) -> None:
    batch = make_batch(64)
    augmented = augment(batch, flip=True in flips, quarter_turns=3 in turns)
    expected = [
        torch.rot90(batch.flip(3) if flip else batch, turn, (2, 3))
        for flip, turn in itertools.product(flips, turns)
    ]
    equal = (torch.stack(expected) - augmented).abs().amax((2, 3, 4)) < 1e-4  # [changes, 64]
    assert (equal.sum(0) == 1).all()
    assert equal.sum(1).min() > 64 / len(expected) / 4


def test_all_changes_stay_in_range_and_differ_by_slice() -> None:
    same = make_batch(1).expand(8, -1, -1, -1)
    changed = augment(same, **ALL)
    assert changed.shape == same.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert len({tuple(part.flatten().tolist()) for part in changed}) == 8


def test_draws_depend_on_the_generator_only() -> None:
    batch = make_batch()
    first = augment(batch, seed=1, **ALL)
    torch.manual_seed(99)
    assert torch.equal(augment(batch, seed=1, **ALL), first)
    assert not torch.equal(augment(batch, seed=2, **ALL), first)


def find_centres(batch: torch.Tensor) -> torch.Tensor:
    """Return the centre of mass of each slice of 65 px relative to its middle, px: [B, 2]."""
    axis = torch.arange(65.0) - 32
    across, down = batch.sum((1, 2)) @ axis, batch.sum((1, 3)) @ axis
    return torch.stack([across, down], dim=1) / batch.sum((1, 2, 3)).unsqueeze(1)


def make_blobs(n_slices: int, offset_px: float) -> torch.Tensor:
    """Return 65 px slices with a soft dot to the right of the middle."""
    axis = torch.arange(65.0) - 32
    blob = torch.exp(-((axis[None, :] - offset_px) ** 2 + axis[:, None] ** 2) / 8)
    return blob.expand(n_slices, 1, 65, 65)


def test_shifts_stay_within_their_limit() -> None:
    centres = find_centres(augment(make_blobs(200, 0.0), shift=0.25))
    limit_px = 0.25 * 65
    assert centres.abs().max() < limit_px + 0.2
    assert (centres.amax(0) > 0.7 * limit_px).all()
    assert (centres.amin(0) < -0.7 * limit_px).all()


def test_rotations_stay_within_their_limit() -> None:
    centres = find_centres(augment(make_blobs(200, 20.0), rotation=10.0))
    angles = torch.rad2deg(torch.atan2(centres[:, 1], centres[:, 0]))
    assert torch.allclose(centres.norm(dim=1), torch.tensor(20.0), atol=0.2)
    assert -10.2 < angles.min() < -8
    assert 8 < angles.max() < 10.2


def test_zooms_stay_within_their_limit() -> None:
    centres = find_centres(augment(make_blobs(200, 16.0), zoom=0.25))
    assert centres[:, 1].abs().max() < 0.1
    ratios = centres[:, 0] / 16
    assert 1 / 1.25 - 0.01 < ratios.min() < 0.85
    assert 1.18 < ratios.max() < 1.25 + 0.01


def test_gamma_and_contrast_stay_within_their_limits() -> None:
    grey = torch.full((300, 1, 2, 2), 0.5)
    values = augment(grey, gamma=0.25)[:, 0, 0, 0]
    assert values.min() >= 0.5**1.25 - 1e-6
    assert values.max() <= 0.5 ** (1 / 1.25) + 1e-6
    assert values.min() < 0.5 < values.max()
    halves = torch.tensor([[0.4, 0.6], [0.6, 0.4]]).expand(300, 1, 2, 2)
    spread = augment(halves, contrast=0.25).amax((1, 2, 3)) - 0.5  # 0.1 before
    assert 0.1 / 1.25 - 1e-6 <= spread.min() < 0.1 < spread.max() <= 0.1 * 1.25 + 1e-6


def test_resampling_does_not_blur() -> None:
    """Rotated slices keep the sharpness that batch norm statistics depend on."""
    batch = make_batch(64, 32)
    rotated = augment(batch, rotation=10.0)
    before, after = (each[..., 8:24, 8:24].diff(dim=-1).var() for each in (batch, rotated))
    assert after > 0.6 * before  # bilinear: about 0.4


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_targets_are_shares_of_the_image(kind: str) -> None:
    augmentation = build(**{kind: 1.0})
    slices = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 20, 20)  # slice i has value i
    targets = torch.eye(4)
    for seed in range(20):
        mixed, soft = augmentation.mix(slices, targets, build_generator(seed, "mix"))
        assert torch.allclose(soft.sum(1), torch.ones(4))
        # the mean of a mixed slice is the target-weighted mean of the values
        assert torch.allclose(mixed.mean((1, 2, 3)), soft @ torch.arange(4.0), atol=1e-5)


def test_without_options_nothing_is_mixed() -> None:
    slices, targets = make_batch(4), torch.eye(4)
    mixed, soft = build().mix(slices, targets, build_generator(0, "mix"))
    assert mixed is slices
    assert soft is targets


def test_draws_are_per_slice() -> None:
    batch, augmentation = make_batch(), build(**(ALL | {"erase": 0.5}))
    draws = augmentation.draw(len(batch), build_generator(0, "augment"))
    whole = augmentation.augment(batch, draws)
    parts = [augmentation.augment(batch[rows], draws[rows]) for rows in (slice(0, 5), slice(5, 16))]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)


def test_erased_boxes_are_black_and_have_the_stated_size() -> None:
    batch = torch.ones(400, 1, 50, 50)
    shares = (augment(batch, erase=0.5) == 0).float().mean((1, 2, 3))
    erased = shares[shares > 0]
    assert 150 < len(erased) < 250
    assert 0.15 < erased.max() < 0.22  # boxes are clipped at the border
    assert set(augment(batch, erase=0.5).unique().tolist()) == {0.0, 1.0}


def test_the_grid_equals_that_of_torch() -> None:
    maps = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    expected = F.affine_grid(maps.view(-1, 2, 3), [5, 1, 17, 17], align_corners=False)
    assert torch.allclose(_build_grid(maps, 17), expected, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"gamma": 0.3, "contrast": 0.3, "erase": 1.0}])
def test_the_input_is_not_changed(changes: dict[str, Any]) -> None:
    slices, before = make_batch(), make_batch()
    changed = augment(slices, **changes)
    assert torch.equal(slices, before)
    assert torch.equal(changed, slices) != bool(changes)
