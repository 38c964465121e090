"""TRL's sides of `vs_trl_distill.py`: GKDTrainer on traces, and DistillationTrainer with traces for its completions."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from _distill_step import BenchTraces, DistillGate, DistillSettings, build_models
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer


class _Gate(TrainerCallback):
    def __init__(self, trainer: Any, gate: DistillGate, traces: BenchTraces) -> None:
        self.trainer, self.gate, self.traces = trainer, gate, traces

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss, self.trainer.loss_sum = self.trainer.loss_sum, 0.0
        tokens = self.traces.num_tokens(state.global_step - 1)
        control.should_training_stop = not self.gate.step_ends(tokens, loss)


class _Recorded:
    """Adds up the losses of a step's micro-batches, and takes the rows in their order."""

    loss_sum = 0.0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().compute_loss(*args, **kwargs)
        self.loss_sum += float(loss.detach())
        return loss

    def _get_train_sampler(self, *args: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class _GKD(_Recorded, GKDTrainer):
    pass


class _Distillation(_Recorded, DistillationTrainer):
    pad: int

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # In the place of sampling: this trainer's update alone is compared.
        prompts = torch.tensor([row["prompt_ids"] for row in inputs])
        completions = [torch.tensor(row["completion_ids"]) for row in inputs]
        lengths = torch.tensor([len(c) for c in completions])
        ids = pad_sequence(completions, batch_first=True, padding_value=self.pad)
        return {
            "prompt_ids": prompts,
            "prompt_mask": torch.ones_like(prompts),
            "completion_ids": ids,
            "completion_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
            "num_items_in_batch": lengths.sum(),
        }


def _collate(rows: list[dict[str, Any]], pad: int) -> dict[str, Tensor]:
    ids = [torch.tensor(row["prompt_ids"] + row["completion_ids"]) for row in rows]
    labels = [torch.tensor([-100] * len(row["prompt_ids"]) + row["completion_ids"]) for row in rows]
    prompts = torch.tensor([row["prompt_ids"] for row in rows])
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
        "attention_mask": pad_sequence([torch.ones_like(x) for x in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        "prompts": prompts,
        "prompt_attention_mask": torch.ones_like(prompts),
    }


def _arguments(settings: DistillSettings, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": settings.num_micro_batches,
        "temperature": 1.0,
        "beta": settings.beta,
        "disable_dropout": True,
        "learning_rate": settings.lr,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_steps": settings.num_steps,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": settings.seed,
    }


def run(settings: DistillSettings, gate: DistillGate, name: str) -> None:
    """Train, one step each time the gate opens."""
    student, teacher = build_models(settings)
    traces, pad = BenchTraces(settings, student.pad_token_id), student.pad_token_id
    rows = [{"prompt_ids": p, "completion_ids": c} for step in range(settings.num_steps) for p, c in traces.rows(step)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = _arguments(settings, folder)
        if name == "gkd":
            trainer: Any = _GKD(
                model=student.model,
                teacher_model=teacher.model,
                args=GKDConfig(**arguments, lmbda=0.0),
                processing_class=student.tokenizer,
                data_collator=lambda batch: _collate(batch, pad),
                train_dataset=Dataset.from_list(rows),
            )
        else:
            trainer = _Distillation(
                model=student.model,
                teacher_model=teacher.model,
                args=DistillationConfig(**arguments),
                processing_class=student.tokenizer,
                train_dataset=Dataset.from_list([row | {"prompt": ""} for row in rows]),
            )
            trainer.pad = pad
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Gate(trainer, gate, traces))
        gate.training_starts()
        trainer.train()
