"""Progressive resizing: a run begins with smaller slices, whose steps are cheaper."""

from torch import Tensor
from torch.nn import functional as F

# Networks halve their input five times; sizes between bring no other shapes at the end.
SIZE_STEP_PX = 32
# Of the steps; the rest is at full size, to which the network must adapt.
GROWING_SHARE = 0.6


def compute_size(step: int, n_steps: int, full_px: int, first_share: float) -> int:
    """Side of the training slices at a step, px: from a share of the full one up to it.

    Args:
        step: Steps taken before.
        n_steps: Of the whole run.
        full_px: Side of the slices in the end, and in val.
        first_share: Of the side, at the first step; 1 is no resizing.

    Source: Howard 2018, Training ImageNet in 3 hours for 25 minutes; Touvron et al. 2019, Fixing
    the train-test resolution discrepancy.
    """
    progress = min(1.0, step / (GROWING_SHARE * n_steps))
    wanted = full_px * (first_share + (1 - first_share) * progress)
    rounded = SIZE_STEP_PX * max(1, round(wanted / SIZE_STEP_PX))
    return full_px if progress == 1 or first_share == 1 else min(full_px, rounded)


def shrink(slices: Tensor, size_px: int) -> Tensor:
    """Slices [B, 1, S, S] in 0..1 at a smaller size, without aliasing."""
    if slices.shape[-1] == size_px:
        return slices
    return F.interpolate(slices, (size_px, size_px), mode="bilinear", antialias=True)
