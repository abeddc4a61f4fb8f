"""From pictures to probabilities by tensors alone: what export.py writes as one graph.

What `imaging.orientation` and `imaging.grayscale` do to a picture is done here once more to a
batch, so that a graph needs nothing of this program. The sums are of whole numbers, and the
weights of Pillow's resize have 22 binary places, which fp64 adds up without rounding: the grey
levels of the squares are the same.
"""

from typing import cast

import torch
from torch import Tensor, nn

from model import Classifier

WEIGHT_STEPS = 2.0**22
LEAST_SUM = 1e-9


class PortableClassifier(nn.Module):
    """A network with everything that is done before and after it.

    Args:
        network: In eval mode.
        temperature: The divisor of its logits.
        thresholds: For each class the least probability with which it is in a prediction set;
            None: no sets.
    """

    thresholds: Tensor | None

    def __init__(
        self, network: Classifier, temperature: float, thresholds: list[float] | None
    ) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        self.register_buffer("thresholds", None if thresholds is None else torch.tensor(thresholds))

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """uint8 [B, 1, H, W] to probabilities [B, K] and sets, where there are any, bool [B, K]."""
        squares = fit_squares(pictures.squeeze(1), self.network.preprocess.image_size)
        logits = self.network(squares.unsqueeze(1) / 255)
        probs = torch.softmax(logits / self.temperature, dim=1)
        return (probs,) if self.thresholds is None else (probs, probs >= self.thresholds)


def fit_squares(pictures: Tensor, size_px: int) -> Tensor:
    """As `imaging.orientation.fit_slice`, of each picture.

    The resize of an axis is a product with weights. Each picture has its own: of its rows or its
    columns, mirrored where the picture is to be mirrored; what becomes a row comes first.

    Args:
        pictures: uint8 [B, H, W].
        size_px: Side S of the squares.

    Returns:
        Whole numbers 0..255, fp32 [B, S, S].
    """
    height, width = pictures.shape[1:]
    longest = _take_longer(height, width)
    flip_rows, flip_columns, transpose = find_positions(pictures)
    weights = torch.cat([compute_weights(side, longest, size_px) for side in (height, width)])
    of_rows, of_columns = flip_rows.long(), 2 + flip_columns.long()
    first = weights.index_select(0, torch.where(transpose, of_rows, of_columns))
    second = weights.index_select(0, torch.where(transpose, of_columns, of_rows))
    whole = nn.functional.pad(pictures, (0, longest - width, 0, longest - height))
    whole = torch.where(_widen(transpose), whole, whole.transpose(1, 2)).double()
    # rounded in between: onnxruntime 1.20 cannot multiply what is transposed in fp64
    halfway = _round_half_up((first @ whole).transpose(1, 2))
    return _round_half_up(second @ halfway).float()


def find_positions(pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of `imaging.orientation.Position` of each picture, bool [B] each.

    Args:
        pictures: uint8 [B, H, W].
    """
    height, width = pictures.shape[1:]
    rows, columns = height // 2, width // 2
    corners = torch.stack(
        [
            torch.stack([sums[:, :columns].sum(1), sums[:, width - columns :].sum(1)], dim=1)
            for sums in (
                # 32 bits hold the sum of a column, and take half the time
                pictures[:, :rows].sum(1, dtype=torch.int32).long(),
                pictures[:, height - rows :].sum(1, dtype=torch.int32).long(),
            )
        ],
        dim=1,
    )  # [B, 2, 2]
    (top, bottom), (left, right) = corners.sum(2).unbind(1), corners.sum(1).unbind(1)
    flip_rows, flip_columns = bottom > top, right > left
    corners = torch.where(_widen(flip_rows), corners.flip(1), corners)
    corners = torch.where(_widen(flip_columns), corners.flip(2), corners)
    return flip_rows, flip_columns, corners[:, 1, 0] > corners[:, 0, 1]


def compute_weights(side: int, longest: int, size_px: int) -> Tensor:
    """What each pixel along one axis of a picture adds to each along that axis of the square.

    The triangle filter, as wide as a step from pixel to pixel of the square, but no narrower than
    one of the picture; in whole 2**-22, as Pillow has it for 8 bits. Black margins have no weights.

    Args:
        side: Pixels along the axis.
        longest: Pixels along the longer axis L.
        size_px: Side S of the square.

    Returns:
        fp64 [2, S, L]: as the axis lies, and mirrored.
    """
    length = _fit_side(side, longest, size_px)
    step = side / length
    rows = torch.arange(size_px, dtype=torch.float64) - torch.floor((size_px - length) / 2)
    centres = (rows[:, None] + 0.5) * step
    pixels = torch.arange(side, dtype=torch.float64) + 0.5
    heights = (1 - (pixels - centres).abs() / step.clamp(min=1)).clamp(min=0)
    shares = heights / heights.sum(1, keepdim=True).clamp(min=LEAST_SUM)
    is_inside = ((rows >= 0) & (rows < length)).double()
    weights = torch.floor(shares * WEIGHT_STEPS + 0.5) / WEIGHT_STEPS * is_inside[:, None]
    return nn.functional.pad(torch.stack([weights, weights.flip(1)]), (0, longest - side))


def _take_longer(height: int, width: int) -> int:
    """`max`, which would tie a graph to one of the two."""
    return cast(int, torch.sym_max(height, width))


def _fit_side(side: int, longest: int, size_px: int) -> Tensor:
    """The height or width of `imaging.grayscale.find_frame`, fp64 []."""
    scale = size_px / torch.full((), longest, dtype=torch.float64)
    return torch.round(side * scale).clamp(min=1)


def _round_half_up(values: Tensor) -> Tensor:
    return torch.floor(values + 0.5)


def _widen(each: Tensor) -> Tensor:
    """[B] to [B, 1, 1]."""
    return each[:, None, None]
