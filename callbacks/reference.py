"""Keeps the reference policy up to date."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ReferenceUpdate(Callback):
    """Moves the module's reference policy after an optimizer step, when its kind says so (`r1.models.reference`)."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        reference = getattr(pl_module, "reference", None)
        if reference is not None:
            reference.update(pl_module.policy, trainer.global_step)
