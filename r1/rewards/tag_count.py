"""Partial credit for the tags of the think / answer format."""

from __future__ import annotations

from r1.rewards.base import REWARDS
from r1.types import Completion, Problem

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@REWARDS.register("tag_count")
class TagCount:
    """A quarter for each of the four tags that occurs exactly once in the turn (after open-r1's reward of that name).

    Their order is not looked at: a stepping stone for base models, to be used with `format`.
    """

    isolated = False
    item_wise = True

    def __call__(self, completions: list[Completion], problems: list[Problem]) -> list[float | None]:
        return [sum(c.turn.count(tag) == 1 for tag in TAGS) / len(TAGS) for c in completions]
