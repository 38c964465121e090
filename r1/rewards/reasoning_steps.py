"""Credit for reasoning in visible steps."""

from __future__ import annotations

from r1.chains import split_steps
from r1.rewards.base import REWARDS
from r1.turns import thinking
from r1.types import Completion, Problem


@REWARDS.register("reasoning_steps")
class ReasoningSteps:
    """min(1, distinct steps of the think block / num_steps).

    Repeating a step earns nothing. open-r1's reward of this name counts list markers instead.

    Args:
        num_steps: steps that earn the full score.
    """

    isolated = False
    item_wise = True

    def __init__(self, *, num_steps: int = 3) -> None:
        if num_steps < 1:
            raise ValueError(f"reward.reasoning_steps.num_steps must be at least 1, found {num_steps}")
        self.num_steps = num_steps

    def __call__(self, completions: list[Completion], problems: list[Problem]) -> list[float | None]:
        return [min(1.0, len(set(split_steps(thinking(c.turn) or ""))) / self.num_steps) for c in completions]
