"""Random augmentation of whole batches on the device, with parameters drawn per slice."""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from args import AugmentOptions
from helper import build_generator
from loading.image_source import copy_async
from training.mri_artefacts import add_bias_field, add_ghosts, add_noise, draw_artefacts


class Augmentation:
    """Augments batches of slices by the given options.

    Flip, quarter turn, rotation, zoom and shift are one affine map, so slices are resampled once.
    All random numbers are drawn on the CPU from a given generator, so every device gets the same
    slices. Zoom, gamma and contrast are factors from 1 / (1 + x) to 1 + x.

    Source: Zhong et al. 2020, Random erasing data augmentation, for `erase`.
    """

    def __init__(self, options: AugmentOptions) -> None:
        self.options = options

    def draw(self, n_slices: int, generator: torch.Generator) -> Tensor:
        """Draw the parameters of each slice: [N, D] on the CPU.

        Columns: the six entries of the affine map, gamma, contrast, left, right, top and bottom of
        the erased box as shares of the side, and those of `draw_artefacts`.
        """
        affine = self._draw_affine(n_slices, generator)
        gamma = _draw_factor(n_slices, self.options.gamma, generator)
        contrast = _draw_factor(n_slices, self.options.contrast, generator)
        boxes = _draw_boxes(n_slices, self.options.erase, generator)
        options = self.options
        artefacts = draw_artefacts(
            n_slices, options.bias_field, options.ghosting, options.noise, generator
        )
        return torch.cat([affine, gamma, contrast, boxes, artefacts], dim=1)

    def augment(self, slices: Tensor, draws: Tensor) -> Tensor:
        """Augment each slice independently, without changing the input.

        Args:
            slices: [B, 1, S, S] in 0..1, on any device; the result has the same shape and range.
            draws: Parameters from `draw`, [B, D], on the device of the slices.
        """
        if self.is_geometric:
            grid = _build_grid(draws[:, :6], slices.shape[-1])
            mode = choose_resampling(slices.device)
            slices = F.grid_sample(slices, grid, mode=mode, align_corners=False).clamp_(0, 1)
        else:
            slices = slices.clone()  # the input is not changed
        if self.options.gamma:
            slices.pow_(draws[:, 6].view(-1, 1, 1, 1))
        if self.options.contrast:
            mean = slices.mean((2, 3), keepdim=True)
            slices.lerp_(mean, 1 - draws[:, 7].view(-1, 1, 1, 1)).clamp_(0, 1)
        boxes, artefacts = draws[:, 8:12], draws[:, 12:]
        if self.options.bias_field:
            slices = add_bias_field(slices, artefacts)
        if self.options.ghosting:
            slices = add_ghosts(slices, artefacts)
        if self.options.noise:
            slices = add_noise(slices, artefacts)
        if self.options.erase:
            slices.masked_fill_(_build_box_mask(boxes, slices.shape[-1]), 0.0)
        return slices

    @property
    def mixes(self) -> bool:
        """True if `mix` changes slices."""
        return bool(self.options.mixup or self.options.cutmix)

    def mix(
        self, slices: Tensor, targets: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Apply mixup or cutmix: mix slices in pairs, and their targets by the same weights.

        Args:
            slices: [B, 1, S, S].
            targets: Class probabilities [B, K].
            generator: Random generator on the CPU.

        Source: Zhang et al. 2018, mixup: beyond empirical risk minimization; Yun et al. 2019,
        CutMix: regularization strategy to train strong classifiers with localizable features.
        """
        alpha = self.options.mixup or self.options.cutmix
        if not alpha:
            return slices, targets
        share = _draw_beta(alpha, generator)
        partner = copy_async(torch.randperm(len(slices), generator=generator), slices.device)
        if self.options.mixup:
            slices = share * slices + (1 - share) * slices[partner]
        else:
            top, bottom, left, right = _draw_box(slices.shape[-1], 1 - share, generator)
            slices = slices.clone()
            slices[..., top:bottom, left:right] = slices[partner][..., top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / slices.shape[-1] ** 2
        return slices, share * targets + (1 - share) * targets[partner]

    @property
    def is_geometric(self) -> bool:
        """True if slices are resampled."""
        options = self.options
        sizes = (options.rotation, options.shift, options.zoom)
        return options.flip or options.quarter_turns or any(sizes)

    def _draw_affine(self, n_slices: int, generator: torch.Generator) -> Tensor:
        """Draw affine maps [B, 6], rows of 2 x 3, from output to input coordinates in -1..1."""
        options = self.options
        turns = torch.randint(4, (n_slices,), generator=generator) * float(options.quarter_turns)
        mirror = torch.randint(2, (n_slices,), generator=generator) * float(options.flip)
        tilt = _draw_symmetric(n_slices, options.rotation, generator)
        angle = turns * (math.pi / 2) + tilt * (math.pi / 180)
        scale = _draw_factor(n_slices, options.zoom, generator).squeeze(1)
        # the side is 2 long in these coordinates
        shift_x = _draw_symmetric(n_slices, 2 * options.shift, generator)
        shift_y = _draw_symmetric(n_slices, 2 * options.shift, generator)
        cosine, sine, sign = angle.cos() * scale, angle.sin() * scale, 1 - 2 * mirror
        rows = [sign * cosine, -sign * sine, shift_x, sine, cosine, shift_y]
        return torch.stack(rows, dim=1)


class EpochDraws:
    """The augmentation parameters of all slices of an epoch, drawn and copied at once.

    Args:
        augmentation: Draws the parameters.
        steps_per_epoch: Batches of an epoch.
        batch_size: Slices of a global batch, B.
        seed: Seed of the run.
        device: Device of the slices.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        steps_per_epoch: int,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._augmentation, self._seed, self._device = augmentation, seed, device
        self._shape = steps_per_epoch, batch_size
        self._epoch, self._draws = -1, torch.zeros(0)

    def take(self, step: int) -> Tensor:
        """Return the parameters of the batch of a step of the run, [B, D] on the device."""
        steps_per_epoch, batch_size = self._shape
        epoch, index = divmod(step, steps_per_epoch)
        if epoch != self._epoch:
            generator = build_generator(self._seed, "augment", epoch)
            draws = self._augmentation.draw(steps_per_epoch * batch_size, generator)
            self._epoch, self._draws = epoch, copy_async(draws, self._device)
        return self._draws.narrow(0, index * batch_size, batch_size)


@functools.cache
def choose_resampling(device: torch.device) -> str:
    """Return the interpolation of the affine map: bicubic, or bilinear where MPS lacks it.

    torch 2.10 lacks it there. Bilinear resampling blurs, so batch norm statistics of training fit
    val slices less well.
    """
    if device.type == "mps":
        pixel = torch.zeros(1, 1, 1, 1, device=device)
        grid = torch.zeros(1, 1, 1, 2, device=device)
        try:
            F.grid_sample(pixel, grid, mode="bicubic", align_corners=False)
        except RuntimeError:
            return "bilinear"
    return "bicubic"


def _build_grid(maps: Tensor, size_px: int) -> Tensor:
    """Return the sampling grid [B, S, S, 2], x and y in -1..1, of affine maps [B, 6].

    Same result as `F.affine_grid` with `align_corners=False`, but faster: columns and rows are
    added instead of multiplying matrices.
    """
    centres = (2 * torch.arange(size_px, device=maps.device) + 1) / size_px - 1
    by_column, by_row, shift = maps.view(-1, 1, 2, 3).unbind(3)  # [B, 1, 2] each
    columns = by_column * centres.view(1, -1, 1)  # [B, S, 2]
    rows = by_row * centres.view(1, -1, 1) + shift
    return columns.unsqueeze(1) + rows.unsqueeze(2)


def _draw_symmetric(n_slices: int, limit: float, generator: torch.Generator) -> Tensor:
    """Draw uniformly from -limit..limit, [B]."""
    return (torch.rand(n_slices, generator=generator) * 2 - 1) * limit


def _draw_factor(n_slices: int, limit: float, generator: torch.Generator) -> Tensor:
    """Draw log-uniformly from 1 / (1 + limit) to 1 + limit, [B, 1]."""
    return _draw_symmetric(n_slices, math.log1p(limit), generator).exp().unsqueeze(1)


def _draw_boxes(n_slices: int, share: float, generator: torch.Generator) -> Tensor:
    """Draw boxes to erase, [B, 4]: left, right, top, bottom in 0..1; a box is empty unless drawn.

    It is drawn for `share` of the slices, covers 2 to 20 % and has a side ratio of 1/3 to 3.
    """
    chosen, area, ratio, x, y = torch.rand(5, n_slices, generator=generator)
    area = (chosen < share) * (0.02 + 0.18 * area)
    ratio = ((2 * ratio - 1) * math.log(3)).exp()
    half_width, half_height = (area * ratio).sqrt() / 2, (area / ratio).sqrt() / 2
    return torch.stack([x - half_width, x + half_width, y - half_height, y + half_height], dim=1)


def _build_box_mask(boxes: Tensor, size_px: int) -> Tensor:
    """Return a mask of the pixels inside each slice's box: bool [B, 1, S, S]."""
    centres = (torch.arange(size_px, device=boxes.device) + 0.5) / size_px
    left, right, top, bottom = boxes.view(-1, 4, 1).unbind(1)  # [B, 1] each
    across = (centres > left) & (centres < right)  # [B, S]
    down = (centres > top) & (centres < bottom)
    return (down.unsqueeze(2) & across.unsqueeze(1)).unsqueeze(1)


def _draw_beta(alpha: float, generator: torch.Generator) -> float:
    """Draw from Beta(alpha, alpha); torch's own sampler accepts no generator."""
    first, second = torch._standard_gamma(torch.full((2,), alpha), generator=generator).tolist()
    return first / (first + second) if first + second > 0 else 0.5


def _draw_box(size_px: int, area: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw a square with a share of the slice's area: top, bottom, left, right, clipped."""
    half = math.sqrt(area) * size_px / 2
    row, column = (torch.rand(2, generator=generator) * size_px).tolist()
    return (
        max(0, round(row - half)),
        min(size_px, round(row + half)),
        max(0, round(column - half)),
        min(size_px, round(column + half)),
    )
