"""Names, sizes, stems, weights, checkpoints, inference."""

import pickle
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import model
from helper import UserError
from modeling import checkpoint
from tests.support.builders import make_config

FAMILIES = [
    *("net", "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s"),
    *("googlenet", "inception_v3", "maxvit_t", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1"),
    *("swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
]


def make_checkpoint(network: model.Classifier, name: str) -> dict[str, Any]:
    return {
        **model.describe_model(name, network, ["a", "b", "c"]),
        "config": make_config().to_dict(),
        "weights": network.state_dict(),
    }


# ---- names and sizes


@pytest.mark.parametrize(("wrong", "near"), [("resnet81", "resnet18"), ("Net", "net")])
def test_a_wrong_name_lists_near_ones(wrong: str, near: str) -> None:
    with pytest.raises(UserError, match=rf"--model {wrong}: no such model.*\b{near}\b") as caught:
        model.check_model(wrong, 224, False)
    assert caught.value.status == 2


@pytest.mark.parametrize(
    ("name", "image_size", "pretrained"),
    [
        ("vit_b_16", 160, True),
        ("vit_b_16", 100, False),
        ("inception_v3", 64, False),
        ("maxvit_t", 160, True),
    ],
)
def test_a_size_that_does_not_fit_is_refused(name: str, image_size: int, pretrained: bool) -> None:
    with pytest.raises(UserError, match=rf"--image-size {image_size}: {name} ") as caught:
        model.check_model(name, image_size, pretrained)
    assert caught.value.status == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_its_usual_size(name: str) -> None:
    model.check_model(name, 224, False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in model.list_models() if "128gf" not in n])
def test_every_model_gives_one_tensor(name: str) -> None:
    network = model.build_model(name, 3, 224).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 1, 224, 224)).shape == (1, 3)


def test_torchvision_has_eighty_classifiers() -> None:
    assert len(model.list_models()) >= 81
    assert model.list_models()[0] == "net"


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_auxiliary_outputs_are_gone_in_training_too(name: str) -> None:
    network = model.build_model(name, 3, 96).train()
    assert network(torch.rand(2, 1, 96, 96)).shape == (2, 3)


# ---- stems


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_one_channel_equals_the_grey_slice_thrice(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    colour = torchvision.models.get_model(name).eval()
    torch.save(colour.state_dict(), tmp_path / "w.pth")
    network = model.build_model(name, 3, 64, weights=tmp_path / "w.pth").eval()
    grey = torch.rand(2, 1, 64, 64)
    caught: list[torch.Tensor] = []
    head = colour.get_submodule(network.head_name)
    head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        normalised = (grey - network.preprocess.mean) / network.preprocess.std
        colour(normalised.expand(-1, 3, -1, -1))
    embeddings = model.infer(network, [(grey * 255).round().to(torch.uint8)])[1]
    assert torch.allclose(embeddings, caught[0], atol=0.05)  # grey was rounded to 8 bit
    assert network.preprocess.mean == pytest.approx((0.485 + 0.456 + 0.406) / 3)


# ---- weights


def save_weights(path: Path, **changes: torch.Tensor | None) -> Path:
    state = dict(torchvision.models.mobilenet_v2(num_classes=7).state_dict())
    for key, value in changes.items():
        name = key.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    torch.save(state, path)
    return path


def test_weights_load_whatever_their_head(tmp_path: Path) -> None:
    path = save_weights(tmp_path / "w.pth")
    network = model.build_model("mobilenet_v2", 3, 64, weights=path)
    given = torch.load(path, weights_only=True)
    loaded = network.backbone.state_dict()
    assert torch.equal(loaded["features.5.conv.0.0.weight"], given["features.5.conv.0.0.weight"])
    assert torch.equal(
        loaded["features.0.0.weight"], given["features.0.0.weight"].sum(1, keepdim=True)
    )
    assert network.head.weight.shape == (3, 1280)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features__0__0__weight": None}, r"1 missing \(features\.0\.0\.weight\)"),
        ({"stranger": torch.zeros(1)}, r"1 unexpected \(stranger\)"),
        (
            {"features__0__1__bias": torch.zeros(5)},
            r"1 of another shape \(features\.0\.1\.bias \(5,\) instead of \(32,\)\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = save_weights(tmp_path / "w.pth", **changes)
    with pytest.raises(UserError, match=rf"w\.pth: not the weights of this model: {words}"):
        model.build_model("mobilenet_v2", 3, 64, weights=path)


def test_weights_may_lack_the_counters_of_batch_norm(tmp_path: Path) -> None:
    state = torchvision.models.mobilenet_v2().state_dict()
    old = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    assert len(old) < len(state)
    torch.save(old, tmp_path / "w.pth")
    network = model.build_model("mobilenet_v2", 3, 64, weights=tmp_path / "w.pth")
    key = "features.3.conv.1.1.running_var"
    assert torch.equal(network.backbone.state_dict()[key], state[key])


def test_old_names_of_densenet_are_understood(tmp_path: Path) -> None:
    state = torchvision.models.densenet121().state_dict()
    old = {
        key.replace("norm1", "norm.1").replace("conv2", "conv.2"): value
        for key, value in state.items()
    }
    assert set(old) != set(state)
    torch.save(old, tmp_path / "w.pth")
    network = model.build_model("densenet121", 3, 64, weights=tmp_path / "w.pth")
    key = "features.denseblock1.denselayer1.conv2.weight"
    assert torch.equal(network.backbone.state_dict()[key], state[key])


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({"a": Payload()})])
def test_a_file_of_no_tensors_is_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pth: not readable as plain tensors"):
        model.build_model("resnet18", 3, 64, weights=Path("w.pth"))
    assert not Path("ran").exists()


def test_other_things_in_a_weights_file(tmp_path: Path) -> None:
    for content in ([1, 2], {"a": 1}, {1: torch.zeros(1)}):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError, match="not a state dict"):
            model.build_model("resnet18", 3, 64, weights=tmp_path / "w.pth")
    with pytest.raises(UserError, match="no such file"):
        model.build_model("resnet18", 3, 64, weights=tmp_path / "none.pth")


def test_a_failed_download_names_every_way_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as caught:
        model.build_model("resnet18", 3, 64, pretrained=True)
    message = str(caught.value)
    file_name = torchvision.models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    for part in (file_name, str(tmp_path / "checkpoints"), "--weights", "--no-pretrained"):
        assert part in message
    assert "\n" not in message


# ---- checkpoints


@pytest.mark.parametrize("name", ["net", "resnet18"])
def test_a_checkpoint_restores_equal_logits(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    network = model.build_model(name, 3, 32)
    path = tmp_path / "best.pt"
    checkpoint.save_checkpoint(path, make_checkpoint(network, name))
    restored = checkpoint.restore_model(checkpoint.load_checkpoint(path), path)
    batch = [torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)]
    assert torch.equal(model.infer(network, batch)[0], model.infer(restored, batch)[0])
    assert restored.preprocess == network.preprocess


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    network = model.build_model("net", 3, 32)
    torch.save({"weights": {}}, path)
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        checkpoint.load_checkpoint(path)
    torch.save({"schema": 99}, path)
    with pytest.raises(UserError, match="schema 99, this program reads 2"):
        checkpoint.load_checkpoint(path)
    with pytest.raises(UserError, match="a folder"):
        checkpoint.load_checkpoint(tmp_path)
    with pytest.raises(UserError, match="its weights do not fit resnet18"):
        checkpoint.restore_model({**make_checkpoint(network, "net"), "model": "resnet18"}, path)


# ---- inference


@pytest.mark.parametrize(
    ("name", "size_px", "width"),
    [
        ("net", 32, 288),
        ("resnet18", 32, 512),
        ("squeezenet1_1", 32, 512),
        ("mobilenet_v2", 32, 1280),
        ("vit_b_32", 32, 768),
    ],
)
def test_inference_leaves_the_network_as_it_was(name: str, size_px: int, width: int) -> None:
    network = model.build_model(name, 3, size_px).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    batches = torch.randint(0, 256, (5, 1, size_px, size_px), dtype=torch.uint8).split(2)
    logits, embeddings = model.infer(network, batches)
    assert logits.shape == (5, 3)
    assert embeddings.shape == (5, width)
    assert logits.dtype == embeddings.dtype == torch.float32
    assert network.training
    assert not any(part._forward_pre_hooks for part in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_inference_leaves_the_mode_as_it_was(training: bool) -> None:
    network = model.build_model("net", 3, 32).train(training)
    model.infer(network, [torch.zeros(1, 1, 32, 32, dtype=torch.uint8)])
    assert {part.training for part in network.modules()} == {training}


def test_hooks_go_when_inference_fails() -> None:
    network = model.build_model("net", 3, 32)
    with pytest.raises(RuntimeError):
        model.infer(network, [torch.zeros(1, 2, 32, 32, dtype=torch.uint8)])
    assert not network.head._forward_pre_hooks
