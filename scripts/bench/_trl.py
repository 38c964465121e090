"""TRL's side of `vs_trl.py`: its GRPOTrainer with the settings that are fastest here."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from _step import BenchSettings, StepGate, build_objective, build_policy, letter_share, problems
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from r1.losses.aggregation import row_weights
from r1.models.policy import Policy
from r1.types import Experience


class _TimedTrainer(GRPOTrainer):
    gate: StepGate
    num_tokens = 0

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        batch = super()._generate_and_score_completions(inputs)
        self.num_tokens = int(batch["completion_mask"].sum())
        self.gate.rollout_ends()
        return batch

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **options: Any) -> Any:
        if torch.is_grad_enabled():  # of the loss
            return super()._get_per_token_logps_and_entropies(*arguments, **options)
        with self.gate.computing_logps():
            return super()._get_per_token_logps_and_entropies(*arguments, **options)


class _Gate(TrainerCallback):
    def __init__(self, trainer: _TimedTrainer, settings: BenchSettings) -> None:
        self.trainer, self.settings = trainer, settings
        self.checked = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.checked:
            self.trainer.gate.connection.send(compare_losses(self.trainer, self.settings))
            self.checked = True
        control.should_training_stop = not self.trainer.gate.step_ends(self.trainer.num_tokens)


def build_config(settings: BenchSettings, mode: str, folder: str) -> GRPOConfig:
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.num_micro_batches,
        steps_per_generation=settings.num_micro_batches,
        model_init_kwargs={"dtype": "float32"},
        num_generations=settings.num_generations,
        max_completion_length=settings.max_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        cache_implementation="static" if mode == "static" else None,
        use_transformers_continuous_batching=mode == "continuous",
        loss_type=settings.loss,
        beta=settings.beta,
        # By default TRL weighs the KL term with the ratio; ours is the plain k3 estimator here.
        use_bias_correction_kl=False,
        epsilon=0.2,
        scale_rewards="group",
        disable_dropout=True,
        shuffle_dataset=False,
        learning_rate=settings.lr,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=settings.num_steps,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
    )


def run(settings: BenchSettings, gate: StepGate, mode: str) -> None:
    """Train, one step each time the gate opens."""
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        # TRL makes the reference by loading the policy's weights a second time, so they have to lie in a folder.
        policy = build_policy(settings)
        model, tokenizer = str(policy.save(Path(folder) / "model")), policy.tokenizer
        del policy  # or it would count as TRL's memory
        trainer = _TimedTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=letter_share,
            args=build_config(settings, mode, folder),
            train_dataset=Dataset.from_list([{"prompt": p.prompt} for p in problems(settings)]),
        )
        trainer.gate = gate
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Gate(trainer, settings))
        trainer.train()


def compare_losses(trainer: GRPOTrainer, settings: BenchSettings) -> dict[str, float]:
    """Compute TRL's loss and ours on the same off-policy rollout.

    Returns:
        The two losses, and the relative distance of the two gradients.
    """
    tensors = _rollout_tensors(settings)
    # TRL's loss is a micro-batch's share of the step, ours the step's: multiply where it divided.
    parts = 1 if settings.loss == "dapo" else trainer.current_gradient_accumulation_steps
    theirs = parts * trainer._compute_loss(trainer.model, _as_trl(tensors, trainer))
    parameters = list(trainer.model.parameters())
    their_gradient = _flat(torch.autograd.grad(theirs, parameters))
    policy = Policy(copy.deepcopy(trainer.model), trainer.processing_class)
    batch = _as_experience(tensors, settings, policy)
    logps, _ = policy(batch.input_ids, batch.prompt_lengths, batch.mask)
    ours, _ = build_objective(settings)(logps, batch)
    our_gradient = _flat(torch.autograd.grad(ours, list(policy.model.parameters())))
    distance = (our_gradient - their_gradient).norm() / their_gradient.norm()
    return {"trl": theirs.item(), "ours": ours.item(), "gradients": distance.item()}


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def _rollout_tensors(settings: BenchSettings) -> dict[str, Tensor]:
    """Draw 8 rows of random tokens, with old log-probabilities far enough from the policy's for the clip to act."""
    generator = torch.Generator().manual_seed(settings.seed)
    prompt_lengths = torch.randint(4, 20, (8,), generator=generator)
    lengths = torch.randint(1, 33, (8,), generator=generator)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    # The policy is all but uniform over its vocabulary.
    center = -torch.tensor(float(settings.vocab_size)).log()
    return {
        "prompts": torch.randint(256, (8, 19), generator=generator),
        "prompt_lengths": prompt_lengths,
        "completions": torch.randint(256, mask.shape, generator=generator),
        "mask": mask,
        "advantages": torch.randn(8, generator=generator),
        "old_logps": center + 0.5 * torch.randn(mask.shape, generator=generator),
        "ref_logps": center + 0.5 * torch.randn(mask.shape, generator=generator),
    }


def _as_trl(tensors: dict[str, Tensor], trainer: GRPOTrainer) -> dict[str, Tensor]:
    pad, width = trainer.processing_class.pad_token_id, tensors["prompts"].shape[1]
    prompt_mask = torch.arange(width) >= width - tensors["prompt_lengths"][:, None]
    mask = tensors["mask"]
    return {
        "prompt_ids": torch.where(prompt_mask, tensors["prompts"], pad),
        "prompt_mask": prompt_mask.long(),
        "completion_ids": torch.where(mask, tensors["completions"], pad),
        "completion_mask": mask.long(),
        "advantages": tensors["advantages"],
        "old_per_token_logps": tensors["old_logps"],
        "ref_per_token_logps": tensors["ref_logps"],
        "num_items_in_batch": mask.sum(),
    }


def _as_experience(tensors: dict[str, Tensor], settings: BenchSettings, policy: Policy) -> Experience:
    mask, prompt_lengths = tensors["mask"], tensors["prompt_lengths"]
    rows = [
        torch.cat([prompt[-start:], completion[keep]])
        for prompt, start, completion, keep in zip(
            tensors["prompts"], prompt_lengths.tolist(), tensors["completions"], mask, strict=True
        )
    ]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=policy.pad_token_id)
    return Experience(
        input_ids=input_ids,
        prompt_lengths=prompt_lengths,
        mask=mask,
        old_logps=tensors["old_logps"],
        advantages=tensors["advantages"][:, None].expand(mask.shape),
        weights=row_weights(mask.sum(1), build_objective(settings).aggregation).float(),
        ref_logps=tensors["ref_logps"] if settings.beta else None,
    )
