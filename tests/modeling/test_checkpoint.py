"""Untrusted and damaged checkpoints: refused before any part of them is used."""

from pathlib import Path
from typing import Any

import pytest
import torch

import model
from helper import UserError
from modeling import checkpoint
from modeling.forward import predict_logits
from tests.support.builders import make_config


def make_checkpoint(network: model.Classifier, name: str) -> dict[str, Any]:
    config = make_config().to_dict()
    described = model.describe_model(name, network, ["a", "b", "c"])
    return {**described, "config": config, "weights": network.state_dict()}


@pytest.mark.parametrize("name", ["net", "resnet18"])
def test_restored_network_has_equal_logits(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    network = model.build_model(name, 3, 32)
    path = tmp_path / "best.pt"
    checkpoint.save_checkpoint(path, make_checkpoint(network, name))
    restored = checkpoint.restore_model(checkpoint.load_checkpoint(path), path)
    batch = [torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)]
    assert torch.equal(predict_logits(network, batch)[0], predict_logits(restored, batch)[0])
    assert restored.preprocess == network.preprocess


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    for content, words in (
        ({"weights": {}}, "not a checkpoint of this program"),
        ({"schema": 99}, "schema 99, this program reads 2"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=words):
            checkpoint.load_checkpoint(path)
    with pytest.raises(UserError, match="a folder"):
        checkpoint.load_checkpoint(tmp_path)
    wrong = {**make_checkpoint(model.build_model("net", 3, 32), "net"), "model": "resnet18"}
    with pytest.raises(UserError, match="its weights do not fit resnet18"):
        checkpoint.restore_model(wrong, path)
