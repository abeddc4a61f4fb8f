"""Heat maps by hand, the state of the network, and overlays."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explanation import heatmaps
from explanation.overlay import blend_heatmap
from tests.support.builders import Patch
from tests.support.toys import Toy, build, describe_state, make_images, make_pointwise

METHODS = ("integrated_gradients", "occlusion", "gradcam", "layercam")


def make_two_spots() -> Tensor:
    """A black image with a white pixel in the upper right corner and a grey one lower left."""
    images = torch.zeros(1, 1, 4, 4)
    images[0, 0, 0, 3], images[0, 0, 2, 1] = 1.0, 0.75
    return images


# ---- maps by hand


def test_gradcam_of_a_toy() -> None:
    """Channels x and 1 - x, weights 1 and -1: class 0 has 2x - 1 at each pixel, class 1 1 - 2x."""
    backbone = nn.Sequential(make_pointwise([1.0, -1.0], [0.0, 1.0]), nn.ReLU(inplace=True))
    network = Toy(backbone, [[1.0, -1.0], [-1.0, 1.0]])
    images = make_two_spots().repeat(2, 1, 1, 1)
    maps = heatmaps.compute_heatmaps(network, images, torch.tensor([0, 1]), "gradcam")
    assert torch.allclose(maps[0], (2 * images[0, 0] - 1).relu())
    assert torch.allclose(maps[1], (1 - 2 * images[1, 0]).relu())


def test_gradcam_is_clipped_before_interpolation() -> None:
    """One cell of 0.5 and three of -0.5: between their centres 1 falls to 0, not to -1."""
    backbone = nn.Sequential(make_pointwise([1.0], [-0.5]), nn.AvgPool2d(2))
    images = torch.zeros(1, 1, 4, 4)
    images[:, :, :2, :2] = 1.0
    maps = heatmaps.compute_heatmaps(Toy(backbone, [[1.0]]), images, torch.tensor([0]), "gradcam")
    fall = torch.tensor([1.0, 0.75, 0.25, 0.0])
    assert torch.allclose(maps[0], fall[:, None] * fall)


def test_gradcam_before_an_inplace_relu_function() -> None:
    """Channels x - 0.5 and 0.2 - x: the negative values of the second would give 0.67, not 0.5."""
    network = Toy(
        make_pointwise([1.0, -1.0], [-0.5, 0.2]),
        [[1.0, -1.0], [-1.0, 1.0]],
        pool=lambda features: F.relu(features, inplace=True).mean((2, 3)),
    )
    images = make_two_spots()
    maps = heatmaps.compute_heatmaps(network, images, torch.tensor([0]), "gradcam")
    assert torch.allclose(maps[0], (2 * images[0, 0] - 1).relu())


def test_layercam_of_a_toy() -> None:
    """Channels x and 1 - x with weights 1 and -1 in the left half, 3 and -3 in the right half.

    Only the channel of positive weight counts, and each place has its own weight.
    """
    places = torch.tensor([1.0, 1.0, 3.0, 3.0])
    backbone = nn.Sequential(make_pointwise([1.0, -1.0], [0.0, 1.0]), nn.ReLU(inplace=True))
    network = Toy(
        backbone, [[1.0, -1.0], [-1.0, 1.0]], lambda features: (features * places).mean((2, 3))
    )
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    places = places.repeat_interleave(2)
    maps = heatmaps.compute_heatmaps(network, images, torch.tensor([0, 1]), "layercam")
    expected = torch.stack([images[0, 0] * places, (1 - images[1, 0]) * places])
    assert torch.allclose(maps, expected / expected.amax((1, 2), keepdim=True))


def test_occlusion_of_a_toy_that_uses_one_corner() -> None:
    network = Toy(
        make_pointwise([1.0], [0.0]),
        [[5.0], [-5.0]],
        pool=lambda features: features[:, :, :4, -4:].mean((2, 3)),
    )
    images = torch.zeros(2, 1, 16, 16)
    images[:, :, :4, 12:] = 1.0  # used
    images[:, :, 10:14, 2:6] = 1.0  # not used
    maps = heatmaps.compute_heatmaps(network, images, torch.tensor([0, 1]), "occlusion")
    reached = torch.zeros(16, 16, dtype=torch.bool)
    reached[:5, 11:] = True  # patches of 2 x 2 extend one pixel beyond
    assert torch.equal(maps[0] > 0, reached)
    assert maps[0].max() == 1
    assert not maps[1].any()  # no evidence for class 1


def test_occlusion_ignores_rounding() -> None:
    network, targets = Toy(make_pointwise([1e-4], [1.0]), [[1.0]]), torch.zeros(2).long()
    assert not heatmaps.compute_heatmaps(network, make_images(2, 16), targets, "occlusion").any()


@pytest.mark.parametrize("method", METHODS)
def test_maps_do_not_depend_on_the_batch(method: str) -> None:
    network, images = build("net", 32), make_images(19, 32)
    targets = torch.arange(19) % 3
    whole = heatmaps.compute_heatmaps(network, images, targets, method)
    alone = heatmaps.compute_heatmaps(network, images[17:18], targets[17:18], method)
    assert torch.allclose(whole[17], alone[0], atol=1e-3)
    assert heatmaps.compute_heatmaps(network, images[:0], targets[:0], method).shape == (0, 32, 32)


# ---- the state of the network


@pytest.fixture
def network() -> nn.Module:
    """A network during training: one module in evaluation mode and frozen, one gradient set."""
    network = build("mobilenet_v3_small", 64).train()
    first = next(network.parameters())
    first.grad = torch.ones_like(first)
    network.get_submodule("backbone.features.0.1").eval().requires_grad_(False)
    return network


@pytest.mark.parametrize("method", METHODS)
def test_the_state_is_restored(network: nn.Module, method: str, monkeypatch: Patch) -> None:
    """Also when one of the first forward passes fails in the head."""
    images, targets = make_images(2, 64), torch.tensor([0, 1])
    before, pixels, random = describe_state(network), images.clone(), torch.get_rng_state()
    maps = heatmaps.compute_heatmaps(network, images, targets, method)
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            enabled = torch.is_grad_enabled()
            assert torch.equal(heatmaps.compute_heatmaps(network, images, targets, method), maps)
            assert torch.is_grad_enabled() == enabled
    assert describe_state(network) == before
    assert torch.equal(images, pixels)
    assert not images.requires_grad
    assert torch.equal(torch.get_rng_state(), random)

    head: nn.Module = network.head  # type: ignore[assignment]
    forward = head.forward
    for n_calls in range(1, 4):
        calls = iter(range(1, n_calls))

        def fail(features: Tensor, calls: Any = calls) -> Tensor:
            if next(calls, None) is None:
                raise RuntimeError("planted")
            return forward(features)

        with monkeypatch.context() as patch:
            patch.setattr(head, "forward", fail)
            with pytest.raises(RuntimeError, match="planted"):
                heatmaps.compute_heatmaps(network, images, targets, method)
        assert describe_state(network) == before


def test_frozen_networks_have_maps_without_warnings() -> None:
    for method in METHODS:
        network, images = build("net", 64), make_images(1, 64)
        maps = heatmaps.compute_heatmaps(network, images, torch.tensor([0]), method)
        network.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            frozen = heatmaps.compute_heatmaps(network, images, torch.tensor([0]), method)
        assert torch.equal(maps, frozen)
        assert maps.max() == 1


@pytest.mark.parametrize(
    ("shape", "targets", "method", "reason"),
    [
        ((2, 3, 32, 32), [0, 1], "occlusion", r"images must be .*not \[2, 3, 32, 32\]"),
        ((2, 1, 32, 16), [0, 1], "occlusion", r"images must be"),
        ((2, 1, 32, 32), [0], "occlusion", r"targets must be \[2\], not \[1\]"),
        ((1, 1, 32, 32), [0], "saliency", "'saliency'; choose integrated_gradients,"),
    ],
)
def test_wrong_arguments_are_refused(
    shape: tuple[int, ...], targets: list[int], method: str, reason: str
) -> None:
    network, images = build("net", 32), torch.zeros(shape)
    with pytest.raises(ValueError, match=reason):
        heatmaps.compute_heatmaps(network, images, torch.tensor(targets), method)


# ---- overlay of maps


def test_an_overlay_by_hand() -> None:
    heatmap = np.array([[0, 1]], np.float32)
    blended = blend_heatmap(np.full((1, 2), 100, np.uint8), heatmap, strength=0.5)
    # half of the grey and half of the last colour of inferno, 252, 255, 164
    assert blended.tolist() == [[[100, 100, 100], [176, 177, 132]]]
