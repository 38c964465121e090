"""Reward functions written for TRL, unchanged: `f(prompts, completions, **columns) -> list[float]`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from r1.types import Completion, Problem


def is_trl_reward(function: Any) -> bool:
    """Whether a callable has TRL's signature: `completions` with `prompts` or `**kwargs`, and no `problems`."""
    if inspect.isclass(function) or not callable(function):
        return False
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return "completions" in parameters and "problems" not in parameters


class TRLReward:
    """Calls a TRL reward function with the batch as columns.

    It gets `prompts`, `completions` (whole assistant turns, prefill included), `completion_ids`, `answer` (the gold
    answer), `task`, and one column for every key of the problems' metadata (None where a problem lacks it). Columns
    that its signature does not name are passed only if it takes `**kwargs`.

    Args:
        function: the reward function; may be `async def`.
        conversational: pass prompts and completions as message lists, as TRL does for conversational data sets.
        columns: the function's own name for a column -> ours, such as {"solution": "answer"}.
        arguments: constants passed to every call.
    """

    item_wise = False

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        conversational: bool = False,
        columns: Mapping[str, str] | None = None,
        **arguments: Any,
    ) -> None:
        self.function = function
        self.conversational = conversational
        self.columns = dict(columns or {})
        self.arguments = arguments
        self.isolated = getattr(function, "isolated", True)

    def __call__(self, completions: list[Completion], problems: list[Problem]) -> Any:
        keys = dict.fromkeys(key for problem in problems for key in problem.metadata)
        columns: dict[str, Any] = {key: [p.metadata.get(key) for p in problems] for key in keys}
        columns["answer"] = [p.answer for p in problems]
        columns["task"] = [p.task for p in problems]
        columns["completion_ids"] = [list(c.token_ids) for c in completions]
        for name, ours in self.columns.items():
            if ours not in columns:
                raise ValueError(f"columns.{name}: the problems have no {ours!r}, only {', '.join(columns)}")
            columns[name] = columns[ours]
        columns["prompts"] = self._messages("user", [p.prompt for p in problems])
        columns["completions"] = self._messages("assistant", [c.turn for c in completions])
        scores = self.function(**self._select({**columns, **self.arguments}))
        if inspect.iscoroutine(scores):
            import asyncio  # slow to import, and few rewards are coroutines

            return asyncio.run(scores)
        return scores

    def _messages(self, role: str, texts: list[str]) -> list[Any]:
        return [[{"role": role, "content": text}] for text in texts] if self.conversational else texts

    def _select(self, columns: dict[str, Any]) -> dict[str, Any]:
        parameters = inspect.signature(self.function).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            columns = {name: column for name, column in columns.items() if name in parameters}
        return columns
