"""Our side of `vs_trl_distill.py`: DistillModule under Lightning's Trainer."""

from __future__ import annotations

from typing import Any

import lightning as L
from _distill_step import BenchTraces, DistillGate, DistillSettings, build_models
from lightning.pytorch import Callback

from r1.losses.distill_objective import DistillObjective
from r1.models.teacher import Teacher
from r1.modules.distill import DistillModule
from r1.rollout.steps import StepLoader


class _Gate(Callback):
    def __init__(self, gate: DistillGate, traces: BenchTraces) -> None:
        self.gate, self.traces = gate, traces

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: DistillModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        loss = float(trainer.callback_metrics["train/loss"])
        trainer.should_stop = not self.gate.step_ends(self.traces.num_tokens(trainer.global_step - 1), loss)


def run(settings: DistillSettings, gate: DistillGate) -> None:
    """Train, one step each time the gate opens."""
    student, teacher = build_models(settings)
    objective = DistillObjective(divergence="jsd", beta=settings.beta)
    traces = BenchTraces(settings, student.pad_token_id)
    module = DistillModule(
        policy=student,
        steps=StepLoader(
            traces,
            weights=objective.weights,
            pad_token_id=student.pad_token_id,
            micro_batch_size=settings.micro_batch,
        ),
        objective=objective,
        teacher=Teacher(teacher, student=student.tokenizer),
        optimizer={"lr": settings.lr},
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=-1,
        max_steps=settings.num_steps,
        gradient_clip_val=1.0,
        accumulate_grad_batches=settings.num_micro_batches,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[_Gate(gate, traces)],
    )
    gate.training_starts()
    trainer.fit(module)
