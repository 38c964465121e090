r"""The outer structure of an answer: lists, tuples, intervals, sets, unions, matrices, relations.

Expects text from `r1.rewards.notation.clean`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from r1.rewards.names import is_symbol
from r1.rewards.notation import split_top, squeeze

Kind = Literal["leaf", "list", "tuple", "set", "union", "matrix", "relation"]

_COMMA = re.compile(r"[,;]")
_OR = re.compile(r"(?<![A-Za-z])or(?![A-Za-z])")
_WORD_COMMA = re.compile(
    r",? ?\\text ?\{ ?,? ?(?:or|and) ?\}|,? (?:or|and)(?= )|(?<=[)\]0-9])(?:or|and)(?=[(\[0-9\\-])|[,;]"
)
_SEMICOLON = re.compile(";")
_WORD = re.compile(r",? ?\\text ?\{ ?,? ?(?:or|and) ?\}|,? (?:or|and)(?= )")
_CUP = re.compile(r"\\cup(?![A-Za-z])")
_RELATION = re.compile(r"\\(?:le|ge|ne|approx|equiv)(?![A-Za-z])|[=<>]")
_MATRIX = re.compile(
    r"\\begin ?\{(?P<name>[pbvB]?matrix|array|cases)\}(?:\{[clr|]*\})?(?P<body>.*)\\end ?\{(?P=name)\}", re.DOTALL
)
_CONDITION = re.compile(r"^\s*(?:\\text ?\{ ?)?(?:if|for|when)(?![A-Za-z]) ?\}?|\\text ?\{ ?(?:if|for|when) ?\}$")
_MEMBER = re.compile(r"[A-Za-z](?:_\{?\w\}?)? ?\\in(?![a-z]) ?(?P<set>.+)", re.DOTALL)
_PM = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_UNIT_VECTOR = re.compile(
    r"([+-]?[^+-]*?) ?(?:\\cdot ?)?\\(?:text|hat|vec|bm) ?\{ ?\\?(?:text ?\{)?([ijk])(?:math)?\}?\}"
)
_INTEGERS = re.compile(
    r"\\\{ ?[a-z] ?\\in ?\\mathbb ?\{?(?P<of>[ZN])\}? ?(?:[:|]|\\text ?\{ ?such that ?\}) ?(?P<bounds>[^:|]+)\\\}"
)
_MAX_INTEGERS = 64
_BUILDER = re.compile(r"[|:]")


@dataclass(frozen=True, slots=True)
class Node:
    """One level of an answer.

    Attributes:
        kind: what it is.
        text: all of it.
        items: elements, parts of a union, rows' cells of a matrix in order, or sides of a relation.
        marks: the brackets of a tuple ("(", "]"), the shape of a matrix ("2x3"), the operators of a relation.
        member: `x \in` stood in front: a tuple of two is an interval.
    """

    kind: Kind
    text: str
    items: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    member: bool = False

    @property
    def is_interval(self) -> bool:
        """Whether it can be nothing else: half-open, with an infinite end, or said to hold an element."""
        if self.kind != "tuple" or len(self.items) != 2:
            return False
        return self.member or self.marks[0] + self.marks[1] in ("(]", "[)") or "\\infty" in self.text


def structure(text: str) -> Node:
    """Return the outermost structure of an answer."""
    text = re.sub(r"^\\langle(.*)\\rangle$", r"(\1)", _unwrap(text.strip()))
    if (match := _MEMBER.fullmatch(text)) is not None:
        inner = structure(match["set"])
        return Node(inner.kind, inner.text, inner.items, inner.marks, member=True)
    parts = split_top(text, _CUP)
    if len(parts) > 1:
        return _union(text, parts)
    if (vector := _in_unit_vectors(text)) is not None:
        return Node("tuple", text, vector, ("(", ")"))
    if match := _MATRIX.fullmatch(text):
        return _matrix(text, match["body"], is_system=match["name"] == "cases")
    parts = _parts(text)
    if len(parts) > 1:
        return Node("list", text, _expanded(parts))
    sides = split_top(text, _RELATION)
    if len(sides) > 1 and all(sides):
        return _relation(text, sides)
    return _bracketed(text)


def as_interval(node: Node) -> tuple[str, str, str, str] | None:
    """Return (open bracket, low, high, close bracket) of an interval or of inequalities in one symbol, or None."""
    if node.kind == "tuple" and len(node.items) == 2:
        return node.marks[0], *node.items, node.marks[1]
    if node.kind == "list":
        return _as_both(node)
    if node.kind != "relation" or not set(node.marks) <= {"<", "le"}:
        return None
    if len(node.items) == 3 and is_symbol(node.items[1]):
        low, _, high = node.items
        return "(["[node.marks[0] == "le"], low, high, ")]"[node.marks[1] == "le"]
    if len(node.items) == 2 and is_symbol(node.items[0]) and not is_symbol(node.items[1]):
        return "(", "-\\infty", node.items[1], ")]"[node.marks[0] == "le"]
    if len(node.items) == 2 and is_symbol(node.items[1]) and not is_symbol(node.items[0]):
        return "(["[node.marks[0] == "le"], node.items[0], "\\infty", ")"
    return None


def _parts(text: str) -> list[str]:
    """Split a list at its widest separator: `a, b; c, d` has two parts, and so has `a, b and c, d`."""
    for separator in (_SEMICOLON, _WORD):
        parts = split_top(text, separator)
        if (
            len(parts) > 1
            and all(len(split_top(part, _COMMA)) > 1 for part in parts)
            and "," not in (parts[0].rstrip()[-1:])
        ):
            return parts
    return [part for part in split_top(text, _WORD_COMMA) if part]


def _as_both(node: Node) -> tuple[str, str, str, str] | None:
    """Return the interval that `x > a and x <= b` is, or None."""
    sides = [as_interval(structure(item)) for item in node.items] if node.kind == "list" else []
    if len(sides) != 2 or None in sides or _OR.search(node.text):
        return None
    lower = next((side for side in sides if side and side[2] == "\\infty"), None)
    upper = next((side for side in sides if side and side[1] == "-\\infty"), None)
    return (*lower[:2], *upper[2:]) if lower and upper else None


def without_point(node: Node) -> Node:
    r"""Return the union of two intervals that `x < 4, x \ne 2` is, and any other node as it is."""
    if node.kind != "list" or "\\ne" not in node.text:
        return node
    holes = [item for item in node.items if re.search(r"\\ne(?![A-Za-z])", item)]
    rest = structure(", ".join(item for item in node.items if item not in holes))
    hole, around = structure(holes[0]), as_interval(rest)
    if len(holes) > 1 or around is None or hole.marks != ("ne",) or not is_symbol(hole.items[0]):
        return node
    opening, low, high, closing = around
    parts = (f"{opening}{low},{hole.items[1]})", f"({hole.items[1]},{high}{closing}")
    return Node("union", node.text, parts)


def is_chain(pair: Node, relation: Node) -> bool:
    """Whether the one is `(a, b)`, with any brackets, and the other `a < x < b`, which only an interval can mean."""
    if pair.kind != "tuple" or len(pair.items) != 2:
        return False
    return (relation.kind == "relation" and len(relation.items) == 3) or _as_both(relation) is not None


def values_by_name(items: Sequence[str]) -> tuple[str, ...] | None:
    """Return the values of `x = 1, y = 2` when the names come in the order of the alphabet."""
    nodes = [structure(item) for item in items]
    if not all(n.kind == "relation" and n.marks == ("=",) and is_symbol(n.items[0]) for n in nodes):
        return None
    names = [n.items[0] for n in nodes]
    return tuple(n.items[1] for n in nodes) if names == sorted(set(names)) else None


def _unwrap(text: str) -> str:
    while len(text) > 1 and text[0] == "{" and text[-1] == "}" and _closes_last(text):
        text = text[1:-1].strip()
    return text


def _closes_last(text: str) -> bool:
    """Whether the bracket that opens the text closes at its very end."""
    depth = 0
    for match in re.finditer(r"\\[{}]|\\.|[{}()\[\]]", text):
        token = match[0]
        if token in ("{", "(", "[", "\\{"):
            depth += 1
        elif token in ("}", ")", "]", "\\}"):
            depth -= 1
            if depth == 0:
                return match.end() == len(text)
    return False


def _matrix(text: str, body: str, *, is_system: bool = False) -> Node:
    rows = [row for row in re.split(r"\\\\", body) if row.strip()]
    cells = [[_CONDITION.sub("", cell).strip(" ,") for cell in row.split("&")] for row in rows]
    widths = {len(row) for row in cells}
    if is_system and widths == {1}:
        return Node("list", text, tuple(row[0] for row in cells))
    shape = f"{len(rows)}x{widths.pop()}" if len(widths) == 1 else "ragged"
    return Node("matrix", text, tuple(cell for row in cells for cell in row), (shape,))


def _union(text: str, parts: list[str]) -> Node:
    """Return a union, or the set that a union of sets is."""
    nodes = [structure(part) for part in parts]
    if not all(node.kind == "set" for node in nodes):
        return Node("union", text, tuple(parts))
    items = {squeeze(item): item for node in nodes for item in node.items}
    return Node("set", text, tuple(items.values()))


def _integers(text: str) -> Node | None:
    r"""Return the set that `\{x \in \mathbb{Z} : -2 \le x < 2\}` is, if it has few elements, or None."""
    match = _INTEGERS.fullmatch(text)
    bounds = as_interval(structure(match["bounds"])) if match else None
    if bounds is None or not all(re.fullmatch(r"-?[0-9]{1,6}", bound.strip()) for bound in bounds[1:3]):
        return None
    low, high = int(bounds[1]) + (bounds[0] == "("), int(bounds[2]) - (bounds[3] == ")")
    low = max(low, 0 if match["of"] == "N" else low)
    return Node("set", text, tuple(map(str, range(low, high + 1)))) if high - low < _MAX_INTEGERS else None


def _rows(text: str, parts: list[str]) -> Node | None:
    """Return the matrix that `[[1, 2], [3, 4]]` is, or None."""
    rows = [split_top(part[1:-1], _COMMA) for part in parts if part[:1] == "[" and part[-1:] == "]"]
    if text[0] != "[" or len(rows) != len(parts) or len({len(row) for row in rows}) != 1:
        return None
    return Node("matrix", text, tuple(cell for row in rows for cell in row), (f"{len(rows)}x{len(rows[0])}",))


def _scaled(text: str, scalar: str, matrix: Node) -> Node:
    """Multiply the cells of a matrix with what stands in front of it."""
    scalar = re.sub(r"\\(?:cdot|times)\s*$|\*\s*$", "", scalar.strip()).strip()
    scalar = {"-": "-1", "+": "1"}.get(scalar, scalar)
    return Node("matrix", text, tuple(f"({scalar}) \\cdot ({cell})" for cell in matrix.items), matrix.marks)


def _relation(text: str, sides: list[str]) -> Node:
    operators = [match[0].lstrip("\\") for match in _RELATION.finditer(text)]
    if len(operators) != len(sides) - 1:  # one of them stands inside brackets
        return _bracketed(text)
    if operators and set(operators) <= {">", "ge"}:
        sides, operators = sides[::-1], [{">": "<", "ge": "le"}[o] for o in operators[::-1]]
    return Node("relation", text, tuple(sides), tuple(operators))


def _bracketed(text: str) -> Node:
    if text.startswith("\\{") and text.endswith("\\}") and _closes_last(text):
        if (listed := _integers(text)) is not None:
            return listed
        inside = text[2:-2].strip()
        if len(split_top(inside, _BUILDER)) > 1:
            return Node("leaf", text)
        items = [part for part in split_top(inside, _WORD_COMMA) if part]
        return Node("set", text, _expanded(items))
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _closes_last(text):
        parts = split_top(text[1:-1], _COMMA)
        if len(parts) > 1 and all(parts) and text[0] + text[-1] == "()" and len(_PM.findall(text)) == 1:
            return Node("list", text, _expanded([text]))
        if len(parts) > 1 and all(parts):
            return _rows(text, parts) or Node("tuple", text, tuple(parts), (text[0], text[-1]))
        if (match := _MATRIX.fullmatch(text[1:-1].strip())) is not None:
            return _matrix(text, match["body"])
        if text[0] == "(" and text[-1] == ")" and len(parts) == 1 and parts[0]:
            return structure(parts[0])
    if (start := text.find("\\begin")) > 0 and (match := _MATRIX.fullmatch(text[start:])) is not None:
        return _scaled(text, text[:start], _matrix(text, match["body"]))
    expanded = _expanded([text])
    return Node("list", text, expanded) if len(expanded) > 1 else Node("leaf", text)


def _in_unit_vectors(text: str) -> tuple[str, ...] | None:
    r"""Return (2, -3) for `2\mathbf{i} - 3\mathbf{j}`, or None; `i` alone may be the imaginary unit."""
    terms = _UNIT_VECTOR.findall(text)
    parts = {letter: re.sub(r"^([+-]?) ?$", r"\g<1>1", factor.strip()) for factor, letter in terms}
    if len(terms) < 2 or len(parts) < len(terms) or _UNIT_VECTOR.sub("", text).strip():
        return None
    return tuple(parts.get(letter, "0").removeprefix("+").strip() for letter in ("ijk" if "k" in parts else "ij"))


def _expanded(items: list[str]) -> tuple[str, ...]:
    r"""Write `a \pm b` as two elements."""
    found: list[str] = []
    for item in items:
        if len(_PM.findall(item)) == 1:
            found += [_PM.sub(" + ", item).removeprefix(" + ").strip(), _PM.sub(" - ", item).strip()]
        else:
            found.append(item)
    return tuple(found)


def same_letters(left: str, right: str) -> bool:
    """Whether two cleaned texts differ in nothing but spaces."""
    return squeeze(left) == squeeze(right)
