"""Equivalence of mathematical answers: by exact arithmetic and structure where these decide, else by algebra.

Model output can make computer algebra run for ever (a tower of powers) without ever giving up the interpreter lock:
call this in a worker process of `r1.rewards.grader` only. math-verify's own time-outs rest on SIGALRM and are off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from r1.rewards import algebra
from r1.rewards.boxes import split_boxes
from r1.rewards.comparison import same
from r1.rewards.markup import without_markup
from r1.rewards.names import is_applied, is_measure, is_symbol
from r1.rewards.notation import BIDI_CONTROLS, clean, is_tame, squeeze, strip_delimiters
from r1.rewards.quantities import quantity
from r1.rewards.sentences import stated_answer
from r1.rewards.structure import structure
from r1.rewards.wording import is_wording

_MAX_CHARACTERS = 1000  # an answer longer than this, and four times its gold answer, is not an answer
_MAX_BOXES = 16
_BOX = re.compile(r"\\(?:f?boxed|fbox)\s*\{")
_SEGMENT = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NAMED = re.compile(r"([^=<>]{1,40}?) ?= ?([^=<>]+)", re.DOTALL)
_JOINT = re.compile(r"\$\s*(,\s*and|and|or|[,;])\s*\$")  # between two formulas
_MARKS = re.compile(r"\$|\\[()\[\]]|\\q?quad(?![a-z])|\\text\s*\{([^{}]*)\}|\\[,;: ]")
_SUM_OF_LETTERS = re.compile(r"[a-z](?: ?[+-] ?[a-z])+")
_LEAD = re.compile(r"^\\text\s*\{\s*(?:the )?(?:final )?answer(?: is)?:?\s*\}", re.IGNORECASE)
_OPTION = re.compile(r"^([A-J])\)(?=\s)")  # B) 15, whose bracket opens nowhere
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-J](?![A-Za-z])")  # a choice, or a symbol
_LABEL = re.compile(r"^(?:\\text ?\{ ?)?\([A-J]\)(?: ?\})? ?(?=[^\s,;])(?!\\text ?\{ ?(?:or|and))")  # (C) 4\pi
_CHOOSE = re.compile(r"^C ?\(([0-9]{1,4}), ?([0-9]{1,4})\)$")  # a point, where the gold answer is no number
_THOUSAND = re.compile(r"(?<=[0-9]) ?k$")


def equivalent(gold: str, answer: str) -> bool | None:
    r"""Whether an answer equals the gold answer; None when the gold answer cannot be parsed.

    Gold answers may be bare LaTeX, in `$...$` or in a box. The answer must be one expression: one with several
    different boxes or formulas, or a number among prose, is wrong. Numbers are compared exactly, digits with a base
    (`101_2`) as digits, words as words, lists and sets in any order, tuples and intervals with their brackets.

    Raises:
        ImportError: math-verify is not installed.
    """
    if not _BOX.search(answer) and "\\text" not in answer:
        answer = stated_answer(answer) or answer
    gold_text, answer_text = _single(gold), _single(answer)
    if not gold_text or not is_tame(clean(gold_text)):
        return None
    gold_text = clean(gold_text)
    if not answer_text or len(answer_text) > max(_MAX_CHARACTERS, 4 * len(gold_text)):
        return False if _is_usable(gold_text) else None
    answer_text = clean(answer_text)
    if squeeze(gold_text) == squeeze(answer_text):
        return True
    if BIDI_CONTROLS.search(answer_text) or not is_tame(answer_text):
        return False if _is_usable(gold_text) else None
    if not _LETTER.search(gold_text):
        answer_text = _LABEL.sub("", answer_text)
    if "\\approx" not in gold_text:
        answer_text = _without_rounding(answer_text)
    if "=" not in gold_text and (match := _NAMED.fullmatch(answer_text)):
        is_sum = _SUM_OF_LETTERS.fullmatch(match[1]) is not None and quantity(gold_text) is not None
        if is_sum or any(is_name(match[1]) for is_name in (is_symbol, is_measure, is_applied)):
            answer_text = match[2]
    if quantity(gold_text) is not None:
        answer_text = _CHOOSE.sub(r"\\binom{\1}{\2}", answer_text)
        answer_text = _THOUSAND.sub(" thousand", answer_text)
    return same(gold_text, answer_text)


def _without_rounding(text: str) -> str:
    r"""Return what stands before `\approx` if behind it stands one number, within a twentieth of what it rounds."""
    exact, _, rounded = text.partition("\\approx")
    value, near = quantity(exact.strip()), quantity(rounded.strip())
    if not exact.strip() or near is None or is_symbol(exact):
        return text
    if value is not None and abs(value.value - near.value) * 20 > abs(value.value):
        return text
    return exact.strip()


def warm_up() -> None:
    """Import math-verify and build its parsers ahead of the first deadline; nothing when it is not installed."""
    try:
        equivalent("\\frac{x}{2}", "x/2")
    except ImportError:
        return


def _single(text: str) -> str | None:
    """Return the one expression that a text holds, without delimiters, or None when there are several."""
    text = without_markup(text.strip())
    text = _JOINT.sub(lambda m: f" \\text{{ {m[1]} }} " if m[1].isalpha() else f"{m[1]} ", text)
    if _BOX.search(text):
        inside, prose = split_boxes(text)
        found = {squeeze(box): box for box in inside or []}
        if not 1 <= len(found) <= _MAX_BOXES:
            return None
        if len(found) > 1:
            return _joined(list(found.values()), _MARKS.sub(lambda m: f" {m[1] or ''} ", prose))
        (text,) = found.values()
    text = _OPTION.sub(r"(\1)", _LEAD.sub("", strip_delimiters(text)))
    if re.fullmatch(r"\$[0-9.,]+", text):
        return text
    segments = {squeeze(found := next(g for g in m.groups() if g)): found for m in _SEGMENT.finditer(text)}
    if segments and "\\text" not in text:
        prose = _SEGMENT.sub(" ", text)
        if len(segments) != 1 or any(char.isdigit() for char in prose):
            return _joined(list(segments.values()), prose)
        (text,) = segments.values()
    return strip_delimiters(text)


def _joined(segments: Sequence[str], prose: str) -> str | None:
    """Return the list that several formulas with nothing but commas and conjunctions between them make."""
    if re.sub(r"\b(?:and|or)\b|[,;.\s]", "", prose):
        return None
    return ", ".join(segments)


def _is_usable(gold: str) -> bool:
    if quantity(gold) is not None or is_wording(gold):
        return True
    node = structure(gold)
    return node.kind != "leaf" or algebra.parse(node.text) is not None
