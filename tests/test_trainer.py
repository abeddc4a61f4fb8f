"""The training loop: EMA, freezing, early stop, bad losses, memory, resume to the same bits."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from torch import nn

from helper import UserError
from loading.image_source import Batch, MemorySlices
from modeling import checkpoint, forward
from tests.support.builders import Patch, assert_same_weights, make_trainer, raise_in_step
from trainer import Trainer
from training import distributed
from training.loss_tracker import STEPS_PER_READ

TIMINGS = ["images_per_s", "time_s"]
PLAIN: dict[str, Any] = {  # no augmentation
    **dict.fromkeys(("flip", "quarter_turns"), False),
    **dict.fromkeys(("rotation", "shift", "zoom", "gamma", "contrast"), 0.0),
}
OPTIONS: dict[str, Any] = {"dropout": 0.5, "mixup": 0.4, "freeze_epochs": 1, "start": "weights"}


def copy_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[key]) for key, value in first.items())


def replace_step(monkeypatch: Patch, compute_loss: Callable[[int], float]) -> list[int]:
    """Replace the training step by a loss that depends on its number; return the numbers."""
    steps: list[int] = []

    def step(_: Trainer, batch: Batch, number: int) -> torch.Tensor:
        steps.append(number)
        return torch.tensor(compute_loss(number))

    monkeypatch.setattr(Trainer, "train_step", step)
    return steps


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls(tmp_path: Path, precision: str) -> None:
    plain = {**PLAIN, "label_smoothing": 0.0, "dropout": 0.0}
    trainer = make_trainer(tmp_path, epochs=15, precision=precision, lr=3e-3, **plain)
    trainer.fit()
    losses = [row["train_loss"] for row in trainer.history.rows]
    assert losses[-1] < 0.7 * losses[0]


def test_without_ema_the_trained_weights_are_kept(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ema_decay=0.0, epochs=1)
    trainer.fit()
    trained = dict(trainer.network.named_parameters())
    for name, value in trainer.ema.named_parameters():
        assert torch.equal(value, trained[name])


def test_batch_norm_is_recalibrated_on_plain_training_slices(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.recalibrate_batch_norm()
    stem = trainer.ema.backbone.stem
    plain = forward.to_unit_range(trainer.train.pixels)
    preprocess = trainer.ema.preprocess
    with torch.no_grad():
        convolved = stem[0]((plain - preprocess.mean) / preprocess.std)
    assert torch.allclose(stem[1].running_mean, convolved.mean((0, 2, 3)), atol=1e-5)
    assert not any(part.training for part in trainer.ema.modules())
    assert stem[1].momentum == 0.1


@pytest.mark.parametrize(
    ("values", "rates"),
    [
        ({"start": "weights"}, {1e-3, 0.25e-3}),
        ({"start": "scratch"}, {3e-3}),
        ({"start": "weights", "lr": 2e-3}, {2e-3, 0.5e-3}),
    ],
)
def test_peak_learning_rates(tmp_path: Path, values: dict[str, Any], rates: set[float]) -> None:
    # 3 steps an epoch, one epoch of warm-up
    trainer = make_trainer(tmp_path, epochs=10, backbone_lr_factor=0.25, clip_norm=0.0, **values)
    batch = Batch(trainer.train.pixels[:8], trainer.train.labels[:8], 0, 8)
    for step, factor in ((0, 1 / 4), (3, 1.0)):
        trainer.train_step(batch, step)
        found = sorted({group["lr"] for group in trainer.optimizer.param_groups})
        assert found == pytest.approx([factor * rate for rate in sorted(rates)])


def test_a_frozen_backbone_does_not_change_until_it_is_unfrozen(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, start="weights", freeze_epochs=1, epochs=2)
    before = copy_weights(trainer.network)
    trainer.train_epoch()
    backbone = {key: value for key, value in before.items() if ".head." not in key}
    trainer.recalibrate_batch_norm()
    for network in (trainer.network, trainer.ema):
        assert are_equal(backbone, copy_weights(network))  # also the statistics of batch norm
    assert not torch.equal(before["backbone.head.weight"], trainer.network.head.weight)
    trainer.epoch = 1
    trainer.train_epoch()
    after = copy_weights(trainer.network)
    convs = [key for key in backbone if "conv" in key]
    assert convs
    assert not any(torch.equal(backbone[key], after[key]) for key in convs)


def test_early_stop_after_patience(tmp_path: Path, monkeypatch: Patch) -> None:
    scores = (0.5, 0.7, 0.6, 0.7, 0.9)
    rows = [{"val_loss": 1.0, "val_accuracy": 0.5, "val_macro_f1": score} for score in scores]
    monkeypatch.setattr(Trainer, "validate", Mock(side_effect=rows))
    trainer = make_trainer(tmp_path, epochs=9, patience=2)
    trainer.fit()
    assert [row["val_macro_f1"] for row in trainer.history.rows] == [0.5, 0.7, 0.6, 0.7]
    best = checkpoint.load_checkpoint(tmp_path / "best.pt")
    assert best["epoch"] == 2
    assert len(best["history"]) == 4


def test_bad_losses_end_the_epoch_early(tmp_path: Path, monkeypatch: Patch) -> None:
    steps = replace_step(monkeypatch, lambda step: math.nan if step == 104 else 1.0)
    trainer = make_trainer(tmp_path, n_train=400, batch_size=4)
    with pytest.raises(UserError, match="not finite in epoch 2, step 5 of 100"):
        trainer.fit()
    assert len(steps) == 100 + 2 * STEPS_PER_READ
    assert checkpoint.load_checkpoint(tmp_path / "last.pt")["epoch"] == 1


def test_ema_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.ema.head.bias.fill_(math.nan)
    with pytest.raises(UserError, match="EMA weights are not finite after epoch 1"):
        trainer.validate()


def test_the_training_loss_is_the_mean_over_steps(tmp_path: Path, monkeypatch: Patch) -> None:
    replace_step(monkeypatch, float)
    trainer = make_trainer(tmp_path, n_train=17)
    assert trainer.train_epoch() == pytest.approx((0 + 1 + 2) / 3)


def test_only_the_main_process_counts_restored_losses(tmp_path: Path, monkeypatch: Patch) -> None:
    replace_step(monkeypatch, lambda _: 1.0)
    losses = []
    for is_main in (True, False):
        trainer = make_trainer(tmp_path / str(is_main), epochs=1)
        trainer.partial_epoch = {"losses": torch.tensor([30.0]), "skipped_steps": 0}
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "is_main_process", lambda value=is_main: value)
            losses.append(trainer.train_epoch())
    assert losses == pytest.approx([(30 + 2) / 3, 2 / 3])


@pytest.mark.parametrize("options", [{}, {**PLAIN, "mixup": 0.4}])
def test_each_step_has_its_own_draws_which_can_be_repeated(tmp_path: Path, options: Any) -> None:
    trainer = make_trainer(tmp_path, dropout=0.0, **options)
    batch = Batch(trainer.train.pixels[:8], trainer.train.labels[:8], 0, 8)
    first, other, again = (trainer.accumulate_gradients(batch, step) for step in (0, 1, 0))
    assert first == again
    assert first != other


def test_loss_and_gradients_follow_their_options(tmp_path: Path) -> None:
    options = {**PLAIN, "label_smoothing": 0.3, "clip_norm": 0.01, "dropout": 0.0}
    trainer, norms = make_trainer(tmp_path, **options), []
    trainer.class_weights = torch.tensor([0.5, 1.0, 4.0])
    batch = Batch(trainer.train.pixels[:8], trainer.train.labels[:8], 0, 8)
    logits, targets = trainer.network(forward.to_unit_range(batch.pixels)), torch.eye(3)
    cross_entropy = nn.CrossEntropyLoss(trainer.class_weights, label_smoothing=0.3)
    expected = cross_entropy(logits, targets[batch.labels])  # divided by the number of slices

    def record(*_: Any) -> None:
        norms.append(sum(part.grad.square().sum() for part in trainer.network.parameters()) ** 0.5)

    trainer.optimizer.register_step_pre_hook(record)
    assert trainer.train_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-4)
    assert float(norms[0]) == pytest.approx(0.01, rel=1e-3)


# ---- checkpoints


def test_files_of_a_run(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=1)
    trainer.fit()
    table = pd.read_csv(tmp_path / "history.csv")
    scores = ["val_loss", "val_accuracy", "val_macro_f1"]
    assert list(table) == ["epoch", "train_loss", *scores, "lr", "skipped_steps", *TIMINGS]
    assert table["epoch"].tolist() == [1]
    best = checkpoint.load_checkpoint(tmp_path / "best.pt")
    assert best["epoch"] == best["best"]["epoch"] == 1
    assert {"weights", "step", "history", "classes", "preprocess", "config"} <= set(best)
    assert "optimizer" not in best
    assert are_equal(best["weights"], copy_weights(trainer.ema))


def test_checkpoints_within_an_epoch_follow_save_every(tmp_path: Path, monkeypatch: Patch) -> None:
    for save_every, n_saves in ((0.0, 0), (10.0, 0), (1e-9, 3)):
        trainer = make_trainer(tmp_path / str(save_every), epochs=1, save_every=save_every)
        seen: list[int] = []
        monkeypatch.setattr(trainer, "save", lambda seen=seen, **_: seen.append(1))
        trainer.train_epoch()
        assert len(seen) == n_saves


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trainer of a run that was never stopped."""
    trainer = make_trainer(tmp_path_factory.mktemp("run") / "whole", **OPTIONS)
    trainer.fit()
    return trainer


@pytest.mark.parametrize("n_steps", range(1, 9))
def test_resume_is_exact(tmp_path: Path, n_steps: int, whole: Any, monkeypatch: Patch) -> None:
    run_dirs = (whole.run_dir, tmp_path / "parts")
    first = make_trainer(tmp_path / "parts", save_every=1e-9, **OPTIONS)
    with monkeypatch.context() as patch:
        raise_in_step(patch, n_steps, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            first.fit()
    last = checkpoint.load_checkpoint(tmp_path / "parts" / "last.pt")
    n_partial = len(last["partial_epoch"]["losses"]) if last["partial_epoch"] else 0
    assert (last["epoch"], n_partial) == divmod(n_steps, whole.steps_per_epoch)
    torch.manual_seed(12345)  # the state of the global generator does not matter
    second = make_trainer(tmp_path / "parts", weights_seed=1, **OPTIONS)
    second.resume(last)
    second.fit()
    assert_same_weights(*(checkpoint.load_checkpoint(path / "last.pt") for path in run_dirs))
    tables = [pd.read_csv(path / "history.csv").drop(columns=TIMINGS) for path in run_dirs]
    assert tables[0].equals(tables[1])
    best = [checkpoint.load_checkpoint(path / "best.pt") for path in run_dirs]
    assert best[0]["epoch"] == best[1]["epoch"]
    assert are_equal(best[0]["weights"], best[1]["weights"])


@pytest.mark.parametrize("lost", ["best.pt", "last.pt", "history.csv"])
@pytest.mark.parametrize("epoch", [2, 3])
def test_killed_between_files(tmp_path: Path, monkeypatch: Patch, lost: str, epoch: int) -> None:
    """Every epoch is better than the one before, so each file is written each time."""
    validate = Trainer.validate

    def improve(self: Trainer) -> dict[str, float]:
        return {**validate(self), "val_macro_f1": 0.1 * self.epoch}

    monkeypatch.setattr(Trainer, "validate", improve)
    make_trainer(tmp_path / "whole").fit()
    first, replace = make_trainer(tmp_path / "parts"), Path.replace

    def kill(self: Path, target: Path) -> Path:
        if (target.name, first.epoch) == (lost, epoch):
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            first.fit()
    second = make_trainer(tmp_path / "parts", weights_seed=1)
    second.resume(checkpoint.load_checkpoint(tmp_path / "parts" / "last.pt"))
    second.fit()
    whole, parts = (
        checkpoint.load_checkpoint(tmp_path / run / "best.pt") for run in ("whole", "parts")
    )
    assert parts["epoch"] == whole["epoch"] == 3
    assert are_equal(whole["weights"], parts["weights"])
    assert len(pd.read_csv(tmp_path / "parts" / "history.csv")) == 3


def test_micro_batch_and_compilation_are_restored(tmp_path: Path, monkeypatch: Patch) -> None:
    first = make_trainer(tmp_path, epochs=1)
    first.micro_batch, first.replica.compiles = 4, True
    first.save(improved=False)
    second = make_trainer(tmp_path, epochs=1)
    assert not second.replica.compiles
    compiled = Mock()
    monkeypatch.setattr(torch, "compile", compiled)
    second.resume(checkpoint.load_checkpoint(tmp_path / "last.pt"))
    assert (second.micro_batch, second.replica.compiles) == (4, True)
    compiled.assert_called_once()


# ---- out of memory


def limit_memory(monkeypatch: Patch, fails: Callable[[Trainer, Batch], bool]) -> list[int]:
    """Let the device run out of memory in some micro-batches; return the sizes tried."""
    sizes, backward = [], Trainer._backward

    def run(self: Trainer, part: Batch, draws: torch.Tensor, step: int) -> torch.Tensor:
        sizes.append(len(part))
        if fails(self, part):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward(self, part, draws, step)

    monkeypatch.setattr(Trainer, "_backward", run)
    return sizes


def test_out_of_memory_halves_the_micro_batch(
    tmp_path: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sizes = limit_memory(monkeypatch, lambda _, part: len(part) > 3)
    trainer = make_trainer(tmp_path, epochs=1)
    trainer.fit()
    assert sizes == [8, 4, *[2] * 12]  # three steps of eight slices
    assert "micro-batches of 2 slices" in caplog.text
    assert checkpoint.load_checkpoint(tmp_path / "last.pt")["micro_batch"] == 2


def test_half_of_an_odd_micro_batch_is_rounded_up(tmp_path: Path, monkeypatch: Patch) -> None:
    limit_memory(monkeypatch, lambda _, part: len(part) > 3)
    trainer = make_trainer(tmp_path, n_train=10, batch_size=5, epochs=1)
    trainer.train_epoch()
    assert trainer.micro_batch == 3


@pytest.mark.parametrize("part", ["recalibrate_batch_norm", "validate"])
def test_out_of_memory_between_epochs_halves_the_batches(
    tmp_path: Path, monkeypatch: Patch, part: str
) -> None:
    run, sizes = getattr(Trainer, part), []

    def fail_above_four(self: Trainer) -> Any:
        sizes.append(self.micro_batch)
        if self.micro_batch > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self)

    monkeypatch.setattr(Trainer, part, fail_above_four)
    make_trainer(tmp_path, epochs=1).fit()
    assert sizes == [8, 4]


def test_out_of_memory_first_moves_the_slices_to_the_host(
    tmp_path: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    moved: list[MemorySlices] = []
    trainer = make_trainer(tmp_path)
    trainer.device = torch.device("cuda")
    monkeypatch.setattr(MemorySlices, "is_on_device", property(lambda each: each not in moved))
    monkeypatch.setattr(MemorySlices, "move_to_host", lambda each: moved.append(each))
    monkeypatch.setattr(torch.cuda, "empty_cache", Mock())
    failures = [torch.OutOfMemoryError("CUDA out of memory")] * 2
    run = Mock(side_effect=[*failures, "done"])
    assert trainer.retry(run) == "done"
    assert moved == [trainer.train, trainer.val]
    assert trainer.micro_batch == 4
    assert "moved to the memory of the host" in caplog.text


def test_several_processes_do_not_recover_alone(tmp_path: Path, monkeypatch: Patch) -> None:
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(torch.OutOfMemoryError):  # the second try would succeed
        trainer.retry(Mock(side_effect=[torch.OutOfMemoryError("CUDA out of memory"), None]))


def test_memory_for_one_slice_is_too_small(tmp_path: Path, monkeypatch: Patch) -> None:
    sizes = limit_memory(monkeypatch, lambda _, part: len(part) > 1)
    with pytest.raises(torch.OutOfMemoryError):
        make_trainer(tmp_path).fit()
    assert sizes == [8, 4, 2]


def test_micro_batches_have_their_own_dropout(tmp_path: Path, monkeypatch: Patch) -> None:
    seed_device = Mock()
    monkeypatch.setattr("trainer.seed_device", seed_device)
    trainer = make_trainer(tmp_path)
    trainer.micro_batch = 4
    batch = next(trainer.train.shuffle(8, seed=0, epoch=0))
    for step in (0, 1):
        trainer.train_step(batch, step)
    seeds = [call.args for call in seed_device.call_args_list]
    assert len(set(seeds)) == len(seeds) == 4


def test_micro_batches_give_the_gradients_of_the_batch(tmp_path: Path, monkeypatch: Patch) -> None:
    """Without batch norm, which normalises over a micro-batch."""
    trainer = make_trainer(tmp_path, class_weights="balanced", dropout=0.0, batch_norm=False)
    batch = Batch(trainer.train.pixels[:8], trainer.train.labels[:8], 0, 8)
    # parts of 4 fail after the first one has added its gradients
    limit_memory(monkeypatch, lambda trainer, part: trainer.micro_batch == 4 and part.offset > 0)
    results = []
    for micro_batch in (8, 3, 2, 4):
        trainer.micro_batch = micro_batch
        trainer.optimizer.zero_grad()
        loss = trainer.retry(lambda: trainer.accumulate_gradients(batch, step=0))
        results.append((loss, [part.grad.clone() for part in trainer.network.parameters()]))
    assert trainer.micro_batch == 2
    for loss, gradients in results[1:]:
        assert torch.allclose(loss, results[0][0], atol=1e-6)
        for part, whole in zip(gradients, results[0][1], strict=True):
            assert torch.allclose(part, whole, atol=1e-5)
