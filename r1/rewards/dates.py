"""Days of the year: `March 5, 2024`, `5 March 2024`, `July 4th`."""

from __future__ import annotations

import re

_MONTHS = "january february march april may june july august september october november december".split()
_MONTH = "|".join(f"{name[:3]}(?:{name[3:]})?" if len(name) > 3 else name for name in _MONTHS)
_DAY = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?:,? (?P<year>[0-9]{4}))?"
_FORMS = (
    re.compile(rf"(?P<month>{_MONTH})\.? (?:the )?{_DAY}{_YEAR}", re.IGNORECASE),
    re.compile(rf"(?:the )?{_DAY} (?:of )?(?P<month>{_MONTH})\.?{_YEAR}", re.IGNORECASE),
)


def date(text: str) -> tuple[int, int, str] | None:
    """Return month, day and year ("" without one) of a date in words, or None."""
    plain = re.sub(r"\s+", " ", re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", text)).strip(" .")
    for form in _FORMS:
        if match := form.fullmatch(plain):
            month = next(i for i, name in enumerate(_MONTHS, 1) if name.startswith(match["month"].lower()[:3]))
            return month, int(match["day"]), match["year"] or ""
    return None


def same_date(gold: str, answer: str) -> bool | None:
    """Whether two dates are the same, the year as understood where one leaves it out; None if either is none."""
    left, right = date(gold), date(answer)
    if left is None or right is None:
        return None
    return left[:2] == right[:2] and (left[2] == right[2] or "" in (left[2], right[2]))
