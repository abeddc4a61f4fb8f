"""Classifiers of torchvision."""

from typing import Any

import torchvision
from torch import Tensor, nn

from backbones.record import BackboneRecord

# Auxiliary heads are for training on ImageNet; without them the output is one tensor.
AUXILIARY_HEADS = ("AuxLogits", "aux1", "aux2")


def list_names() -> list[str]:
    """Return the names of all classifiers."""
    return torchvision.models.list_models(module=torchvision.models)


def read_record(name: str) -> BackboneRecord:
    """Return what torchvision states of a classifier; nothing is downloaded."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    means, stds = transforms.mean, transforms.std
    if name in {"inception_v3", "googlenet"}:  # trained on inputs scaled to -1..1
        means = stds = [0.5] * 3
    return BackboneRecord(
        native_px=int(transforms.crop_size[0]),
        means=means,
        stds=stds,
        weights=str(weights),
        file=weights.url,
        n_parameters=weights.meta["num_params"],
    )


def build(name: str, image_size: int, *, pretrained: bool) -> nn.Module:
    """Build a network for three channels and 1,000 classes, with random weights.

    Args:
        name: One of `list_names()`.
        image_size: Side of the input, px.
        pretrained: Build for ImageNet weights: at their native size, without slow initialisation.
    """
    built_for = read_record(name).native_px if pretrained else image_size
    options: dict[str, Any] = {}
    if name in {"inception_v3", "googlenet"}:
        options = {"init_weights": not pretrained, "aux_logits": True}
    if name.startswith("vit_"):
        options["image_size"] = built_for
    if name.startswith("maxvit"):
        options["input_size"] = (built_for, built_for)
    backbone = torchvision.models.get_model(name, weights=None, **options)
    if hasattr(backbone, "aux_logits"):
        backbone.aux_logits = False
        for auxiliary in AUXILIARY_HEADS:
            if hasattr(backbone, auxiliary):
                setattr(backbone, auxiliary, None)
    return backbone


def download_weights(name: str) -> dict[str, Tensor]:
    """Return the default ImageNet weights; torch downloads them once.

    Raises:
        OSError, RuntimeError: They could not be downloaded.
    """
    weights = torchvision.models.get_model_weights(name).DEFAULT
    return dict(weights.get_state_dict(progress=True, check_hash=True))
