"""Chains of thought as strings: their steps, and the words by which a model re-examines itself."""

from __future__ import annotations

import re
from collections.abc import Sequence

REFLECTION_WORDS = (
    "wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check",
)  # fmt: skip
"""The words counted over training in DeepSeek-R1 (arXiv 2501.12948 v2, appendix C.2)."""

_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?;])[ \t]+|(?<=[\u3002\uff01\uff1f\uff1b])[ \t]*")
_BARE_NUMBER = re.compile(r"\(?\d+[.)]")
_WORD = re.compile(r"[a-z]+")


def split_steps(think: str) -> list[str]:
    """Split a chain of thought into its steps.

    The coarsest boundary present is used: blank lines, else line ends, else sentence ends. List numbers stay with
    their step, and decimal points are no sentence ends. Empty steps are dropped, the others stripped.
    """
    text = think.strip()
    if _BLANK_LINE.search(text):
        parts = _BLANK_LINE.split(text)
    elif "\n" in text:
        parts = text.split("\n")
    else:
        parts = _SENTENCE_END.split(text)
    steps: list[str] = []
    for part in (p.strip() for p in parts):
        if steps and _BARE_NUMBER.fullmatch(steps[-1]):
            steps[-1] = f"{steps[-1]} {part}"
        elif part:
            steps.append(part)
    return steps


def reflection_counts(text: str, words: Sequence[str] = REFLECTION_WORDS) -> dict[str, int]:
    """Count each reflection word in a text: whole words, any case, inflected forms not included."""
    counts = dict.fromkeys(words, 0)
    for word in _WORD.findall(text.lower()):
        if word in counts:
            counts[word] += 1
    return counts


def has_reflection(text: str, words: Sequence[str] = REFLECTION_WORDS) -> bool:
    """Whether a text holds any reflection word."""
    return any(reflection_counts(text, words).values())
