"""A penalty on repeated n-grams."""

from __future__ import annotations

import re

from r1.rewards.base import REWARDS
from r1.types import Completion, Problem

_WORD = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u3400-\u4dbf\u4e00-\u9fff]+|[^\w\s]")


def repetition_penalty(text: str, *, ngram_size: int = 3, max_penalty: float = -1.0) -> float:
    """Return max_penalty x (1 - distinct n-grams / n-grams) over words, Han characters and punctuation marks.

    0 for a text shorter than one n-gram. After the repetition penalty of arXiv 2502.03373 as open-r1 codes it.
    """
    words = _WORD.findall(text.lower())
    num_ngrams = len(words) - ngram_size + 1
    if num_ngrams < 1:
        return 0.0
    distinct = {tuple(words[i : i + ngram_size]) for i in range(num_ngrams)}
    return max_penalty * (1 - len(distinct) / num_ngrams)


@REWARDS.register("repetition")
class Repetition:
    """`repetition_penalty` of the whole turn, in [max_penalty, 0].

    Args:
        ngram_size: words per n-gram.
        max_penalty: what a text of one n-gram over and over would approach; not positive.
    """

    isolated = False
    item_wise = True

    def __init__(self, *, ngram_size: int = 3, max_penalty: float = -1.0) -> None:
        if ngram_size < 1:
            raise ValueError(f"reward.repetition.ngram_size must be at least 1, found {ngram_size}")
        if max_penalty > 0:
            raise ValueError(f"reward.repetition.max_penalty must not be positive, found {max_penalty}")
        self.ngram_size = ngram_size
        self.max_penalty = max_penalty

    def __call__(self, completions: list[Completion], problems: list[Problem]) -> list[float | None]:
        penalties = [
            repetition_penalty(c.turn, ngram_size=self.ngram_size, max_penalty=self.max_penalty) for c in completions
        ]
        return list(penalties)
