"""Pretrained weights: download or read them, check them and load them into a backbone."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import model
from helper import UserError, first_line


def build_initial_model(
    name: str,
    n_classes: int,
    image_size: int,
    *,
    pretrained: bool = False,
    weights: Path | None = None,
    dropout: float = 0.2,
) -> model.Classifier:
    """Build the network that training starts from.

    Args:
        name: One of `model.list_models()`.
        n_classes: K.
        image_size: Side of the slices, px.
        pretrained: Load torchvision's default ImageNet weights (torch downloads them once).
        weights: Load this local state dict instead.
        dropout: Dropout before the head of the custom network.

    Raises:
        UserError: The weights are missing or do not fit.
    """
    if name == model.CUSTOM_NET or not (pretrained or weights):
        return model.build_model(name, n_classes, image_size, dropout=dropout)
    if weights:
        state, origin = _read_state_dict(weights), str(weights)
    else:
        state, origin = _download_state_dict(name), model.get_weights_record(name).url
    backbone = model.build_backbone(name, image_size, pretrained=True)
    _load_backbone(backbone, state, origin)
    return model.adapt_backbone(backbone, name, n_classes, image_size)


def describe_start(name: str, pretrained: bool, weights: Path | None) -> str:
    """Describe the weights before training; `scratch` means random weights."""
    if weights is not None:
        return f"weights of {weights.name}"
    if name == model.CUSTOM_NET or not pretrained:
        return "scratch"
    return f"ImageNet weights {model.get_weights_record(name)}"


def load_tensors(path: Path, what: str) -> Any:
    """Load a file of tensors and plain values onto the CPU; code in it is never run.

    Raises:
        UserError: The file is missing or holds something else.
    """
    if path.is_dir():  # opening one raises another error on each system
        raise UserError(f"{what} {path}: a folder; give the file in it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that torch.save did not write
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{what} {path}: no such file") from error
    except Exception as error:
        raise UserError(
            f"{what} {path}: not readable as plain tensors (weights_only=True refuses code): "
            f"{first_line(error)}"
        ) from error


def _download_state_dict(name: str) -> dict[str, Tensor]:
    record = model.get_weights_record(name)
    try:
        return dict(record.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        file_name = record.url.rsplit("/", 1)[-1]
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"ImageNet weights of {name}: {file_name} is not in {folder} and could not be "
            f"downloaded ({first_line(error)}); put it there, or give --weights FILE or "
            "--no-pretrained"
        ) from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    state = load_tensors(path, "--weights")
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise UserError(f"--weights {path}: not a state dict (names and tensors)")
    return state


def _load_backbone(backbone: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load all weights except those of the classifier heads.

    Raises:
        UserError: Weights are missing, unexpected or of another shape; names them.
    """
    heads = tuple(f"{head}." for head in (model.find_head(backbone), *model.AUXILIARY_HEADS))
    given = {
        # torchvision's DenseNet files are older than its module names: norm.1 became norm1
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): value
        for key, value in state.items()
        if not key.startswith(heads)
    }
    own = {key: value for key, value in backbone.state_dict().items() if not key.startswith(heads)}
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    differences = {
        "missing": sorted(set(own) - set(given) - counters),
        "unexpected": sorted(set(given) - set(own)),
        "of another shape": sorted(
            f"{key} {tuple(given[key].shape)} instead of {tuple(own[key].shape)}"
            for key in set(given) & set(own)
            if given[key].shape != own[key].shape
        ),
    }
    faults = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for kind, keys in differences.items()
        if keys
    ]
    if faults:
        raise UserError(f"{origin}: not the weights of this model: {'; '.join(faults)}")
    backbone.load_state_dict({**own, **given}, strict=False)
