"""Names, sizes and outputs of all models."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import functional

import model
from helper import UserError

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


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_accepts_224_px(name: str) -> None:
    model.check_model(name, 224, pretrained=True, first_px=224)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in model.list_models() if "128gf" not in n])
def test_every_model_returns_one_tensor(name: str) -> None:
    network = model.build_model(name, 3, 224).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 1, 224, 224)).shape == (1, 3)


def test_all_classifiers_of_torchvision_are_listed() -> None:
    assert len(model.list_models()) >= 81
    assert model.list_models()[0] == "net"


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
    record = model.get_weights_record(name).transforms()
    statistics = (record.mean, record.std)
    if name in {"googlenet", "inception_v3"}:  # their own code rescales to -1..1
        statistics = ([0.5] * 3, [0.5] * 3)
    return functional.normalize(slices.expand(-1, 3, -1, -1), *statistics)


def build_both_stems(name: str, size_px: int) -> tuple[nn.Conv2d, nn.Conv2d, model.Classifier]:
    """Return the stem for three channels, the stem for one, and the network of the latter."""
    torch.manual_seed(0)
    backbone = model.build_backbone(name, size_px)
    stem, three = next(
        (part, module) for part, module in backbone.named_modules() if type(module) is nn.Conv2d
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


@pytest.mark.parametrize("name", FAMILIES)
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
