"""Whether a turn keeps the think / answer format."""

from __future__ import annotations

from r1.rewards.base import REWARDS
from r1.turns import after_thinking, split_turn
from r1.types import Completion, Problem


@REWARDS.register("format")
class Format:
    """1.0 for exactly one think block, then exactly one answer block, and nothing after; else 0.0.

    Source: arXiv 2501.12948, section 2.2.2. The turn is checked as a whole, so a prefilled `<think>` counts.

    Args:
        answer_tags: whether the answer must stand in `<answer>` tags; if not, any text after the thinking will do.
        thinking: whether there must be a think block. If not, what follows the thinking, or the whole turn without one,
            must be exactly one answer block: for requests that need no reasoning, and for judging a summary alone.
        stop_stripped: the engine removes the stop string `</answer>`; a completion that stopped may lack it. One that
            was cut at its length limit may not.
    """

    isolated = False
    item_wise = True

    def __init__(self, *, answer_tags: bool = True, thinking: bool = True, stop_stripped: bool = False) -> None:
        self.answer_tags = answer_tags
        self.thinking = thinking
        self.stop_stripped = stop_stripped

    def __call__(self, completions: list[Completion], problems: list[Problem]) -> list[float | None]:
        return [float(self._keeps_format(completion)) for completion in completions]

    def _keeps_format(self, completion: Completion) -> bool:
        stripped = self.stop_stripped and completion.finish_reason == "stop"
        turn = completion.turn
        if not self.thinking:
            # With an empty think block before it, the rest is well formed by itself or not at all.
            outside = after_thinking(turn)
            turn = "" if outside is None else f"<think></think>{outside}"
        return split_turn(turn, answer_tags=self.answer_tags, stop_stripped=stripped).well_formed
