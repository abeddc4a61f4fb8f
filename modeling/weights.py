"""Pretrained weights: download or read them, check them and load them into a backbone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import model
from backbones.catalogue import choose_library
from helper import UserError, first_line, log
from modeling import state_dicts
from modeling.weight_files import read_weights

NATIVE_PX = 224
# Compared with a file that does not fit; the shapes of all models would take seconds.
COMMON_MODELS = (
    *(model.CUSTOM_NET, "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("wide_resnet50_2", "resnext50_32x4d", "densenet121", "densenet169", "mobilenet_v2"),
    *("mobilenet_v3_large", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_b1"),
    *("vgg11", "vgg16", "vgg16_bn", "vgg19", "alexnet", "googlenet", "inception_v3"),
    *("convnext_tiny", "swin_t", "vit_b_16", "shufflenet_v2_x1_0", "squeezenet1_1"),
)


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
        name: A name that `--model` accepts.
        n_classes: K.
        image_size: Side of the slices, px.
        pretrained: Load the default ImageNet weights, which are downloaded once.
        weights: Load this file instead; one line says what was loaded.
        dropout: Dropout before the head of the custom network.

    Raises:
        UserError: The weights are missing or do not fit.
    """
    is_custom = name == model.CUSTOM_NET
    if weights is None and (is_custom or not pretrained):
        return model.build_model(name, n_classes, image_size, dropout=dropout)
    content = _download_state_dict(name) if weights is None else read_weights(weights, "--weights")
    if is_custom:
        network = model.build_model(name, n_classes, image_size, dropout=dropout)
    else:
        backbone = model.build_backbone(name, image_size, pretrained=True)
        network = model.adapt_backbone(backbone, name, n_classes, image_size)
    origin = model.read_record(name).file if weights is None else f"--weights {weights}"
    line = _load_weights(network, name, content, origin)
    if weights is not None:
        log.info("%s: %s", origin, line)
    return network


def describe_start(name: str, pretrained: bool, weights: Path | None) -> str:
    """Describe the weights before training; `scratch` means random weights."""
    if weights is not None:
        return f"weights of {weights.name}"
    if name == model.CUSTOM_NET or not pretrained:
        return "scratch"
    return f"ImageNet weights {model.read_record(name).weights}"


def _download_state_dict(name: str) -> dict[str, Tensor]:
    record = model.read_record(name)
    if not record.weights:
        raise UserError(
            f"{name} has no published weights; give --weights FILE or --no-pretrained", status=2
        )
    try:
        return choose_library(name).download_weights(name)
    except (OSError, RuntimeError) as error:
        missing, remedy = f"{record.file} is not in the cache of timm", ""
        if record.file.startswith("http"):
            folder = Path(torch.hub.get_dir()) / "checkpoints"
            missing, remedy = (
                f"{record.file.rsplit('/', 1)[-1]} is not in {folder}",
                "put it there, or ",
            )
        raise UserError(
            f"ImageNet weights of {name}: {missing} and could not be downloaded "
            f"({first_line(error)}); {remedy}give --weights FILE or --no-pretrained"
        ) from error


def _load_weights(network: model.Classifier, name: str, content: Any, origin: str) -> str:
    """Load the backbone from the content of a file and describe what was loaded.

    Raises:
        UserError: Weights are missing, of another shape, of a larger backbone, or not finite.
    """
    target = state_dicts.Target(network, takes_colour=name != model.CUSTOM_NET)
    match = state_dicts.find_weights(content, target)
    if not match.is_whole:
        raise UserError(f"{origin}: {_describe_mismatch(name, content, match, target)}")
    wrong = [key for key, tensor in match.loaded.items() if not tensor.isfinite().all()]
    if wrong:
        raise UserError(
            f"{origin}: weights must be finite; {_shorten(wrong)} of {len(match.loaded)} tensors "
            "hold NaN or infinity; use an earlier checkpoint of that training"
        )
    loaded, stem = dict(match.loaded), target.stem
    kernel = loaded[f"{stem}weight"]
    if target.takes_colour and kernel.shape[1] == state_dicts.MAX_STEM_CHANNELS:
        bias = loaded.get(f"{stem}bias")
        folded = model.fold_stem(name, kernel.float(), None if bias is None else bias.float())
        loaded[f"{stem}weight"], loaded[f"{stem}bias"] = folded
    elif target.takes_colour and f"{stem}bias" not in loaded:
        loaded[f"{stem}bias"] = torch.zeros(len(kernel))
    state = network.backbone.state_dict()  # an OrderedDict with the versions of its modules
    state.update(loaded)
    network.backbone.load_state_dict(state)
    return _describe_match(match, target)


def _describe_match(match: state_dicts.Match, target: state_dicts.Target) -> str:
    """Return in one line what was loaded, under which names, and what was left out."""
    found = [f"key {match.key}"] if match.key else []
    found += ["layers by number"] if match.in_order else []
    found += [f"prefix {match.prefix}"] if match.prefix else []
    n_loaded, n_needed = len(target.needed & set(match.loaded)), len(target.needed)
    line = f"{n_loaded} of {n_needed} backbone tensors loaded"
    line += f" ({', '.join(found)})" if found else ""
    if target.takes_colour and match.loaded[f"{target.stem}weight"].shape[1] == 1:
        line += "; the one-channel stem as it is"
    if match.left_out:
        line += f"; left out: {_shorten(match.left_out)}"
        line += f" ({match.n_classes} classes)" if match.n_classes else ""
    if match.others:
        line += f"; not used: {_shorten(match.others)}"
    return line


def _describe_mismatch(
    name: str, content: Any, match: state_dicts.Match, target: state_dicts.Target
) -> str:
    found = state_dicts.list_state_dicts(content)
    if not found:
        keys = [str(key) for key in content] if isinstance(content, dict) else []
        return f"no state dict in it (names and tensors), but {_shorten(keys) or 'other values'}"
    n_loaded = len(target.needed & set(match.loaded))
    faults = [f"{n_loaded} of {len(target.needed)} backbone tensors agree"]
    for words, names in (
        ("missing", match.missing),
        ("of another shape", match.misshapen),
        ("of a larger or other network", match.surplus),
    ):
        faults += [f"{len(names)} {words} ({_shorten(names)})"] if names else []
    fitting = _find_architectures(content, name)
    advice = f"; it fits --model {' or '.join(fitting)}" if fitting else ""
    return f"not the weights of {name}: {'; '.join(faults)}{advice}"


def _find_architectures(content: Any, name: str) -> list[str]:
    """Return the common architectures whose names and shapes a file has."""
    fitting = []
    for each in COMMON_MODELS:
        if each == name:
            continue
        is_custom = each == model.CUSTOM_NET
        if is_custom:
            network = model.build_model(each, 2, 32)
        else:
            network = model.build_on_meta(each, NATIVE_PX, True)
        target = state_dicts.Target(network, takes_colour=not is_custom)
        if state_dicts.find_weights(content, target).is_whole:
            fitting.append(each)
    return fitting


def _shorten(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
