"""Heat maps: the layer looked at, maps known by hand, the network left alone, the pointing game."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import build_net, make_config, make_slices
from torch import Tensor, nn
from torch.nn import functional as F

from assessment import explain
from model import build_model, to_unit_range

# The layer that Grad-CAM looks at, and the cells of its map: of each family at one small size.
LAYERS = [
    ("net", 96, "backbone.blocks", 3),
    ("net", 32, "backbone.blocks.5", 2),
    ("alexnet", 96, "backbone.features", 2),
    ("alexnet", 64, "backbone.features.11", 3),
    ("vgg11", 64, "backbone.features", 2),
    ("vgg11_bn", 32, "backbone.features.27", 2),
    ("resnet18", 64, "backbone.layer4", 2),
    ("resnet50", 32, "backbone.layer3", 2),
    ("resnext50_32x4d", 64, "backbone.layer4", 2),
    ("wide_resnet50_2", 64, "backbone.layer4", 2),
    ("squeezenet1_0", 64, "backbone.features", 3),
    ("squeezenet1_1", 64, "backbone.features", 3),
    ("densenet121", 64, "backbone.features", 2),
    ("googlenet", 64, "backbone.inception5b", 2),
    ("inception_v3", 107, "backbone.Mixed_7c", 2),
    ("shufflenet_v2_x0_5", 64, "backbone.conv5", 2),
    ("shufflenet_v2_x0_5", 32, "backbone.stage3", 2),
    ("mobilenet_v2", 64, "backbone.features", 2),
    ("mobilenet_v3_small", 64, "backbone.features", 2),
    ("mnasnet0_5", 64, "backbone.layers", 2),
    ("efficientnet_b0", 64, "backbone.features", 2),
    ("efficientnet_v2_s", 64, "backbone.features", 2),
    ("regnet_x_400mf", 64, "backbone.trunk_output", 2),
    ("regnet_y_400mf", 64, "backbone.trunk_output", 2),
    ("convnext_tiny", 64, "backbone.features", 2),
    ("swin_t", 64, "backbone.permute", 2),
    ("swin_v2_t", 64, "backbone.permute", 2),
    pytest.param("maxvit_t", 224, "backbone.blocks.3", 7, marks=pytest.mark.slow),
]
# A family each, where the map has 3 x 3 cells or more: one cell then hardly sees the far corner.
LARGER = [
    *[
        (name, 128)
        for name in (
            *("net", "alexnet", "vgg11", "resnet18", "resnet50", "resnext50_32x4d"),
            *("wide_resnet50_2", "squeezenet1_1", "densenet121", "googlenet"),
            *("shufflenet_v2_x0_5", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5"),
            *("efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf"),
            *("convnext_tiny", "swin_t", "swin_v2_t"),
        )
    ],
    ("inception_v3", 235),
    pytest.param("maxvit_t", 224, marks=pytest.mark.slow),
]


class Toy(nn.Module):
    """A body that gives what is pooled, and a head without bias: weights [K, C]."""

    def __init__(self, body: nn.Module, weights: list[list[float]]) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(len(weights[0]), len(weights), bias=False)
        self.head.weight.data = torch.tensor(weights)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.body(images))
        return self.head(features)

    def pool(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))


class CutToy(Toy):
    def pool(self, features: Tensor) -> Tensor:
        return F.relu(features, inplace=True).mean((2, 3))


class ShortcutToy(Toy):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.body(images)) + images.mean((2, 3)))


class LastToy(Toy):
    """Channels last, as inside a Swin transformer."""

    def pool(self, features: Tensor) -> Tensor:
        return features.mean((1, 2))


class CornerToy(Toy):
    """Sees a quarter of the upper right side alone."""

    def pool(self, features: Tensor) -> Tensor:
        quarter = features.shape[-1] // 4
        return features[:, :, :quarter, -quarter:].mean((2, 3))


def make_pointwise(slopes: list[float], offsets: list[float]) -> nn.Conv2d:
    conv = nn.Conv2d(1, len(slopes), 1)
    conv.weight.data = torch.tensor(slopes).view(-1, 1, 1, 1)
    conv.bias.data = torch.tensor(offsets)  # type: ignore[union-attr]
    return conv


def make_two_spots() -> Tensor:
    """Black, with a white pixel in the upper right corner and a grey one below the middle."""
    images = torch.zeros(1, 1, 4, 4)
    images[0, 0, 0, 3], images[0, 0, 2, 1] = 1.0, 0.75
    return images


def make_images(count: int, size_px: int) -> Tensor:
    return torch.rand(count, 1, size_px, size_px, generator=torch.Generator().manual_seed(0))


def build(name: str, size_px: int) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, 3, size_px)


# ---- the layer


@pytest.mark.parametrize(("name", "size_px", "layer", "n_cells"), LAYERS)
def test_the_layer_of_every_family(name: str, size_px: int, layer: str, n_cells: int) -> None:
    network = build(name, size_px)
    assert explain.find_spatial_layer(network, size_px) == layer
    assert explain.count_cells(network, size_px) == n_cells
    images = make_images(2, size_px)
    maps = explain.compute_heatmaps(network, images, torch.tensor([0, 2]), "gradcam")
    assert maps.shape == (2, size_px, size_px)
    assert maps.dtype == torch.float32
    assert set(maps.amax((1, 2)).tolist()) <= {0.0, 1.0}
    assert maps.min() >= 0


@pytest.mark.parametrize(("name", "size_px"), LARGER)
def test_the_layer_keeps_places(name: str, size_px: int) -> None:
    """A change in the upper right shows most in the upper right of the layer's own axes 2 and 3.

    With the channels last, or rows and columns exchanged, it would show elsewhere.
    """
    network, images = build(name, size_px).eval(), make_images(4, size_px)
    changed, quarter = images.clone(), size_px // 4
    changed[:, :, :quarter, -quarter:] = 1 - changed[:, :, :quarter, -quarter:]
    found: list[Tensor] = []
    layer = network.get_submodule(explain.find_spatial_layer(network, size_px))
    hook = layer.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    with torch.no_grad():
        network(torch.cat([images, changed]))
    hook.remove()
    before, after = found[0].split(4)
    change = (after - before).abs().mean((0, 1))  # [h, w]
    assert change.shape == (explain.count_cells(network, size_px),) * 2
    upper_left, upper_right, lower_left, lower_right = change[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert upper_right > 1.05 * max(upper_left, lower_left, lower_right)


@pytest.mark.parametrize(
    ("name", "size_px", "reason"),
    [
        ("vit_b_32", 64, r"VisionTransformer at 64 px: backbone.encoder gives \[1, 5, 768\]"),
        ("swin_t", 32, r"SwinTransformer at 32 px: backbone.features.5 gives \[1, 2, 2, 384\]"),
    ],
)
def test_tokens_are_no_map(name: str, size_px: int, reason: str) -> None:
    network = build(name, size_px)
    with pytest.raises(ValueError, match=reason):
        explain.find_spatial_layer(network, size_px)
    with pytest.raises(ValueError, match=reason):
        explain.compute_heatmaps(network, make_images(1, size_px), torch.tensor([0]), "gradcam")
    assert explain.choose_method(network) == "occlusion"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: LastToy(Channelslast(2), [[1.0, 0.0]]), r"body gives \[1, 6, 6, 2\]"),
        (lambda: Toy(make_pointwise([1.0] * 6, [0.0] * 6), [[1.0] * 6]), r"\[1, 6, 6, 6\]"),
        (lambda: ShortcutToy(make_pointwise([1.0], [0.0]), [[1.0]]), "on every way to the head"),
        (lambda: Toy(nn.AdaptiveAvgPool2d(3), [[1.0]]), "on every way to the head"),
        (lambda: Headless(nn.Identity(), [[1.0]]), "does not run its head"),
    ],
    ids=["channels last", "cube", "shortcut", "adaptive pool alone", "no head"],
)
def test_what_cannot_be_right_is_refused(make: Callable[[], nn.Module], reason: str) -> None:
    network = make()
    with pytest.raises(ValueError, match=reason):
        explain.find_spatial_layer(network, 6)
    assert explain.choose_method(network, 6) == "occlusion"


class Channelslast(nn.Module):
    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(1, n_channels)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.permute(0, 2, 3, 1))


class Headless(Toy):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@pytest.mark.parametrize(("size_px", "method"), [(96, "occlusion"), (256, "gradcam")])
def test_auto_takes_gradcam_where_cells_are_as_fine_as_patches(size_px: int, method: str) -> None:
    network = build("net", size_px)
    images = make_images(1, size_px)
    assert explain.choose_method(network) == method
    maps = explain.compute_heatmaps(network, images, torch.tensor([1]))
    assert torch.equal(maps, explain.compute_heatmaps(network, images, torch.tensor([1]), method))


# ---- maps known by hand


def test_gradcam_of_a_toy() -> None:
    """Channels x and 1 - x, weights 1 and -1: class 0 has 2x - 1 at each place, class 1 1 - 2x."""
    body = nn.Sequential(make_pointwise([1.0, -1.0], [0.0, 1.0]), nn.ReLU(inplace=True))
    network = Toy(body, [[1.0, -1.0], [-1.0, 1.0]])
    images = make_two_spots().repeat(2, 1, 1, 1)
    maps = explain.compute_heatmaps(network, images, torch.tensor([0, 1]), "gradcam")
    bright = torch.zeros(4, 4)
    bright[0, 3], bright[2, 1] = 1.0, 0.5
    assert torch.allclose(maps[0], bright)
    assert torch.allclose(maps[1], (bright == 0).float())


def test_gradcam_is_cut_before_it_is_spread() -> None:
    """Cells of 0.5 and three of -0.5: between their centres 1 falls to 0, not to -1."""
    body = nn.Sequential(make_pointwise([1.0], [-0.5]), nn.AvgPool2d(2))
    images = torch.zeros(1, 1, 4, 4)
    images[:, :, :2, :2] = 1.0
    maps = explain.compute_heatmaps(Toy(body, [[1.0]]), images, torch.tensor([0]), "gradcam")
    fall = torch.tensor([1.0, 0.75, 0.25, 0.0])
    assert torch.allclose(maps[0], fall[:, None] * fall)


def test_a_function_that_cuts_in_place_after_the_layer() -> None:
    """Channels x - 0.5 and 0.2 - x, cut at zero in place before they are pooled.

    Two cells of 16 pass the first, 14 the second: 2 (0.5) and 2 (0.25) speak for class 0. The
    negative values of the second channel, which the head never sees, would make it 0.67, not 0.5.
    """
    network = CutToy(make_pointwise([1.0, -1.0], [-0.5, 0.2]), [[1.0, -1.0], [-1.0, 1.0]])
    maps = explain.compute_heatmaps(network, make_two_spots(), torch.tensor([0]), "gradcam")
    bright = torch.zeros(1, 4, 4)
    bright[0, 0, 3], bright[0, 2, 1] = 1.0, 0.5
    assert torch.allclose(maps, bright)


def test_occlusion_of_a_toy_that_sees_one_corner() -> None:
    network = CornerToy(make_pointwise([1.0], [0.0]), [[5.0], [-5.0]])
    images = torch.zeros(2, 1, 16, 16)
    images[:, :, :4, 12:] = 1.0  # what it sees
    images[:, :, 10:14, 2:6] = 1.0  # what it does not
    maps = explain.compute_heatmaps(network, images, torch.tensor([0, 1]), "occlusion")
    reached = torch.zeros(16, 16, dtype=torch.bool)
    reached[:5, 11:] = True  # patches of 2 x 2 reach one pixel beyond
    assert torch.equal(maps[0] > 0, reached)
    assert maps[0].max() == 1
    assert not maps[1].any()  # nothing speaks for class 1


def test_occlusion_takes_rounding_for_nothing() -> None:
    network = Toy(make_pointwise([1e-4], [1.0]), [[1.0]])
    maps = explain.compute_heatmaps(network, make_images(2, 16), torch.zeros(2).long(), "occlusion")
    assert not maps.any()


@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_maps_do_not_depend_on_the_batch(method: str) -> None:
    network, images = build("net", 64), make_images(19, 64)
    targets = torch.arange(19) % 3
    whole = explain.compute_heatmaps(network, images, targets, method)
    alone = explain.compute_heatmaps(network, images[17:18], targets[17:18], method)
    assert torch.allclose(whole[17], alone[0], atol=1e-3)
    assert explain.compute_heatmaps(network, images[:0], targets[:0], method).shape == (0, 64, 64)


# ---- the network left as it was found


def describe_state(network: nn.Module) -> dict[str, Any]:
    return {
        "hooks": [
            (
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                len(module._backward_hooks),
            )
            for module in network.modules()
        ],
        "training": [module.training for module in network.modules()],
        "needs_grad": [parameter.requires_grad for parameter in network.parameters()],
        "grad": [copy.deepcopy(parameter.grad) for parameter in network.parameters()],
        "values": copy.deepcopy(network.state_dict()),
    }


def assert_same_state(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in ("hooks", "training", "needs_grad"):
        assert found[key] == expected[key], key
    for one, other in zip(found["grad"], expected["grad"], strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert all(
        torch.equal(found["values"][key], expected["values"][key]) for key in found["values"]
    )


@pytest.fixture
def used() -> nn.Module:
    """A network amid training: one part frozen and in evaluation mode, one gradient at hand."""
    network = build("mobilenet_v3_small", 64).train()
    first = next(network.parameters())
    first.grad = torch.ones_like(first)
    norm = network.get_submodule("backbone.features.0.1")
    norm.eval().requires_grad_(False)
    return network


@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_the_network_is_left_as_it_was(used: nn.Module, method: str) -> None:
    images, targets = make_images(2, 64), torch.tensor([0, 1])
    before, kept, random = describe_state(used), images.clone(), torch.get_rng_state()
    maps = explain.compute_heatmaps(used, images, targets, method)
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            enabled = torch.is_grad_enabled()
            assert torch.equal(explain.compute_heatmaps(used, images, targets, method), maps)
            assert torch.is_grad_enabled() == enabled
    assert_same_state(describe_state(used), before)
    assert torch.equal(images, kept)
    assert not images.requires_grad
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
@pytest.mark.parametrize("n_calls", [1, 2, 3, 4, 5])
def test_also_after_an_error(
    used: nn.Module, method: str, n_calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the first forward passes fails, in the head."""
    head: nn.Module = used.head  # type: ignore[assignment]
    right, calls = head.forward, []

    def fail(features: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == n_calls:
            raise RuntimeError("the head fell off")
        return right(features)

    before = describe_state(used)
    with monkeypatch.context() as patch:
        patch.setattr(head, "forward", fail)
        with pytest.raises(RuntimeError, match="fell off"):
            explain.compute_heatmaps(used, make_images(1, 64), torch.tensor([0]), method)
    assert_same_state(describe_state(used), before)


def test_frozen_networks_have_maps_too() -> None:
    network, images = build("resnet18", 64), make_images(1, 64)
    maps = explain.compute_heatmaps(network, images, torch.tensor([0]), "gradcam")
    network.requires_grad_(False)
    frozen = explain.compute_heatmaps(network, images, torch.tensor([0]), "gradcam")
    assert torch.equal(maps, frozen)
    assert maps.max() == 1


def test_nothing_is_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ("gradcam", "occlusion"):
            network = build("net", 32).requires_grad_(False)
            explain.compute_heatmaps(network, make_images(1, 32), torch.tensor([0]), method)


@pytest.mark.parametrize(
    ("shape", "targets", "method", "reason"),
    [
        ((2, 3, 32, 32), [0, 1], "auto", r"images must be \[B, 1, S, S\], not \[2, 3, 32, 32\]"),
        ((2, 1, 32, 16), [0, 1], "auto", r"images must be"),
        ((2, 1, 32, 32), [0], "auto", r"targets must be \[2\], not \[1\]"),
        ((1, 1, 32, 32), [0], "saliency", "method 'saliency'; choose gradcam, occlusion or auto"),
    ],
)
def test_wrong_arguments_are_refused(
    shape: tuple[int, ...], targets: list[int], method: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        explain.compute_heatmaps(
            build("net", 32), torch.zeros(shape), torch.tensor(targets), method
        )


# ---- tests of maps


def test_point_hits() -> None:
    maps = torch.zeros(5, 4, 4)
    masks = torch.zeros(5, 4, 4, dtype=torch.bool)
    masks[:, 1, 2] = True
    maps[0, 1, 2] = 1.0  # inside
    maps[1, 2, 1], maps[1, 1, 2] = 1.0, 0.9  # rows and columns exchanged
    maps[2, 0:3, 1:4] = 1.0  # a plateau whose centre is inside, its first cell is not
    maps[3, 1, 2], maps[3, 3, 0], maps[3, 3, 1] = 1.0, 1.0, 1.0  # two of three peaks are elsewhere
    masks[4] = True  # all of it, but the map is empty
    assert explain.point_hits(maps, masks).tolist() == [True, False, True, False, False]


def test_energy_inside() -> None:
    maps = torch.zeros(3, 2, 2)
    maps[0] = torch.tensor([[1.0, 0.5], [0.25, 0.25]])
    maps[1, 0, 0] = 1.0
    masks = torch.tensor([[True, False], [True, False]]).expand(3, 2, 2)
    assert explain.compute_energy_inside(maps, masks).tolist() == [0.625, 1.0, 0.0]


def test_random_weights_are_new_and_repeatable() -> None:
    network = build("resnet18", 64)
    network.get_buffer("backbone.bn1.running_mean").fill_(3.0)
    before = describe_state(network)
    first, again, other = (explain.randomise_weights(network, seed) for seed in (1, 1, 2))
    assert_same_state(describe_state(network), before)
    weights = [
        dict(each.named_parameters())["backbone.layer1.0.conv1.weight"]
        for each in (network, first, again, other)
    ]
    assert torch.equal(weights[1], weights[2])
    assert all(
        torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1].abs() < 0.05
        for one, two in ((weights[0], weights[1]), (weights[1], weights[3]))
    )
    assert weights[1].std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert not first.get_buffer("backbone.bn1.running_mean").any()


def test_maps_change_with_the_weights() -> None:
    """A map that stayed would show the image, not what was learnt (Adebayo et al. 2018)."""
    network, slices = build_net(make_config()), make_slices(48)
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    images = to_unit_range(slices.pixels)
    for _ in range(30):
        optimiser.zero_grad()
        F.cross_entropy(network(images), slices.labels).backward()
        optimiser.step()
    assert (network.eval()(images).argmax(1) == slices.labels).float().mean() > 0.9

    maps = [
        explain.compute_heatmaps(each, images[:12], slices.labels[:12], "occlusion")
        for each in (network, explain.randomise_weights(network, 0))
    ]
    same = [
        torch.corrcoef(torch.stack([*pair]).flatten(1))[0, 1] for pair in zip(*maps, strict=True)
    ]
    alike = torch.stack(same).nan_to_num(0)
    assert alike.mean() < 0.3
