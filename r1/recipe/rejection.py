"""Rejection sampling: which of a problem's completions are worth imitating.

After arXiv 2501.12948, section 2.3: keep what is correct and readable (no mixed languages, no repetition), several
completions sampled for each problem. Filters are asked in the order of FILTERS; the first that refuses is recorded.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from r1.recipe.decontamination import Benchmarks, normalise
from r1.registry import did_you_mean
from r1.rewards.language import language_consistency
from r1.rewards.repetition import repetition_penalty
from r1.turns import split_turn, thinking
from r1.types import Rollout, RolloutGroup

FILTERS = (
    "correct",
    "well_formed",
    "language",
    "repetition",
    "length",
    "decontaminated",
    "unique",
    "per_problem",
)
PREFERENCES = ("first", "shortest", "seed")
_CHOICES = {
    "well_formed": ("answer", "think", None),
    "language": ("en", "zh", None),
    "unique": ("exact", "normalised", None),
    "prefer": PREFERENCES,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectionSettings:
    """What is kept; null switches a filter off (config key `filters`, and `keep_per_problem`).

    Attributes:
        correct: name of the reward that says what is right; an unscored completion is not kept.
        min_score: score of that reward from which a completion is right.
        well_formed: "answer": exactly one think block, then one `<answer>` block, and nothing else. "think": one think
            block, then any text (boxed answers). Both leave out completions that were cut off.
        language: "en" or "zh": language of the chain of thought. A chain without words passes.
        min_language: least share of the chain's words in that language (`language_consistency`).
        max_repetition: largest share of n-grams of the turn that occurred before in it.
        repetition_ngram: n of those n-grams.
        min_tokens, max_tokens: bounds on the completion's tokens, where the engine tells them.
        min_chars, max_chars: bounds on the characters of the turn.
        unique: drop a completion that an earlier one of the same question equals: "exact", or "normalised" (up to case,
            white space and Unicode forms).
        keep_per_problem: most completions of one problem.
        prefer: which those are: "first" in sampling order (a fair draw, for completions of a problem are independent),
            "shortest" in characters, or "seed": by a hash of their random streams.
    """

    correct: str | None = "accuracy"
    min_score: float = 1.0
    well_formed: str | None = "answer"
    language: str | None = "en"
    min_language: float = 0.9
    max_repetition: float | None = 0.3
    repetition_ngram: int = 6
    min_tokens: int | None = None
    max_tokens: int | None = None
    min_chars: int | None = None
    max_chars: int | None = None
    unique: str | None = "normalised"
    keep_per_problem: int | None = None
    prefer: str = "first"

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            value = getattr(self, key)
            if value not in choices:
                listed = ", ".join(str(choice or "null") for choice in choices)
                raise ValueError(
                    f"filters.{key}: found {value!r}.{did_you_mean(str(value), map(str, choices))} "
                    f"Expected one of {listed}"
                )
        if self.keep_per_problem is not None and self.keep_per_problem < 1:
            raise ValueError(f"keep_per_problem must be at least 1 (or null), found {self.keep_per_problem}")
        if self.repetition_ngram < 1:
            raise ValueError(f"filters.repetition_ngram must be at least 1, found {self.repetition_ngram}")


def is_correct(rollout: Rollout, settings: RejectionSettings) -> bool:
    """Whether the reward named by `correct` found the completion right.

    Raises:
        ValueError: there is no such reward.
    """
    if settings.correct not in rollout.rewards:
        raise ValueError(
            f"filters.correct: no reward {settings.correct!r}.{did_you_mean(str(settings.correct), rollout.rewards)} "
            f"Configured: {', '.join(rollout.rewards) or 'none'}"
        )
    score = rollout.rewards[settings.correct]
    return score is not None and score >= settings.min_score


def is_well_formed(rollout: Rollout, settings: RejectionSettings) -> bool:
    """Whether the turn ended by itself and is one think block with one answer after it."""
    completion = rollout.completion
    turn = split_turn(completion.turn, answer_tags=settings.well_formed == "answer")
    return completion.finish_reason == "stop" and turn.well_formed


def is_in_language(rollout: Rollout, settings: RejectionSettings) -> bool:
    """Whether the chain of thought (the whole turn, without one) keeps to its language; true without any words."""
    turn = rollout.completion.turn
    chain = thinking(turn)
    share = language_consistency(turn if chain is None else chain, settings.language)
    return share is None or share >= settings.min_language


def repeated_share(text: str, ngram_size: int) -> float:
    """Return 1 - (distinct n-grams) / (n-grams) of a text, 0 when it is shorter than one; see `repetition_penalty`."""
    return -repetition_penalty(text, ngram_size=ngram_size)


def has_fair_length(rollout: Rollout, settings: RejectionSettings) -> bool:
    """Whether the completion is within the bounds on tokens and characters.

    Raises:
        ValueError: bounds on tokens for a completion whose tokens are not known.
    """
    completion, num_chars = rollout.completion, len(rollout.completion.turn)
    num_tokens = len(completion.token_ids) or len(completion.logps)
    if settings.min_tokens is None and settings.max_tokens is None:
        num_tokens = 0
    elif not num_tokens and completion.text:
        raise ValueError(
            "filters.max_tokens, filters.min_tokens: this engine does not tell the tokens of a completion; bound "
            "filters.max_chars, or ask a remote server for rollout.logprobs=true"
        )
    return _within(num_tokens, settings.min_tokens, settings.max_tokens) and _within(
        num_chars, settings.min_chars, settings.max_chars
    )


def judge(
    group: RolloutGroup,
    settings: RejectionSettings,
    *,
    benchmarks: Benchmarks | None = None,
    seen: set[bytes] | None = None,
) -> list[str | None]:
    """Return, for each completion of a scored group, the first filter that refuses it, or None where it is kept.

    Args:
        group: one problem with its completions.
        settings: what is kept.
        benchmarks: what neither question nor completion may overlap.
        seen: digests of the completions that came as far as `unique` before; this group's are added. None: no others.
    """
    seen = set() if seen is None else seen
    question = group.prompt.problem.prompt
    is_contaminated = benchmarks is not None and benchmarks.overlap(question) is not None
    verdicts: list[str | None] = []
    for rollout in group.rollouts:
        verdict = _refused_by(rollout, settings, benchmarks, is_contaminated)
        if verdict is None and settings.unique is not None:
            digest = _digest(question, rollout.completion.turn, settings.unique)
            verdict = "unique" if digest in seen else None
            seen.add(digest)
        verdicts.append(verdict)
    kept = [i for i, verdict in enumerate(verdicts) if verdict is None]
    for i in sorted(kept, key=lambda i: _rank(group.rollouts[i], i, settings.prefer))[settings.keep_per_problem :]:
        if settings.keep_per_problem is not None:
            verdicts[i] = "per_problem"
    return verdicts


@dataclass(slots=True)
class FilterCounts:
    """Completions and problems left after each filter.

    Attributes:
        num_problems, num_completions, num_tokens: sampled.
        refused: completions that each filter refused.
        ended: problems whose last completions each filter refused.
        num_unscored: completions that some reward could not score, among those that `correct` refused.
        overlaps: problems whose question overlaps a benchmark, by benchmark.
    """

    num_problems: int = 0
    num_completions: int = 0
    num_tokens: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    num_unscored: int = 0
    overlaps: Counter[str] = field(default_factory=Counter)

    def add(self, group: RolloutGroup, verdicts: Sequence[str | None], benchmarks: Benchmarks | None = None) -> None:
        """Count one group by what `judge` said of it."""
        self.num_problems += 1
        self.num_completions += len(verdicts)
        self.num_tokens += sum(len(rollout.completion.token_ids) for rollout in group.rollouts)
        self.refused.update(v for v in verdicts if v is not None)
        if None not in verdicts:
            self.ended[max(verdicts, key=FILTERS.index)] += 1
        self.num_unscored += sum(
            v == "correct" and None in r.rewards.values() for v, r in zip(verdicts, group.rollouts, strict=True)
        )
        if benchmarks is not None and (name := benchmarks.overlap(group.prompt.problem.prompt)):
            self.overlaps[name] += 1

    @property
    def num_kept(self) -> int:
        return self.num_completions - self.refused.total()

    def report(self) -> list[dict[str, Any]]:
        """Return a row for the sample and one for each filter: what it refused and what was left after it."""
        completions, problems = self.num_completions, self.num_problems
        rows = [{"filter": "sampled", "num_refused": 0, "num_completions": completions, "num_problems": problems}]
        for name in FILTERS:
            completions -= self.refused[name]
            problems -= self.ended[name]
            rows.append(
                {
                    "filter": name,
                    "num_refused": self.refused[name],
                    "num_completions": completions,
                    "num_problems": problems,
                }
            )
        return rows


def _refused_by(
    rollout: Rollout, settings: RejectionSettings, benchmarks: Benchmarks | None, is_contaminated: bool
) -> str | None:
    turn = rollout.completion.turn
    if settings.correct is not None and not is_correct(rollout, settings):
        return "correct"
    if settings.well_formed is not None and not is_well_formed(rollout, settings):
        return "well_formed"
    if settings.language is not None and not is_in_language(rollout, settings):
        return "language"
    if settings.max_repetition is not None:
        if repeated_share(turn, settings.repetition_ngram) > settings.max_repetition:
            return "repetition"
    if not has_fair_length(rollout, settings):
        return "length"
    if is_contaminated or (benchmarks is not None and benchmarks.overlap(turn) is not None):
        return "decontaminated"
    return None


def _digest(question: str, turn: str, unique: str) -> bytes:
    if unique == "normalised":
        question, turn = normalise(question), normalise(turn)
    return hashlib.sha256(f"{question}\0{turn}".encode()).digest()


def _rank(rollout: Rollout, position: int, prefer: str) -> tuple[Any, ...]:
    if prefer == "shortest":
        return len(rollout.completion.turn), position
    if prefer == "seed":
        return hashlib.sha256(str(rollout.completion.seed).encode()).digest(), position
    return (position,)


def _within(value: int, low: int | None, high: int | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)
