"""Random changes of whole batches of slices, on the device, with parameters drawn an image."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """Which changes, and how far they go; each slice of a batch draws its own.

    Geometry is one resampling: flip, quarter turn, small turn, zoom and shift are one affine map.
    Every draw is made on the CPU from the generator that is handed in, so that all devices see the
    same slices.

    Attributes:
        flip: Mirror half of the slices.
        quarter_turns: Turn by 0, 90, 180 or 270 degrees.
        rotation: Further turn, up to this many degrees either way.
        shift: Shift along each axis, up to this share of the side.
        zoom: Zoom in or out, up to this share.
        gamma: Gamma within 1 / (1 + gamma) to 1 + gamma.
        contrast: Contrast about the slice's mean, within 1 / (1 + contrast) to 1 + contrast.
        mixup: Alpha of the Beta distribution of mixup; 0 mixes nothing.
        cutmix: Alpha of the Beta distribution of cutmix; 0 mixes nothing.
    """

    flip: bool
    quarter_turns: bool
    rotation: float
    shift: float
    zoom: float
    gamma: float
    contrast: float
    mixup: float
    cutmix: float

    def augment(self, slices: Tensor, generator: torch.Generator) -> Tensor:
        """Change each slice by itself: [B, 1, S, S] in 0..1 to the same shape and range."""
        n_slices = len(slices)
        affine = self._draw_affine(n_slices, generator)
        gamma = _draw_factor(n_slices, self.gamma, generator)
        contrast = _draw_factor(n_slices, self.contrast, generator)

        if self._moves():
            grid = F.affine_grid(affine.to(slices.device), list(slices.shape), align_corners=False)
            # bilinear would blur, and batch norm's statistics would not be those of val
            slices = F.grid_sample(slices, grid, mode="bicubic", align_corners=False).clamp(0, 1)
        if self.gamma:
            slices = slices.pow(gamma.to(slices.device))
        if self.contrast:
            mean = slices.mean((2, 3), keepdim=True)
            slices = ((slices - mean) * contrast.to(slices.device) + mean).clamp(0, 1)
        return slices

    def mix(
        self, slices: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mix each slice with another of the batch, and the targets in the same share.

        Args:
            slices: [B, 1, S, S].
            targets: Class probabilities [B, K].
            generator: On the CPU.

        Source: Zhang et al. 2018, mixup: beyond empirical risk minimization; Yun et al. 2019,
        CutMix: regularization strategy to train strong classifiers with localizable features.
        """
        alpha = self.mixup or self.cutmix
        if not alpha:
            return slices, targets
        share = _draw_beta(alpha, generator)
        partner = torch.randperm(len(slices), generator=generator).to(slices.device)
        if self.mixup:
            slices = share * slices + (1 - share) * slices[partner]
        else:
            top, bottom, left, right = _draw_box(slices.shape[-1], 1 - share, generator)
            slices = slices.clone()
            slices[..., top:bottom, left:right] = slices[partner][..., top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / slices.shape[-1] ** 2
        return slices, share * targets + (1 - share) * targets[partner]

    def _moves(self) -> bool:
        return bool(self.flip or self.quarter_turns or self.rotation or self.shift or self.zoom)

    def _draw_affine(self, n_slices: int, generator: torch.Generator) -> Tensor:
        """Maps [B, 2, 3] from output to input coordinates, both in -1..1."""
        turns = torch.randint(4, (n_slices,), generator=generator) * float(self.quarter_turns)
        mirror = torch.randint(2, (n_slices,), generator=generator) * float(self.flip)
        tilt = _draw_symmetric(n_slices, self.rotation, generator)
        angle = turns * (math.pi / 2) + tilt * (math.pi / 180)
        scale = _draw_factor(n_slices, self.zoom, generator).flatten()
        # the side spans 2 in these coordinates
        shift_x = _draw_symmetric(n_slices, 2 * self.shift, generator)
        shift_y = _draw_symmetric(n_slices, 2 * self.shift, generator)
        cosine, sine, sign = angle.cos() * scale, angle.sin() * scale, 1 - 2 * mirror
        rows = [sign * cosine, -sign * sine, shift_x, sine, cosine, shift_y]
        return torch.stack(rows, dim=1).view(n_slices, 2, 3)


def _draw_symmetric(n_slices: int, limit: float, generator: torch.Generator) -> Tensor:
    """Uniform in -limit..limit, [B]."""
    return (torch.rand(n_slices, generator=generator) * 2 - 1) * limit


def _draw_factor(n_slices: int, limit: float, generator: torch.Generator) -> Tensor:
    """Log-uniform in 1 / (1 + limit) to 1 + limit, [B, 1, 1, 1]: up is as likely as down."""
    return _draw_symmetric(n_slices, math.log1p(limit), generator).exp().view(-1, 1, 1, 1)


def _draw_beta(alpha: float, generator: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha); torch's own sampler takes no generator."""
    first, second = torch._standard_gamma(torch.full((2,), alpha), generator=generator).tolist()
    return first / (first + second) if first + second > 0 else 0.5


def _draw_box(size_px: int, area: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """A square of a share of the slice: top, bottom, left, right, cut at the border."""
    half = math.sqrt(area) * size_px / 2
    row, column = (torch.rand(2, generator=generator) * size_px).tolist()
    return (
        max(0, round(row - half)),
        min(size_px, round(row + half)),
        max(0, round(column - half)),
        min(size_px, round(column + half)),
    )
