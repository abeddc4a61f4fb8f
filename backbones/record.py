"""What is known of a backbone before it is built."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BackboneRecord:
    """The usual input of a backbone, and its published weights.

    Attributes:
        native_px: Side of the square input that the weights were evaluated at, px.
        means: Subtracted from each of the three channels in 0..1.
        stds: Divide the differences.
        weights: Name of the default ImageNet weights, "" without any.
        file: Their file, or the address that the library loads them from.
        n_parameters: Parameters of the classifier of 1,000 classes; None if unknown.
    """

    native_px: int
    means: list[float]
    stds: list[float]
    weights: str
    file: str
    n_parameters: int | None = None
