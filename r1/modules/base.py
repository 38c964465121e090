"""What every training stage shares: a policy, its optimizer, and the accuracy on held-out problems."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from r1.distributed import rank_and_world
from r1.modules.optimizer import OptimizerSettings
from r1.native.gradients import adding_in_place
from r1.rollout.evaluate import Evaluator


class PolicyModule(L.LightningModule):
    """A policy in training.

    Args:
        policy: the model being trained (`r1.models.policy.Policy`).
        optimizer: keyword arguments of `OptimizerSettings`.
        evaluator: measures the policy on held-out problems during validation, or None.
    """

    def __init__(self, *, policy: Any, optimizer: dict[str, Any] | None = None, evaluator: Evaluator | None = None):
        super().__init__()
        self.policy = policy
        self.optimizer_settings = OptimizerSettings(**(optimizer or {}))
        self.evaluator = evaluator
        self._sums: dict[str, float] = {}
        self.whole_weights: dict[str, torch.Tensor] | None = None  # of the policy, once a strategy has gathered them

    def other_policies(self) -> list[Any]:
        """Return the models that only grade, for strategies that split models over the ranks."""
        return []

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a rank in an optimizer step; 1 without a trainer, when a recorded step is replayed."""
        return 1 if self._trainer is None else self.trainer.accumulate_grad_batches

    @property
    def averages_micro_batches(self) -> bool:
        """Whether a micro-batch averages its own tokens, so that a step's loss depends on how it is split."""
        return False

    def configure_model(self) -> None:
        if hasattr(self.trainer.strategy, "shard"):
            self.trainer.strategy.shard(self)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, schedule = self.optimizer_settings.build(self.policy.parameters(), self._total_steps())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _total_steps(self) -> int:
        """Return the optimizer steps of the run, 0 where nothing bounds them."""
        trainer, bounds = self.trainer, []
        if trainer.max_steps > 0:
            bounds.append(trainer.max_steps)
        if trainer.max_epochs > 0:
            # Not `trainer.estimated_stepping_batches`: it makes the trainer's own loader, which a resumed run would
            # then leave at its beginning.
            loader = (self if trainer.datamodule is None else trainer.datamodule).train_dataloader()
            limit = trainer.limit_train_batches
            batches = min(len(loader), limit) if isinstance(limit, int) else int(len(loader) * limit)
            bounds.append(trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches))
        return min(bounds, default=0)

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        # One process alone: nobody else waits for the gradients of this pass.
        with adding_in_place(type(self.trainer.strategy) is SingleDeviceStrategy):
            super().backward(loss, *args, **kwargs)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        if gradients and not hasattr(self.trainer.strategy, "gradient_norm"):
            norm = torch.nn.utils.get_total_norm(gradients)
            self.log("train/grad_norm", norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        # DeepSpeed takes the gradients away in the backward pass, and tells their norm after the step.
        norm = getattr(self.trainer.strategy, "gradient_norm", lambda: None)()
        if norm is not None:
            self.log("train/grad_norm", norm, batch_size=1)

    def on_fit_end(self) -> None:
        # Not at the end of training: a run that goes on after its last step has none.
        self.whole_weights = self.policy.shards.state_dict(self.policy)

    def teardown(self, stage: str) -> None:
        if self.evaluator is not None:
            self.evaluator.rewards.close()

    def val_dataloader(self) -> DataLoader | list[Any]:
        if self.evaluator is None:
            return []
        return DataLoader([self.evaluator.problems], batch_size=None, collate_fn=lambda problems: problems)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        result = self.evaluator.evaluate(self.policy)
        for name, value in result.metrics().items():
            self.log(name, value, batch_size=1, sync_dist=False, rank_zero_only=False)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # Held-out problems are plain Python objects; there is nothing to move.
        return batch if isinstance(batch, list) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def add_up(self, stats: dict[str, torch.Tensor]) -> None:
        """Add a micro-batch's sums to those of the optimizer step."""
        for name, value in stats.items():
            value = float(value)
            if name.endswith("_max"):
                self._sums[name] = max(self._sums.get(name, 0.0), value)
            else:
                self._sums[name] = self._sums.get(name, 0.0) + value

    def take_sums(self) -> dict[str, float]:
        """Return the sums of the optimizer step over all ranks, and start the next one's."""
        sums, self._sums = self._sums, {}
        if rank_and_world()[1] == 1:  # nor is there a trainer while a recorded step is replayed
            return sums
        for end, operation in (("_max", "max"), ("", "sum")):
            names = [name for name in sums if name.endswith("_max") == bool(end)]
            mine = torch.tensor([sums[name] for name in names], dtype=torch.float64, device=self.device)
            sums |= zip(names, self.trainer.strategy.reduce(mine, reduce_op=operation).tolist(), strict=True)
        return sums
