"""What comes back from vLLM: the seeds of completions, and completions handed over while others are still drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from r1.rollout.base import OnCompletion, mix_seed
from r1.rollout.groups import Row, completion_of
from r1.rollout.vllm_client import Answer
from r1.types import Prompt, SamplingParams

_EVERY_SECONDS = 5.0


def first_seed(prompt: Prompt, params: SamplingParams) -> int:
    """Return the seed from which vLLM counts those of a prompt's completions."""
    return (mix_seed(params.seed, prompt.problem.index) >> 1) + prompt.first_sample  # room for + g below 2^63


def rows_of(index: int, prompt: Prompt, params: SamplingParams, answers: Sequence[Answer]) -> list[Row]:
    """Return the completions of prompt number `index` as rows."""
    seed = first_seed(prompt, params)
    return [Row(index, seed + g, ids, logps, finish) for g, (ids, logps, finish) in enumerate(answers)]


class HandOver:
    """Hands completions over as they come, every few seconds those until which the server had the right weights.

    Args:
        tell: is given each completion with the position of its prompt.
        prompts, params, policy: as of the engine.
        answers: of the prompts that are settled; what is handed over is.
        is_right: asks the server for the weights it has.
    """

    def __init__(
        self,
        tell: OnCompletion,
        prompts: list[Prompt],
        params: SamplingParams,
        policy: Any,
        *,
        answers: dict[int, list[Answer]],
        is_right: Callable[[], bool],
    ) -> None:
        self.tell, self.prompts, self.params, self.policy = tell, prompts, params, policy
        self.answers, self.is_right = answers, is_right
        self.told: set[int] = set()
        self.held: dict[int, list[Answer]] = {}
        self.last = time.monotonic()

    def __call__(self, number: int, found: list[Answer]) -> None:
        """Take the completions of one prompt."""
        self.held[number] = found
        if time.monotonic() - self.last >= _EVERY_SECONDS and self.is_right():
            self.answers |= self.held
            self.settle()

    def settle(self) -> None:
        """Hand over all that is settled and was not handed over yet; what else came is forgotten."""
        for number in sorted(self.answers.keys() - self.told):
            self.told.add(number)
            prompt = self.prompts[number]
            for row in rows_of(number, prompt, self.params, self.answers[number]):
                self.tell(number, completion_of(row, prompt, self.policy))
        self.held, self.last = {}, time.monotonic()
