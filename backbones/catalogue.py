"""Find backbones by name, whatever library they come from."""

import difflib
import fnmatch
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from backbones import timm_models, torchvision_models
from backbones.record import BackboneRecord
from helper import UserError, log


class Library(Protocol):
    """What this package needs of a library: the functions of its module here."""

    def read_record(self, name: str) -> BackboneRecord: ...  # noqa: D102
    def build(self, name: str, image_size: int, *, pretrained: bool) -> nn.Module: ...  # noqa: D102
    def download_weights(self, name: str) -> dict[str, Tensor]: ...  # noqa: D102


def choose_library(name: str) -> Library:
    """Return the library of a backbone."""
    return timm_models if name.startswith(timm_models.PREFIX) else torchvision_models


def is_name(name: str) -> bool:
    """Return whether there is a backbone of this name.

    Raises:
        UserError: It is one of timm, which is not installed.
    """
    if name.startswith(timm_models.PREFIX):
        return timm_models.is_name(name)
    return name in torchvision_models.list_names()


def suggest(name: str) -> list[str]:
    """Return up to five names of the same library that are similar."""
    is_timm = name.startswith(timm_models.PREFIX)
    names = timm_models.list_names() if is_timm else torchvision_models.list_names()
    return difflib.get_close_matches(name, names, n=5, cutoff=0.5)


def describe_all(pattern: str) -> Iterator[str]:
    """Yield a line with parameters and usual size for each backbone that matches a pattern.

    A pattern without * and ? matches parts of names. Without a pattern, the parameters of timm's
    networks are left out, because each of them must be built to count them.
    """
    is_whole = any(letter in pattern for letter in "*?")
    wanted = pattern.lower() if is_whole else f"*{pattern.lower()}*"
    for name in torchvision_models.list_names():
        if fnmatch.fnmatchcase(name, wanted):
            yield _describe(name, torchvision_models.read_record(name))
    try:
        names = timm_models.list_names()
    except UserError as error:
        log.warning("%s", error)
        return
    for name in names:
        if fnmatch.fnmatchcase(name, wanted) or fnmatch.fnmatchcase(name, f"timm/{wanted}"):
            record = timm_models.read_record(name)
            yield _describe(name, record, count_parameters(name) if pattern else None)


def count_parameters(name: str) -> int | None:
    """Return the parameters of a classifier of 1,000 classes; None if it cannot be built."""
    library = choose_library(name)
    try:
        with torch.device("meta"):
            network = library.build(name, library.read_record(name).native_px, pretrained=False)
    except (UserError, RuntimeError, NotImplementedError, AssertionError, ValueError):
        return None
    return sum(parameter.numel() for parameter in network.parameters())


def _describe(name: str, record: BackboneRecord, n_parameters: int | None = None) -> str:
    count = n_parameters or record.n_parameters
    size = f"{count / 1e6:7.1f} M" if count else " " * 9
    weights = "" if record.weights else "  no weights"
    return f"{name:<44} {size} {record.native_px:>5} px{weights}"
