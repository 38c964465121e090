"""Whether the answer is right, as the task's verifier sees it."""

from __future__ import annotations

from typing import Any, Literal

from r1.registry import did_you_mean
from r1.rewards import maths
from r1.rewards.base import REWARDS
from r1.turns import after_thinking, last_answer_block
from r1.types import Completion, Problem

Extraction = Literal["auto", "answer_tag", "boxed", "text"]
EXTRACTIONS: tuple[Extraction, ...] = ("auto", "answer_tag", "boxed", "text")


def last_boxed(text: str) -> str | None:
    r"""Return the inside of the last `\boxed{...}` with balanced braces, stripped, or None.

    An empty or unbalanced last box counts as no answer: earlier boxes are not fallen back on.
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth, escaped = 1, False
    for position in range(start, len(text)):
        char = text[position]
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return text[start:position].strip() or None
    return None


def extract_answer(turn: str, extraction: Extraction = "auto") -> str | None:
    r"""Return the final answer of an assistant's turn, or None. What is inside the thinking never counts.

    Args:
        turn: the assistant's whole turn (`Completion.turn`).
        extraction: "answer_tag": the last `<answer>` block. "boxed": the last `\boxed{}`. "text": everything outside
            the thinking. "auto": a box in the last answer block, else that block, else the last box, else the text;
            text with an unfinished answer block or box is no answer.
    """
    outside = after_thinking(turn)
    if outside is None:
        return None
    block = last_answer_block(outside)
    if extraction == "answer_tag":
        return block
    if extraction == "boxed":
        return last_boxed(outside)
    if extraction == "text":
        return outside.strip() or None
    if block is not None:
        return last_boxed(block) if "\\boxed{" in block else block
    if "\\boxed{" in outside:
        return last_boxed(outside)
    return None if "<answer>" in outside else outside.strip() or None


@REWARDS.register("accuracy")
class Accuracy:
    """The task's verifier on the extracted answer: 0.0 without one, None when the gold answer cannot be parsed.

    It runs in worker processes when the task says `isolated = True`.

    Args:
        task: has `verify(problem, answer_text) -> float | None`.
        extraction: see `extract_answer`.
        stop_stripped: the engine removes the stop string `</answer>`; a completion that stopped may lack it.
    """

    item_wise = True

    def __init__(self, *, task: Any, extraction: Extraction = "auto", stop_stripped: bool = False) -> None:
        if extraction not in EXTRACTIONS:
            raise ValueError(
                f"reward.accuracy.extraction: unknown {extraction!r}.{did_you_mean(extraction, EXTRACTIONS)} "
                f"Choose from {', '.join(EXTRACTIONS)}"
            )
        self.task = task
        self.extraction = extraction
        self.stop_stripped = stop_stripped
        self.isolated: bool = getattr(task, "isolated", False)

    def warm_up(self) -> None:
        """Do the task's slow imports: its own `warm_up()`, else math-verify."""
        getattr(self.task, "warm_up", maths.warm_up)()

    def __call__(self, completions: list[Completion], problems: list[Problem]) -> list[float | None]:
        return [self._score(c, p) for c, p in zip(completions, problems, strict=True)]

    def _score(self, completion: Completion, problem: Problem) -> float | None:
        turn = completion.turn
        if (
            self.stop_stripped
            and completion.finish_reason == "stop"
            and turn.count("<answer>") > turn.count("</answer>")
        ):
            turn += "</answer>"
        answer = extract_answer(turn, self.extraction)
        score = self.task.verify(problem, answer or "")
        return score if score is None or answer else 0.0
