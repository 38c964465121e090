"""One progress line for the whole run."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SHOWN = {
    "reward/total": "reward",
    "reward/accuracy": "accuracy",
    "train/loss": "loss",
    "train/kl": "KL",
    "rollout/length": "length",
    "tokens_per_second": "tokens/s",
    "eval/pass@1": "held-out",
}


class RunProgress(Callback):
    """Shows steps, reward, accuracy, KL, length and tokens per second: a bar in a terminal, lines elsewhere.

    Args:
        every: seconds between two lines where the output is no terminal.
    """

    def __init__(self, *, every: float = 10.0) -> None:
        self.every = every
        self._bar: Progress | None = None
        self._last_line = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and sys.stdout.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
            )
            self._bar = Progress(*columns)
            self._bar.start()
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._task = self._bar.add_task("step", total=total, completed=trainer.global_step, numbers="")
        self._last_line = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, numbers=self._numbers(trainer))
        elif time.monotonic() - self._last_line >= self.every:
            self._line(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is None and trainer.is_global_zero:
            self._line(trainer)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _line(self, trainer: Trainer) -> None:
        self._last_line = time.monotonic()
        print(f"step {trainer.global_step}/{trainer.max_steps}  {self._numbers(trainer)}", flush=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @staticmethod
    def _numbers(trainer: Trainer) -> str:
        metrics = trainer.callback_metrics
        return "  ".join(f"{label} {float(metrics[name]):.4g}" for name, label in SHOWN.items() if name in metrics)
