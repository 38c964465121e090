"""Answers that no algebra compares: words, choices, digits in a base, times of day.

Expects text from `r1.rewards.notation.clean`.
"""

from __future__ import annotations

import re
from fractions import Fraction

from r1.rewards.congruence import same_congruence
from r1.rewards.dates import same_date
from r1.rewards.notation import squeeze

_RATIO = re.compile(r"[1-9][0-9]*(?: ?: ?[1-9][0-9]*)+")  # with a leading zero it is a time of day
_TO = re.compile(r" ?(?:\\text ?\{ ?to ?\}|(?<= )to(?= )) ?")
_BASE = re.compile(
    r"\(?(?:\\text\{)?([0-9][0-9A-Za-z]*|[A-Z]+[0-9][0-9A-Z]*)\}?\)?_(?:\{(?:\\text\{)?([0-9]+|[a-z]+)\}?\}|([0-9]+))"
)
_BASES = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
_WORDS = re.compile(
    r"[A-Za-z]{4,}(?:[ ,'-]+[A-Za-z]+)*|[A-Za-z]{2,}(?:[ ,'-]+[A-Za-z]+)+|[Yy]es|[Nn]o|odd|red|all|[A-Z][a-z]{2}"
)
_CHOICE = re.compile(r"[A-J]")
_CHOICES = re.compile(r"[A-J]{2,}")
_CHOSEN = re.compile(
    r"(?:(?:the )?(?:correct )?(?:answer|option|choice)(?: is)?:? ?)?"
    r"\(?([A-Ja-j])\)?(?:[.:)]\s*.*|\s*|\s+(?![A-J]\b|[(*+/^_=-]).*)",
    re.IGNORECASE | re.DOTALL,
)
_COMPOUND = re.compile(r"(?=.*[A-Z].*[A-Z])(?:\(?[A-Z][a-z]?[0-9]*\)?[0-9]*)+")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-5][0-9])(?::([0-5][0-9]))? ?(?:\\text ?\{)? ?(?:([AaPp])\.?[Mm]\.?)? ?\}?")


def same_wording(gold: str, answer: str) -> bool | None:
    """Whether two such answers are the same; None where the gold answer is none of them."""
    for compare in (
        _same_ratio,
        _same_base,
        _same_clock,
        same_congruence,
        _same_choices,
        _same_choice,
        same_date,
        _same_words,
        _same_compound,
    ):
        verdict = compare(gold, answer)
        if verdict is not None:
            return verdict
    return None


def is_wording(gold: str) -> bool:
    """Whether a gold answer is compared as words or as digits in a base, without algebra."""
    return _words(gold) is not None or _BASE.fullmatch(squeeze(gold)) is not None


def _same_ratio(gold: str, answer: str) -> bool | None:
    gold, answer = _TO.sub(":", gold), _TO.sub(":", answer)
    parts = [
        [Fraction(n) for n in re.split(r" ?: ?", text)] if _RATIO.fullmatch(text) else None for text in (gold, answer)
    ]
    left, right = parts
    if left is None or right is None:
        return None
    return len(left) == len(right) and all(a * right[0] == b * left[0] for a, b in zip(left, right, strict=True))


def _same_base(gold: str, answer: str) -> bool | None:
    sides = [_BASE.fullmatch(squeeze(side)) for side in answer.split("=")]
    base_gold, base_answer = _BASE.fullmatch(squeeze(gold)), sides[-1] if len(sides) == 1 else None
    if base_gold and len(sides) == 2 and all(sides):  # 84_{10} = 1010100_2
        base_answer = sides[1] if _value_in_base(sides[0]) == _value_in_base(sides[1]) is not None else None
    if base_gold:
        if base_answer:
            return _digits_and_base(base_gold) == _digits_and_base(base_answer)
        return squeeze(answer).lower() == base_gold[1].lower()
    if base_answer:  # digits in a base against a gold answer that names none
        digits, base = _digits_and_base(base_answer)
        return base == "10" and digits == squeeze(gold)
    return None


def _digits_and_base(match: re.Match[str]) -> tuple[str, str]:
    base = match[2] or match[3]
    return match[1].lower(), _BASES.get(base, base)


def _value_in_base(match: re.Match[str]) -> int | None:
    digits, base = _digits_and_base(match)
    try:
        return int(digits, int(base))
    except ValueError:  # no such base, or a digit that it does not have
        return None


def _same_clock(gold: str, answer: str) -> bool | None:
    left, right = _CLOCK.fullmatch(gold), _CLOCK.fullmatch(answer)
    if not (left and right):
        return None
    (hours, *rest), (other_hours, *other_rest) = _time_of_day(left), _time_of_day(right)
    if rest != other_rest:
        return False
    if bool(left[4]) == bool(right[4]):
        return hours == other_hours
    bare = int((right if left[4] else left)[1])  # without a half of the day, 3:30 may be either
    return hours == other_hours or (1 <= bare <= 12 and hours % 12 == other_hours % 12)


def _time_of_day(match: re.Match[str]) -> tuple[int, str, str]:
    hours, half = int(match[1]), (match[4] or "").lower()
    return (hours % 12 + 12 * (half == "p") if half else hours), match[2], match[3] or "00"


def _same_choice(gold: str, answer: str) -> bool | None:
    letter = _TEXT.sub(r"\1", gold).strip(" ().")
    if not _CHOICE.fullmatch(letter):
        return None
    plain = re.sub(r"\s+", " ", _TEXT.sub(r" \1 ", answer)).strip(" {}")
    if re.search(r"(?i)(?:\bor\b|\band\b|\bnot\b|,\s*\(?[A-J]\b|/\s*[A-J]\b)", plain):
        return False
    match = _CHOSEN.fullmatch(plain)
    if match is None or (match[1].islower() and plain.strip("().") != match[1]):
        return None if _may_be_symbol(gold) else False
    rest = plain[match.end(1) :]
    if re.search(r"[.!?]\s+[A-Z]", rest.lstrip(".:) ")):  # sentences, of which the first names some letter
        return False
    if len(set(re.findall(r"\(([A-J])\)|\b([A-J])\)", rest))) > 0:
        return False
    return match[1].upper() == letter


def _same_choices(gold: str, answer: str) -> bool | None:
    """Compare `ABD` with `A, B, D`; None unless the answer lists letters, for `AB` may be a product too."""
    letters = _TEXT.sub(r"\1", gold).strip()
    listed = re.split(r",? and |, ?|; ?| ", _TEXT.sub(r"\1", answer).strip(" ."))
    if not _CHOICES.fullmatch(letters) or list(letters) != sorted(set(letters)) or len(listed) < 2:
        return None
    return sorted(part.strip("()") for part in listed) == list(letters) or None


def _may_be_symbol(gold: str) -> bool:
    """Whether a single capital letter may be a symbol of a formula rather than a choice."""
    return "\\text" not in gold and "(" not in gold


def _same_words(gold: str, answer: str) -> bool | None:
    words = _words(gold)
    if words is None:  # as a formula, "tea" would be the product of its letters and equal "eat"
        inside = _TEXT.fullmatch(answer)
        return True if inside and gold.isalpha() and len(gold) > 1 and _fold(inside[1]) == _fold(gold) else None
    found = _words(answer) or _fold(_TEXT.sub(r"\1", answer))
    return words == found or _variants(words) & _variants(found) != set()


def _same_compound(gold: str, answer: str) -> bool | None:
    r"""Compare chemical formulas, `\text{H}_2\text{O}` and `H_2O`; None unless they are the same."""
    left, right = (re.sub(r"(?<=[A-Za-z)])_?\{?([0-9]+)\}?", r"\1", _TEXT.sub(r"\1", text)) for text in (gold, answer))
    left, right = left.replace(" ", ""), right.replace(" ", "")
    return True if left == right and _COMPOUND.fullmatch(left) else None


def _words(text: str) -> str | None:
    if match := _TEXT.fullmatch(text):
        inside = match[1].strip(" ().")
        return _fold(inside) if any(char.isalpha() for char in inside) else None
    plain = _TEXT.sub(r"\1", text).replace("\\ ", " ")
    return _fold(plain) if _WORDS.fullmatch(plain.strip(" .")) else None


def _fold(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace(",", " ")).strip(" ().\"'").casefold()


def _variants(words: str) -> set[str]:
    words = re.sub(r"^(?:the|an?|it is) ", "", words).replace("doesn't", "does not")
    words = words.replace("grey", "gray")
    words = "does not exist" if words in ("dne", "d.n.e") else words
    return {words, words.replace("-", " "), words.replace(" ", "")} | (
        {"yes", "true"} if words in ("yes", "true") else {"no", "false"} if words in ("no", "false") else set()
    )
