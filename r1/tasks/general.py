"""Small requests that need no reasoning: the general data that a recipe mixes with its reasoning tasks.

    prompt  say kdf:            answer  kdf
    prompt  hi kdf:             answer  hi kdf
    prompt  first kdf:          answer  k
    prompt  last kdf:           answer  f

R1's second supervised stage has one general sample for three of reasoning, and the simplest of those come without a
chain of thought (arXiv 2501.12948, section 2.3.3). So do these: a demonstration is the answer alone.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping

from r1.tasks.base import TASKS, GeneratedTask
from r1.types import Problem

REQUESTS: Mapping[str, Callable[[str], str]] = {
    "say": lambda word: word,
    "hi": lambda word: f"hi {word}",
    "first": lambda word: word[0],
    "last": lambda word: word[-1],
}
# Shares of the mixture that stands in for a pre-trained model's uneven habits.
NOISY_STYLES: Mapping[str, float] = {"clean": 0.5, "wrong": 0.3, "wordy": 0.1, "untagged": 0.1}


@TASKS.register("general")
class GeneralTask(GeneratedTask):
    """Requests about a random word.

    Args:
        min_letters, max_letters: shortest and longest word.
        shares: of the splits.

    Raises:
        ValueError: not 2 <= min_letters <= max_letters <= 16.
    """

    name = "general"
    styles = (*NOISY_STYLES, "noisy_mixture")

    def __init__(
        self, *, min_letters: int = 2, max_letters: int = 4, shares: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(shares=shares)
        if not 2 <= min_letters <= max_letters <= 16:
            raise ValueError(
                f"expected 2 <= min_letters <= max_letters <= 16, "
                f"found min_letters={min_letters}, max_letters={max_letters}"
            )
        self.min_letters = min_letters
        self.max_letters = max_letters

    def generate(self, rng: random.Random) -> Problem:
        request, word = rng.choice(list(REQUESTS)), self._word(rng)
        return Problem(prompt=f"{request} {word}:", answer=REQUESTS[request](word), task=self.name)

    def verify(self, problem: Problem, answer_text: str) -> float:
        return float(answer_text.strip() == problem.answer)

    def demonstration(self, problem: Problem, rng: random.Random, style: str) -> str:
        """Return an assistant's turn, without thinking.

        clean: the right answer. wrong: that of the same request about another word. wordy: the right answer after
        words nobody asked for. untagged: the right answer without tags. noisy_mixture: one of them, by the shares
        NOISY_STYLES.
        """
        self.check_style(style)
        if style == "noisy_mixture":
            style = rng.choices(list(NOISY_STYLES), weights=list(NOISY_STYLES.values()))[0]
        if style == "untagged":
            return problem.answer
        if style == "wordy":
            return f"<answer>sure, {problem.answer}</answer>"
        return f"<answer>{self._wrong_answer(problem, rng) if style == 'wrong' else problem.answer}</answer>"

    def _word(self, rng: random.Random) -> str:
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(self.min_letters, self.max_letters)))

    def _wrong_answer(self, problem: Problem, rng: random.Random) -> str:
        request = problem.prompt.split()[0]
        while (answer := REQUESTS[request](self._word(rng))) == problem.answer:
            pass
        return answer
