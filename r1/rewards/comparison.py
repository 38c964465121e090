"""Two cleaned answers compared: as numbers, words or letters, then part by part, and by algebra at the leaves."""

from __future__ import annotations

import re
from collections.abc import Sequence

from r1.rewards import algebra
from r1.rewards.names import is_measure, is_symbol, same_head
from r1.rewards.notation import distinct_case, squeeze
from r1.rewards.quantities import Quantity, european_decimal, is_expansion, quantity, same_quantity, split_unit
from r1.rewards.structure import (
    Node,
    as_interval,
    is_chain,
    same_letters,
    structure,
    values_by_name,
    without_point,
)
from r1.rewards.wording import same_wording

_MAX_LEVELS = 6
_MAX_ITEMS = 64
_TWO_NUMBERS = re.compile(r"[0-9] [0-9]")
_PROSE = re.compile(r"[A-Za-z]{3,}")
_PARAMETER = re.compile(  # x = \pi/4 + k\pi, k \in \mathbb{Z}
    r"(?<=\S),? ?(?:(?:\\text ?\{ ?)?(?:for|where|with)(?: (?:all|any|some))?(?: integers?)? ?\}?)? ?"
    r"[a-z] ?(?:\\in ?\\mathbb ?\{?[ZN]\}?|(?:\\text ?\{ ?)?(?:is )?(?:an(?:y)? )?integer ?\}?)$"
)


def same(gold: str, answer: str, level: int = 0) -> bool | None:
    """Compare two cleaned answers, `level` brackets deep; None when the gold answer is no formula."""
    if squeeze(gold) == squeeze(answer):
        return True
    verdict = _compare_without_algebra(gold, answer)
    if verdict is not None:
        return verdict
    left, right = (without_point(structure(_PARAMETER.sub("", text))) for text in (gold, answer))
    if level > _MAX_LEVELS or max(len(left.items), len(right.items)) > _MAX_ITEMS:
        return False
    if left.kind == right.kind == "leaf":
        return _same_leaf(left.text, right.text)
    return _same_structure(left, right, level + 1)


def _compare_without_algebra(gold: str, answer: str) -> bool | None:
    left, right = quantity(gold), quantity(answer)
    if left is not None and right is not None:
        return same_quantity(left, right) or _is_cut_off(gold, answer, left, right)
    for known, other in ((left, answer), (right, gold)):
        if known is not None and known.value.denominator != 1:
            value = european_decimal(split_unit(other)[0])
            if value is not None:
                return known.value == value
    return same_wording(gold, answer)


def _is_cut_off(gold: str, answer: str, left: Quantity, right: Quantity) -> bool:
    """Whether one is a fraction and the other the first dozen digits, or more, of its expansion."""
    if (left.unit and right.unit and left.unit != right.unit) or "%" in (left.unit, right.unit):
        return False
    return is_expansion(split_unit(answer)[0], left.value) or is_expansion(split_unit(gold)[0], right.value)


def _same_leaf(gold: str, answer: str) -> bool | None:
    if "\\ldots" in gold + answer:
        return False
    gold, answer = distinct_case(gold, answer)
    gold_core, gold_unit = (gold, "") if algebra.is_trigonometric(gold) else split_unit(gold)
    answer_core, answer_unit = (answer, "") if algebra.is_trigonometric(answer) else split_unit(answer)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return False
    if squeeze(gold_core) == squeeze(answer_core):
        return True
    parsed_gold = algebra.parse(gold_core) or algebra.parse(_plain(gold_core))
    if not parsed_gold:
        return None
    if _TWO_NUMBERS.search(answer_core) and not _TWO_NUMBERS.search(gold_core):
        return False
    if algebra.is_explosive(answer_core) or (algebra.is_unevaluated(answer_core) and not algebra.is_unevaluated(gold)):
        return False
    if _PROSE.search(re.sub(r"\\[A-Za-z]+", "", answer_core)) and not _PROSE.search(
        re.sub(r"\\[A-Za-z]+", "", gold_core)
    ):
        return False
    parsed_answer = algebra.parse(answer_core) or algebra.parse(_plain(answer_core))
    return bool(parsed_answer) and algebra.same_value(parsed_gold, parsed_answer)


def _plain(text: str) -> str:
    """Return a number as a fraction of whole numbers, and any other text as it is."""
    known = quantity(text)
    return text if known is None or known.unit else f"\\frac{{{known.value.numerator}}}{{{known.value.denominator}}}"


def _same_structure(gold: Node, answer: Node, level: int) -> bool | None:
    if gold.kind == "relation" and answer.kind == "relation":
        return _same_relation(gold, answer, level)
    if "union" in (gold.kind, answer.kind) and {"ne"} in ({*gold.marks}, {*answer.marks}):
        union, other = (gold, answer) if gold.kind == "union" else (answer, gold)
        parts = (f"(-\\infty,{other.items[1]})", f"({other.items[1]},\\infty)")
        return is_symbol(other.items[0]) and _same_in_any_order(union.items, parts, level)
    if "union" in (gold.kind, answer.kind) and "list" in (gold.kind, answer.kind):
        return _same_in_any_order(gold.items, answer.items, level)
    if gold.is_interval or answer.is_interval or is_chain(gold, answer) or is_chain(answer, gold):
        return _same_interval(gold, answer, level)
    if gold.kind == "relation" or answer.kind == "relation":
        return _same_assignment(gold, answer, level)
    if (gold.kind, answer.kind) == ("leaf", "list"):  # one value in several forms: 1/2, 0.5
        is_distinct = len({squeeze(item) for item in answer.items}) == len(answer.items)
        return is_distinct and all(same(gold.text, item, level) for item in answer.items)
    if {gold.kind, answer.kind} <= {"list", "set"} or gold.kind == answer.kind == "union":
        return _same_in_any_order(gold.items, answer.items, level)
    if gold.kind == answer.kind and gold.kind in ("tuple", "matrix"):
        return gold.marks == answer.marks and _same_in_order(gold.items, answer.items, level)
    if {gold.kind, answer.kind} == {"matrix", "tuple"}:
        vector, pair = (gold, answer) if gold.kind == "matrix" else (answer, gold)
        return (
            "1" in vector.marks[0].split("x")
            and pair.marks[0] + pair.marks[1] in ("()", "[]")
            and (_same_in_order(gold.items, answer.items, level))
        )
    if {gold.kind, answer.kind} == {"list", "tuple"}:
        return _same_list_and_tuple(gold, answer, level)
    if "leaf" in (gold.kind, answer.kind) and (gold.kind in ("leaf", "set") or "set" in (gold.kind, answer.kind)):
        single, other = (gold, answer) if gold.kind != "leaf" else (answer, gold)
        return single.kind == "set" and len(single.items) == 1 and same(single.items[0], other.text, level)
    return False


def _same_list_and_tuple(gold: Node, answer: Node, level: int) -> bool | None:
    pair, loose = (gold, answer) if gold.kind == "tuple" else (answer, gold)
    if pair.marks != ("(", ")"):
        return False
    values = values_by_name(loose.items)
    items = loose.items if values is None else values
    return _same_in_order(gold.items, items, level) if pair is gold else _same_in_order(items, answer.items, level)


def _same_in_order(gold: Sequence[str], answer: Sequence[str], level: int) -> bool | None:
    if len(gold) != len(answer):
        return False
    verdicts = [same(g, a, level) for g, a in zip(gold, answer, strict=True)]
    return None if None in verdicts else all(verdicts)


def _same_in_any_order(gold: Sequence[str], answer: Sequence[str], level: int) -> bool | None:
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for item in gold:
        match = next((other for other in left if same_letters(item, other)), None)
        match = match or next((other for other in left if same(item, other, level)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _same_interval(gold: Node, answer: Node, level: int) -> bool | None:
    if "union" in (gold.kind, answer.kind):
        return False
    left, right = as_interval(gold), as_interval(answer)
    if left is None or right is None or (left[0], left[3]) != (right[0], right[3]):
        return False
    return _same_in_order(left[1:3], right[1:3], level)


def _same_assignment(gold: Node, answer: Node, level: int) -> bool | None:
    """Compare `x = 5` with `5`, and a chain `2 + 3 = 5` with `5` if all of it is true."""
    relation, other = (gold, answer) if gold.kind == "relation" else (answer, gold)
    if not set(relation.marks) <= {"=", "approx"}:
        return False
    named = is_symbol(relation.items[0]) or is_measure(relation.items[0])
    sides = relation.items[1:] if named else relation.items
    if other.kind in ("leaf", "list") and relation is answer and len(sides) > 2 and is_symbol(relation.items[0]):
        sides = sides[-2:]
    verdicts = [same(gold.text, s, level) if relation is answer else same(s, answer.text, level) for s in sides]
    return None if None in verdicts else all(verdicts)


def _same_relation(gold: Node, answer: Node, level: int) -> bool | None:
    if gold.marks != answer.marks:
        return False
    if all(_same_letters_or_value(g, a, level) for g, a in zip(gold.items, answer.items, strict=True)):
        return True
    if len(gold.items) != 2 or gold.marks[0] not in ("=", "ne", "<", "le"):
        return False
    if gold.marks[0] in ("<", "le"):
        return _is_multiple(gold, answer, positive=True)
    if same_head(gold.items, answer.items):
        return same(gold.items[1], answer.items[1], level)
    if is_symbol(gold.items[0]) and is_symbol(answer.items[0]) and not is_symbol(gold.items[1]):
        if squeeze(gold.items[0]) == squeeze(answer.items[0]) and not _mentions(gold) and not _mentions(answer):
            return False
    if _same_in_order(gold.items, answer.items[::-1], level):
        return True
    return _is_multiple(gold, answer)


def _is_multiple(gold: Node, answer: Node, *, positive: bool = False) -> bool:
    texts = distinct_case(*(f"({node.items[0]}) - ({node.items[1]})" for node in (gold, answer)))
    if any(algebra.is_explosive(text) for text in texts):
        return False
    left, right = algebra.parse(texts[0]), algebra.parse(texts[1])
    return bool(left and right) and algebra.is_multiple(left, right, positive=positive)


def _same_letters_or_value(gold: str, answer: str, level: int) -> bool:
    return same_letters(gold, answer) or bool(same(gold, answer, level))


def _mentions(node: Node) -> bool:
    return squeeze(node.items[0]) in squeeze(node.items[1])
