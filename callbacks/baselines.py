"""Constant lines beside the accuracy curve."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lightning.pytorch import Callback, LightningModule, Trainer


class Baselines(Callback):
    """Draws `baseline/<name>` beside `eval/pass@1`, at each evaluation.

    The accuracy at the start of training is always one of them, under the name `start`.

    Args:
        lines: name -> accuracy in [0, 1] of other baselines, such as an SFT model or the teacher.
    """

    def __init__(self, *, lines: Mapping[str, float] | None = None) -> None:
        self.lines = dict(lines or {})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer = getattr(trainer.logger, "experiment", None)
        if trainer.is_global_zero and hasattr(writer, "add_custom_scalars"):
            # Tags are regular expressions here.
            tags = [
                "^eval/pass@1$",
                *(f"^baseline/{re.escape(name)}$" for name in dict.fromkeys(["start", *self.lines])),
            ]
            writer.add_custom_scalars({"held-out accuracy": {"pass@1 and baselines": ["Multiline", tags]}})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        evaluator = getattr(pl_module, "evaluator", None)
        if evaluator is None or "start" in self.lines:
            return
        result = evaluator.evaluate(pl_module.policy)
        self.lines["start"] = result.accuracy
        trainer.callback_metrics["eval/pass@1"] = result.accuracy
        if trainer.logger is not None:
            metrics = result.metrics() | {f"baseline/{name}": value for name, value in self.lines.items()}
            trainer.logger.log_metrics(metrics, step=trainer.global_step)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, value in self.lines.items():
            pl_module.log(f"baseline/{name}", value)

    def state_dict(self) -> dict[str, dict[str, float]]:
        return {"lines": self.lines}

    def load_state_dict(self, state: dict[str, dict[str, float]]) -> None:
        self.lines |= state["lines"]
