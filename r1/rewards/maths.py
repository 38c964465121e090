"""Equivalence of mathematical answers, by exact arithmetic where that decides and by math-verify where it does not.

Model output can make computer algebra run for ever (a tower of powers) without ever giving up the interpreter lock:
call this in a worker process of `r1.rewards.grader` only. math-verify's own time-outs rest on SIGALRM and are off.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from typing import Any

_MAX_CHARACTERS = 1000  # an answer longer than this, and four times its gold answer, is not an answer
_MAX_DIGITS = 1000  # so that Fraction stays fast
_BOX = re.compile(r"\\f?boxed\s*\{")
_SEGMENT = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:/\d+)?")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_BASE = re.compile(r"\(?(\d[0-9A-Za-z]*)\)?_(?:\{(\d+)\}|(\d+))")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mbox|textrm)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z]{4,}(?:[ ,'-]+[A-Za-z]+)*")


def equivalent(gold: str, answer: str) -> bool | None:
    r"""Whether an answer equals the gold answer; None when the gold answer cannot be parsed.

    Gold answers may be bare LaTeX, in `$...$` or in a box. The answer must be one expression: one with several
    different boxes or formulas, or a number among prose, is wrong. Numbers are compared exactly, digits with a base
    (`101_2`) as digits, words as words.

    Raises:
        ImportError: math-verify is not installed.
    """
    gold_text, answer_text = _single(gold), _single(answer)
    if not gold_text:
        return None
    if not answer_text or len(answer_text) > max(_MAX_CHARACTERS, 4 * len(gold_text)):
        return False if _is_simple(gold_text) or _parse(gold_text) else None
    if _squeeze(gold_text) == _squeeze(answer_text):
        return True
    verdict = _compare_without_algebra(gold_text, answer_text)
    if verdict is not None:
        return verdict
    parsed_gold = _parse(gold_text)
    if not parsed_gold:
        return None
    parsed_answer = _parse(answer_text)
    return bool(parsed_answer) and _verify(parsed_gold, parsed_answer)


def warm_up() -> None:
    """Import math-verify and build its parsers ahead of the first deadline; nothing when it is not installed."""
    try:
        equivalent("\\frac{x}{2}", "x/2")
    except ImportError:
        return


def _single(text: str) -> str | None:
    """Return the one expression that a text holds, without delimiters, or None when there are several."""
    text = text.strip()
    if _BOX.search(text):
        boxes = {_squeeze(box): box for box in _boxes(text)}
        if len(boxes) != 1:
            return None
        (text,) = boxes.values()
    segments = {_squeeze(found := next(g for g in m.groups() if g)): found for m in _SEGMENT.finditer(text)}
    if segments:
        prose = _SEGMENT.sub(" ", text)
        if len(segments) != 1 or any(char.isdigit() for char in prose):
            return None
        (text,) = segments.values()
    return text.strip().rstrip(".").removesuffix("%").removesuffix("\\").removeprefix("$").strip()


def _boxes(text: str) -> list[str]:
    found = []
    for match in _BOX.finditer(text):
        depth = 1
        for position in range(match.end(), len(text)):
            if text[position - 1] == "\\":
                continue
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                found.append(text[match.end() : position].strip())
                break
    return found


def _squeeze(text: str) -> str:
    return re.sub(r"\s+|\\[,;:! ]|\\left(?![a-zA-Z])|\\right(?![a-zA-Z])", "", text)


def _is_simple(gold: str) -> bool:
    return _rational(gold) is not None or _words(gold) is not None or _BASE.fullmatch(_squeeze(gold)) is not None


def _compare_without_algebra(gold: str, answer: str) -> bool | None:
    left, right = _rational(gold), _rational(answer)
    if left is not None and right is not None:
        return left == right
    base_gold, base_answer = _BASE.fullmatch(_squeeze(gold)), _BASE.fullmatch(_squeeze(answer))
    if base_gold:
        if base_answer:
            return _digits_and_base(base_gold) == _digits_and_base(base_answer)
        return _squeeze(answer).lower() == base_gold[1].lower()
    if base_answer:  # digits in a base against a gold answer that names none
        return base_answer[2] in ("10", None) and base_answer[3] in ("10", None) and base_answer[1] == _squeeze(gold)
    words = _words(gold)
    if words is not None:  # as a formula, "tea" would be the product of its letters and equal "eat"
        return words == (_words(answer) or _TEXT.sub(r"\1", answer).strip(" ().").casefold())
    return None


def _digits_and_base(match: re.Match[str]) -> tuple[str, str]:
    return match[1].lower(), match[2] or match[3]


def _rational(text: str) -> Fraction | None:
    text = _squeeze(text).replace("{,}", ",").removeprefix("\\$")
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if match := _FRACTION.fullmatch(text):
        text = f"{match[1]}{match[2]}/{match[3]}"
    if len(text) > _MAX_DIGITS or not _NUMBER.fullmatch(text):
        return None
    top, _, bottom = text.partition("/")
    if bottom and int(bottom) == 0:
        return None
    return Fraction(top) / (int(bottom) if bottom else 1)


def _words(text: str) -> str | None:
    if match := _TEXT.fullmatch(text):
        inside = match[1].strip(" ().")
        return inside.casefold() if any(char.isalpha() for char in inside) else None
    return text.casefold() if _WORDS.fullmatch(text) else None


def _parse(text: str) -> list[Any]:
    """Parse bare LaTeX with math-verify; [] when it does not parse. Only its LaTeX parser sees model output."""
    parse, _, latex = _math_verify()
    return parse(f"${text}$", extraction_config=[latex()], fallback_mode="no_fallback", parsing_timeout=None)


def _verify(gold: list[Any], answer: list[Any]) -> bool:
    _, verify, _ = _math_verify()
    return bool(verify(gold, answer, strict=True, timeout_seconds=None))


def _math_verify() -> tuple[Any, Any, Any]:
    try:
        from math_verify import LatexExtractionConfig, parse, verify
    except ImportError as error:
        raise ImportError("comparing mathematical answers needs math-verify: pip install 'r1[math]'") from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time-outs are off, on purpose here
    return parse, verify, LatexExtractionConfig
