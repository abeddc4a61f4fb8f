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

    Source: Zhong et al. 2020, Random erasing data augmentation, for the box.

    Attributes:
        flip: Mirror half of the slices.
        quarter_turns: Turn by 0, 90, 180 or 270 degrees.
        rotation: Further turn, up to this many degrees either way.
        shift: Shift along each axis, up to this share of the side.
        zoom: Zoom in or out, up to this share.
        gamma: Gamma within 1 / (1 + gamma) to 1 + gamma.
        contrast: Contrast about the slice's mean, within 1 / (1 + contrast) to 1 + contrast.
        erase: Share of the slices in which a box of 2 to 20 % is blanked.
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
    erase: float
    mixup: float
    cutmix: float

    def draw(self, n_slices: int, generator: torch.Generator) -> Tensor:
        """What happens to each slice of a batch: [B, 12], on the CPU.

        Columns: the six entries of the affine map, gamma, contrast, and left, right, top and bottom
        of the box that is blanked, as shares of the side. One table is one copy to the device.
        """
        affine = self._draw_affine(n_slices, generator)
        gamma = _draw_factor(n_slices, self.gamma, generator)
        contrast = _draw_factor(n_slices, self.contrast, generator)
        boxes = _draw_boxes(n_slices, self.erase, generator)
        return torch.cat([affine, gamma, contrast, boxes], dim=1)

    def augment(self, slices: Tensor, draws: Tensor) -> Tensor:
        """Change each slice by itself: [B, 1, S, S] in 0..1 to the same shape and range.

        Args:
            slices: On any device.
            draws: Of `draw`, [B, 12].
        """
        draws = _to_device(draws, slices.device)
        if self._moves():
            grid = _build_grid(draws[:, :6], slices.shape[-1])
            # bilinear would blur, and batch norm's statistics would not be those of val
            slices = F.grid_sample(slices, grid, mode="bicubic", align_corners=False).clamp_(0, 1)
        else:
            slices = slices.clone()  # what is handed in stays as it is
        if self.gamma:
            slices.pow_(draws[:, 6].view(-1, 1, 1, 1))
        if self.contrast:
            mean = slices.mean((2, 3), keepdim=True)
            slices.lerp_(mean, 1 - draws[:, 7].view(-1, 1, 1, 1)).clamp_(0, 1)
        if self.erase:
            slices.masked_fill_(_cover(draws[:, 8:], slices.shape[-1]), 0.0)
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
        partner = _to_device(torch.randperm(len(slices), generator=generator), slices.device)
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
        """Maps [B, 6], rows of 2 x 3, from output to input coordinates, both in -1..1."""
        turns = torch.randint(4, (n_slices,), generator=generator) * float(self.quarter_turns)
        mirror = torch.randint(2, (n_slices,), generator=generator) * float(self.flip)
        tilt = _draw_symmetric(n_slices, self.rotation, generator)
        angle = turns * (math.pi / 2) + tilt * (math.pi / 180)
        scale = _draw_factor(n_slices, self.zoom, generator).squeeze(1)
        # the side spans 2 in these coordinates
        shift_x = _draw_symmetric(n_slices, 2 * self.shift, generator)
        shift_y = _draw_symmetric(n_slices, 2 * self.shift, generator)
        cosine, sine, sign = angle.cos() * scale, angle.sin() * scale, 1 - 2 * mirror
        rows = [sign * cosine, -sign * sine, shift_x, sine, cosine, shift_y]
        return torch.stack(rows, dim=1)


def _build_grid(maps: Tensor, size_px: int) -> Tensor:
    """Where each pixel comes from: [B, S, S, 2], x and y in -1..1.

    As `F.affine_grid` with `align_corners=False`, in one sum of what columns and rows contribute
    instead of a product of matrices.

    Args:
        maps: Affine maps [B, 6], rows of 2 x 3.
        size_px: S.
    """
    centres = (2 * torch.arange(size_px, device=maps.device) + 1) / size_px - 1
    by_column, by_row, shift = maps.view(-1, 1, 2, 3).unbind(3)  # [B, 1, 2] each
    columns = by_column * centres.view(1, -1, 1)  # [B, S, 2]
    rows = by_row * centres.view(1, -1, 1) + shift
    return columns.unsqueeze(1) + rows.unsqueeze(2)


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU on the device, without waiting for what the device is doing."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _draw_symmetric(n_slices: int, limit: float, generator: torch.Generator) -> Tensor:
    """Uniform in -limit..limit, [B]."""
    return (torch.rand(n_slices, generator=generator) * 2 - 1) * limit


def _draw_factor(n_slices: int, limit: float, generator: torch.Generator) -> Tensor:
    """Log-uniform in 1 / (1 + limit) to 1 + limit, [B, 1]: up is as likely as down."""
    return _draw_symmetric(n_slices, math.log1p(limit), generator).exp().unsqueeze(1)


def _draw_boxes(n_slices: int, share: float, generator: torch.Generator) -> Tensor:
    """Boxes to blank, [B, 4]: left, right, top, bottom in 0..1; most of no width at a low share.

    A box takes 2 to 20 % of the slice, its sides in a ratio of 1/3 to 3.
    """
    chosen, area, ratio, x, y = torch.rand(5, n_slices, generator=generator)
    area = (chosen < share) * (0.02 + 0.18 * area)
    ratio = ((2 * ratio - 1) * math.log(3)).exp()
    half_width, half_height = (area * ratio).sqrt() / 2, (area / ratio).sqrt() / 2
    return torch.stack([x - half_width, x + half_width, y - half_height, y + half_height], dim=1)


def _cover(boxes: Tensor, size_px: int) -> Tensor:
    """Which pixels lie in the slices' boxes: bool [B, 1, S, S]."""
    centres = (torch.arange(size_px, device=boxes.device) + 0.5) / size_px
    left, right, top, bottom = boxes.view(-1, 4, 1).unbind(1)  # [B, 1] each
    across = (centres > left) & (centres < right)  # [B, S]
    down = (centres > top) & (centres < bottom)
    return (down.unsqueeze(2) & across.unsqueeze(1)).unsqueeze(1)


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
