"""Our side of `vs_trl.py`: rollouts by RolloutLoader, updates by GRPOModule, steps by Lightning's Trainer."""

from __future__ import annotations

from typing import Any

import lightning as L
from _floor import matmul_rate, step_flops
from _step import BenchSettings, StepGate, build_objective, build_policy, letter_share, problem_stream
from lightning.pytorch import Callback

from r1.models.reference import build_reference
from r1.modules.grpo import GRPOModule
from r1.prompts import TEMPLATES
from r1.rewards import Grader, RewardSum
from r1.rewards.trl import TRLReward
from r1.rollout import ENGINES
from r1.rollout.advantage import AdvantageEstimator
from r1.rollout.loader import RolloutLoader
from r1.rollout.plan import RolloutPlan
from r1.rollout.source import GroupSource
from r1.types import SamplingParams


class _Gate(Callback):
    def __init__(self, gate: StepGate, settings: BenchSettings) -> None:
        self.gate, self.settings = gate, settings

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: GRPOModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.gate.rollout_ends()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: GRPOModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        tokens = sum(len(r.completion.token_ids) for g in pl_module.loader.record.groups for r in g.rollouts)
        if self.gate.started is None:
            self.gate.connection.send(matmul_rate(pl_module.policy.model))
        trainer.should_stop = not self.gate.step_ends(tokens, lambda: step_flops(pl_module, self.settings))


def build_module(settings: BenchSettings) -> GRPOModule:
    policy = build_policy(settings)
    objective = build_objective(settings)
    reference = build_reference("frozen", policy) if settings.beta else None
    rewards = RewardSum({"letters": (TRLReward(letter_share), 1.0)}, Grader())
    source = GroupSource(
        stream=problem_stream(settings),
        template=TEMPLATES.build("plain"),
        engine=ENGINES.build("local"),
        rewards=rewards,
        policy=policy,
        sampling=SamplingParams(
            num_generations=settings.num_generations, max_tokens=settings.max_tokens, seed=settings.seed
        ),
        plan=RolloutPlan(num_prompts=settings.num_prompts, micro_batch_size=settings.micro_batch),
    )
    loader = RolloutLoader(
        source=source,
        advantage=AdvantageEstimator("group", weights=rewards.weights, ddof=1, eps=1e-4),
        aggregation=objective.aggregation,
        reference=reference,
    )
    return GRPOModule(
        policy=policy, loader=loader, objective=objective, reference=reference, optimizer={"lr": settings.lr}
    )


def run(settings: BenchSettings, gate: StepGate) -> None:
    """Train, one step each time the gate opens."""
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
        callbacks=[_Gate(gate, settings)],
    )
    module = build_module(settings)
    compute = module.loader._policy_logps

    def timed() -> None:
        with gate.computing_logps():
            compute()

    module.loader._policy_logps = timed
    trainer.fit(module)
