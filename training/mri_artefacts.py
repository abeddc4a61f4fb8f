"""Artefacts of MRI on batches of slices: bias field, ghosts and noise.

Source: Perez-Garcia et al. 2021, TorchIO, for the three artefacts; Sled and Pike 1998,
Standing-wave and RF penetration artifacts caused by elliptic geometry, for the smooth bias field;
Gudbjartsson and Patz 1995, The Rician distribution of noisy MRI data.
"""

import functools
import math

import torch
from torch import Tensor

N_DRAWS = 11  # numbers for each slice: bias field 5, ghosts 3, noise 3
GHOSTS = (2, 6)  # fewest and most equidistant ghosts
CENTRE = 0.02  # share of k-space around its centre that ghosts leave as it is
TILE_PX = 512  # side of the noise that is drawn once


def draw_artefacts(
    n_slices: int,
    bias_field: float,
    ghosting: float,
    noise: float,
    generator: torch.Generator,
) -> Tensor:
    """Draw the parameters of each slice, [N, N_DRAWS] on the CPU.

    Args:
        n_slices: N.
        bias_field: Largest change of the brightness by the field, as a share.
        ghosting: Largest strength of ghosts, 0 to 1.
        noise: Largest standard deviation of the noise, of the range 0 to 1.
        generator: Random generator on the CPU.
    """
    uniform = torch.rand(n_slices, N_DRAWS, generator=generator)
    field = (2 * uniform[:, :5] - 1) * math.log1p(bias_field)
    fewest, most = GHOSTS
    count = fewest + (uniform[:, 5:6] * (most - fewest + 1)).floor()
    return torch.cat(
        [
            *(field, count, uniform[:, 6:7].round(), ghosting * uniform[:, 7:8]),
            *(noise * uniform[:, 8:9], uniform[:, 9:]),
        ],
        dim=1,
    )


def add_bias_field(slices: Tensor, draws: Tensor) -> Tensor:
    """Multiply slices [B, 1, S, S] by a smooth field of degree 2, and clip them to 0..1.

    The logarithm of the field is a sum of five polynomials that is at most `log(1 + bias_field)`,
    with coefficients `draws[:, :5]`.
    """
    size_px = slices.shape[-1]
    centres = (2 * torch.arange(size_px, device=slices.device) + 1) / size_px - 1
    x, y = centres.view(1, -1), centres.view(-1, 1)
    terms = torch.stack([x + 0 * y, y + 0 * x, x * y, 2 * x * x - 1 + 0 * y, 2 * y * y - 1 + 0 * x])
    exponent = torch.einsum("bk,kij->bij", draws[:, :5], terms) / len(terms)
    return (slices * exponent.exp().unsqueeze(1)).clamp_(0, 1)


def add_ghosts(slices: Tensor, draws: Tensor) -> Tensor:
    """Weaken every n-th line of k-space of slices [B, 1, S, S], which repeats them as ghosts.

    `draws[:, 5:8]` are n, the axis (0: rows, 1: columns) and the strength. The centre of k-space
    stays, so that the mean brightness does not change.
    """
    size_px = slices.shape[-1]
    lines = torch.fft.fftfreq(size_px, 1 / size_px, device=slices.device).round()  # 0, 1, … -1
    count, axis, strength = draws[:, 5:8].unsqueeze(2).unbind(1)  # [B, 1] each
    is_hit = (lines % count == 0) & (lines.abs() > CENTRE * size_px / 2)
    kept = 1 - strength * is_hit  # [B, S]
    across, down = (torch.where(axis == side, kept, torch.ones_like(kept)) for side in (1, 0))
    spectrum = torch.fft.fft2(slices[:, 0].float()) * down.unsqueeze(2) * across.unsqueeze(1)
    return torch.fft.ifft2(spectrum).abs().clamp_(0, 1).unsqueeze(1).to(slices.dtype)


def add_noise(slices: Tensor, draws: Tensor) -> Tensor:
    """Add Rician noise to slices [B, 1, S, S]: that of the magnitude of a complex image.

    `draws[:, 8]` is the standard deviation; `draws[:, 9:]` choose the part of a fixed tile of
    noise, so that it depends neither on the device nor on the division into micro-batches.
    """
    size_px, tile = slices.shape[-1], _draw_tile().to(slices.device)
    starts = (draws[:, 9:] * TILE_PX).long()
    steps = torch.arange(size_px, device=slices.device)
    rows, columns = ((starts[:, side, None] + steps) % TILE_PX for side in (0, 1))  # [B, S]
    real, imaginary = tile[:, rows.unsqueeze(2), columns.unsqueeze(1)].unsqueeze(2)
    deviation = draws[:, 8].view(-1, 1, 1, 1)
    return torch.hypot(slices + deviation * real, deviation * imaginary).clamp_(0, 1)


@functools.cache
def _draw_tile() -> Tensor:
    """Return normal noise [2, TILE_PX, TILE_PX], the same in every process."""
    return torch.randn(2, TILE_PX, TILE_PX, generator=torch.Generator().manual_seed(0))
