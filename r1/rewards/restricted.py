"""A reward that scores the problems of some tasks only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from r1.rewards.worker import plain
from r1.types import Completion, Problem


class Restricted:
    """Gives None, "cannot be scored", to completions of other tasks' problems, and leaves the rest to a reward.

    Args:
        reward: scores what is left; its attributes (see `r1.rewards.base`) are taken over.
        tasks: values of `Problem.task`.
    """

    def __init__(self, reward: Any, tasks: Iterable[str]) -> None:
        self.reward = reward
        self.tasks = frozenset([tasks] if isinstance(tasks, str) else tasks)
        self.isolated = getattr(reward, "isolated", True)
        self.item_wise = getattr(reward, "item_wise", False)
        self.uses = tuple(getattr(reward, "uses", ()))

    def warm_up(self) -> None:
        getattr(self.reward, "warm_up", lambda: None)()

    def __call__(
        self,
        completions: list[Completion],
        problems: list[Problem],
        *scores: Mapping[str, list[float | None]],
    ) -> Any:
        mine = [i for i, problem in enumerate(problems) if problem.task in self.tasks]
        if not mine:
            return [None] * len(problems)
        used = [{label: [values[i] for i in mine] for label, values in table.items()} for table in scores]
        found = plain(self.reward([completions[i] for i in mine], [problems[i] for i in mine], *used))
        if not isinstance(found, list) or len(found) != len(mine):
            raise ValueError(f"expected a list of {len(mine)} scores, found {found!r:.80}")
        filled: list[float | None] = [None] * len(problems)
        for i, score in zip(mine, found, strict=True):
            filled[i] = score
        return filled
