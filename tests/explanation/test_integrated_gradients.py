"""Integrated gradients: by hand, complete, equal to another implementation, for every network."""

import dataclasses
import math

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from args import INTENSITIES
from explanation.heatmaps import compute_heatmaps
from explanation.integrated_gradients import compute_integrated_gradients, integrate_gradients
from model import standardise
from tests.support.timm_families import TIMM
from tests.support.toys import Toy, build, make_images, make_pointwise


def build_patch_reader() -> Toy:
    """Logits 5 m and -5 m of the mean m of the upper right corner of 4 x 4 px."""
    return Toy(
        make_pointwise([1.0], [0.0]),
        [[5.0], [-5.0]],
        pool=lambda features: features[:, :, :4, -4:].mean((2, 3)),
    )


def test_a_class_that_depends_on_one_patch() -> None:
    """Class 0 has log p = log sigmoid(10 m); each pixel of the patch adds its share of m."""
    images = make_images(1, 16)
    patch = images[0, 0, :4, -4:]
    mean = patch.mean().item()
    for target, sign in ((0, 1), (1, -1)):
        [found] = integrate_gradients(build_patch_reader(), images, torch.tensor([target]), 200)
        gain = math.log(2) - math.log1p(math.exp(-sign * 10 * mean))
        expected = torch.zeros(16, 16)
        expected[:4, -4:] = gain * patch / patch.sum()
        assert torch.allclose(found, expected, atol=1e-4)
    maps = compute_heatmaps(build_patch_reader(), images.repeat(2, 1, 1, 1), torch.tensor([0, 1]))
    assert maps[0].max() == 1
    assert not maps[0, 6:].any()  # the Gaussian of 0.25 px reaches one pixel
    assert not maps[1].any()  # nothing speaks for class 1


def test_smoothing_by_hand() -> None:
    """One bright pixel at 64 px: a Gaussian of 1 px."""
    network = Toy(make_pointwise([1.0], [0.0]), [[1.0], [-1.0]])
    images = torch.zeros(1, 1, 64, 64)
    images[0, 0, 20, 30] = 1.0
    [found] = compute_integrated_gradients(network, images, torch.tensor([0]))
    relative = found / found.max()
    assert relative[20, 30] == 1
    for row, column in ((21, 30), (20, 29)):
        assert relative[row, column].item() == pytest.approx(math.exp(-0.5), rel=1e-4)
    assert relative[22, 31].item() == pytest.approx(math.exp(-2.5), rel=1e-4)
    [plain] = integrate_gradients(network, images, torch.tensor([0]))
    assert found.sum().item() == pytest.approx(plain.sum().item(), rel=1e-4)


@pytest.mark.parametrize("name", ["net", "resnet18", *TIMM])
def test_completeness_and_agreement_with_captum(name: str) -> None:
    # in fp64: rounding moves a step to the other side of a kink of ReLU6
    network, images = build(name, 64).eval().double(), make_images(2, 64).double()
    targets = torch.tensor([0, 2])

    def score(batch: Tensor) -> Tensor:
        return network(batch).log_softmax(1)

    found = integrate_gradients(network, images, targets, 64)
    with torch.no_grad():
        rows = torch.arange(2)
        gain = (score(images) - score(torch.zeros_like(images)))[rows, targets]
    spread = found.abs().sum((1, 2))
    assert ((found.sum((1, 2)) - gain).abs() < 0.01 * spread + 1e-5).all()
    black, whole = (
        standardise(each, network.preprocess) for each in (torch.zeros_like(images), images)
    )
    other = IntegratedGradients(lambda batch: network.backbone(batch).log_softmax(1)).attribute(
        whole, baselines=black, target=targets, n_steps=64, method="riemann_middle"
    )
    assert torch.allclose(found, other[:, 0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("intensity", INTENSITIES)
def test_normalisation_of_the_slices_does_not_undo_the_path(intensity: str) -> None:
    """The map adds up to the gain over black, and does not depend on the gain of the slice."""
    network, images = build("net", 64).eval(), make_images(2, 64)
    images[:, :, :8] = 0.0  # air
    network.preprocess = dataclasses.replace(network.preprocess, intensity=intensity)
    targets = torch.tensor([0, 2])
    with torch.no_grad():
        whole = standardise(images, network.preprocess)
        black = whole[:, :, :1, :1].expand_as(whole)
        logits = [network.backbone(each).log_softmax(1) for each in (whole, black)]
    gain = (logits[0] - logits[1])[torch.arange(2), targets]
    assert gain.abs().min() > 0.01
    found = integrate_gradients(network, images, targets, 64)
    spread = found.abs().sum((1, 2))
    assert ((found.sum((1, 2)) - gain).abs() < 0.01 * spread + 1e-5).all()
    if intensity != "raw":
        darker = integrate_gradients(network, images * 0.5, targets, 64)
        assert torch.allclose(darker, found, atol=0.02 * found.abs().max().item())


def test_a_batch_and_a_repetition_give_the_same_map() -> None:
    network, images = build("net", 64).eval(), make_images(3, 64)
    targets = torch.tensor([0, 1, 2])
    maps = compute_heatmaps(network, images, targets)
    assert torch.equal(compute_heatmaps(network, images, targets), maps)
    alone = compute_heatmaps(network, images[1:2], targets[1:2])
    assert torch.allclose(alone[0], maps[1], atol=1e-3)
