"""Progressive resizing: the first steps of a run use smaller slices, which cost less."""

from torch import Tensor
from torch.nn import functional as F

# Networks halve their input five times, so only multiples of 32 px change the last feature map.
SIZE_STEP_PX = 32
# Share of the steps in which the size grows; the rest trains at full size.
GROWING_SHARE = 0.6


def compute_size(step: int, n_steps: int, full_px: int, first_share: float) -> int:
    """Return the side of the training slices at a step, px.

    Args:
        step: Steps before this one.
        n_steps: Steps of the whole run.
        full_px: Side of the slices at the end of training, and in validation.
        first_share: First side as a share of `full_px`; 1 disables resizing.

    Source: Howard 2018, Training ImageNet in 3 hours for 25 minutes; Touvron et al. 2019, Fixing
    the train-test resolution discrepancy.
    """
    progress = min(1.0, step / (GROWING_SHARE * n_steps))
    wanted = full_px * (first_share + (1 - first_share) * progress)
    rounded = SIZE_STEP_PX * max(1, round(wanted / SIZE_STEP_PX))
    return full_px if progress == 1 or first_share == 1 else min(full_px, rounded)


def shrink(slices: Tensor, size_px: int) -> Tensor:
    """Downscale slices [B, 1, S, S] in 0..1 to `size_px`, with antialiasing."""
    if slices.shape[-1] == size_px:
        return slices
    return F.interpolate(slices, (size_px, size_px), mode="bilinear", antialias=True)
