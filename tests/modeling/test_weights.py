"""Loading pretrained weights: what is taken over, and which files are refused."""

import pickle
import re
import urllib.error
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torchvision
from torchvision.transforms.functional import normalize

from helper import UserError
from model import Classifier
from modeling.forward import predict_logits
from modeling.weights import build_initial_model, describe_start
from tests.support.builders import Patch


def load(name: str, path: Path) -> Classifier:
    return build_initial_model(name, 3, 64, weights=path)


def test_one_channel_equals_three_normalised_copies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rgb = torchvision.models.mobilenet_v2().eval()
    torch.save(rgb.state_dict(), tmp_path / "w.pth")
    network = load("mobilenet_v2", tmp_path / "w.pth")
    # At zero padding the two differ (model.py), so both stems do without it.
    for stem in (rgb.get_submodule("features.0.0"), network.backbone.get_submodule("features.0.0")):
        assert isinstance(stem, torch.nn.Conv2d)
        stem.padding = (0, 0)
    pixels = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    record = torchvision.models.MobileNet_V2_Weights.DEFAULT.transforms()
    inputs: list[torch.Tensor] = []
    rgb.classifier[1].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        rgb(normalize((pixels / 255).expand(-1, 3, -1, -1), record.mean, record.std))
    torch.testing.assert_close(
        predict_logits(network, [pixels])[1], inputs[0], rtol=1e-3, atol=1e-4
    )
    assert network.preprocess.mean == pytest.approx((0.485 + 0.456 + 0.406) / 3)


def save_weights(path: Path, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Save MobileNet weights of seven classes without counters; None removes an entry."""
    state = dict(torchvision.models.mobilenet_v2(num_classes=7).state_dict())
    state = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    changed = state | {key.replace("__", "."): value for key, value in changes.items()}
    torch.save({key: value for key, value in changed.items() if value is not None}, path)
    return state


def test_weights_load_with_any_head_and_without_batch_norm_counters(tmp_path: Path) -> None:
    given = save_weights(tmp_path / "w.pth")
    network = load("mobilenet_v2", tmp_path / "w.pth")
    loaded = network.backbone.state_dict()
    for key in ("features.5.conv.0.0.weight", "features.3.conv.1.1.running_var"):
        assert torch.equal(loaded[key], given[key])
    assert loaded["features.0.0.weight"].shape == (32, 1, 3, 3)
    assert network.head.weight.shape == (3, 1280)


def test_differences_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    changes: dict[str, dict[str, Any]] = {
        "1 missing (features.0.0.weight)": {"features__0__0__weight": None},
        "1 of a larger or other network (features.19.weight)": {
            "features__19__weight": torch.zeros(2)
        },
        "1 of another shape (features.0.1.bias (5,) instead of (32,))": {
            "features__0__1__bias": torch.zeros(5)
        },
    }
    for words, change in changes.items():
        save_weights(path, **change)
        with pytest.raises(UserError, match=re.escape(words)):
            load("mobilenet_v2", path)


def test_old_names_of_densenet_are_converted(tmp_path: Path) -> None:
    state = torchvision.models.densenet121().state_dict()
    old = {
        key.replace("norm1", "norm.1").replace("conv2", "conv.2"): value
        for key, value in state.items()
    }
    assert set(old) != set(state)
    torch.save(old, tmp_path / "w.pth")
    key = "features.denseblock1.denselayer1.conv2.weight"
    network = load("densenet121", tmp_path / "w.pth")
    assert torch.equal(network.backbone.state_dict()[key], state[key])


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def test_other_files_are_refused_and_code_is_never_run(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("w.pth")
    for content in (b"", b"text", pickle.dumps({"a": Payload()})):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"w\.pth: (not readable as plain tensors|empty)"):
            load("resnet18", path)
    for value in ([1, 2], {"a": 1}, {1: torch.zeros(1)}):
        torch.save(value, path)
        with pytest.raises(UserError, match="no state dict"):
            load("resnet18", path)
    with pytest.raises(UserError, match="no such file"):
        load("resnet18", Path("none.pth"))
    assert not Path("ran").exists()


def test_failed_download_names_all_alternatives(tmp_path: Path, monkeypatch: Patch) -> None:
    fail = Mock(side_effect=urllib.error.URLError("no network"))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError) as caught:
        build_initial_model("resnet18", 3, 64, pretrained=True)
    assert fail.call_args.kwargs["check_hash"]
    message = str(caught.value)
    file_name = torchvision.models.ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    for part in (file_name, str(tmp_path / "checkpoints"), "--weights", "--no-pretrained"):
        assert part in message
    assert "\n" not in message


def test_start_is_described() -> None:
    assert describe_start("resnet18", False, None) == describe_start("net", True, None) == "scratch"
    assert describe_start("resnet18", True, Path("folder/w.pth")) == "weights of w.pth"
    assert describe_start("resnet18", True, None).startswith("ImageNet weights ResNet18_Weights")
