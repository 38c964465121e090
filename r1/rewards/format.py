"""Whether a turn keeps the think / answer format."""

from __future__ import annotations

from r1.rewards.base import REWARDS
from r1.turns import split_turn
from r1.types import Completion, Problem


@REWARDS.register("format")
class Format:
    """1.0 for exactly one think block, then exactly one answer block, and nothing after; else 0.0.

    Source: arXiv 2501.12948, section 2.2.2. The turn is checked as a whole, so a prefilled `<think>` counts.

    Args:
        answer_tags: whether the answer must stand in `<answer>` tags; if not, any text after the thinking will do.
        stop_stripped: the engine removes the stop string `</answer>`; a completion that stopped may lack it. One that
            was cut at its length limit may not.
    """

    isolated = False
    item_wise = True

    def __init__(self, *, answer_tags: bool = True, stop_stripped: bool = False) -> None:
        self.answer_tags = answer_tags
        self.stop_stripped = stop_stripped

    def __call__(self, completions: list[Completion], problems: list[Problem]) -> list[float | None]:
        return [float(self._keeps_format(completion)) for completion in completions]

    def _keeps_format(self, completion: Completion) -> bool:
        stripped = self.stop_stripped and completion.finish_reason == "stop"
        return split_turn(completion.turn, answer_tags=self.answer_tags, stop_stripped=stripped).well_formed
