"""The training loop: steps, EMA, validation, early stopping, checkpoints and resume."""

import contextlib
import copy
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from common.signals import StopRequest, defer_signals
from evaluation.metrics import compute_confusion, compute_macro_f1
from helper import UserError, build_generator, log, seed_everything
from model import Classifier
from modeling.checkpoint import load_checkpoint, save_checkpoint
from modeling.forward import disable_tf32, predict_logits, to_unit_range
from modeling.precision import build_forward, should_compile
from training import distributed
from training.augmentation import Augmentation
from training.ema import update_ema
from training.history import History
from training.loss_tracker import STEPS_PER_READ, LossTracker
from training.optimizer import build_optimizer, compute_lr_factor, set_learning_rate
from training.progressive_resizing import compute_size, shrink

if TYPE_CHECKING:
    from args import TrainConfig
    from loading.image_source import Batch, SliceSource

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
        self.train, self.val = train, val
        self.config, self.options, self.seed = config, config.train, config.run.seed
        self.record, self.run_dir = record, run_dir
        self.device = next(network.parameters()).device
        self.precision = record["precision"]
        self.class_weights = class_weights
        self.n_classes = len(record["classes"])
        self.augmentation = Augmentation(config.augment)
        self.is_pretrained = record["start"] != "scratch"
        self.peak_lr = self.options.lr or (PRETRAINED_LR if self.is_pretrained else SCRATCH_LR)
        self.optimizer = build_optimizer(
            network,
            network.head,
            self.peak_lr,
            self.options.backbone_lr_factor if self.is_pretrained else 1.0,
            self.options.weight_decay,
        )
        self.steps_per_epoch = train.count_steps(self.options.batch_size)
        self.n_steps = self.options.epochs * self.steps_per_epoch
        choice = config.run.compile
        if choice == "auto" and self.options.first_size < 1:
            choice = "off"  # each input size would be compiled separately
        n_processes = distributed.get_world_size()
        self.compiles = should_compile(choice, self.device, self.n_steps, n_processes)
        self.forward = build_forward(self.network, self.compiles, is_required=choice == "on")
        self.micro_batch = self.options.batch_size
        self.epoch = 0  # finished epochs
        self.stop = StopRequest()
        self.partial_epoch: dict[str, Any] | None = None  # steps of a resumed epoch, see `save`
        self.saved_steps = 0  # steps of the current epoch in last.pt
        self._saved_s = time.monotonic()
        self.history = History(run_dir, config.run.tensorboard and distributed.is_main_process())

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
                n_slices = len(self.train) - self._count_resumed_slices()
                train_loss = self.train_epoch()
                train_time_s = time.perf_counter() - started_s
                self.recalibrate_batch_norm()
                scores = self.validate()
                self.epoch += 1
                improved = self.history.add(
                    {
                        "epoch": self.epoch,
                        "train_loss": train_loss,
                        **scores,
                        "lr": self.peak_lr * self._compute_lr_factor(self.step - 1),
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
            best = load_checkpoint(self.run_dir / "best.pt")
            save_checkpoint(self.run_dir / "best.pt", {**best, "history": self.history.rows})

    def train_epoch(self) -> float:
        """Train on every slice once, or on the rest of a resumed epoch; return the mean loss.

        A requested stop is raised between two steps, after they are saved.
        """
        sizes: list[int] = []  # slices of each step
        restored_losses = None
        if self.partial_epoch:
            sizes = list(self.partial_epoch["weights"])
            # losses are summed over processes, so only one of them may count the restored ones
            restored_losses = self.partial_epoch["losses"] * distributed.is_main_process()
            self.partial_epoch = None
        losses = LossTracker(self.epoch + 1, self.steps_per_epoch, restored_losses)
        self.network.train()
        self._freeze_backbone(self.is_frozen)
        rank, n_processes = distributed.get_rank(), distributed.get_world_size()
        batches = self.train.shuffle(
            self.options.batch_size, self.seed, self.epoch, rank, n_processes, len(sizes)
        )
        with tqdm(
            total=len(self.train),
            initial=sum(sizes),
            desc=f"epoch {self.epoch + 1}/{self.options.epochs}",
            unit="slice",
            leave=False,
            disable=None if rank == 0 else True,  # None: only on a terminal
        ) as bar:
            for batch in batches:
                losses.add(self.train_step(batch, self.step + len(sizes)))
                sizes.append(batch.global_size)
                bar.update(batch.global_size)
                if self.stop.kind is not None or self._is_save_due():
                    partial_epoch = {"losses": losses.read(), "weights": sizes}
                    self.save(improved=False, partial_epoch=partial_epoch)
                    self.stop.raise_if_requested()
                if len(sizes) % STEPS_PER_READ == 0:
                    recent_loss = losses.read_delayed()
                    if recent_loss is not None:
                        bar.set_postfix(loss=f"{recent_loss * n_processes:.3f}")
        weights = torch.tensor(sizes, dtype=torch.float64) / len(self.train)
        return float(distributed.all_reduce(losses.read().double()) @ weights)

    def train_step(self, batch: "Batch", step: int) -> Tensor:
        """Run forward, backward and optimizer for one batch, and update the EMA weights.

        Args:
            batch: Slices of this step, or this process's part of them.
            step: Optimizer steps before this one; all random numbers depend on it and the seed.

        Returns:
            Sum of these slices' losses divided by the size of the global batch, on the device.
        """
        set_learning_rate(self.optimizer, self.peak_lr * self._compute_lr_factor(step))
        loss = self.accumulate_gradients(batch, step)
        distributed.all_reduce_gradients(self.network.parameters())
        if self.options.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        update_ema(self.ema, self.network, self.options.ema_decay, step)
        return loss

    def accumulate_gradients(self, batch: "Batch", step: int) -> Tensor:
        """Compute the gradients in micro-batches, which are halved when memory runs out.

        Augmentation depends on a slice's position in the batch, not on the division into
        micro-batches; dropout and mixing are drawn per micro-batch.
        """
        draws = self.augmentation.draw(
            batch.global_size, build_generator(self.seed, "augment", step)
        )
        try:
            losses = [self._backward(part, draws, step) for part in batch.split(self.micro_batch)]
        except torch.OutOfMemoryError:
            # all processes must run the same number of forward passes, so none may halve alone
            is_alone = distributed.get_world_size() == 1
            if not is_alone or min(self.micro_batch, len(batch)) < 2 * SMALLEST_MICRO_BATCH:
                raise
        else:
            return torch.stack(losses).sum()
        # outside the except block, whose traceback holds the memory of the failed step
        self._halve_micro_batch(len(batch))
        return self.accumulate_gradients(batch, step)

    def _backward(self, part: "Batch", draws: Tensor, step: int) -> Tensor:
        """Add the gradients of a micro-batch; return its contribution to the mean loss."""
        seed_everything(self.seed, "step", step, part.offset)  # dropout uses the global generator
        full_px = self.record["preprocess"]["image_size"]
        size_px = compute_size(step, self.n_steps, full_px, self.options.first_size)
        slices = shrink(to_unit_range(part.pixels), size_px)  # [B, 1, S, S]
        images = self.augmentation.augment(slices, draws[part.offset : part.offset + len(part)])
        targets = F.one_hot(part.labels, self.n_classes).float()  # [B, K]
        generator = build_generator(self.seed, "mix", step, part.offset)
        images, targets = self.augmentation.mix(images, targets, generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.forward(images)  # [B, K]
        loss = part.loss_weight * F.cross_entropy(
            logits.float(),
            targets,
            weight=self.class_weights,
            label_smoothing=self.options.label_smoothing,
        )
        loss.backward()
        return loss.detach()

    def _halve_micro_batch(self, n_slices: int) -> None:
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.micro_batch = -(-min(self.micro_batch, n_slices) // 2)
        log.info(
            f"out of memory: continuing with micro-batches of {self.micro_batch} slices; gradients "
            f"are summed over batches of {self.options.batch_size}, batch norm uses micro-batches"
        )

    @torch.no_grad()
    def recalibrate_batch_norm(self) -> None:
        """Compute batch norm statistics of the EMA weights on plain training slices, in fp32.

        Source: Izmailov et al. 2018, Averaging weights leads to wider optima and better
        generalization; Touvron et al. 2019, Fixing the train-test resolution discrepancy.
        """
        norms = [part for part in self.ema.modules() if isinstance(part, _BatchNorm)]
        if not norms or self.is_frozen:
            return
        generator = build_generator(self.seed, "statistics", self.epoch)
        chosen = torch.randperm(len(self.train), generator=generator)[:BATCH_NORM_SLICES]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # average over the batches with equal weights
            norm.train()
        n_batches = -(-len(chosen) // self.micro_batch)
        for slices in self.train.read(chosen.tensor_split(n_batches)):
            with disable_tf32():
                self.ema(to_unit_range(slices))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()

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
        labels = self.val.labels.cpu()
        confusion = compute_confusion(logits.argmax(1).numpy(), labels.numpy(), self.n_classes)
        return {
            "val_loss": float(F.cross_entropy(logits, labels)),
            "val_accuracy": float(confusion.trace() / confusion.sum()),
            "val_macro_f1": float(compute_macro_f1(confusion)),
        }

    # ---- checkpoints

    def save(self, improved: bool, partial_epoch: dict[str, Any] | None = None) -> None:
        """Write last.pt and history.csv, and best.pt if the last epoch is the best.

        Args:
            improved: Whether the last epoch is the best.
            partial_epoch: Finished steps of an unfinished epoch: their `losses` [steps] and their
                numbers of slices, `weights`.
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
            "micro_batch": self.micro_batch,
            "compiles": self.compiles,
            "partial_epoch": partial_epoch,
        }
        save_checkpoint(self.run_dir / "last.pt", {**best, **progress})
        if improved:
            save_checkpoint(self.run_dir / "best.pt", best)
        self.history.write_csv()
        self.saved_steps = len(partial_epoch["weights"]) if partial_epoch else 0
        self._saved_s = time.monotonic()

    def resume(self, last: dict[str, Any]) -> None:
        """Restore the content of last.pt; on the CPU, training continues to the same bits."""
        self.network.load_state_dict(last["trained_weights"])
        self.ema.load_state_dict(last["weights"])
        self.optimizer.load_state_dict(last["optimizer"])
        if last.get("compiles", self.compiles) != self.compiles:
            self.compiles = last["compiles"]
            self.forward = build_forward(self.network, self.compiles, is_required=False)
        if distributed.get_world_size() == 1:  # same number of forward passes in all
            self.micro_batch = last["micro_batch"]
        self.epoch, self.partial_epoch = last["epoch"], last.get("partial_epoch")
        self.history.rows, self.history.best = last["history"], last["best"]
        if self.history.rows and not self.partial_epoch:
            # the run may have been killed after last.pt was written and before the other files
            self.save(improved=self.history.best["epoch"] == self.epoch)

    def _is_save_due(self) -> bool:
        """Return whether `--save-every` has passed; several processes save after epochs only."""
        wait_s = 60 * self.config.run.save_every
        return distributed.get_world_size() == 1 and 0 < wait_s <= time.monotonic() - self._saved_s

    def _count_resumed_slices(self) -> int:
        return sum(self.partial_epoch["weights"]) if self.partial_epoch else 0

    # ---- parts of a step

    def _compute_lr_factor(self, step: int) -> float:
        n_warmup = self.options.warmup_epochs * self.steps_per_epoch
        return compute_lr_factor(step, self.n_steps, n_warmup)

    def _freeze_backbone(self, frozen: bool) -> None:
        """Freeze or unfreeze all but the head; frozen batch norm keeps its statistics."""
        for parameter in self.network.parameters():
            parameter.requires_grad_(not frozen)
        if frozen:
            self.network.eval()
            self.network.head.train().requires_grad_(True)
