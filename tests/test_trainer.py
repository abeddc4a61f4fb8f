"""The loop: schedule, averaging, freezing, early stop, bad losses, resume to the same bits."""

import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import model
import trainer
from helper import UserError
from loading.image_source import Batch
from modeling import checkpoint
from tests.support.builders import make_trainer
from trainer import Trainer
from training.augmentation import Augmentation
from training.loss_tracker import STEPS_PER_LOOK, LossWatch
from training.optimizer import set_learning_rate, update_average

TIMINGS = ["images_per_s", "time_s"]


def copy_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls(tmp_path: Path, precision: str) -> None:
    plain: dict[str, Any] = {
        "quarter_turns": False,
        "rotation": 0.0,
        "contrast": 0.0,
        "label_smoothing": 0.0,
    }
    trainer = make_trainer(tmp_path, epochs=15, precision=precision, lr=3e-3, dropout=0.0, **plain)
    trainer.fit()
    losses = [row["train_loss"] for row in trainer.history]
    assert losses[-1] < 0.7 * losses[0]


def test_the_schedule_by_hand(tmp_path: Path) -> None:
    # 24 slices in batches of 8: 3 steps an epoch, 30 in all; one epoch of warm-up
    trainer = make_trainer(tmp_path, epochs=10, warmup_epochs=1.0)
    shares = [trainer._schedule(step) for step in range(30)]
    assert shares[:3] == pytest.approx([1 / 4, 2 / 4, 3 / 4])
    assert shares[3] == pytest.approx(1.0)
    middle = 3 + 27 // 2
    cosine = (1 + math.cos(math.pi * 13 / 27)) / 2
    assert shares[middle] == pytest.approx(0.01 + 0.99 * cosine)
    assert shares[3:] == sorted(shares[3:], reverse=True)
    assert 0.01 <= shares[-1] < 0.02


def test_warm_up_takes_a_fifth_of_a_short_run_at_most(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=1, warmup_epochs=1.0)  # 3 steps
    assert trainer._schedule(1) > 0.7


def test_the_average_by_hand(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ema_decay=0.15)
    weight, average = trainer.network.head.weight, trainer.averaged.head.weight
    with torch.no_grad():
        average.fill_(1.0)
        weight.fill_(11.0)
    update_average(trainer.averaged, trainer.network, 0.15, 0)  # decay 1 / 10
    assert torch.allclose(average, torch.tensor(10.0))
    update_average(trainer.averaged, trainer.network, 0.15, 1)  # decay min(0.15, 2 / 11)
    assert torch.allclose(average, torch.tensor(10.85))


def test_no_averaging_keeps_the_trained_weights(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ema_decay=0.0, epochs=1)
    trainer.fit()
    trained = dict(trainer.network.named_parameters())
    for name, value in trainer.averaged.named_parameters():
        assert torch.equal(value, trained[name])


def test_statistics_are_those_of_plain_training_slices(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.estimate_statistics()
    stem = trainer.averaged.backbone.stem
    plain = model.to_unit_range(trainer.train.pixels)
    preprocess = trainer.averaged.preprocess
    with torch.no_grad():
        convolved = stem[0]((plain - preprocess.mean) / preprocess.std)
    assert torch.allclose(stem[1].running_mean, convolved.mean((0, 2, 3)), atol=1e-5)
    assert not any(part.training for part in trainer.averaged.modules())
    assert stem[1].momentum == 0.1


def test_parameter_groups(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, start="weights", body_lr_factor=0.25, weight_decay=0.1)
    found = {
        (group["lr_share"], group["weight_decay"]): {id(part) for part in group["params"]}
        for group in trainer.optimizer.param_groups
    }
    assert set(found) == {(1.0, 0.1), (1.0, 0.0), (0.25, 0.1), (0.25, 0.0)}
    head = trainer.network.head
    assert found[1.0, 0.1] == {id(head.weight)}
    assert found[1.0, 0.0] == {id(head.bias)}
    body = [part for part in trainer.network.parameters() if part.dim() > 1]
    assert found[0.25, 0.1] == {id(part) for part in body if part is not head.weight}
    scratch = make_trainer(tmp_path, body_lr_factor=0.25)
    assert {group["lr_share"] for group in scratch.optimizer.param_groups} == {1.0}


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        ({"start": "weights"}, {1e-3, 0.25e-3}),
        ({"start": "scratch"}, {3e-3}),
        ({"start": "weights", "lr": 2e-3}, {2e-3, 0.5e-3}),
    ],
)
def test_every_group_has_its_rate_at_the_peak(
    tmp_path: Path, values: dict[str, Any], rates: set[float]
) -> None:
    trainer = make_trainer(tmp_path, epochs=10, body_lr_factor=0.25, **values)
    groups = trainer.optimizer.param_groups
    for step, share in ((0, 1 / 4), (3, 1.0)):  # the first step, and the first after warm-up
        set_learning_rate(trainer.optimizer, trainer.peak_lr * trainer._schedule(step))
        found = sorted({group["lr"] for group in groups})
        assert found == pytest.approx([share * rate for rate in sorted(rates)])
        peak = max(rates)
        assert all(group["lr"] == share * peak * group["lr_share"] for group in groups)


def test_a_frozen_body_stands_still_and_then_moves(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, start="weights", freeze_epochs=1, epochs=2)
    before = copy_weights(trainer.network)
    trainer.train_epoch()
    body = {key: value for key, value in before.items() if ".head." not in key}
    assert are_equal(body, copy_weights(trainer.network))
    assert not torch.equal(before["backbone.head.weight"], trainer.network.head.weight)
    trainer.epoch = 1
    trainer.train_epoch()
    after = copy_weights(trainer.network)
    assert not any(torch.equal(value, after[key]) for key, value in body.items() if "conv" in key)


def test_early_stop_after_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.9])

    def validate(_: Trainer) -> dict[str, float]:
        return {"val_loss": 1.0, "val_accuracy": 0.5, "val_macro_f1": next(scores)}

    monkeypatch.setattr(Trainer, "validate", validate)
    trainer = make_trainer(tmp_path, epochs=9, patience=2)
    trainer.fit()
    assert [row["val_macro_f1"] for row in trainer.history] == [0.5, 0.7, 0.6, 0.7]
    assert checkpoint.load_checkpoint(tmp_path / "best.pt")["epoch"] == 2


def test_equal_scores_go_to_the_lower_loss(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    row = {"val_accuracy": 0.5, "val_macro_f1": 0.5}
    trainer.epoch = 1
    assert trainer.record_epoch(1.0, {**row, "val_loss": 0.5}, 1.0, 1)
    assert not trainer.record_epoch(1.0, {**row, "val_loss": 0.6}, 1.0, 1)
    assert trainer.record_epoch(1.0, {**row, "val_loss": 0.4}, 1.0, 1)


def test_a_loss_that_is_no_number_names_epoch_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = Trainer.train_step

    def poisoned(self: Trainer, batch: Batch, step: int) -> Any:
        loss = train_step(self, batch, step)
        return loss * math.nan if step == 4 else loss

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    trainer = make_trainer(tmp_path)
    with pytest.raises(UserError, match="not finite in epoch 2, step 2 of 3"):
        trainer.fit()
    assert checkpoint.load_checkpoint(tmp_path / "last.pt")["epoch"] == 1


def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.averaged.head.bias.fill_(math.nan)
    with pytest.raises(UserError, match="averaged weights are not finite after epoch 1"):
        trainer.validate()


def test_the_training_loss_is_the_mean_over_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(_: Trainer, batch: Batch, number: int) -> torch.Tensor:
        return torch.tensor(float(number))

    monkeypatch.setattr(Trainer, "train_step", step)
    trainer = make_trainer(tmp_path, n_train=17)  # batches of 6, 6 and 5
    assert trainer.train_epoch() == pytest.approx((0 * 6 + 1 * 6 + 2 * 5) / 17)


OPTIONS: dict[str, Any] = {"dropout": 0.5, "mixup": 0.4, "freeze_epochs": 1, "start": "weights"}


@pytest.mark.parametrize("stop_after", [1, 2])
def test_stopped_and_resumed_equals_never_stopped(
    tmp_path: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_trainer(tmp_path / "whole", **OPTIONS)
    whole.fit()

    class StopError(Exception):
        pass

    def stop(improved: bool, epoch_time_s: float) -> None:
        if first.epoch == stop_after:
            raise StopError

    first = make_trainer(tmp_path / "parts", **OPTIONS)
    monkeypatch.setattr(first, "report_epoch", stop)
    with pytest.raises(StopError):
        first.fit()
    torch.manual_seed(12345)  # what the generators hold at a new start does not matter
    second = make_trainer(tmp_path / "parts", weights_seed=1, **OPTIONS)
    second.resume(checkpoint.load_checkpoint(tmp_path / "parts" / "last.pt"))
    assert second.epoch == stop_after
    second.fit()

    assert are_equal(copy_weights(second.network), copy_weights(whole.network))
    assert are_equal(copy_weights(second.averaged), copy_weights(whole.averaged))
    histories = [
        pd.read_csv(tmp_path / part / "history.csv").drop(columns=TIMINGS)
        for part in ("whole", "parts")
    ]
    assert histories[0].equals(histories[1])
    best = [checkpoint.load_checkpoint(tmp_path / part / "best.pt") for part in ("whole", "parts")]
    assert best[0]["epoch"] == best[1]["epoch"]
    assert are_equal(best[0]["weights"], best[1]["weights"])


@pytest.mark.parametrize("lost", ["best.pt", "last.pt", "history.csv"])
@pytest.mark.parametrize("epoch", [2, 3])
def test_killed_between_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str, epoch: int
) -> None:
    """Every epoch is better than the one before, so that each file is written each time."""
    validate = Trainer.validate

    def improve(self: Trainer) -> dict[str, float]:
        return {**validate(self), "val_macro_f1": 0.1 * self.epoch}

    monkeypatch.setattr(Trainer, "validate", improve)
    make_trainer(tmp_path / "whole").fit()
    first = make_trainer(tmp_path / "parts")
    save_checkpoint, atomic_path = trainer.save_checkpoint, trainer.atomic_path

    def killed_at(name: str) -> bool:
        return name == lost and first.epoch == epoch

    def save(path: Path, content: dict[str, Any]) -> None:
        if killed_at(path.name):
            raise KeyboardInterrupt
        save_checkpoint(path, content)

    def write(path: Path) -> Any:
        if killed_at(path.name):
            raise KeyboardInterrupt
        return atomic_path(path)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", save)
        patch.setattr(trainer, "atomic_path", write)
        with pytest.raises(KeyboardInterrupt):
            first.fit()
    second = make_trainer(tmp_path / "parts", weights_seed=1)
    second.resume(checkpoint.load_checkpoint(tmp_path / "parts" / "last.pt"))
    second.fit()
    whole, parts = (
        checkpoint.load_checkpoint(tmp_path / run / "best.pt") for run in ("whole", "parts")
    )
    assert parts["epoch"] == whole["epoch"] == 3
    assert all(torch.equal(value, parts["weights"][key]) for key, value in whole["weights"].items())
    assert len(pd.read_csv(tmp_path / "parts" / "history.csv")) == 3


def test_files_of_a_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=2)
    trainer.fit()
    history = pd.read_csv(tmp_path / "history.csv")
    assert list(history) == [
        *("epoch", "train_loss", "val_loss", "val_accuracy", "val_macro_f1", "lr"),
        *TIMINGS,
    ]
    assert history["epoch"].tolist() == [1, 2]
    best = checkpoint.load_checkpoint(tmp_path / "best.pt")
    assert best["epoch"] == best["best"]["epoch"]
    assert {"weights", "step", "history", "classes", "preprocess", "config"} <= set(best)
    assert "optimizer" not in best
    if best["epoch"] == 2:
        assert are_equal(best["weights"], copy_weights(trainer.averaged))


def test_tensorboard_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"requirements-tensorboard\.txt"):
        make_trainer(tmp_path, tensorboard=True)


def test_the_loss_watch_reads_one_look_late() -> None:
    watch = LossWatch(epoch=1, n_steps=6)
    looks = []
    for value in (1.0, 3.0, 5.0, 7.0, 9.0):
        watch.add(torch.tensor(value))
        if value in (3.0, 7.0):
            looks.append(watch.look())
    assert looks == [None, 2.0]
    assert watch.read().tolist() == [1.0, 3.0, 5.0, 7.0, 9.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_loss_watch_names_the_first_bad_step(bad: float) -> None:
    watch = LossWatch(epoch=3, n_steps=9)
    for step in range(1, 8):
        watch.add(torch.tensor(bad if step >= 5 else 1.0))
        if step == 2:
            watch.look()
    assert watch.look() == 1.0
    with pytest.raises(UserError, match="epoch 3, step 5 of 9"):
        watch.read()


def test_a_bad_loss_ends_a_long_epoch_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def step(_: Trainer, batch: Batch, number: int) -> torch.Tensor:
        steps.append(number)
        return torch.tensor(math.nan if number == 4 else 1.0)

    monkeypatch.setattr(Trainer, "train_step", step)
    trainer = make_trainer(tmp_path, n_train=400, batch_size=4)
    with pytest.raises(UserError, match="epoch 1, step 5 of 100"):
        trainer.train_epoch()
    assert len(steps) == 2 * STEPS_PER_LOOK


def test_each_step_draws_anew_and_the_same_when_it_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    augment = Augmentation.augment

    def watch(self: Augmentation, slices: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        seen.append(draws)
        return augment(self, slices, draws)

    monkeypatch.setattr(Augmentation, "augment", watch)
    trainer = make_trainer(tmp_path)
    batch = Batch(trainer.train.pixels[:8], trainer.train.labels[:8], 0, 8)
    for step in (0, 1, 0):
        trainer.train_step(batch, step)
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


# ---- memory that is too small


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """A device that holds `most` slices of a step at a time; the sizes that were tried."""
    sizes, backward = [], Trainer._backward

    def run(self: Trainer, part: Batch, draws: torch.Tensor, step: int) -> torch.Tensor:
        sizes.append(len(part))
        if len(part) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return backward(self, part, draws, step)

    monkeypatch.setattr(Trainer, "_backward", run)
    return sizes


def test_out_of_memory_halves_the_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sizes = limit_memory(monkeypatch, 3)
    trainer = make_trainer(tmp_path, epochs=1)
    trainer.fit()
    assert sizes == [8, 4, *[2] * 12]  # three steps of eight slices
    assert "micro-batches of 2 slices" in caplog.text
    assert "batches of 8; batch norm then normalises by 2" in caplog.text
    last = checkpoint.load_checkpoint(tmp_path / "last.pt")
    again = make_trainer(tmp_path)
    again.resume(last)
    assert again.micro_batch == 2


def test_micro_batches_give_the_gradients_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without batch norm, which is of a micro-batch by nature."""
    trainer = make_trainer(tmp_path, class_weights="balanced", dropout=0.0, batch_norm=False)
    batch = Batch(trainer.train.pixels[:8], trainer.train.labels[:8], 0, 8)
    found = []
    for micro_batch in (8, 3, 2):
        trainer.micro_batch = micro_batch
        trainer.optimizer.zero_grad()
        loss = trainer.accumulate_gradients(batch, step=0)
        found.append((loss, [part.grad.clone() for part in trainer.network.parameters()]))
    for loss, gradients in found[1:]:
        assert torch.allclose(loss, found[0][0], atol=1e-6)
        for part, whole in zip(gradients, found[0][1], strict=True):
            assert torch.allclose(part, whole, atol=1e-5)


def test_a_failed_try_leaves_no_gradients_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory may end in the second part, when the first has added its gradients."""
    trainer = make_trainer(tmp_path, dropout=0.0, batch_norm=False)
    batch = Batch(trainer.train.pixels[:8], trainer.train.labels[:8], 0, 8)
    trainer.accumulate_gradients(batch, step=0)
    expected = [part.grad.clone() for part in trainer.network.parameters()]
    trainer.optimizer.zero_grad()
    trainer.micro_batch, backward = 4, Trainer._backward

    def run(self: Trainer, part: Batch, draws: torch.Tensor, step: int) -> torch.Tensor:
        if self.micro_batch == 4 and part.start:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward(self, part, draws, step)

    monkeypatch.setattr(Trainer, "_backward", run)
    trainer.accumulate_gradients(batch, step=0)
    for part, whole in zip(trainer.network.parameters(), expected, strict=True):
        assert torch.allclose(part.grad, whole, atol=1e-5)


def test_memory_for_two_slices_is_the_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = limit_memory(monkeypatch, 1)
    with pytest.raises(torch.OutOfMemoryError):
        make_trainer(tmp_path).fit()
    assert sizes == [8, 4, 2]
