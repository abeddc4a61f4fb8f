"""Every common form of a file of weights starts the same network; other files are named."""

import argparse
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

import model
from helper import UserError
from modeling.weights import build_initial_model
from tests.support.builders import Patch

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18().eval()


@pytest.fixture(scope="module")
def state(source: nn.Module) -> State:
    return dict(source.state_dict())


def start(path: Path, name: str = "resnet18") -> State:
    """The backbone that training starts from, without its head."""
    network = build_initial_model(name, 3, 64, weights=path)
    head = f"{network.head_name}."
    values = network.backbone.state_dict().items()
    return {key: value for key, value in values if not key.startswith(head)}


@pytest.fixture(scope="module")
def expected(state: State, tmp_path_factory: pytest.TempPathFactory) -> State:
    path = tmp_path_factory.mktemp("plain") / "plain.pth"
    torch.save(state, path)
    return start(path)


def add(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def zeros(state: State) -> State:
    return {key: torch.zeros_like(value) for key, value in state.items()}


def number(state: State, prefix: str, n_last: int, names: list[str]) -> State:
    """Names by the order of the layers, as `nn.Sequential(*children)` gives them."""
    order = {name: i for i, name in enumerate(names[:n_last])}
    parts = {key: key.split(".", 1) for key in state}
    return {
        f"{prefix}{order[first]}.{rest}": state[key]
        for key, (first, rest) in parts.items()
        if first in order
    }


CHILDREN = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool"]
FORMS: dict[str, Callable[[State], Any]] = {
    "DataParallel": lambda s: add("module.", s),
    "ImageNet example": lambda s: {"epoch": 9, "arch": "resnet18", "state_dict": add("module.", s)},
    "tutorial": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {0: s}}},
    "compiled": lambda s: {"model": add("_orig_mod.", s)},
    "nested prefixes": lambda s: {"network": add("module.backbone.", s)},
    "unknown prefix and key": lambda s: {"anything": {"deeper": add("a.b.c.", s)}},
    "MoCo": lambda s: {
        "state_dict": add("module.encoder_q.", s)
        | add("module.encoder_k.", zeros(s))
        | {"module.queue": torch.zeros(8, 4)}
    },
    "EMA preferred": lambda s: {"model": zeros(s), "model_ema": add("module.", s)},
    "Lightning": lambda s: {
        "state_dict": add("net.", s) | {"criterion.weight": torch.ones(3)},
        "hyper_parameters": argparse.Namespace(lr=0.1, depth=np.float64(3)),
        "pytorch-lightning_version": "2.4",
    },
    "options beside it": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)},
    "RadImageNet": lambda s: number(s, "backbone.", 9, CHILDREN),
    "fastai": lambda s: {"model": number(s, "0.", 8, CHILDREN) | {"1.8.weight": torch.ones(2, 9)}},
    "without counters": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "profiled": lambda s: s | {"layer1.0.total_ops": torch.zeros(1, dtype=torch.float64)},
    "another head": lambda s: (
        {k: v for k, v in s.items() if k[:2] != "fc"}
        | {"fc.0.weight": torch.ones(5, 512), "fc.3.weight": torch.ones(2, 5)}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_starts_the_same_network(
    form: str, state: State, expected: State, tmp_path: Path
) -> None:
    path = tmp_path / "any name"
    torch.save(FORMS[form](state), path)
    found = start(path)
    different = {key for key, value in expected.items() if not torch.equal(found[key], value)}
    assert {key for key in different if "num_batches_tracked" not in key} == set()


def test_safetensors_and_the_old_format_of_torch(
    state: State, expected: State, tmp_path: Path
) -> None:
    save_file(add("model.", state), tmp_path / "a.bin")
    torch.save(state, tmp_path / "b", _use_new_zipfile_serialization=False)
    for name in ("a.bin", "b"):
        found = start(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_what_was_loaded_and_left_out_is_told(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": add("module.", state)}, path)
    with caplog.at_level("INFO"):
        start(path)
    [line] = caplog.messages
    for words in ("100 of 100", "key state_dict", "prefix module.", "fc.bias (1000 classes)"):
        assert words in line


def test_a_grey_stem_is_taken_as_it_is(state: State, expected: State, tmp_path: Path) -> None:
    grey = state["conv1.weight"].sum(1, keepdim=True)
    torch.save(state | {"conv1.weight": grey}, tmp_path / "grey.pth")
    found = start(tmp_path / "grey.pth")
    assert torch.equal(found["conv1.weight"], grey)
    # the channels of ImageNet differ a little in their statistics, which the sum does not know
    torch.testing.assert_close(found["conv1.weight"], expected["conv1.weight"], atol=5e-3, rtol=0)
    assert found["conv1.bias"].abs().max() == 0
    rest = set(expected) - {"conv1.weight", "conv1.bias"}
    assert all(torch.equal(found[key], expected[key]) for key in rest)


@pytest.mark.parametrize("n_channels", [2, 4])
def test_other_stems_are_refused(n_channels: int, state: State, tmp_path: Path) -> None:
    stem = torch.zeros(64, n_channels, 7, 7)
    torch.save(state | {"conv1.weight": stem}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"conv1.weight \(64, {n_channels}, 7, 7\) instead of"):
        start(tmp_path / "w.pth")


def test_networks_of_this_program_with_other_classes(tmp_path: Path) -> None:
    for name in ("resnet18", "net"):
        torch.manual_seed(1)
        trained = model.build_model(name, 7, 64)
        trained.backbone.get_parameter("conv1.bias" if name != "net" else "stem.1.bias").data += 1
        weights = trained.state_dict()
        old = {key: torch.zeros_like(value) for key, value in weights.items()}
        torch.save({"schema": 5, "trained_weights": old, "weights": weights}, tmp_path / "b.pt")
        torch.save({"schema": 5, "weights": weights, "trained_weights": old}, tmp_path / "c.pt")
        found = start(tmp_path / "c.pt", name)
        assert all(torch.equal(weights[f"backbone.{key}"], found[key]) for key in found)


def test_old_names_of_vision_transformers(tmp_path: Path) -> None:
    network = torchvision.models.VisionTransformer(224, 16, 12, 12, 768, 3072)
    state = network.state_dict()
    for new, old in (("mlp.0.", "mlp.linear_1."), ("mlp.3.", "mlp.linear_2.")):
        state = {key.replace(new, old): value for key, value in state.items()}
    torch.save(state, tmp_path / "w.pth")
    key = "encoder.layers.encoder_layer_3.mlp.3.weight"
    assert torch.equal(start(tmp_path / "w.pth", "vit_b_16")[key], network.state_dict()[key])


def test_a_part_or_another_network_is_refused(state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    deeper = torchvision.models.resnet34().state_dict()
    for content, words in (
        ({k: v for k, v in state.items() if "layer4" not in k}, "25 missing"),
        (deeper, "of a larger or other network.*--model resnet34"),
        (model.build_model("net", 4, 32).state_dict(), "--model net"),
        ({"epoch": 3, "config": {}}, "no state dict in it"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=words) as caught:
            start(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, state: State, tmp_path: Path) -> None:
    bad = state["layer2.0.conv1.weight"].clone()
    bad[0, 0, 0, 0] = value
    torch.save(state | {"layer2.0.conv1.weight": bad}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"layer2\.0\.conv1\.weight .*NaN or infinity"):
        start(tmp_path / "w.pth")


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 1}])
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickled_network_is_named_with_a_command(
    wrap: Callable[[nn.Module], Any],
    is_zip: bool,
    source: nn.Module,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    torch.save(wrap(source), tmp_path / "whole.pt", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError, match="pickled network") as caught:
        start(tmp_path / "whole.pt")
    line = str(caught.value)
    assert "\x1b" not in line
    assert "\n" not in line
    assert "add_safe_globals" not in line
    code, given, written = re.findall(r'python -c "(.*?)" (\S+) (\S+)', line)[0]
    monkeypatch.setattr("sys.argv", ["-c", given, written])
    exec(code)  # what the user copies
    start(Path(written))


def write_zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")


OTHER_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "empty"),
    "HDF5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "HDF5.*Keras"),
    "Keras": (lambda p: write_zip(p, "config.json", "model.weights.h5"), "Keras"),
    "ONNX": (lambda p: p.write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(99)), "ONNX"),
    "TFLite": (lambda p: p.write_bytes(b"\x1c\0\0\0TFL3" + bytes(99)), "TensorFlow"),
    "LFS": (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "LFS"),
    "page": (lambda p: p.write_bytes(b"<!DOCTYPE html><html></html>"), "web page"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(99)), "gzip"),
    "archive": (lambda p: write_zip(p, "w.pth"), "ZIP archive"),
    "arrays": (lambda p: np.savez(p.open("wb"), a=np.ones(3)), "NumPy"),
    "text": (lambda p: p.write_bytes(b"some text"), "torch.save did not write it"),
    "safetensors": (lambda p: p.write_bytes(b"\x40" + bytes(7) + b'{"a":'), "safetensors"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_other_files_are_named(kind: str, tmp_path: Path) -> None:
    write, words = OTHER_FILES[kind]
    write(tmp_path / "w.pth")
    with pytest.raises(UserError, match=words) as caught:
        start(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_torchscript_and_truncated_files_are_named(source: nn.Module, tmp_path: Path) -> None:
    write_zip(tmp_path / "script.pt", "script/data.pkl", "script/constants.pkl", "script/code/m.py")
    with pytest.raises(UserError, match=r"TorchScript.*torch\.jit\.load"):
        start(tmp_path / "script.pt")
    torch.save(source.state_dict(), tmp_path / "cut.pth")
    content = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="truncated or damaged"):
        start(tmp_path / "cut.pth")
