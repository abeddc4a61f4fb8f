"""The training loop: steps, EMA, validation, early stopping, checkpoints and resume."""

import contextlib
import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from common.signals import StopRequest, defer_signals
from evaluation.metrics import score_validation
from helper import UserError, build_generator, first_line, is_out_of_memory, log, seed_device
from loading.image_source import MemorySlices
from model import Classifier
from modeling.batch_norm import has_batch_norm, recalibrate_batch_norm
from modeling.checkpoint import load_checkpoint, save_checkpoint
from modeling.forward import predict_logits, to_unit_range
from modeling.precision import autocast
from training import distributed
from training.augmentation import Augmentation, EpochDraws
from training.ema import update_ema
from training.history import History
from training.loss_scaling import LossScaler
from training.loss_tracker import STEPS_PER_READ, LossTracker
from training.optimizer import build_optimizer, set_learning_rate
from training.progressive_resizing import shrink
from training.replica import Replica
from training.schedule import Schedule

if TYPE_CHECKING:
    from args import TrainConfig
    from loading.image_source import Batch, SliceSource

T = TypeVar("T")
SCRATCH_LR, PRETRAINED_LR = 3e-3, 1e-3
BATCH_NORM_SLICES = 512  # training slices used to recalibrate batch norm
SMALLEST_MICRO_BATCH = 2  # batch norm needs two slices


class Trainer:
    """Trains a network, validates its EMA weights after every epoch and saves the best.

    The optimizer updates the trained weights, and each step then updates the EMA weights. Only the
    EMA weights are validated and stored in best.pt. Before each validation their batch norm is
    recalibrated on training slices without augmentation.

    Args:
        network: Network with its initial weights, on the training device.
        train: Training slices.
        val: Validation slices, for the choice of the best epoch and early stopping.
        config: All options of the run.
        record: Checkpoint entries that define the run, see `lifecycle.build_record`.
        run_dir: Folder of the run, session/RUN.
        class_weights: Loss weight of each class [K], or None.
    """

    def __init__(
        self,
        network: Classifier,
        train: "SliceSource",
        val: "SliceSource",
        config: "TrainConfig",
        record: dict[str, Any],
        run_dir: Path,
        class_weights: Tensor | None = None,
    ) -> None:
        self.network = network.to(memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.network).requires_grad_(False).eval()
        distributed.convert_sync_batch_norm(self.network)
        self.parameters = list(self.network.parameters())
        self.ema_parameters: list[Tensor] = list(self.ema.parameters())
        self.train, self.val = train, val
        self.config, self.options, self.seed = config, config.train, config.run.seed
        self.record, self.run_dir = record, run_dir
        self.device = self.parameters[0].device
        self.class_weights = class_weights
        self.n_classes = len(record["classes"])
        self.augmentation = Augmentation(config.augment)
        self.is_pretrained = record["start"] != "scratch"
        self.peak_lr = self.options.lr or (PRETRAINED_LR if self.is_pretrained else SCRATCH_LR)
        factors = self.options.backbone_lr_factor, self.options.layer_decay
        self.optimizer = build_optimizer(
            *(network, network.head, self.peak_lr, self.options.weight_decay),
            *(factors if self.is_pretrained else ()),
        )
        self.scaler = LossScaler(self.device, is_enabled=record["precision"] == "fp16")
        self.batch_size = train.compute_batch_size(self.options.batch_size)
        self.steps_per_epoch = train.count_steps(self.options.batch_size)
        self.schedule = Schedule.plan(self.options, self.steps_per_epoch, self.peak_lr)
        self.draws = EpochDraws(
            self.augmentation, self.steps_per_epoch, self.batch_size, self.seed, self.device
        )
        self.micro_batch = self.batch_size
        self.epoch = 0  # finished epochs
        self.stop = StopRequest()
        self.partial_epoch: dict[str, Any] | None = None  # steps of a resumed epoch, see `save`
        self.saved_steps = 0  # steps of the current epoch in last.pt
        self._saved_s = time.monotonic()
        self.history = History(run_dir, config.run.tensorboard and distributed.is_main_process())
        self._freeze()
        self.replica = Replica(self.network, compiles=config.run.compile == "on")
        self.ema.load_state_dict(self.network.state_dict())  # the same in all processes

    @property
    def step(self) -> int:
        """Optimizer steps before this epoch."""
        return self.epoch * self.steps_per_epoch

    @property
    def is_frozen(self) -> bool:
        """True while the backbone is frozen."""
        return self.is_pretrained and self.epoch < self.options.freeze_epochs

    def fit(self) -> None:
        """Train until the last epoch, or until val has not improved for `--patience` epochs."""
        # several processes would stop at different steps, so a signal ends them at once
        is_alone = distributed.get_world_size() == 1
        signals = defer_signals() if is_alone else contextlib.nullcontext(StopRequest())
        n_epochs, patience = self.options.epochs, self.options.patience
        with signals as self.stop:
            while self.epoch < n_epochs and not self.history.is_stale(patience):
                started_s = time.perf_counter()
                n_done = len(self.partial_epoch["losses"]) if self.partial_epoch else 0
                n_slices = (self.steps_per_epoch - n_done) * self.batch_size
                train_loss = self.train_epoch()
                train_time_s = time.perf_counter() - started_s
                n_skipped = self.scaler.report_skipped(self.epoch + 1, self.steps_per_epoch)
                self.retry(self.recalibrate_batch_norm)
                scores = self.retry(self.validate)
                self.epoch += 1
                improved = self.history.add(
                    {
                        "epoch": self.epoch,
                        "train_loss": train_loss,
                        **scores,
                        "lr": self.schedule.compute_lr(self.step - 1),
                        "skipped_steps": n_skipped,
                        "images_per_s": n_slices / train_time_s,
                        "time_s": train_time_s,
                    }
                )
                self.save(improved)
                self.history.log_epoch(n_epochs, time.perf_counter() - started_s)
                self.stop.raise_if_requested()
        if self.epoch < n_epochs:
            log.info("stopped early: no better val macro-F1 for %d epochs", patience)
        if distributed.is_main_process():
            best = {**load_checkpoint(self.run_dir / "best.pt"), **self.record}
            save_checkpoint(self.run_dir / "best.pt", {**best, "history": self.history.rows})

    def train_epoch(self) -> float:
        """Train on every slice once, or on the rest of a resumed epoch; return the mean loss.

        A requested stop is raised between two steps, after they are saved.

        Raises:
            UserError: A loss is not finite.
        """
        self.set_mode()
        rank, n_processes = distributed.get_rank(), distributed.get_world_size()
        partial_epoch = self.partial_epoch or {"losses": torch.zeros(0), "skipped_steps": 0}
        n_done, self.partial_epoch = len(partial_epoch["losses"]), None
        self.scaler.start_epoch(partial_epoch["skipped_steps"])
        # losses are summed over processes, so only one of them may count the restored ones
        restored_losses = partial_epoch["losses"] * distributed.is_main_process()
        losses = LossTracker(self.epoch + 1, self.steps_per_epoch, restored_losses)
        batches = self.train.shuffle(
            self.options.batch_size, self.seed, self.epoch, rank, n_processes, n_done
        )
        with tqdm(
            total=self.steps_per_epoch * self.batch_size,
            initial=n_done * self.batch_size,
            desc=f"epoch {self.epoch + 1}/{self.options.epochs}",
            unit="slice",
            leave=False,
            disable=None if rank == 0 else True,  # None: only on a terminal
        ) as bar:
            for n_before, batch in enumerate(batches, n_done):
                losses.add(self.train_step(batch, self.step + n_before))
                bar.update(self.batch_size)
                if self.stop.kind is not None or self._is_save_due():
                    n_skipped = int(self.scaler.skipped_steps)
                    partial_epoch = {"losses": losses.read(), "skipped_steps": n_skipped}
                    self.save(improved=False, partial_epoch=partial_epoch)
                    self.stop.raise_if_requested()
                if (n_before + 1) % STEPS_PER_READ == 0:
                    recent_loss = losses.read_delayed()
                    if recent_loss is not None:
                        bar.set_postfix(loss=f"{recent_loss * n_processes:.3f}")
        return float(distributed.all_reduce(losses.read().double()).mean())

    def train_step(self, batch: "Batch", step: int) -> Tensor:
        """Run forward, backward and optimizer for one batch, and update the EMA weights.

        Args:
            batch: Slices of this step, or this process's part of them.
            step: Optimizer steps before this one; all random numbers depend on it and the seed.

        Returns:
            Sum of these slices' losses divided by the size of the global batch, on the device.
        """
        set_learning_rate(self.optimizer, self.schedule.compute_lr(step))
        loss = self.retry(partial(self.accumulate_gradients, batch, step))
        self.scaler.update_weights(self.optimizer, self.parameters, self.options.clip_norm)
        update_ema(self.ema_parameters, self.parameters, self.options.ema_decay, step)
        return loss

    def accumulate_gradients(self, batch: "Batch", step: int) -> Tensor:
        """Compute the gradients of a batch in micro-batches; return its loss as `train_step`.

        Augmentation depends on a slice's position in the epoch, not on the division into
        micro-batches; dropout and mixing are drawn per micro-batch.
        """
        draws = self.draws.take(step)  # [B, D] of the global batch
        parts = batch.split(self.micro_batch, distributed.get_world_size())
        losses = []
        for number, part in enumerate(parts, 1):
            with self.replica.average_gradients(is_last=number == len(parts)):
                losses.append(self._backward(part, draws.narrow(0, part.offset, len(part)), step))
        self.replica.is_proven = True
        return torch.stack(losses).sum()

    def _backward(self, part: "Batch", draws: Tensor, step: int) -> Tensor:
        """Add the gradients of a micro-batch; return its contribution to the mean loss."""
        seed_device(self.device, self.seed, "step", step, part.offset)  # for dropout
        full_px = self.record["preprocess"]["image_size"]
        size_px = self.schedule.compute_size(step, full_px, self.options.first_size)
        slices = shrink(to_unit_range(part.pixels), size_px)  # [B, 1, S, S]
        images = self.augmentation.augment(slices, draws)
        targets = part.targets  # [B, K]
        if targets is None:
            targets = F.one_hot(part.labels, self.n_classes).float()
        if self.augmentation.mixes:
            generator = build_generator(self.seed, "mix", step, part.offset)
            images, targets = self.augmentation.mix(images, targets, generator)
        with autocast(self.device, self.record["precision"]):
            logits = self.replica(images)  # [B, K]
        loss = part.loss_weight * F.cross_entropy(
            logits.float(),
            targets,
            weight=self.class_weights,
            label_smoothing=self.options.label_smoothing,
        )
        # gradients are averaged over the processes, but must be summed
        self.scaler.scale(loss * distributed.get_world_size()).backward()
        return loss.detach()

    def recalibrate_batch_norm(self) -> None:
        """Compute batch norm statistics of the EMA weights on plain training slices."""
        if batches := self.choose_statistics_batches():
            recalibrate_batch_norm(self.ema, self.train.read(batches))

    def choose_statistics_batches(self) -> Sequence[Tensor]:
        """Return indices of training slices in batches; none if batch norm keeps its statistics."""
        if self.is_frozen or not has_batch_norm(self.ema):
            return []
        generator = build_generator(self.seed, "statistics", self.epoch)
        chosen = torch.randperm(len(self.train), generator=generator)[:BATCH_NORM_SLICES]
        return chosen.tensor_split(-(-len(chosen) // self.micro_batch))

    def validate(self) -> dict[str, float]:
        """Compute loss, accuracy and macro-F1 of the EMA weights on val, in fp32."""
        batches = self.val.iterate(
            self.micro_batch, distributed.get_rank(), distributed.get_world_size()
        )
        logits = predict_logits(self.ema, batches)[0]
        logits = distributed.all_gather_rows(logits, len(self.val))  # [N, K]
        if not logits.isfinite().all():
            raise UserError(
                f"the EMA weights are not finite after epoch {self.epoch + 1}: lower --lr or "
                "try --precision fp32"
            )
        return score_validation(logits.numpy(), self.val.labels.cpu().numpy())

    # ---- checkpoints

    def save(self, improved: bool, partial_epoch: dict[str, Any] | None = None) -> None:
        """Write last.pt and history.csv, and best.pt if the last epoch is the best.

        Args:
            improved: Whether the last epoch is the best.
            partial_epoch: Finished steps of an unfinished epoch: their `losses` [steps], and how
                many of them were skipped because gradients overflowed, `skipped_steps`.
        """
        if not distributed.is_main_process():
            return
        best = {
            **self.record,
            "epoch": self.epoch,
            "step": self.step,
            "history": self.history.rows,
            "best": self.history.best,
            "weights": self.ema.state_dict(),
        }
        progress = {
            "trained_weights": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_scaler": self.scaler.state_dict(),
            "micro_batch": self.micro_batch,
            "compiles": self.replica.compiles,
            "partial_epoch": partial_epoch,
            "schedule": self.schedule.to_record(),
        }
        save_checkpoint(self.run_dir / "last.pt", {**best, **progress})
        if improved:
            save_checkpoint(self.run_dir / "best.pt", best)
        self.history.write_csv()
        self.saved_steps = len(partial_epoch["losses"]) if partial_epoch else 0
        self._saved_s = time.monotonic()

    def resume(self, last: dict[str, Any]) -> None:
        """Restore the content of last.pt; on the CPU, training continues to the same bits."""
        self.network.load_state_dict(last["trained_weights"])
        self.ema.load_state_dict(last["weights"])
        self.optimizer.load_state_dict(last["optimizer"])
        self.scaler.load_state_dict(last["loss_scaler"])
        self.micro_batch, self.replica.compiles = last["micro_batch"], last["compiles"]
        self.replica.build()
        self.epoch, self.partial_epoch = last["epoch"], last.get("partial_epoch")
        self.history.rows, self.history.best = last["history"], last["best"]
        self.schedule = self.schedule.restore(last.get("schedule"))
        self.history.first_epoch = self.schedule.first_epoch
        if self.history.rows and not self.partial_epoch:
            # the run may have been killed after last.pt was written and before the other files
            self.save(improved=self.history.best["epoch"] == self.epoch)

    def _is_save_due(self) -> bool:
        """Return whether `--save-every` has passed; several processes save after epochs only."""
        wait_s = 60 * self.config.run.save_every
        return distributed.get_world_size() == 1 and 0 < wait_s <= time.monotonic() - self._saved_s

    # ---- recovery

    def retry(self, run: Callable[[], T]) -> T:
        """Run a part of training that can be repeated, and repeat it after a failure if possible.

        If the device's memory runs out, slices move to the host, then micro-batches are halved. If
        torch.compile fails in the first step of an epoch, training continues without it.
        """
        while True:
            try:
                return run()
            except Exception as error:
                remedy = self._find_remedy(error)
                if remedy is None:
                    raise
            # outside the except block, whose traceback holds the memory of the failed step
            self.optimizer.zero_grad()
            remedy()
            getattr(torch.get_device_module(self.device), "empty_cache", lambda: None)()

    def _find_remedy(self, error: Exception) -> Callable[[], None] | None:
        if distributed.get_world_size() > 1:
            return None  # all processes must run the same passes, so none may change alone
        if not is_out_of_memory(error):
            may_be_compiler = self.replica.compiles and not self.replica.is_proven
            reason = first_line(error)
            return partial(self.replica.stop_compiling, reason) if may_be_compiler else None
        sources = (each for each in (self.train, self.val) if isinstance(each, MemorySlices))
        on_device = [each for each in sources if each.is_on_device and self.device.type == "cuda"]
        if on_device:
            return partial(self._move_to_host, on_device)
        return self._halve_micro_batch if self.micro_batch >= 2 * SMALLEST_MICRO_BATCH else None

    def _move_to_host(self, sources: list[MemorySlices]) -> None:
        for slices in sources:
            slices.move_to_host()
        log.info("out of memory: the slices are moved to the memory of the host")

    def _halve_micro_batch(self) -> None:
        self.micro_batch = -(-self.micro_batch // 2)
        log.info(
            f"out of memory: continuing with micro-batches of {self.micro_batch} slices; gradients "
            f"are summed over batches of {self.batch_size}, batch norm uses micro-batches"
        )

    # ---- parts of an epoch

    def set_mode(self) -> None:
        """Set training mode; a frozen backbone keeps the statistics of its batch norm."""
        self.network.train()
        if self._freeze():
            self.replica.build()
        self.replica.is_proven = False
        if self.is_frozen:
            self.network.eval()
            self.network.head.train()

    def _freeze(self) -> bool:
        """Freeze or unfreeze all but the head; return whether this changed anything."""
        before = [parameter.requires_grad for parameter in self.parameters]
        self.network.requires_grad_(not self.is_frozen)
        self.network.head.requires_grad_(True)
        return before != [parameter.requires_grad for parameter in self.parameters]
