"""The data path on CUDA, without a GPU: devices do not mix, and no step waits for the device.

`tests.support.fake_cuda` runs it on tensors without values; a machine with a GPU runs the same.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import helper
import trainer as trainer_module
from evaluation.fitted import Fitted
from inference.predictor import Member, SlicePredictor, load_predictor
from loading import memory_budget
from loading.image_source import DiskSlices, MemorySlices, SliceSource
from model import describe_model
from modeling import activation_stats, checkpoint, forward
from modeling.precision import DTYPES
from runs.post_hoc import fit_post_hoc
from tests.support.builders import Patch, Run, build_net, make_config, make_slices
from tests.support.fake_cuda import FakeCuda, HostWaitError, fake_cuda
from trainer import Trainer
from training import augmentation
from training.loss_tracker import LossTracker

CLASSES = ["a", "b", "c"]
N_TRAIN, N_VAL = 30, 12
EVERY_OPTION: dict[str, Any] = {"erase": 0.5, "cutmix": 0.5, "first_size": 0.5, "image_size": 64}


@pytest.fixture
def cuda(monkeypatch: Patch) -> Iterator[FakeCuda]:
    with fake_cuda(monkeypatch) as found:
        yield found


def place(slices: MemorySlices, tier: str, device: torch.device, folder: Path) -> SliceSource:
    """Return the slices on the device, in the memory of the host or on disk."""
    if tier == "device":
        return slices.to(device)
    if tier == "host":
        return slices.keep_on_host(device)
    path = folder / f"{len(slices)}.npy"
    np.save(path, slices.pixels.squeeze(1).numpy())
    file = np.load(path, mmap_mode="r")
    return DiskSlices(file, np.arange(len(slices)), slices.labels).to(device)


def make_trainer(
    folder: Path, device: str = "cuda", tier: str = "device", **values: Any
) -> Trainer:
    """Return a trainer of `net` on a CUDA device, built as `lifecycle.build_trainer` does."""
    on_device = helper.resolve_device(device)
    config = make_config(**{"batch_size": 8, "epochs": 2, "device": device} | values)
    network = build_net(config).to(on_device)
    record = {
        **describe_model("net", network, CLASSES),
        "start": "scratch",
        "config": config.to_dict(),
        "precision": config.run.precision,
    }
    size_px = config.model.image_size
    train, val = (
        place(make_slices(count, size_px=size_px), tier, on_device, folder)
        for count in (N_TRAIN, N_VAL)
    )
    weights = torch.tensor([1.0, 2.0, 3.0]).to(on_device)
    return Trainer(network, train, val, config, record, folder, weights)


def train_strictly(trainer: Trainer, cuda: FakeCuda, patch: Patch) -> float:
    """Train an epoch; after its order was copied to the device, nothing may wait."""
    step = Trainer.train_step

    def run(*args: Any) -> torch.Tensor:
        cuda.is_strict = True
        return step(*args)

    with patch.context() as context:
        context.setattr(Trainer, "train_step", run)
        try:
            return trainer.train_epoch()
        finally:
            cuda.is_strict = False


# ---- training


@pytest.mark.parametrize(
    ("tier", "values"),
    [
        ("device", {}),
        ("device", {"precision": "bf16", **EVERY_OPTION}),
        ("device", {"precision": "fp16", "mixup": 0.5}),
        ("host", {"precision": "fp16", **EVERY_OPTION}),
        ("disk", {"precision": "bf16"}),
    ],
)
def test_no_step_waits_for_the_device(
    tmp_path: Path, cuda: FakeCuda, monkeypatch: Patch, tier: str, values: dict[str, Any]
) -> None:
    trainer = make_trainer(tmp_path, tier=tier, **values)
    trainer.micro_batch = 4
    types = []
    trainer.network.head.register_forward_hook(lambda *found: types.append(found[2].dtype))
    for trainer.epoch in range(2):  # the second draws and copies anew
        train_strictly(trainer, cuda, monkeypatch)
    assert set(types) == {DTYPES.get(values.get("precision", "fp32"), torch.float32)}
    assert all(event.is_awaited for event in cuda.events)
    assert {event.device for event in cuda.events} == {torch.device("cuda", 0)}
    assert {each.device.type for each in trainer.ema.parameters()} == {"cuda"}
    assert trainer.scaler.report_skipped(1, trainer.steps_per_epoch) == 0


def test_slices_move_to_the_host_within_an_epoch(
    tmp_path: Path, cuda: FakeCuda, monkeypatch: Patch
) -> None:
    trainer = make_trainer(tmp_path)
    step, tries = Trainer._backward, []

    def run(*args: Any) -> torch.Tensor:
        tries.append(args)
        if len(tries) == 2:
            cuda.is_strict = False  # moving waits, once
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(*args)

    monkeypatch.setattr(Trainer, "_backward", run)
    train_strictly(trainer, cuda, monkeypatch)
    assert len(tries) == trainer.steps_per_epoch + 1
    assert isinstance(trainer.train, MemorySlices)
    assert not trainer.train.is_on_device


def plant_item(patch: Patch) -> None:
    shrink = trainer_module.shrink
    patch.setattr(
        trainer_module, "shrink", lambda slices, size: shrink(slices * slices.max().item(), size)
    )


def plant_copy_to_the_host(patch: Patch) -> None:
    shrink = trainer_module.shrink
    patch.setattr(trainer_module, "shrink", lambda slices, size: shrink(slices.cpu(), size))


def plant_condition(patch: Patch) -> None:
    shrink = trainer_module.shrink

    def run(slices: torch.Tensor, size: int) -> torch.Tensor:
        return shrink(slices if slices.max() > 1 else slices * 2, size)

    patch.setattr(trainer_module, "shrink", run)


def plant_mask(patch: Patch) -> None:
    def run(slices: torch.Tensor, size: int) -> torch.Tensor:
        slices[slices > 0.5] = 1.0
        return slices

    patch.setattr(trainer_module, "shrink", run)


def plant_index_on_the_host(patch: Patch) -> None:
    def run(slices: torch.Tensor, size: int) -> torch.Tensor:
        return slices[torch.arange(len(slices))]

    patch.setattr(trainer_module, "shrink", run)


def plant_forgotten_copy(patch: Patch) -> None:
    patch.setattr(augmentation, "copy_async", lambda values, device: values)


def plant_blocking_copy(patch: Patch) -> None:
    patch.setattr(augmentation, "copy_async", lambda values, device: values.to(device))


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (plant_item, "_local_scalar_dense"),
        (plant_condition, "_local_scalar_dense"),
        (plant_copy_to_the_host, "copy to the host"),
        (plant_mask, "mask"),
        (plant_index_on_the_host, "indices on the host"),
        (plant_forgotten_copy, "of the device and of the host"),
        (plant_blocking_copy, "not pinned"),
    ],
)
def test_a_planted_fault_is_found(
    tmp_path: Path,
    cuda: FakeCuda,
    monkeypatch: Patch,
    plant: Callable[[Patch], None],
    message: str,
) -> None:
    trainer = make_trainer(tmp_path)
    plant(monkeypatch)
    with pytest.raises(HostWaitError, match=message):
        train_strictly(trainer, cuda, monkeypatch)


# ---- the second device


def test_the_device_of_the_run_becomes_the_current_one(cuda: FakeCuda) -> None:
    device = helper.resolve_device("cuda:1")
    assert device == torch.device("cuda", 1)
    assert cuda.current == 1
    assert helper.resolve_device("cuda") == device


def test_losses_are_awaited_on_their_own_device(cuda: FakeCuda) -> None:
    tracker = LossTracker(1, 2, torch.zeros(0))
    assert cuda.current == 0
    for _ in range(2):
        tracker.add(torch.zeros((), device="cuda:1"))
        tracker.read_delayed()
    assert [event.device for event in cuda.events] == [torch.device("cuda", 1)] * 2
    assert [event.is_awaited for event in cuda.events] == [True, False]


# ---- memory and precision


def test_memory_of_an_earlier_fold_counts_as_free(cuda: FakeCuda, monkeypatch: Patch) -> None:
    free_mib = [100]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free_mib.append(1000))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_mib[-1] * 2**20, 2**34))
    assert memory_budget.measure_device_budget_mib(torch.device("cuda", 0)) == 500


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA error: out of memory", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_the_driver_and_its_libraries_report_a_full_memory(message: str, expected: bool) -> None:
    assert helper.is_out_of_memory(RuntimeError(message)) == expected
    assert helper.is_out_of_memory(torch.OutOfMemoryError(message))


def test_no_thread_of_a_predictor_uses_tf32(trained: Run, monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    load_predictor([trained.root / "session/first/best.pt"], "cpu", 1)
    with forward.disable_tf32():
        pass  # as a thread that computes a heat map while another predicts
    assert not torch.backends.cudnn.allow_tf32


# ---- evaluation and prediction


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_validation_waits_once(tmp_path: Path, cuda: FakeCuda, tier: str) -> None:
    trainer = make_trainer(tmp_path, tier=tier, batch_size=4)
    trainer.recalibrate_batch_norm()
    scores = trainer.validate()
    assert cuda.n_unread == 0
    assert 0 <= scores["val_accuracy"] <= 1
    network, batches = trainer.ema, list(trainer.val.iterate(4))
    with activation_stats.record_activation_stats(network) as stats, cuda.strict():
        with pytest.raises(HostWaitError, match="synchronize"):  # after the last batch
            forward.predict_logits(network, batches)
        assert cuda.n_unread == 5 * len(batches)  # logits, embeddings, three layers
    assert stats.collect().shape[0] == N_VAL


def test_batch_norm_is_recalibrated_without_waiting(tmp_path: Path, cuda: FakeCuda) -> None:
    trainer = make_trainer(tmp_path)
    read = trainer.train.read

    def run(batches: Any) -> Iterator[torch.Tensor]:
        for slices in read(batches):
            cuda.is_strict = True  # the indices are on the device now
            yield slices

    trainer.train.read = run  # type: ignore[method-assign]
    trainer.recalibrate_batch_norm()


def test_calibration_is_fitted_on_the_device(
    tmp_path: Path, cuda: FakeCuda, monkeypatch: Patch
) -> None:
    trainer = make_trainer(tmp_path, tier="host")
    best: dict[str, Any] = {"classes": CLASSES}
    stub = {
        "load_run": lambda _: best,
        "restore_model": lambda *_: build_net(trainer.config),
        "save_checkpoint": lambda _, saved: best.update(saved),
    }
    for name, function in stub.items():
        monkeypatch.setattr(checkpoint, name, function)
    table = pd.DataFrame({"split": ["train"] * N_TRAIN + ["val"] * N_VAL})
    for column in ("path", "sha256", "group", "duplicate_set"):
        table[column] = [str(row) for row in table.index]
    table["label"] = [CLASSES[row % 3] for row in table.index]
    fit_post_hoc(tmp_path / "best.pt", trainer, table)
    assert best["calibration"]["n_images"] == N_VAL
    assert best["reference"]["embeddings"].shape[0] == N_TRAIN
    assert best["reference"]["embeddings"].device.type == "cpu"


def test_images_are_predicted_and_explained(tmp_path: Path, cuda: FakeCuda) -> None:
    network = build_net(make_config()).to(helper.resolve_device("cuda")).eval()
    saved = {"classes": CLASSES, "phantom": True, "config": {"data": {"split_by": "group"}}}
    predictor = SlicePredictor([Member(tmp_path, network, saved)], Fitted(None, 1.0, "nothing"))
    images = [np.full((40, 30), 10 * number, np.uint8) for number in range(3)]
    slices = [predictor.preprocess(pixels) for pixels in images]
    assert [each.predicted in CLASSES for each in predictor.predict(slices)] == [True] * 3
    assert cuda.n_unread == 0
    assert predictor.explain(slices[0], "b").shape == (40, 30)
