"""The pointing game by hand, and random weights as a sanity check of the default method."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explanation import localisation
from explanation.heatmaps import compute_heatmaps
from tests.support.toys import Toy, build, describe_state


def test_point_hits() -> None:
    maps = torch.zeros(5, 4, 4)
    masks = torch.zeros(5, 4, 4, dtype=torch.bool)
    masks[:, 1, 2] = True
    maps[0, 1, 2] = 1.0  # inside
    maps[1, 2, 1], maps[1, 1, 2] = 1.0, 0.9  # rows and columns exchanged
    maps[2, 0:3, 1:4] = 1.0  # a plateau with its centre inside and its first cell outside
    maps[3, 1, 2], maps[3, 3, 0], maps[3, 3, 1] = 1.0, 1.0, 1.0  # two of three peaks outside
    masks[4] = True  # everywhere, but the map is empty
    assert localisation.point_hits(maps, masks).tolist() == [True, False, True, False, False]


def test_energy_inside() -> None:
    maps = torch.zeros(3, 2, 2)
    maps[0] = torch.tensor([[1.0, 0.5], [0.25, 0.25]])
    maps[1, 0, 0] = 1.0
    masks = torch.tensor([[True, False], [True, False]]).expand(3, 2, 2)
    assert localisation.compute_energy_inside(maps, masks).tolist() == [0.625, 1.0, 0.0]


def test_random_weights_are_new_and_repeatable() -> None:
    network = build("resnet18", 64)
    network.get_buffer("backbone.bn1.running_mean").fill_(3.0)
    before = describe_state(network)
    first, again, other = (localisation.randomise_weights(network, seed) for seed in (1, 1, 2))
    assert describe_state(network) == before
    weights = [
        dict(each.named_parameters())["backbone.layer1.0.conv1.weight"].detach()
        for each in (network, first, again, other)
    ]
    assert torch.equal(weights[1], weights[2])
    correlations = torch.corrcoef(torch.stack([weights[0], weights[1], weights[3]]).flatten(1))
    assert (correlations.abs().triu(1) < 0.05).all()
    assert weights[1].std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert not first.get_buffer("backbone.bn1.running_mean").any()


def make_gratings(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with one patch of 8 px in a random place, striped across (class 0) or down (class 1).

    A brighter plain patch elsewhere is not related to the class.
    """
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.rand(count, 1, 32, 32, generator=generator)
    labels = torch.arange(count) % 2
    masks = torch.zeros(count, 32, 32, dtype=torch.bool)
    stripes = torch.tensor([0.0, 0.8]).repeat(4)
    for image, label, mask in zip(images, labels, masks, strict=True):
        row, plain_row = (int(torch.randint(25, (1,), generator=generator)) for _ in range(2))
        left, right = (int(torch.randint(9, (1,), generator=generator)) for _ in range(2))
        swap = bool(torch.randint(2, (1,), generator=generator))
        column, plain_column = (left, 16 + right) if swap else (16 + right, left)
        image[0, plain_row : plain_row + 8, plain_column : plain_column + 8] = 1.0
        patch = stripes[:, None].expand(8, 8)
        image[0, row : row + 8, column : column + 8] = patch.T if label else patch
        mask[row : row + 8, column : column + 8] = True
    return images, labels, masks


def test_maps_point_at_what_a_network_has_learnt() -> None:
    """Trained on the stripes, its maps find them; those of random weights do not."""
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
    )
    network = Toy(
        backbone, [[0.3, -0.3] * 8, [-0.3, 0.3] * 8], lambda features: features.amax((2, 3))
    )
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    images, labels, _ = make_gratings(128, seed=1)
    for _ in range(40):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels, masks = make_gratings(40, seed=2)
    assert torch.equal(network(images).argmax(1), labels)
    random = localisation.randomise_weights(network, 0)
    energy, random_energy = (
        localisation.compute_energy_inside(compute_heatmaps(each, images, labels), masks).mean()
        for each in (network, random)
    )
    assert energy > 0.4
    assert random_energy < 0.2
    assert masks.float().mean() == 0.0625  # a uniform map
