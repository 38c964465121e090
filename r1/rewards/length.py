"""Rewards on length, in tokens of the completion. R1's own rewards have none: all are off unless configured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from r1.rewards.base import REWARDS
from r1.types import Completion, Problem

Scores = Mapping[str, list[float | None]]


def soft_overlong_punishment(num_tokens: int, *, max_tokens: int, cache_tokens: int) -> float:
    """Return DAPO's soft overlong punishment, in [-1, 0].

    0 up to max_tokens - cache_tokens, then falling linearly to -1 at max_tokens, -1 beyond.
    Source: arXiv 2503.14476, Eq. 13.
    """
    soft_limit = max_tokens - cache_tokens
    if num_tokens <= soft_limit:
        return 0.0
    return max(-1.0, (soft_limit - num_tokens) / cache_tokens)


def cosine_reward(
    num_tokens: int,
    *,
    correct: bool,
    max_tokens: int,
    correct_short: float = 2.0,
    correct_long: float = 1.0,
    wrong_short: float = -10.0,
    wrong_long: float = 0.0,
    exceeded: float = -10.0,
) -> float:
    """Return a reward that moves from its short to its long end on half a cosine of the length.

    R = long + (short - long) (1 + cos(pi t / max_tokens)) / 2, and `exceeded` from max_tokens on.
    Source: arXiv 2502.03373, section 4.2: a right answer earns more when short, a wrong one loses less when long.
    """
    if num_tokens >= max_tokens:
        return exceeded
    short, long = (correct_short, correct_long) if correct else (wrong_short, wrong_long)
    return long + (short - long) * (1 + math.cos(math.pi * num_tokens / max_tokens)) / 2


def shorter_reward(num_tokens: Sequence[int], correct: Sequence[bool]) -> list[float]:
    """Return Kimi k1.5's length reward for one group of completions, each in [-0.5, 0.5].

    lambda_i = 0.5 - (len_i - min len) / (max len - min len); right answers get lambda_i, wrong ones min(0, lambda_i);
    all 0 when all are equally long. Source: arXiv 2501.12599, section 2.3.3.
    """
    shortest, longest = min(num_tokens), max(num_tokens)
    if shortest == longest:
        return [0.0] * len(num_tokens)
    lambdas = [0.5 - (n - shortest) / (longest - shortest) for n in num_tokens]
    return [value if right else min(0.0, value) for value, right in zip(lambdas, correct, strict=True)]


@REWARDS.register("soft_overlong")
class SoftOverlong:
    """`soft_overlong_punishment`.

    Args:
        max_tokens: the punishment is complete here: the sampler's max_tokens.
        cache_tokens: length of the slope before it.
    """

    isolated = False
    item_wise = True

    def __init__(self, *, max_tokens: int, cache_tokens: int) -> None:
        if not 0 < cache_tokens <= max_tokens:
            raise ValueError(
                f"reward.soft_overlong.cache_tokens must be in 1..max_tokens ({max_tokens}), found {cache_tokens}"
            )
        self.max_tokens = max_tokens
        self.cache_tokens = cache_tokens

    def __call__(self, completions: list[Completion], problems: list[Problem]) -> list[float | None]:
        return [
            soft_overlong_punishment(_num_tokens(c), max_tokens=self.max_tokens, cache_tokens=self.cache_tokens)
            for c in completions
        ]


class _UsesCorrectness:
    """A reward that depends on whether another reward found the answer right."""

    isolated = False

    def __init__(self, *, correct_by: str = "accuracy", threshold: float = 1.0) -> None:
        self.uses = (correct_by,)
        self.threshold = threshold

    def correctness(self, scores: Scores) -> list[bool | None]:
        return [None if score is None else score >= self.threshold for score in scores[self.uses[0]]]


@REWARDS.register("cosine")
class Cosine(_UsesCorrectness):
    """`cosine_reward`; None where correctness is unknown.

    Args:
        max_tokens: the sampler's max_tokens.
        correct_by: label of the reward that tells right from wrong.
        threshold: its score from which an answer is right.
        values: the ends `correct_short`, `correct_long`, `wrong_short`, `wrong_long`, `exceeded`; the paper's by
            default.
    """

    item_wise = True

    def __init__(
        self,
        *,
        max_tokens: int,
        correct_by: str = "accuracy",
        threshold: float = 1.0,
        values: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(correct_by=correct_by, threshold=threshold)
        self.max_tokens = max_tokens
        self.values = dict(values or {})
        unknown = set(self.values) - {"correct_short", "correct_long", "wrong_short", "wrong_long", "exceeded"}
        if unknown:
            raise ValueError(f"reward.cosine.values has no {sorted(unknown)[0]!r}")

    def __call__(self, completions: list[Completion], problems: list[Problem], scores: Scores) -> list[float | None]:
        return [
            None
            if correct is None
            else cosine_reward(_num_tokens(c), correct=correct, max_tokens=self.max_tokens, **self.values)
            for c, correct in zip(completions, self.correctness(scores), strict=True)
        ]


@REWARDS.register("shorter")
class Shorter(_UsesCorrectness):
    """`shorter_reward` within each group: consecutive completions of the same problem.

    A completion whose correctness is unknown gets None and is left out of its group's shortest and longest.

    Args:
        correct_by: label of the reward that tells right from wrong.
        threshold: its score from which an answer is right.
    """

    item_wise = False

    def __call__(self, completions: list[Completion], problems: list[Problem], scores: Scores) -> list[float | None]:
        correct = self.correctness(scores)
        rewards: list[float | None] = [None] * len(completions)
        for _, group in groupby(range(len(completions)), key=lambda i: problems[i].id):
            known = [i for i in group if correct[i] is not None]
            if known:
                earned = shorter_reward([_num_tokens(completions[i]) for i in known], [bool(correct[i]) for i in known])
                for i, value in zip(known, earned, strict=True):
                    rewards[i] = value
        return rewards


def _num_tokens(completion: Completion) -> int:
    if completion.text and not completion.token_ids:
        raise ValueError("length rewards count Completion.token_ids, and this completion has text but no ids")
    return len(completion.token_ids)
