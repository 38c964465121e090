"""An assistant's turn taken apart: what it thought, and what it answered.

Callers pass the whole turn (`Completion.turn`: prefill + completion), so a think block that the prompt opened counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["summary", "response"]
PARTS: tuple[Part, ...] = ("summary", "response")


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant's turn, taken apart.

    Attributes:
        think: what is inside the think block, up to the end of the turn if it never closes; None without one.
        answer: what is inside the last answer block outside the thinking; None without one.
        well_formed: exactly one think block, then exactly one answer block, and nothing else but white space.
    """

    think: str | None
    answer: str | None
    well_formed: bool


def split_turn(turn: str, *, answer_tags: bool = True, stop_stripped: bool = False) -> Turn:
    """Split `prefill + completion` into think and answer.

    Args:
        turn: the assistant's whole turn (`Completion.turn`).
        answer_tags: whether the answer stands in `<answer>` tags. If not, it is all the text after the thinking.
        stop_stripped: accept a turn whose closing `</answer>` is missing at its end, because it was the stop string
            of an engine that strips stop strings.
    """
    if stop_stripped and answer_tags and turn.count("<answer>") == 1 and "</answer>" not in turn:
        turn += "</answer>"
    outside = after_thinking(turn)
    if answer_tags:
        answer = last_answer_block(outside or "")
    else:
        answer = outside.strip() if outside else None
    return Turn(think=thinking(turn), answer=answer, well_formed=_is_well_formed(turn, answer_tags))


def thinking(turn: str) -> str | None:
    """Return what is inside the first think block, up to the end of the turn if it never closes, or None.

    A turn that closes a block it never opened was prefilled without saying so: what stands before is the thinking.
    """
    before, close, _ = turn.partition("</think>")
    _, opened, inside = before.partition("<think>")
    if opened:
        return inside
    return before if close else None


def after_thinking(turn: str) -> str | None:
    """Return the text outside the thinking: after the last `</think>`, and before any block opened after that.

    None when the thinking never ends; the whole turn when there is none.
    """
    _, close, after = turn.rpartition("</think>")
    outside, reopened, _ = after.partition("<think>")
    return outside if close or not reopened else None


def part_of_turn(turn: str, part: Part) -> str | None:
    """Return what a reward model reads of a turn, stripped, or None where there is nothing to read.

    Source: arXiv 2501.12948, section 2.3.4: helpfulness is judged on the final summary alone, so that the reasoning is
    left to itself, harmlessness on the whole response.

    Args:
        turn: the assistant's whole turn (`Completion.turn`).
        part: "summary", what follows the thinking, or "response", all of it.
    """
    text = turn if part == "response" else after_thinking(turn)
    return (text or "").strip() or None


def last_answer_block(text: str) -> str | None:
    """Return the inside of the last closed `<answer>` block, stripped, or None."""
    before, close, _ = text.rpartition("</answer>")
    _, opened, inside = before.rpartition("<answer>")
    return inside.strip() if close and opened else None


def _is_well_formed(turn: str, answer_tags: bool) -> bool:
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    num_expected = (1, 1, 1, 1) if answer_tags else (1, 1, 0, 0)
    if any(turn.count(tag) != num for tag, num in zip(tags, num_expected, strict=True)):
        return False
    head, _, rest = turn.partition("<think>")
    _, closed, rest = rest.partition("</think>")
    if head.strip() or not closed:
        return False
    if not answer_tags:
        return bool(rest.strip())
    between, opened, rest = rest.partition("<answer>")
    _, closed, tail = rest.partition("</answer>")
    return bool(opened and closed) and not between.strip() and not tail.strip()
