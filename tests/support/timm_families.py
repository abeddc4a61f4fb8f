"""One small network of five families of timm, for tests that run for every family."""

import importlib.util

import pytest

TIMM = [
    pytest.param(
        f"timm/{name}",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("timm") is None, reason="timm is not installed"
        ),
    )
    for name in (
        *("tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"),
        *("mobilenetv3_small_050", "resnet18"),
    )
]
