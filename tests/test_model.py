"""Names, sizes and outputs of all models."""

import pytest
import torch

import model
from helper import UserError

FAMILIES = [
    *("net", "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s"),
    *("googlenet", "inception_v3", "maxvit_t", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1"),
    *("swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
]


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
