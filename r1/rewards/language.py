"""Language consistency of the chain of thought."""

from __future__ import annotations

import re
from typing import Literal

from r1.rewards.base import REWARDS
from r1.turns import thinking
from r1.types import Completion, Problem

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_LATIN = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
_WORD = re.compile(rf"(?P<zh>[{_HAN}])|(?P<en>[{_LATIN}]+(?:['\u2019][{_LATIN}]+)*)|[^\W\d_{_LATIN}{_HAN}]+")
_NOT_PROSE = re.compile(r"\\[A-Za-z]+|</?[A-Za-z_]+>")


def language_consistency(text: str, target: Literal["en", "zh"] = "en") -> float | None:
    """Return (words in the target language) / (words), or None for a text without words.

    Words are told apart by script: a run of Latin letters is an English word, a Han character a Chinese one, a run
    of any other letters a word of neither. Numbers, LaTeX commands, tags, and single Latin letters other than a, A
    and I (variables) are not words.

    Source: arXiv 2501.12948 v2, Eq. 7.
    """
    num_words = num_target = 0
    for match in _WORD.finditer(_NOT_PROSE.sub(" ", text)):
        word = match.group()
        if match.lastgroup == "en" and len(word) == 1 and word not in "aAI":
            continue
        num_words += 1
        num_target += match.lastgroup == target
    return num_target / num_words if num_words else None


@REWARDS.register("language")
class Language:
    """Share of the chain of thought's words that are in the target language, in [0, 1].

    The chain is the think block, or the whole turn when there is none.

    Args:
        target: "en" or "zh".
        no_words: score of a chain without any word. The paper leaves 0/0 open; 0 keeps an empty chain from being the
            most consistent one.
    """

    isolated = False
    item_wise = True

    def __init__(self, *, target: Literal["en", "zh"] = "en", no_words: float = 0.0) -> None:
        if target not in ("en", "zh"):
            raise ValueError(f"reward.language.target must be 'en' or 'zh', found {target!r}")
        self.target = target
        self.no_words = no_words

    def __call__(self, completions: list[Completion], problems: list[Problem]) -> list[float | None]:
        return [self._score(completion.turn) for completion in completions]

    def _score(self, turn: str) -> float:
        chain = thinking(turn)
        share = language_consistency(turn if chain is None else chain, self.target)
        return self.no_words if share is None else share
