"""Rows in the making, and the groups they become: shared by the engines that decode in this process."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from r1.rollout.base import mix_seed
from r1.types import Completion, FinishReason, Prompt, Rollout, RolloutGroup, SamplingParams


@dataclass(slots=True)
class Row:
    """One completion in the making."""

    prompt_index: int
    seed: int
    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish_reason: FinishReason = "length"

    def append(self, token: int, logp: float) -> None:
        """File a drawn token.

        Raises:
            FloatingPointError: the logits it was drawn from are not numbers.
        """
        if math.isnan(logp):
            raise FloatingPointError(
                f"the policy's logits became NaN after {len(self.token_ids)} tokens of a completion: training has "
                "diverged (lower algorithm.optimizer.lr or trainer.gradient_clip_val) or the weights are damaged"
            )
        self.token_ids.append(token)
        self.logps.append(logp)


def start_rows(prompts: list[Prompt], params: SamplingParams) -> list[Row]:
    """Return an empty row for each completion, G for each prompt, in order, with the seed of its random stream."""
    return [
        Row(index, mix_seed(params.seed, prompt.problem.index, prompt.first_sample + sample))
        for index, prompt in enumerate(prompts)
        for sample in range(params.num_generations)
    ]


def is_stopped(token_ids: list[int], params: SamplingParams, tokenizer: Any) -> bool:
    """Whether one of the stop strings stands at the end of the completion so far."""
    if not params.stop:
        return False
    # A token holds at least one byte, so a stop string of n bytes lies within the last n tokens; the margin takes in
    # the rest of a character that the window would cut.
    window = max(len(stop.encode()) for stop in params.stop) + 4
    tail = tokenizer.decode(token_ids[-window:])
    return any(stop in tail for stop in params.stop)


def assemble_groups(prompts: list[Prompt], rows: list[Row], params: SamplingParams, policy: Any) -> list[RolloutGroup]:
    """Decode finished rows (G for each prompt, in order) to text and group them by prompt."""
    eos = frozenset(policy.eos_token_ids)
    texts = [row.token_ids[:-1] if row.token_ids and row.token_ids[-1] in eos else row.token_ids for row in rows]
    texts = policy.tokenizer.batch_decode(texts, skip_special_tokens=True)
    rollouts = [
        Rollout(completion=_completion(row, text, prompts[row.prompt_index].prefill))
        for row, text in zip(rows, texts, strict=True)
    ]
    size = params.num_generations
    return [
        RolloutGroup(prompt=prompt, rollouts=tuple(rollouts[i * size : (i + 1) * size]))
        for i, prompt in enumerate(prompts)
    ]


def completion_of(row: Row, prompt: Prompt, policy: Any) -> Completion:
    """Return a finished row as a completion."""
    ids = row.token_ids[:-1] if row.token_ids and row.token_ids[-1] in policy.eos_token_ids else row.token_ids
    return _completion(row, policy.tokenizer.decode(ids, skip_special_tokens=True), prompt.prefill)


def _completion(row: Row, text: str, prefill: str) -> Completion:
    return Completion(
        text=text,
        token_ids=tuple(row.token_ids),
        logps=tuple(row.logps),
        finish_reason=row.finish_reason,
        prefill=prefill,
        seed=row.seed,
    )
