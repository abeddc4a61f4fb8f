"""Names, sizes and outputs of all models."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import functional

import model
from backbones import torchvision_models
from helper import UserError
from tests.support.timm_families import TIMM

FAMILIES = [
    *("net", "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s"),
    *("googlenet", "inception_v3", "maxvit_t", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1"),
    *("swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
]
# Backward nodes that torch.use_deterministic_algorithms refuses on CUDA
REFUSED = {
    *(f"Adaptive{kind}Pool{n}DBackward0" for kind in ("Avg", "Max") for n in (2, 3)),
    *(f"FractionalMaxPool{n}DBackward0" for n in (2, 3)),
    *(f"MaxUnpool{n}DBackward0" for n in (2, 3)),
    *(f"ReflectionPad{n}DBackward0" for n in (1, 2, 3)),
    *(f"Upsample{kind}2DBackward0" for kind in ("Bilinear", "Bicubic")),
    *("AvgPool3DBackward0", "GridSampler2DBackward0", "PutBackward0"),
}


def expect_usage_error(
    words: str, name: str, image_size: int, pretrained: bool = False, first_px: int | None = None
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        model.check_model(name, image_size, pretrained, first_px)
    assert caught.value.status == 2


def test_unknown_name_lists_similar_names() -> None:
    expect_usage_error(r"--model resnet81: no such model.*\bresnet18\b", "resnet81", 224)
    expect_usage_error(r"--model Net: no such model.*\bnet\b", "Net", 224)


def test_unsuitable_sizes_are_refused() -> None:
    for name, image_size, pretrained in (
        ("vit_b_16", 160, True),
        ("vit_b_16", 100, False),
        ("inception_v3", 64, False),
        ("maxvit_t", 160, True),
    ):
        expect_usage_error(rf"--image-size {image_size}: {name} ", name, image_size, pretrained)
    expect_usage_error("--first-size: alexnet .* 32 px", "alexnet", 128, first_px=32)


@pytest.mark.parametrize("name", [*FAMILIES, *TIMM])
def test_every_family_accepts_224_px(name: str) -> None:
    model.check_model(name, 224, pretrained=True, first_px=224)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["net", *(n for n in torchvision_models.list_names() if "128gf" not in n)]
)
def test_every_model_returns_one_tensor(name: str) -> None:
    network = model.build_model(name, 3, 224).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 1, 224, 224)).shape == (1, 3)


def test_auxiliary_outputs_are_removed() -> None:
    network = model.build_model("googlenet", 3, 64).train()
    assert network(torch.rand(2, 1, 64, 64)).shape == (2, 3)
    assert network.preprocess == model.Preprocess(64, 0.5, 0.5)  # trained on -1 to 1
    assert model.build_model("inception_v3", 3, 96).backbone.AuxLogits is None


def make_slices(size_px: int) -> Tensor:
    """Make random grey slices in 0..1 with a black border, as in MRI."""
    slices = torch.rand(4, 1, size_px, size_px, generator=torch.Generator().manual_seed(0))
    return nn.functional.pad(slices[..., 8:-8, 8:-8], [8, 8, 8, 8])


def normalise_three_channels(name: str, slices: Tensor) -> Tensor:
    """Return three copies of the slices, normalised as torchvision's weights require."""
    record = model.read_record(name)
    statistics = (record.means, record.stds)
    return functional.normalize(slices.expand(-1, 3, -1, -1), *statistics)


def build_both_stems(name: str, size_px: int) -> tuple[nn.Conv2d, nn.Conv2d, model.Classifier]:
    """Return the stem for three channels, the stem for one, and the network of the latter."""
    torch.manual_seed(0)
    backbone = model.build_backbone(name, size_px)
    stem, three = next(
        (part, module) for part, module in backbone.named_modules() if isinstance(module, nn.Conv2d)
    )
    if three.bias is not None:
        nn.init.normal_(three.bias)
    network = model.adapt_backbone(backbone, name, 3, size_px)
    one = network.backbone.get_submodule(stem)
    assert isinstance(one, nn.Conv2d)
    return three, one, network


@pytest.mark.parametrize(
    "name",
    [
        *("convnext_tiny", "densenet121", "efficientnet_v2_s", "googlenet", "inception_v3"),
        *("mobilenet_v2", "resnet18", "squeezenet1_1", "swin_t", "vgg11", "vit_b_32"),
        *TIMM,
    ],
)
def test_one_channel_stem_equals_three_normalised_copies(name: str) -> None:
    slices = make_slices(96)
    three, one, network = build_both_stems(name, 96)
    inputs: list[Tensor] = []
    network.backbone.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        network.eval()(slices)
        expected, found = three(normalise_three_channels(name, slices)), one(inputs[0])
    # cells whose window does not overlap the zero padding
    first = -(-int(three.padding[0]) // three.stride[0])
    inside = slice(first, found.shape[-1] - first)
    difference = (found - expected)[..., inside, inside].abs().max() / expected.std()
    assert difference < 1e-4  # float32 rounding of sums of at most 3,072 products


def test_logits_differ_by_the_zero_padding_of_the_stem_only() -> None:
    """With batch norm in evaluation mode; if the kernels are only summed, the value is 0.15."""
    torch.manual_seed(0)
    slices = make_slices(96)
    backbone = model.build_backbone("resnet18", 96)
    three = normalise_three_channels("resnet18", slices)
    with torch.no_grad():
        backbone(three)  # batch norm leaves its initial state
        expected = backbone.eval()(three)
        head = backbone.fc
        network = model.adapt_backbone(backbone, "resnet18", 3, 96)
        network.backbone.fc = head
        difference = (network(slices) - expected).abs().max() / expected.std()
    assert difference < 0.05


@pytest.mark.parametrize("name", [*FAMILIES, *TIMM])
def test_layers_without_a_deterministic_backward_are_those_of_the_graph(name: str) -> None:
    with torch.device("meta" if "regnet" not in name else "cpu"):
        network = model.build_model(name, 3, 224)
        nodes, names = [network(torch.empty(2, 1, 224, 224)).grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in names:
            names |= {node, node.name()}
            nodes += [before for before, _ in node.next_functions]
    found = model.find_nondeterministic_layers(network)
    assert found == ["backbone.avgpool (AdaptiveAvgPool2d)"] * bool(names & REFUSED)
    assert bool(found) == (name in {"alexnet", "vgg11_bn"})


def test_adaptive_pooling_to_one_cell_is_deterministic() -> None:
    layers = [nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1)), nn.AdaptiveMaxPool2d(1)]
    found = model.find_nondeterministic_layers(nn.Sequential(*layers))
    assert found == ["2 (AdaptiveMaxPool2d)"]


# ---- intensity


def standardise(slices: Tensor, intensity: str) -> Tensor:
    return model.standardise(slices, model.Preprocess(slices.shape[-1], 0.5, 0.25, intensity))


def test_raw_grey_values_are_standardised_to_the_same_bits() -> None:
    slices = (torch.arange(256) / 255).view(1, 1, 16, 16)
    assert torch.equal(standardise(slices, "raw"), (slices - 0.5) / 0.25)


def test_zscore_by_hand() -> None:
    # mean 0.25; the head are 0.5, 0.5, 0.7 and 0.3: mean 0.5, variance 0.08 / 4 = 0.02
    slices = torch.tensor([[0.0, 0, 0, 0], [0, 0.5, 0.5, 0.3], [0, 0.7, 0, 0], [0, 0, 0, 0]])
    found = standardise(slices.view(1, 1, 4, 4), "zscore")[0, 0]
    deviation = 0.02**0.5
    assert found[1, 1].item() == pytest.approx(0.0, abs=1e-6)
    assert found[2, 1].item() == pytest.approx(0.2 / deviation, rel=1e-5)
    assert found[0, 0].item() == pytest.approx(-0.5 / deviation, rel=1e-5)


def test_percentiles_by_hand() -> None:
    # 0 to 99 in steps of 1 / 100: 1st percentile 0.00 (place 0.99), mean 0.495, a head of 50
    # pixels, of which half a pixel is above the 99th percentile: 0.99
    slices = (torch.arange(100) / 100).flip(0).view(1, 1, 10, 10)
    expected = ((slices / 0.99) - 0.5) / 0.25
    torch.testing.assert_close(standardise(slices, "percentile"), expected)
    # 400 pixels: place 3 of 0 to 399 is 0.0075; a head of 200, of which two are above
    slices = (torch.arange(400) / 400).view(1, 1, 20, 20)
    low, high = 3 / 400, 397 / 400
    expected = (((slices - low) / (high - low)).clamp(0, 1) - 0.5) / 0.25
    torch.testing.assert_close(standardise(slices, "percentile"), expected)


@pytest.mark.parametrize("intensity", ["percentile", "zscore"])
def test_normalised_slices_do_not_depend_on_brightness_and_contrast(intensity: str) -> None:
    generator = torch.Generator().manual_seed(0)
    # 96 px: percentiles of every second pixel; grey levels of 8 bits, so that none is at the mean
    slices = (torch.rand(3, 1, 96, 96, generator=generator).square() * 255).round() / 255
    expected = standardise(slices, intensity)
    for scale, offset in ((0.4, 0.0), (0.5, 0.2)):
        torch.testing.assert_close(
            standardise(scale * slices + offset, intensity), expected, atol=1e-4, rtol=1e-4
        )
    for row in range(3):  # slices of a batch do not depend on each other
        torch.testing.assert_close(standardise(slices[row : row + 1], intensity)[0], expected[row])


@pytest.mark.parametrize("grey", [0.0, 1 / 255, 0.1, 0.5, 1.0])
def test_empty_slices_become_one_finite_value(grey: float) -> None:
    slices = torch.full((1, 1, 33, 33), grey)
    torch.testing.assert_close(standardise(slices, "zscore"), torch.zeros_like(slices))
    assert torch.equal(standardise(slices, "percentile"), torch.full_like(slices, -2.0))


def test_the_network_normalises_its_input() -> None:
    network = model.build_model("net", 3, 32).eval()
    slices = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    raw = network(slices)
    network.preprocess = dataclasses.replace(network.preprocess, intensity="zscore")
    assert not torch.allclose(network(slices), raw)
    torch.testing.assert_close(network(slices * 0.5), network(slices), atol=1e-4, rtol=1e-4)
