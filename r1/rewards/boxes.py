r"""Where an answer stands in a turn: in a box, in answer tags, or in a sentence (`r1.rewards.sentences`)."""

from __future__ import annotations

import re
from typing import Literal

from r1.rewards.sentences import concluded_answer, stated_answer
from r1.turns import after_thinking, last_answer_block

Extraction = Literal["auto", "answer_tag", "boxed", "text"]
EXTRACTIONS: tuple[Extraction, ...] = ("auto", "answer_tag", "boxed", "text")

_MAX_BOXES = 16  # different ones; more is no list of answers but a guess at all of them
_TOKEN = re.compile(r"\\(?:f?boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_OPENS = re.compile(r"\\(?:f?boxed|fbox)\s*\{")
_DOUBLED = re.compile(r"\\\\(?=f?box)")  # as JSON doubles backslashes


def boxes(text: str) -> list[str] | None:
    r"""Return what stands in each outermost `\boxed{...}` in order, stripped; None when one is left open or empty."""
    found, _ = split_boxes(text)
    return found


def split_boxes(text: str) -> tuple[list[str] | None, str]:
    """Return `boxes(text)` and the text without the boxes."""
    found: list[str] = []
    outside: list[str] = []
    text = _DOUBLED.sub(r"\\", text)
    depth = start = end = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token[-1] == "{" and token != "\\{":
            if depth:
                depth += 1
            elif _OPENS.match(token):
                depth, start = 1, match.end()
                outside.append(text[end : match.start()])
        elif token == "}" and depth:
            depth -= 1
            if depth == 0:
                found.append(text[start : match.start()].strip())
                end = match.end()
    return None if depth or "" in found[-1:] else found, "".join([*outside, text[end:]])


def boxed_answer(text: str) -> str | None:
    """Return what is boxed, several different boxes as a list with commas; None without a complete box.

    A list is right only where the gold answer is the same list: boxing every guess earns nothing.
    """
    found = boxes(text)
    if not found:
        return None
    different = list({re.sub(r"\s+", "", box): box for box in found if box}.values())
    return ", ".join(different) if len(different) <= _MAX_BOXES else None


def extract_answer(turn: str, extraction: Extraction = "auto") -> str | None:
    r"""Return the final answer of an assistant's turn, or None. What is inside the thinking never counts.

    Args:
        turn: the assistant's whole turn (`Completion.turn`).
        extraction: "answer_tag": the last `<answer>` block. "boxed": what is boxed (`boxed_answer`). "text":
            everything outside the thinking. "auto": a box in the last answer block, else that block, else what is
            boxed, else what follows "the answer is", else what the last sentence comes to (`concluded_answer`), else
            the text; text with an unfinished answer block or box is no
            answer, and neither are several different answer blocks.
    """
    outside = after_thinking(turn)
    if outside is None:
        return None
    block = last_answer_block(outside)
    if extraction in ("auto", "answer_tag") and block is not None and _has_other_block(outside, block):
        return None
    if extraction == "answer_tag":
        return block
    if extraction == "boxed":
        return boxed_answer(outside)
    if extraction == "text":
        return outside.strip() or None
    if block is not None:
        return _inner(block, is_answer=True)
    if "<answer>" in outside:
        return None
    return _inner(outside.strip(), is_answer=False)


def _inner(text: str, *, is_answer: bool) -> str | None:
    if _OPENS.search(text):
        return boxed_answer(text)
    return stated_answer(text) or concluded_answer(text, is_answer=is_answer) or text.strip() or None


def _has_other_block(text: str, last: str) -> bool:
    blocks = {
        re.sub(r"\s+", "", block) for block in re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", text, re.DOTALL)
    }
    if len(blocks - {re.sub(r"\s+", "", last)}) > 0:
        return True
    behind = boxes(text.rpartition("</answer>")[2]) or []  # a box behind the block must say the same
    said = {re.sub(r"[\s$]+", "", answer) for answer in (last, _inner(last, is_answer=True) or "")}
    return any(re.sub(r"[\s$]+", "", box) not in said for box in behind)
