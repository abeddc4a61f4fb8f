"""A network that is saved and restored."""

from pathlib import Path

import pytest
import torch

import model
from modeling import checkpoint
from modeling.forward import predict_logits
from tests.support.builders import make_config
from tests.support.timm_families import TIMM


@pytest.mark.parametrize("name", ["net", "resnet18", *TIMM])
def test_restored_network_has_equal_logits(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    network = model.build_model(name, 3, 32)
    path, described = tmp_path / "best.pt", model.describe_model(name, network, ["a", "b", "c"])
    content = {**described, "config": make_config().to_dict(), "weights": network.state_dict()}
    checkpoint.save_checkpoint(path, content)
    restored = checkpoint.restore_model(checkpoint.load_checkpoint(path), path)
    batch = [torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)]
    network.to(memory_format=torch.channels_last)  # as the restored one
    assert torch.equal(predict_logits(network, batch)[0], predict_logits(restored, batch)[0])
    assert restored.preprocess == network.preprocess
