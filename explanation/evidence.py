"""How well heat maps point at lesions, as measured, in words for reports and pages."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """Result of `experiments.pointing_game` for the default method on outlined tumours.

    Attributes:
        image_size: Side of the input of the networks, px.
        n_images: Slices of patients that the networks were not trained on.
        hit_rate: Share of the slices whose map has its maximum in the tumour.
        brightest: Share of the slices whose brightest point is in the tumour.
        centre: Share of the slices with the centre of the head in the tumour.
        not_better: Classes in which one of these two points hits as often as the map or more.
    """

    image_size: int
    n_images: int
    hit_rate: float
    brightest: float
    centre: float
    not_better: tuple[str, ...]


# By architecture. J. Cheng, brain tumor dataset, figshare, 2017;
# results/benchmarks/pointing_game_cheng.json
MEASURED = {"mobilenet_v2": Measured(160, 164, 0.665, 0.244, 0.268, ("pituitary",))}


def describe_evidence(checkpoints: Iterable[Mapping[str, Any]]) -> str:
    """State how often maps of these networks point at a tumour, or that it is not known.

    Networks with a normalisation of the slices were not measured, whatever their architecture.
    """
    names = dict.fromkeys(_name_network(checkpoint) for checkpoint in checkpoints)
    unknown = [name for name in names if name not in MEASURED]
    results = " ".join(_describe(name, measured) for name, measured in MEASURED.items())
    if not unknown:
        return results
    return f"Whether heat maps of {', '.join(unknown)} point at tumours was not measured. {results}"


def _name_network(checkpoint: Mapping[str, Any]) -> str:
    intensity = checkpoint["preprocess"]["intensity"]
    return checkpoint["model"] + ("" if intensity == "raw" else f" with --intensity {intensity}")


def _describe(model: str, measured: Measured) -> str:
    """Return the sentence of one measurement."""
    classes = " and ".join(measured.not_better)
    exception = f"; for {classes}, one of these two points was no worse" if classes else ""
    return (
        f"In a test with {model} on {measured.n_images} slices of new patients, the maximum of the "
        f"heat map was in the tumour in {measured.hit_rate:.0%} of the slices, the centre of the "
        f"head in {measured.centre:.0%} and the brightest point in {measured.brightest:.0%}"
        f"{exception}."
    )
