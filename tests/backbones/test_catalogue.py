"""Names of both libraries, what is stated of them, and refusals in one line."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import export
import main
import model
import predict
from backbones import catalogue, timm_models, torchvision_models
from helper import UserError
from modeling import checkpoint
from modeling.weights import build_initial_model
from tests.support.builders import ON_CPU, ROOT, Capture, Patch, expect_refusal
from tests.support.timm_families import TIMM

NEEDS_TIMM = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed"
)


@pytest.fixture
def without_timm(monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    timm_models.load_timm.cache_clear()
    monkeypatch.setattr(timm_models, "load_timm", timm_models.load_timm.__wrapped__)


def test_torchvision_states_size_statistics_and_parameters() -> None:
    assert len(torchvision_models.list_names()) >= 80
    record = catalogue.choose_library("resnet18").read_record("resnet18")
    assert (record.native_px, record.n_parameters) == (224, 11_689_512)
    assert record.weights == "ResNet18_Weights.IMAGENET1K_V1"
    assert record.file.endswith(".pth")
    assert torchvision_models.read_record("inception_v3").means == [0.5] * 3


@NEEDS_TIMM
def test_timm_states_the_same_of_its_networks() -> None:
    record = timm_models.read_record("timm/tf_efficientnet_lite2")
    assert (record.native_px, record.means, record.stds) == (260, [0.5] * 3, [0.5] * 3)
    assert record.weights == "timm/tf_efficientnet_lite2.in1k"
    assert len(timm_models.list_names()) > 900
    assert catalogue.count_parameters("timm/resnet18") == 11_689_512
    assert model.is_model("timm/resnet18.a1_in1k")
    assert not model.is_model("timm/resnet18.nothing")
    assert not model.is_model("timm/nothing")


@NEEDS_TIMM
def test_unknown_and_unsuitable_networks_are_refused() -> None:
    for name, words in (
        ("timm/resnet81", r"no such model; similar names: .*timm/resnet18"),
        ("timm/nf_resnet50", "its stem is a ScaledStdConv2d"),
        ("timm/deit_tiny_distilled_patch16_224", "it has 2 layers of 1000 outputs"),
        ("timm/repvgg_a0", "its stem is 2 convolutions of 3 channels"),
        ("timm/resnet18.", "no such model"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            model.check_model(name, 224, False)
        assert caught.value.status == 2
    with pytest.raises(UserError, match=r"--image-size 160: .* give --image-size 224"):
        model.check_model("timm/vit_tiny_patch16_224", 160, True)
    model.check_model("timm/vit_tiny_patch16_224", 160, False)  # built for this size
    # it would be restored with tables of another size
    model.check_model("timm/mvitv2_tiny", 224, True)
    with pytest.raises(UserError, match=r"--image-size 112: .*tables of positions"):
        model.check_model("timm/mvitv2_tiny", 112, True)


@pytest.mark.parametrize("name", TIMM)
def test_a_file_of_timm_starts_its_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    record = timm_models.read_record(name)
    source = timm_models.build(name, record.native_px, pretrained=True).eval()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    network = build_initial_model(name, 3, record.native_px, weights=tmp_path / "w.pth")
    head = f"{network.head_name}."
    stem = f"{model.find_stem(network.backbone)}."
    state = network.backbone.state_dict()
    for key, tensor in source.state_dict().items():
        if not key.startswith((head, stem)):
            assert torch.equal(state[key], tensor), key


@NEEDS_TIMM
def test_a_failed_download_names_the_alternatives(monkeypatch: Patch) -> None:
    timm = timm_models.load_timm()
    monkeypatch.setattr(timm, "create_model", Mock(side_effect=OSError("no network\nmore")))
    monkeypatch.setattr(model, "build_backbone", lambda *_, **__: None)
    monkeypatch.setattr(model, "adapt_backbone", lambda *_: None)
    with pytest.raises(UserError) as caught:
        build_initial_model("timm/resnet18", 3, 64, pretrained=True)
    timm.create_model.assert_called_with("resnet18", pretrained=True)
    assert "hub/checkpoints" not in str(caught.value)
    for part in ("timm/resnet18.a1_in1k is not in the cache of timm", "no network", "--weights"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    record = timm_models.read_record("timm/resnet18")
    nothing = Mock(return_value=timm_models.BackboneRecord(224, [0.5], [0.5], "", ""))
    monkeypatch.setattr(timm_models, "read_record", nothing)
    assert record.weights
    with pytest.raises(UserError, match="has no published weights"):
        build_initial_model("timm/resnet18", 3, 64, pretrained=True)


@pytest.mark.usefixtures("without_timm")
def test_one_line_says_how_to_install_it(tmp_path: Path, capsys: Capture) -> None:
    line = expect_refusal(capsys, main.main(["--model", "timm/resnet18"]), 2)
    assert "pip install -r requirements-timm.txt" in line
    torch.save({"schema": checkpoint.CHECKPOINT_SCHEMA}, tmp_path / "best.pt")
    with pytest.raises(UserError, match="need timm, which is not installed"):
        checkpoint.RUN_RULES["model"][0]("timm/resnet18")
    assert main.main(["--model", "list", "resnet18"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("resnet18 ")
    assert "requirements-timm.txt" in "".join(printed)
    assert main.main(["--model", "list", "xyz"]) == 1


def test_networks_are_listed_with_parameters_and_size(capsys: Capture) -> None:
    assert main.main(["--model", "list", "MobileNet_V2"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.split() == ["mobilenet_v2", "3.5", "M", "224", "px"]
    assert "no network matches" in expect_refusal(capsys, main.main(["--model", "list", "xyz*"]))
    with pytest.raises(SystemExit, match="2"):
        main.main(["--model", "resnet18", "efficientnet"])
    assert "unrecognized argument: efficientnet" in capsys.readouterr().err


@NEEDS_TIMM
def test_networks_of_timm_are_listed(capsys: Capture) -> None:
    assert main.main(["--model", "list", "timm/resnet1?"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["timm/resnet18"]
    assert "11.7 M   224 px" in lines[0]
    assert main.main(["--model", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 1000


@NEEDS_TIMM
@pytest.mark.integration
@pytest.mark.usefixtures("trained", "no_evaluation")
def test_a_network_of_timm_is_trained_exported_and_used(capsys: Capture) -> None:
    command = ["--phantom", "--model", "timm/convnext_atto", "--no-pretrained", "--epochs", "1"]
    command += ["--image-size", "32", "--batch-size", "8", *ON_CPU]
    assert main.main(command) == 0
    (run,) = Path("session").glob("timm-convnext_atto-*")  # no folder of the library's name
    assert export.main([str(run), "--threads", "1"]) == 0
    assert "the same labels" in capsys.readouterr().out
    image = next(Path("data/phantom/Images").rglob("*.*"))
    argv = [str(run / "best.pt"), str(image), "--heatmaps", "maps", "--device", "cpu"]
    assert predict.main(argv) == 0
    assert len(list(Path("maps").rglob("*.png"))) == 1


@NEEDS_TIMM
@pytest.mark.integration
def test_a_list_can_be_cut_off() -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "main.py", "--model", "list"]
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert all(process.stdout.readline() for _ in range(3))
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
