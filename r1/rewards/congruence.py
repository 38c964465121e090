r"""Answers in modular arithmetic: `x \equiv 3 \pmod 7`, `1, 5 \mod 6`, `x = 7k + 3`.

Expects text from `r1.rewards.notation.clean`.
"""

from __future__ import annotations

import re

_MODULO = re.compile(
    r"(?:(?P<symbol>\\?[A-Za-z]+(?:_\{?\w+\}?)?) ?(?:\\equiv|=) ?)?(?P<residues>[0-9 ,+-]+?|[0-9 ]*\\pm ?[0-9]+) ?"
    r"[({]?(?:\\pmod|\\bmod|\\mod|\\text ?\{ ?mod ?\}|mod) ?\{? ?(?P<modulus>[0-9]{1,9}) ?\}?[)}]?"
)
_FAMILY = re.compile(
    r"(?:[a-z] ?= ?)?(?:(?P<modulus>[0-9]{1,9}) ?[a-z](?: ?(?P<after>[+-] ?[0-9]+))?"
    r"|(?P<before>[0-9]+) ?\+ ?(?P<step>[0-9]{1,9}) ?[a-z])"
    r"(?:,| for| where)? ?(?:\\text ?\{ ?(?:for|where) ?(?:some |any |all )?(?:integers? )?\})? ?(?:integers? )?"
    r"[a-z] ?(?:\\in ?\\mathbb ?\{?Z\}?|\\text ?\{ ?(?:is )?(?:an )?integer ?\}|(?:is )?an integer)"
)


def congruence(text: str) -> tuple[int, frozenset[int]] | None:
    """Return the modulus and the residues below it that an answer names, or None for any other answer."""
    text = text.replace("\u2261", "\\equiv ")
    if match := _MODULO.fullmatch(text):
        modulus, written = int(match["modulus"]), match["residues"]
        found = [part.replace(" ", "") for part in written.replace("\\pm", "").split(",")]
        if modulus < 1 or not all(re.fullmatch(r"[+-]?[0-9]{1,12}", part) for part in found):
            return None
        residues = [int(part) for part in found]
        signed = [-residue for residue in residues] if "\\pm" in written else []
        return modulus, frozenset(residue % modulus for residue in residues + signed)
    if match := _FAMILY.fullmatch(text):
        modulus = int(match["modulus"] or match["step"])
        residue = int((match["before"] or match["after"] or "0").replace(" ", ""))
        return (modulus, frozenset([residue % modulus])) if modulus else None
    return None


def same_congruence(gold: str, answer: str) -> bool | None:
    """Whether two such answers name the same numbers, a gold number the least of them; None for other gold answers."""
    left, right = congruence(gold), congruence(answer)
    if left is None and right is not None and gold.isdecimal():
        return int(gold) < right[0] and right[1] == {int(gold)}
    return None if left is None else left == right
