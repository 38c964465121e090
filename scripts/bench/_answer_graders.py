"""The two verifiers that the benchmarks of answers compare; a worker process imports them from here.

Each judges an answer, or with `completions=True` the completion of a model in which it stands.
"""

from __future__ import annotations

from r1.rewards import equivalent, extract_answer


class Ours:
    """`r1.rewards.equivalent`, in a worker process."""

    def __init__(self, *, completions: bool = False) -> None:
        self.completions = completions

    def warm_up(self) -> None:
        """Import what it needs ahead of the first deadline."""
        equivalent("\\frac{x}{2}", "x/2")

    def __call__(self, gold: str, text: str) -> bool | None:
        answer = extract_answer(text) if self.completions else text
        return equivalent(gold, answer or "")


class MathVerify:
    """math-verify with its own settings; text without dollars or a box is put between dollars, as it asks for."""

    def __init__(self, *, completions: bool = False) -> None:
        self.completions = completions

    def __call__(self, gold: str, text: str) -> bool:
        from math_verify import parse, verify

        return bool(verify(parse(self._formula(gold)), parse(text if self.completions else self._formula(text))))

    def _formula(self, text: str) -> str:
        return text if "$" in text or "boxed" in text or "\\[" in text or "\\(" in text else f"${text}$"
