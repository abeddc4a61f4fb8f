"""Progressive resizing: the sizes of a run, and downscaled slices."""

from pathlib import Path

import pytest
import torch

from tests.support.builders import make_trainer
from training.progressive_resizing import compute_size, shrink


def test_sizes_by_hand() -> None:
    # ten steps, growing over the first six, from 96 to 160 px in steps of 32
    sizes = [compute_size(step, 10, 160, 0.6) for step in range(10)]
    assert sizes == [96, 96, 128, 128, 128, 160, 160, 160, 160, 160]


@pytest.mark.parametrize(("full_px", "share"), [(100, 1.0), (224, 1.0), (40, 0.5), (100, 0.5)])
def test_the_last_steps_have_full_size(full_px: int, share: float) -> None:
    sizes = [compute_size(step, 50, full_px, share) for step in range(50)]
    assert sizes == sorted(sizes)
    assert sizes[30:] == [full_px] * 20
    assert all(size % 32 == 0 or size == full_px for size in sizes)
    assert (sizes[0] == full_px) == (share == 1)


def test_shrinking_is_antialiased() -> None:
    flat = torch.full((2, 1, 64, 64), 0.25)
    assert torch.allclose(shrink(flat, 32), torch.full((2, 1, 32, 32), 0.25))
    board = (torch.arange(64).view(-1, 1) + torch.arange(64)) % 2
    grey = shrink(board.float().view(1, 1, 64, 64), 32)
    assert (grey - 0.5).abs().max() < 0.05  # with aliasing it would be black or white
    assert shrink(flat, 64) is flat


def test_training_slices_grow_and_val_slices_do_not(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, image_size=64, first_size=0.5, epochs=4)
    sizes, val_sizes = [], []
    trainer.network.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
    trainer.ema.register_forward_pre_hook(lambda _, inputs: val_sizes.append(inputs[0].shape[-1]))
    trainer.fit()
    assert sizes == [32] * 4 + [64] * 8
    assert set(val_sizes) == {64}
