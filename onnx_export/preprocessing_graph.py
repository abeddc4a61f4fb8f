"""Preprocessing, networks and calibration as one graph of tensor operations.

It repeats `imaging.orientation` and `imaging.grayscale` for a batch. Orientation sums are integers,
and the weights of Pillow's resize have 22 fractional bits, which fp64 adds exactly: the grey levels
of the squares are identical.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from model import Classifier

WEIGHT_STEPS = 2.0**22
MIN_SUM = 1e-9


class PreprocessingGraph(nn.Module):
    """Networks with their preprocessing and calibration; their probabilities are averaged.

    Args:
        networks: In eval mode.
        temperature: Divisor of the logits, one for all networks or one for each.
        thresholds: For each class the least probability in a prediction set; None: no sets.
    """

    thresholds: Tensor | None

    def __init__(
        self,
        networks: Sequence[Classifier],
        temperature: float | Sequence[float],
        thresholds: list[float] | None,
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.sizes_px = [network.preprocess.image_size for network in networks]
        self.temperatures = np.broadcast_to(temperature, len(networks)).tolist()
        self.register_buffer("thresholds", None if thresholds is None else torch.tensor(thresholds))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map uint8 [B, 1, H, W] to probabilities [B, K] and, if any, sets as bool [B, K]."""
        squares = {
            size_px: orient_and_letterbox_batch(images.squeeze(1), size_px).unsqueeze(1) / 255
            for size_px in sorted(set(self.sizes_px))
        }
        parts = [
            torch.softmax(network(squares[size_px]) / temperature, dim=1)
            for network, size_px, temperature in zip(
                self.networks, self.sizes_px, self.temperatures, strict=True
            )
        ]
        probs = torch.stack(parts).mean(dim=0) if len(parts) > 1 else parts[0]
        return (probs,) if self.thresholds is None else (probs, probs >= self.thresholds)


def orient_and_letterbox_batch(images: Tensor, size_px: int) -> Tensor:
    """Apply `imaging.orientation.orient_and_letterbox` to each image.

    The resize of an axis is a product with a weight matrix. Each image selects its matrices by its
    orientation: for rows or columns, mirrored or not. The axis that becomes the rows comes first.

    Args:
        images: uint8 [B, H, W].
        size_px: Side S of the squares.

    Returns:
        Integers 0..255 as fp32 [B, S, S].
    """
    height, width = images.shape[1:]
    longest = _max_side(height, width)
    flip_rows, flip_columns, transpose = find_orientations(images)
    weights = torch.cat([compute_weights(side, longest, size_px) for side in (height, width)])
    row_index, column_index = flip_rows.long(), 2 + flip_columns.long()
    first = weights.index_select(0, torch.where(transpose, row_index, column_index))
    second = weights.index_select(0, torch.where(transpose, column_index, row_index))
    padded = nn.functional.pad(images, (0, longest - width, 0, longest - height))
    padded = torch.where(_expand(transpose), padded, padded.transpose(1, 2)).double()
    # round between transpose and product: onnxruntime 1.20 cannot multiply a transposed fp64 matrix
    halfway = _round_half_up((first @ padded).transpose(1, 2))
    return _round_half_up(second @ halfway).float()


def find_orientations(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the fields of `imaging.orientation.Orientation` of each image, bool [B] each.

    Args:
        images: uint8 [B, H, W].
    """
    height, width = images.shape[1:]
    rows, columns = height // 2, width // 2
    corners = torch.stack(
        [
            torch.stack([sums[:, :columns].sum(1), sums[:, width - columns :].sum(1)], dim=1)
            for sums in (
                # int32 holds the sum of a column and takes half the time
                images[:, :rows].sum(1, dtype=torch.int32).long(),
                images[:, height - rows :].sum(1, dtype=torch.int32).long(),
            )
        ],
        dim=1,
    )  # [B, 2, 2]
    (top, bottom), (left, right) = corners.sum(2).unbind(1), corners.sum(1).unbind(1)
    flip_rows, flip_columns = bottom > top, right > left
    corners = torch.where(_expand(flip_rows), corners.flip(1), corners)
    corners = torch.where(_expand(flip_columns), corners.flip(2), corners)
    return flip_rows, flip_columns, corners[:, 1, 0] > corners[:, 0, 1]


def compute_weights(side: int, longest: int, size_px: int) -> Tensor:
    """Return the weight of each pixel along an image axis in each pixel of the square.

    Pillow's triangle filter: as wide as a pixel of the square or of the image, whichever is larger;
    weights are multiples of 2**-22. Rows of the black margin have no weights.

    Args:
        side: Pixels along the axis.
        longest: Pixels along the longer axis, L.
        size_px: Side S of the square.

    Returns:
        fp64 [2, S, L]: for the axis as it is, and mirrored.
    """
    length = _scale_side(side, longest, size_px)
    step = side / length
    rows = torch.arange(size_px, dtype=torch.float64) - torch.floor((size_px - length) / 2)
    centres = (rows[:, None] + 0.5) * step
    pixels = torch.arange(side, dtype=torch.float64) + 0.5
    triangle = (1 - (pixels - centres).abs() / step.clamp(min=1)).clamp(min=0)
    normalised = triangle / triangle.sum(1, keepdim=True).clamp(min=MIN_SUM)
    is_inside = ((rows >= 0) & (rows < length)).double()
    weights = torch.floor(normalised * WEIGHT_STEPS + 0.5) / WEIGHT_STEPS * is_inside[:, None]
    return nn.functional.pad(torch.stack([weights, weights.flip(1)]), (0, longest - side))


def _max_side(height: int, width: int) -> int:
    """Return the maximum; Python's `max` would fix the traced graph to one of the two."""
    return cast(int, torch.sym_max(height, width))


def _scale_side(side: int, longest: int, size_px: int) -> Tensor:
    """Return a side of the letterboxed image as `imaging.grayscale.find_letterbox`, fp64 []."""
    scale = size_px / torch.full((), longest, dtype=torch.float64)
    return torch.round(side * scale).clamp(min=1)


def _round_half_up(values: Tensor) -> Tensor:
    return torch.floor(values + 0.5)


def _expand(flags: Tensor) -> Tensor:
    """Reshape [B] to [B, 1, 1]."""
    return flags[:, None, None]
