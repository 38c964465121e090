r"""What an answer calls its value: `x`, `f(x)`, `|AB|`, `\sin \theta`.

Expects text from `r1.rewards.notation.clean`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from r1.rewards.notation import squeeze

_HEAD = re.compile(r"(?P<name>[A-Za-z])\((?P<argument>[a-z])\)")
_NAME = r"[A-Za-z](?:_\{?\w+\}?)?"
_SYMBOL = re.compile(
    rf"\({_NAME}(?:, ?{_NAME})+\)|"
    r"(?:[A-Za-z]|\\(?:vec|hat|bar|overline|overrightarrow|tilde) ?\{[A-Za-z]{1,3}\}|\\(?!text)[A-Za-z]+|"
    r"\\text ?\{[^{}]*\}|\\angle ?[A-Z]{1,3}|[A-Za-z]{2,}(?: [A-Za-z]+)*)"
    r"(?:_(?:\w|\{\w+\}))?'{0,3}(?:\^\{-1\})?(?: ?\([a-zA-Z, ]{1,9}\))?"
)
_APPLIED = re.compile(  # f^{-1}(1/5), P(5), A^{100}, \sin^2 \theta
    r"(?:[A-Za-z]|\\text ?\{ ?[A-Za-z]\w* ?\})(?:_\{?\w+\}?)?'{0,3}(?:\^(?:\w|\{-?\w+\}))? ?"
    r"(?:\((?:[^()=<>]|\([^()]*\)){1,40}\))?"
    r"|\\(?:sin|cos|tan|cot|sec|csc|log|ln|arcsin|arccos|arctan)(?:\^(?:\w|\{-?\w+\}))? ?"
    r"(?:[A-Za-z]|\\[a-z]+|\\angle ?[A-Z]{1,3}|\([^()=<>]{1,40}\))"
)
_MEASURED = re.compile(r"\\(?:frac|angle|triangle|overline|text)(?![A-Za-z])|_(?:\w|\{\w+\})|[{}|/: ]")  # |AB|, S_1:S_2


def is_symbol(text: str) -> bool:
    """Whether it names something: `x`, `x_1`, `f(x)`, `\\theta`, `\\text{Area}`."""
    return _SYMBOL.fullmatch(text.strip()) is not None


def is_measure(text: str) -> bool:
    """Whether it names what is measured by capitals alone: `|AB|`, `S_1:S_2`, `\\frac{NO}{BO}`."""
    letters = _MEASURED.sub("", text)
    return letters.isalpha() and letters.isupper()


def is_applied(text: str) -> bool:
    r"""Whether it names a value: of a function, as `P(5)` or `\sin \theta`, or of a power, as `A^{100}`."""
    return _APPLIED.fullmatch(text.strip()) is not None


def same_head(gold: Sequence[str], answer: Sequence[str]) -> bool:
    """Whether `f(x) = ...` and `y = ...`, or `W(n) = 1` and `W(x) = 1`, define the same by another name."""
    left, right = _HEAD.fullmatch(squeeze(gold[0])), _HEAD.fullmatch(squeeze(answer[0]))
    if left and right:
        return left["name"] == right["name"] and not any(
            head["argument"] in re.sub(r"\\[A-Za-z]+", "", sides[1]) for head, sides in ((left, gold), (right, answer))
        )
    head, other = (left, answer[0]) if left else (right, gold[0])
    return head is not None and head["argument"] == "x" and squeeze(other) == "y"
