"""The training loop: schedule, mixed precision, averaging, early stop, checkpoints, resume."""

import contextlib
import copy
import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from common.atomic_files import atomic_path
from common.signals import Stop, postpone
from evaluation.metrics import compute_confusion, compute_macro_f1
from helper import UserError, build_generator, log, seed_everything
from model import Classifier, full_precision, infer, to_unit_range
from modeling.checkpoint import load_checkpoint, save_checkpoint
from modeling.precision import build_forward, decides_to_compile
from training import distributed
from training.augmentation import Augmentation
from training.loss_tracker import STEPS_PER_LOOK, LossWatch
from training.optimizer import (
    build_optimizer,
    compute_rate_share,
    set_learning_rate,
    update_average,
)
from training.progressive_resizing import compute_size, shrink

if TYPE_CHECKING:
    from args import TrainConfig
    from loading.image_source import Batch, Slices

SCRATCH_LR, TRAINED_LR = 3e-3, 1e-3
# Training slices that batch norm's statistics are taken from before val.
STATISTICS_SLICES = 512
SMALLEST_MICRO_BATCH = 2  # batch norm needs two


class Trainer:
    """Fits a network and keeps the best and the last checkpoint.

    Two sets of weights walk along. The optimiser's own are trained; their exponential moving
    average is what val looks at and what best.pt holds. The decay of step t is at most
    (1 + t) / (10 + t), so a short run is not held back by its random start. Batch norm's running
    statistics are of augmented slices and of weights that have moved on; those of the averaged
    weights are taken anew from plain training slices before every look at val.

    Args:
        network: On the device, with the weights to start from.
        train: Slices to learn from.
        val: Slices that choose the best epoch and the end.
        config: Every option of the run.
        record: What else the checkpoints hold: model, classes, preprocessing, split, …
        run_dir: session/RUN.
        class_weights: Loss weight of each class [K], or None.
    """

    def __init__(
        self,
        network: Classifier,
        train: "Slices",
        val: "Slices",
        config: "TrainConfig",
        record: dict[str, Any],
        run_dir: Path,
        class_weights: Tensor | None = None,
    ) -> None:
        self.network = network.to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False).eval()
        distributed.share_batch_norm(self.network)
        self.train, self.val = train, val
        self.config, self.options = config, config.train
        self.record, self.run_dir = record, run_dir
        self.device = next(network.parameters()).device
        self.precision = record["precision"]
        self.class_weights = class_weights
        self.n_classes = len(record["classes"])
        self.augmentation = Augmentation(**dataclasses.asdict(config.augment))
        self.starts_trained = record["start"] != "scratch"
        self.peak_lr = self.options.lr or (TRAINED_LR if self.starts_trained else SCRATCH_LR)
        self.optimizer = build_optimizer(
            network,
            network.head,
            self.peak_lr,
            self.options.body_lr_factor if self.starts_trained else 1.0,
            self.options.weight_decay,
        )
        self.steps_per_epoch = train.count_steps(self.options.batch_size)
        self.n_steps = self.options.epochs * self.steps_per_epoch
        choice = config.run.compile
        if choice == "auto" and self.options.first_size < 1:
            choice = "off"  # every size would be compiled for itself
        self.compiles = decides_to_compile(choice, self.device, self.n_steps, distributed.count())
        self.forward = build_forward(self.network, self.compiles, is_wanted=choice == "on")
        self.micro_batch = self.options.batch_size
        self.epoch = 0
        self.stop = Stop()
        self.begun: dict[str, Any] | None = None  # of `save`, where an epoch is taken up within
        self.saved_steps = 0  # of the epoch that is under way
        self._saved_s = time.monotonic()
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        writes_curves = config.run.tensorboard and distributed.is_first()
        self.tensorboard = _open_tensorboard(run_dir) if writes_curves else None

    @property
    def step(self) -> int:
        """Optimiser steps taken before this epoch."""
        return self.epoch * self.steps_per_epoch

    @property
    def is_frozen(self) -> bool:
        """Whether the pretrained body stands still in this epoch."""
        return self.starts_trained and self.epoch < self.options.freeze_epochs

    def fit(self) -> None:
        """Train until the last epoch, or until val has not improved for `--patience` epochs."""
        # processes of one run would each stop at another step: those end at once
        with (
            postpone() if distributed.count() == 1 else contextlib.nullcontext(Stop()) as self.stop
        ):
            while self.epoch < self.options.epochs and not self.is_stale():
                started_s = time.perf_counter()
                n_trained = len(self.train) - (sum(self.begun["weights"]) if self.begun else 0)
                train_loss = self.train_epoch()
                train_time_s = time.perf_counter() - started_s
                self.estimate_statistics()
                scores = self.validate()
                self.epoch += 1
                improved = self.record_epoch(train_loss, scores, train_time_s, n_trained)
                self.save(improved)
                self.report_epoch(improved, time.perf_counter() - started_s)
                self.stop.heed()
        if self.epoch < self.options.epochs:
            log.info("stopped early: no better val macro-F1 for %d epochs", self.options.patience)
        if distributed.is_first():
            best = load_checkpoint(self.run_dir / "best.pt")
            save_checkpoint(self.run_dir / "best.pt", {**best, "history": self.history})

    def train_epoch(self) -> float:
        """One pass over the training slices, or what is left of it; the mean loss of a slice.

        An end that was asked for comes between two steps, when they have been saved.
        """
        begun, self.begun = self.begun, None
        # of one process alone, for those of all are added up
        before = begun["losses"] * distributed.is_first() if begun else None
        watch = LossWatch(self.epoch + 1, self.steps_per_epoch, before)
        weights: list[int] = list(begun["weights"]) if begun else []
        self.network.train()
        self._freeze_body(self.is_frozen)
        batches = self.train.shuffle(
            self.options.batch_size,
            self.config.run.seed,
            self.epoch,
            distributed.get_rank(),
            distributed.count(),
            len(weights),
        )
        title = f"epoch {self.epoch + 1}/{self.options.epochs}"
        with tqdm(
            total=len(self.train),
            initial=sum(weights),
            desc=title,
            unit="slice",
            leave=False,
            disable=None if distributed.is_first() else True,
        ) as bar:
            for batch in batches:
                watch.add(self.train_step(batch, self.step + len(weights)))
                weights.append(batch.whole)
                bar.update(batch.whole)
                if self.stop.kind is not None or self._is_save_due():
                    self.save(improved=False, begun={"losses": watch.read(), "weights": weights})
                    self.stop.heed()
                if len(weights) % STEPS_PER_LOOK == 0:
                    recent = watch.look()
                    if recent is not None:
                        bar.set_postfix(loss=f"{recent * distributed.count():.3f}")
        shares = torch.tensor(weights, dtype=torch.float64) / len(self.train)
        return float(distributed.add_up(watch.read().double()) @ shares)

    def train_step(self, batch: "Batch", step: int) -> Tensor:
        """One batch forward and backward and one step of the optimiser.

        Args:
            batch: The slices of this step, or this process's part of them.
            step: Optimiser steps taken before; with the seed it decides all that is random here.

        Returns:
            The part that these slices have in the mean loss of the step, still on the device.
        """
        set_learning_rate(self.optimizer, self.peak_lr * self._schedule(step))
        loss = self.accumulate_gradients(batch, step)
        distributed.add_gradients(self.network.parameters())
        if self.options.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        update_average(self.averaged, self.network, self.options.ema_decay, step)
        return loss

    def accumulate_gradients(self, batch: "Batch", step: int) -> Tensor:
        """Gradients of the loss, by micro-batches; by smaller ones where memory is too small.

        What is random about a slice depends on its place in the batch, not on how it is divided;
        dropout and mixing are of a part.
        """
        draws = self.augmentation.draw(
            batch.whole, build_generator(self.config.run.seed, "augment", step)
        )
        try:
            losses = [self._backward(part, draws, step) for part in batch.divide(self.micro_batch)]
        except torch.OutOfMemoryError:
            if not self._can_halve(len(batch)):
                raise
        else:
            return torch.stack(losses).sum()
        # out of the except block, whose traceback holds on to the memory of the failed step
        self._halve(len(batch))
        return self.accumulate_gradients(batch, step)

    def _backward(self, part: "Batch", draws: Tensor, step: int) -> Tensor:
        """Add a part's gradients; its part in the mean loss of the step."""
        seed = self.config.run.seed
        seed_everything(seed, "step", step, part.start)  # dropout draws from the global generator
        own = draws[part.start : part.start + len(part)]
        slices = shrink(to_unit_range(part.pixels), self._compute_size(step))
        images = self.augmentation.augment(slices, own)
        targets = F.one_hot(part.labels, self.n_classes).float()  # [B, K]
        generator = build_generator(seed, "mix", step, part.start)
        images, targets = self.augmentation.mix(images, targets, generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.forward(images)
        loss = part.share * F.cross_entropy(
            logits.float(),
            targets,
            weight=self.class_weights,
            label_smoothing=self.options.label_smoothing,
        )
        loss.backward()
        return loss.detach()

    def _can_halve(self, n_slices: int) -> bool:
        """Whether a batch can be had in smaller parts; processes that share one cannot."""
        return (
            distributed.count() == 1 and min(self.micro_batch, n_slices) >= 2 * SMALLEST_MICRO_BATCH
        )

    def _halve(self, n_slices: int) -> None:
        """Go on with micro-batches of half the size, and say so."""
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.micro_batch = -(-min(self.micro_batch, n_slices) // 2)
        log.info(
            "out of memory: going on with micro-batches of %d slices, whose gradients are added up "
            "to batches of %d; batch norm then normalises by %d slices at a time",
            self.micro_batch,
            self.options.batch_size,
            self.micro_batch,
        )

    @torch.no_grad()
    def estimate_statistics(self) -> None:
        """Take batch norm's statistics of the averaged weights from plain training slices, in fp32.

        Source: Izmailov et al. 2018, Averaging weights leads to wider optima and better
        generalization; Touvron et al. 2019, Fixing the train-test resolution discrepancy.
        """
        norms = [part for part in self.averaged.modules() if isinstance(part, _BatchNorm)]
        if not norms or self.is_frozen:
            return
        generator = build_generator(self.config.run.seed, "statistics", self.epoch)
        chosen = torch.randperm(len(self.train), generator=generator)[:STATISTICS_SLICES]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over the batches
            norm.train()
        n_batches = -(-len(chosen) // self.micro_batch)
        for slices in self.train.read(chosen.tensor_split(n_batches)):
            with full_precision():
                self.averaged(to_unit_range(slices))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()

    def validate(self) -> dict[str, float]:
        """Loss, accuracy and macro-F1 of the averaged weights on val, in fp32."""
        own = self.val.iterate(self.micro_batch, distributed.get_rank(), distributed.count())
        logits = distributed.gather_rows(infer(self.averaged, own)[0], len(self.val))
        if not logits.isfinite().all():
            raise UserError(
                f"the averaged weights are not finite after epoch {self.epoch + 1}: lower --lr or "
                "try --precision fp32"
            )
        labels = self.val.labels.cpu()
        confusion = compute_confusion(logits.argmax(1).numpy(), labels.numpy(), self.n_classes)
        return {
            "val_loss": float(F.cross_entropy(logits, labels)),
            "val_accuracy": float(confusion.trace() / confusion.sum()),
            "val_macro_f1": float(compute_macro_f1(confusion)),
        }

    def record_epoch(
        self, train_loss: float, scores: dict[str, float], time_s: float, n_trained: int
    ) -> bool:
        """Add an epoch to the history; True when it is the best so far.

        Better is a higher val macro-F1, or the same with a lower val loss.

        Args:
            train_loss: Mean of a slice.
            scores: Of `validate`.
            time_s: Of training alone, and since the run was taken up.
            n_trained: Slices in that time.
        """
        row = {
            "epoch": self.epoch,
            "train_loss": train_loss,
            **scores,
            "lr": self.peak_lr * self._schedule(self.step - 1),
            "images_per_s": n_trained / time_s,
            "time_s": time_s,
        }
        self.history.append(row)
        if self.tensorboard is not None:
            for name, value in row.items():
                self.tensorboard.add_scalar(name, value, self.epoch)
            self.tensorboard.flush()
        improved = not self.best or (row["val_macro_f1"], -row["val_loss"]) > (
            self.best["val_macro_f1"],
            -self.best["val_loss"],
        )
        if improved:
            self.best = row
        return improved

    def is_stale(self) -> bool:
        """Whether the best epoch lies `--patience` epochs back."""
        patience = self.options.patience
        return bool(patience and self.best and self.epoch - self.best["epoch"] >= patience)

    def report_epoch(self, improved: bool, epoch_time_s: float) -> None:
        """One line an epoch, on a terminal and in a log alike."""
        row = self.history[-1]
        left_s = epoch_time_s * (self.options.epochs - self.epoch)
        log.info(
            "epoch %3d/%d  train loss %.4f  val loss %.4f  val accuracy %.4f  val macro-F1 %.4f  "
            "%.0f images/s  %s left%s",
            self.epoch,
            self.options.epochs,
            row["train_loss"],
            row["val_loss"],
            row["val_accuracy"],
            row["val_macro_f1"],
            row["images_per_s"],
            tqdm.format_interval(left_s),
            "  * best" if improved else "",
        )

    # ---- files

    def _is_save_due(self) -> bool:
        """Whether `--save-every` has passed; several processes save at the end of epochs alone."""
        wait_s = 60 * self.config.run.save_every
        return distributed.count() == 1 and 0 < wait_s <= time.monotonic() - self._saved_s

    def save(self, improved: bool, begun: dict[str, Any] | None = None) -> None:
        """Write last.pt and history.csv, and best.pt when this epoch is the best.

        Args:
            improved: Whether it is.
            begun: Of an epoch that is not at its end, the losses [steps] and the slices of the
                steps that were taken.
        """
        if not distributed.is_first():
            return
        averaged = {
            **self.record,
            "epoch": self.epoch,
            "step": self.step,
            "history": self.history,
            "best": self.best,
            "weights": self.averaged.state_dict(),
        }
        trained = {
            "trained_weights": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "micro_batch": self.micro_batch,
            "compiles": self.compiles,
            "begun": begun,
        }
        save_checkpoint(self.run_dir / "last.pt", {**averaged, **trained})
        if improved:
            save_checkpoint(self.run_dir / "best.pt", averaged)
        if self.history:
            with atomic_path(self.run_dir / "history.csv") as temporary:
                pd.DataFrame(self.history).to_csv(temporary, index=False)
        self.saved_steps = len(begun["weights"]) if begun else 0
        self._saved_s = time.monotonic()

    def resume(self, last: dict[str, Any]) -> None:
        """Take up the state of last.pt; on the CPU, training goes on to the same bits.

        Args:
            last: Its content.
        """
        self.network.load_state_dict(last["trained_weights"])
        self.averaged.load_state_dict(last["weights"])
        self.optimizer.load_state_dict(last["optimizer"])
        if last.get("compiles", self.compiles) != self.compiles:
            self.compiles = last["compiles"]
            self.forward = build_forward(self.network, self.compiles, is_wanted=False)
        if distributed.count() == 1:  # several could divide their parts into different numbers
            self.micro_batch = last["micro_batch"]
        self.epoch, self.history, self.best = last["epoch"], last["history"], last["best"]
        self.begun = last.get("begun")
        if self.history and not self.begun:  # a kill may have come between last.pt and the rest
            self.save(improved=self.best["epoch"] == self.epoch)

    # ---- parts of a step

    def _schedule(self, step: int) -> float:
        """Share of the peak rate."""
        n_warmup = self.options.warmup_epochs * self.steps_per_epoch
        return compute_rate_share(step, self.n_steps, n_warmup)

    def _compute_size(self, step: int) -> int:
        """Side of the training slices, px."""
        full_px = self.record["preprocess"]["image_size"]
        return compute_size(step, self.n_steps, full_px, self.options.first_size)

    def _freeze_body(self, frozen: bool) -> None:
        """Hold everything but the head still, batch norm's statistics too."""
        for parameter in self.network.parameters():
            parameter.requires_grad_(not frozen)
        if frozen:
            self.network.eval()
            self.network.head.train().requires_grad_(True)


def _open_tensorboard(run_dir: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard: not installed; "
            f"{Path(sys.executable).name} -m pip install -r requirements-tensorboard.txt"
        ) from error
    return SummaryWriter(run_dir / "tensorboard")
