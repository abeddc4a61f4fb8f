"""Heat maps: the layer looked at, maps known by hand, the network left alone, the pointing game."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explanation import heatmaps
from model import to_unit_range
from tests.support.builders import build_net, make_config, make_slices
from tests.support.toys import (
    CornerToy,
    CutToy,
    Toy,
    build,
    make_images,
    make_pointwise,
    make_two_spots,
)

# ---- maps known by hand


def test_gradcam_of_a_toy() -> None:
    """Channels x and 1 - x, weights 1 and -1: class 0 has 2x - 1 at each place, class 1 1 - 2x."""
    body = nn.Sequential(make_pointwise([1.0, -1.0], [0.0, 1.0]), nn.ReLU(inplace=True))
    network = Toy(body, [[1.0, -1.0], [-1.0, 1.0]])
    images = make_two_spots().repeat(2, 1, 1, 1)
    maps = heatmaps.compute_heatmaps(network, images, torch.tensor([0, 1]), "gradcam")
    bright = torch.zeros(4, 4)
    bright[0, 3], bright[2, 1] = 1.0, 0.5
    assert torch.allclose(maps[0], bright)
    assert torch.allclose(maps[1], (bright == 0).float())


def test_gradcam_is_cut_before_it_is_spread() -> None:
    """Cells of 0.5 and three of -0.5: between their centres 1 falls to 0, not to -1."""
    body = nn.Sequential(make_pointwise([1.0], [-0.5]), nn.AvgPool2d(2))
    images = torch.zeros(1, 1, 4, 4)
    images[:, :, :2, :2] = 1.0
    maps = heatmaps.compute_heatmaps(Toy(body, [[1.0]]), images, torch.tensor([0]), "gradcam")
    fall = torch.tensor([1.0, 0.75, 0.25, 0.0])
    assert torch.allclose(maps[0], fall[:, None] * fall)


def test_a_function_that_cuts_in_place_after_the_layer() -> None:
    """Channels x - 0.5 and 0.2 - x, cut at zero in place before they are pooled.

    Two cells of 16 pass the first, 14 the second: 2 (0.5) and 2 (0.25) speak for class 0. The
    negative values of the second channel, which the head never sees, would make it 0.67, not 0.5.
    """
    network = CutToy(make_pointwise([1.0, -1.0], [-0.5, 0.2]), [[1.0, -1.0], [-1.0, 1.0]])
    maps = heatmaps.compute_heatmaps(network, make_two_spots(), torch.tensor([0]), "gradcam")
    bright = torch.zeros(1, 4, 4)
    bright[0, 0, 3], bright[0, 2, 1] = 1.0, 0.5
    assert torch.allclose(maps, bright)


def test_occlusion_of_a_toy_that_sees_one_corner() -> None:
    network = CornerToy(make_pointwise([1.0], [0.0]), [[5.0], [-5.0]])
    images = torch.zeros(2, 1, 16, 16)
    images[:, :, :4, 12:] = 1.0  # what it sees
    images[:, :, 10:14, 2:6] = 1.0  # what it does not
    maps = heatmaps.compute_heatmaps(network, images, torch.tensor([0, 1]), "occlusion")
    reached = torch.zeros(16, 16, dtype=torch.bool)
    reached[:5, 11:] = True  # patches of 2 x 2 reach one pixel beyond
    assert torch.equal(maps[0] > 0, reached)
    assert maps[0].max() == 1
    assert not maps[1].any()  # nothing speaks for class 1


def test_occlusion_takes_rounding_for_nothing() -> None:
    network = Toy(make_pointwise([1e-4], [1.0]), [[1.0]])
    maps = heatmaps.compute_heatmaps(
        network, make_images(2, 16), torch.zeros(2).long(), "occlusion"
    )
    assert not maps.any()


@pytest.mark.parametrize("method", ["gradcam", "occlusion"])
def test_maps_do_not_depend_on_the_batch(method: str) -> None:
    network, images = build("net", 64), make_images(19, 64)
    targets = torch.arange(19) % 3
    whole = heatmaps.compute_heatmaps(network, images, targets, method)
    alone = heatmaps.compute_heatmaps(network, images[17:18], targets[17:18], method)
    assert torch.allclose(whole[17], alone[0], atol=1e-3)
    assert heatmaps.compute_heatmaps(network, images[:0], targets[:0], method).shape == (0, 64, 64)


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
    maps = heatmaps.compute_heatmaps(used, images, targets, method)
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with context:
            enabled = torch.is_grad_enabled()
            assert torch.equal(heatmaps.compute_heatmaps(used, images, targets, method), maps)
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
            heatmaps.compute_heatmaps(used, make_images(1, 64), torch.tensor([0]), method)
    assert_same_state(describe_state(used), before)


def test_frozen_networks_have_maps_too() -> None:
    network, images = build("resnet18", 64), make_images(1, 64)
    maps = heatmaps.compute_heatmaps(network, images, torch.tensor([0]), "gradcam")
    network.requires_grad_(False)
    frozen = heatmaps.compute_heatmaps(network, images, torch.tensor([0]), "gradcam")
    assert torch.equal(maps, frozen)
    assert maps.max() == 1


def test_nothing_is_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ("gradcam", "occlusion"):
            network = build("net", 32).requires_grad_(False)
            heatmaps.compute_heatmaps(network, make_images(1, 32), torch.tensor([0]), method)


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
        heatmaps.compute_heatmaps(
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
    assert heatmaps.point_hits(maps, masks).tolist() == [True, False, True, False, False]


def test_energy_inside() -> None:
    maps = torch.zeros(3, 2, 2)
    maps[0] = torch.tensor([[1.0, 0.5], [0.25, 0.25]])
    maps[1, 0, 0] = 1.0
    masks = torch.tensor([[True, False], [True, False]]).expand(3, 2, 2)
    assert heatmaps.compute_energy_inside(maps, masks).tolist() == [0.625, 1.0, 0.0]


def test_random_weights_are_new_and_repeatable() -> None:
    network = build("resnet18", 64)
    network.get_buffer("backbone.bn1.running_mean").fill_(3.0)
    before = describe_state(network)
    first, again, other = (heatmaps.randomise_weights(network, seed) for seed in (1, 1, 2))
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
        heatmaps.compute_heatmaps(each, images[:12], slices.labels[:12], "occlusion")
        for each in (network, heatmaps.randomise_weights(network, 0))
    ]
    same = [
        torch.corrcoef(torch.stack([*pair]).flatten(1))[0, 1] for pair in zip(*maps, strict=True)
    ]
    alike = torch.stack(same).nan_to_num(0)
    assert alike.mean() < 0.3
