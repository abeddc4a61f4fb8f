"""The layer for Grad-CAM: of every family, with the right axes, or refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from explanation import heatmaps
from explanation.spatial_layer import find_spatial_layer
from tests.support.toys import Toy, build, make_images, make_pointwise

# network, image size, layer and cells per side of its map
LAYERS = [
    ("net", 96, "backbone.blocks", 3),
    ("net", 32, "backbone.blocks.5", 2),
    ("alexnet", 64, "backbone.features.11", 3),
    ("vgg11_bn", 32, "backbone.features.27", 2),
    ("resnet18", 64, "backbone.layer4", 2),
    ("resnet50", 32, "backbone.layer3", 2),
    ("squeezenet1_0", 64, "backbone.features", 3),
    ("densenet121", 64, "backbone.features", 2),
    ("googlenet", 64, "backbone.inception5b", 2),
    ("inception_v3", 107, "backbone.Mixed_7c", 2),
    ("shufflenet_v2_x0_5", 64, "backbone.conv5", 2),
    ("mobilenet_v2", 64, "backbone.features", 2),
    ("mobilenet_v3_small", 64, "backbone.features", 2),
    ("mnasnet0_5", 64, "backbone.layers", 2),
    ("efficientnet_b0", 64, "backbone.features", 2),
    ("regnet_y_400mf", 64, "backbone.trunk_output", 2),
    ("convnext_tiny", 64, "backbone.features", 2),
    ("swin_t", 64, "backbone.permute", 2),
    ("maxvit_t", 224, "backbone.blocks.3", 7),
]
# An image size at which the map has 3 x 3 cells or more: then one cell hardly depends on the
# opposite corner. 128 px for all others.
LARGER_PX = {"inception_v3": 235, "maxvit_t": 224}


@pytest.mark.parametrize(("name", "size_px", "layer", "n_cells"), LAYERS)
def test_the_layer_of_every_family(name: str, size_px: int, layer: str, n_cells: int) -> None:
    network = build(name, size_px)
    assert find_spatial_layer(network, size_px) == (layer, n_cells)
    images = make_images(2, size_px)
    maps = heatmaps.compute_heatmaps(network, images, torch.tensor([0, 2]), "gradcam")
    assert maps.shape == (2, size_px, size_px)
    assert maps.dtype == torch.float32
    assert set(maps.amax((1, 2)).tolist()) <= {0.0, 1.0}
    assert maps.min() >= 0
    check_axes(network.eval(), LARGER_PX.get(name, 128))


def check_axes(network: nn.Module, size_px: int) -> None:
    """Check that a change in the upper right of images is largest there in axes 2 and 3.

    With the channels last, or rows and columns exchanged, it would be elsewhere.
    """
    images = make_images(4, size_px)
    changed, quarter = images.clone(), size_px // 4
    changed[:, :, :quarter, -quarter:] = 1 - changed[:, :, :quarter, -quarter:]
    outputs: list[Tensor] = []
    name, n_cells = find_spatial_layer(network, size_px)
    layer = network.get_submodule(name)
    layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        network(torch.cat([images, changed]))
    before, after = outputs[0].split(4)
    change = (after - before).abs().mean((0, 1))  # [h, w]
    assert change.shape == (n_cells, n_cells)
    upper_left, upper_right, lower_left, lower_right = change[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert upper_right > 1.02 * max(upper_left, lower_left, lower_right)


@pytest.mark.parametrize(
    ("name", "size_px", "reason"),
    [
        ("vit_b_32", 64, r"VisionTransformer at 64 px: backbone.encoder .*\[1, 5, 768\]"),
        ("swin_t", 32, r"SwinTransformer at 32 px: backbone.features.5 .*\[1, 2, 2, 384\]"),
    ],
)
def test_tokens_are_refused(name: str, size_px: int, reason: str) -> None:
    network = build(name, size_px)
    with pytest.raises(ValueError, match=reason):
        heatmaps.compute_heatmaps(network, make_images(1, size_px), torch.tensor([0]), "gradcam")


class ShortcutToy(Toy):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.backbone(images)) + images.mean((2, 3)))


class HeadlessToy(Toy):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class ChannelsLast(nn.Module):
    """A map [B, h, w, 2], as inside a Swin transformer."""

    def forward(self, images: Tensor) -> Tensor:
        return images.permute(0, 2, 3, 1).repeat(1, 1, 1, 2)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: Toy(ChannelsLast(), [[1.0, 0.0]], lambda features: features.mean((1, 2))),
            r"\[1, 6, 6, 2\]",
        ),
        (lambda: Toy(make_pointwise([1.0] * 6, [0.0] * 6), [[1.0] * 6]), r"\[1, 6, 6, 6\]"),
        (lambda: ShortcutToy(make_pointwise([1.0], [0.0]), [[1.0]]), "every path to the head"),
        (lambda: Toy(nn.AdaptiveAvgPool2d(3), [[1.0]]), "every path to the head"),
        (lambda: HeadlessToy(nn.Identity(), [[1.0]]), "does not run its head"),
    ],
    ids=["channels last", "cube", "shortcut", "adaptive pool only", "no head"],
)
def test_unsuitable_networks_are_refused(make: Callable[[], nn.Module], reason: str) -> None:
    network = make()
    with pytest.raises(ValueError, match=reason):
        find_spatial_layer(network, 6)


@pytest.mark.parametrize(
    ("name", "size_px", "layer", "n_cells"),
    [
        ("net", 96, "backbone.blocks.3", 12),
        ("resnet18", 128, "backbone.layer3", 8),
        ("mobilenet_v2", 160, "backbone.features.14.conv.0", 10),  # before its stride
    ],
)
def test_a_layer_of_seven_cells(name: str, size_px: int, layer: str, n_cells: int) -> None:
    network = build(name, size_px)
    assert find_spatial_layer(network, size_px, 7) == (layer, n_cells)


def test_a_network_of_tokens_has_a_map() -> None:
    network, images = build("swin_t", 32), make_images(1, 32)
    assert heatmaps.compute_heatmaps(network, images, torch.tensor([0])).max() == 1
