"""Bias field, ghosts and noise: their size, what they leave alone, and reproducible numbers."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from args import AugmentOptions
from helper import build_generator
from training.augmentation import Augmentation
from training.mri_artefacts import GHOSTS, add_bias_field, add_ghosts, add_noise, draw_artefacts

SIZE_PX = 64


def draw(bias_field: float = 0.0, ghosting: float = 0.0, noise: float = 0.0) -> Tensor:
    return draw_artefacts(300, bias_field, ghosting, noise, build_generator(0, "artefacts"))


def make_grey(n_slices: int, grey: float) -> Tensor:
    return torch.full((n_slices, 1, SIZE_PX, SIZE_PX), grey)


def make_dot() -> Tensor:
    """A slice with one bright pixel in row 20, column 30."""
    dot = torch.zeros(1, 1, SIZE_PX, SIZE_PX)
    dot[0, 0, 20, 30] = 1.0
    return dot


def test_nothing_is_drawn_without_limits() -> None:
    draws = draw()
    assert not draws[:, [0, 1, 2, 3, 4, 7, 8]].any()
    slices = torch.rand(300, 1, 9, 9, generator=build_generator(1, "x"))
    for add in (add_bias_field, add_ghosts, add_noise):
        torch.testing.assert_close(add(slices, draws), slices, atol=1e-6, rtol=0)


def test_the_bias_field_is_smooth_and_within_its_limit() -> None:
    field = add_bias_field(make_grey(300, 0.4), draw(bias_field=0.5)) / 0.4
    assert field.max() <= 1.5
    assert field.min() >= 1 / 1.5
    assert field.amax((1, 2, 3)).max() > 1.2
    steps = (field[..., 1:] - field[..., :-1]).abs()
    assert steps.max() < 8 * math.log(1.5) / SIZE_PX  # of the steepest polynomial, 4 a half side
    assert field.std((1, 2, 3)).min() > 0
    assert add_bias_field(make_grey(300, 1.0), draw(bias_field=0.5)).max() == 1


def test_ghosts_repeat_the_slice_at_equal_distances() -> None:
    for count, axis in ((2, 0), (4, 1)):
        draws = torch.zeros(1, 11)
        draws[0, 5:8] = torch.tensor([count, axis, 0.5])
        ghosts = add_ghosts(make_dot(), draws)[0, 0]
        line = ghosts[:, 30] if axis == 0 else ghosts[20]
        place = 20 if axis == 0 else 30
        others = ghosts.sum() - line.sum()
        assert others < 1e-3
        bright = {(index - place) % SIZE_PX for index in range(SIZE_PX) if line[index] > 0.05}
        assert bright == {step * SIZE_PX // count for step in range(count)}
        # 1 - g / n of the slice stays, each ghost has g / n (apart from the centre of k-space)
        assert line[place].item() == pytest.approx(1 - 0.5 / count, abs=0.02)


def test_ghosts_keep_the_mean() -> None:
    draws = draw(ghosting=0.8)
    assert set(draws[:, 5].tolist()) == set(range(GHOSTS[0], GHOSTS[1] + 1))
    assert set(draws[:, 6].tolist()) == {0, 1}
    assert 0.6 < draws[:, 7].max() <= 0.8
    coarse = torch.rand(300, 1, 8, 8, generator=build_generator(2, "x"))
    smooth = 0.3 + 0.4 * F.interpolate(coarse, SIZE_PX, mode="bicubic").clamp(0, 1)
    changed = add_ghosts(smooth, draws)
    torch.testing.assert_close(changed.mean((1, 2, 3)), smooth.mean((1, 2, 3)), atol=2e-3, rtol=0)
    assert (changed - smooth).abs().amax((1, 2, 3)).max() > 0.02


def test_noise_is_rician() -> None:
    draws = draw(noise=0.1)
    assert 0.08 < draws[:, 8].max() <= 0.1
    draws[:, 8] = 0.1
    tissue = add_noise(make_grey(300, 0.5), draws) - 0.5
    assert tissue.std().item() == pytest.approx(0.1, rel=0.05)
    air = add_noise(make_grey(300, 0.0), draws)
    assert air.mean().item() == pytest.approx(0.1 * math.sqrt(math.pi / 2), rel=0.05)
    assert len({round(float(each.mean()), 6) for each in air}) > 250  # another part of the tile


def test_artefacts_depend_on_the_draws_of_a_slice_alone() -> None:
    options = AugmentOptions(bias_field=0.3, ghosting=0.3, noise=0.05, erase=0.5)
    augmentation = Augmentation(options)
    draws = augmentation.draw(8, build_generator(0, "augment"))
    slices = torch.rand(8, 1, 32, 32, generator=build_generator(3, "x"))
    whole = augmentation.augment(slices, draws)
    parts = [augmentation.augment(slices[i : i + 2], draws[i : i + 2]) for i in range(0, 8, 2)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)
    assert whole.min() >= 0
    assert whole.max() <= 1
    plain = Augmentation(AugmentOptions(erase=0.5))
    assert torch.equal(plain.draw(8, build_generator(0, "augment"))[:, :12], draws[:, :12])
