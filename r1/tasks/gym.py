"""Any data set of reasoning-gym by name, with its own scorer as the verifier (https://github.com/open-thought/reasoning-gym)."""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Mapping
from typing import Any

from r1.registry import did_you_mean
from r1.tasks.base import TASKS, GeneratedTask
from r1.types import Problem

# Functions that a formula may call. Everything else that looks like a call, an attribute or a hidden name is refused
# before a scorer that evaluates text sees it.
_FORMULA_FUNCTIONS = "Abs|abs|acos|asin|atan|cos|cosh|exp|ln|log|sin|sinh|sqrt|tan|tanh|sec|csc|cot"
_CALL = re.compile(rf"(?!(?:{_FORMULA_FUNCTIONS})\s*\()\b\w+\s*\(|[\])\"']\s*\(")
_DANGEROUS = re.compile(r"__|[\\#@`;:]|\.\s*[^\W\d]|\blambda\b|\bfor\b")
_EVALUATES = re.compile(r"\beval\(|\bparse_expr\(")
_MAX_EVALUATED = 2_000


@TASKS.register("gym")
class GymTask(GeneratedTask):
    """A data set of reasoning-gym.

    `options` are the data set's own settings. Scores between 0 and 1 count as wrong unless `partial_credit`. Some of
    the library's scorers evaluate the answer as Python; to those an answer that could run code scores 0.

    Raises:
        ImportError: reasoning-gym is missing.
        ValueError: no data set of that name, a setting it does not have, or a `size` it cannot make.
    """

    isolated = True

    def __init__(
        self,
        *,
        dataset: str,
        options: Mapping[str, Any] | None = None,
        size: int = 100_000,
        partial_credit: bool = False,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(shares=shares)
        self.name = dataset
        self.dataset = dataset
        self.options = dict(options or {})
        self.size = size
        self.partial_credit = partial_credit
        self._source = self._open()
        self._evaluates = bool(_EVALUATES.search(inspect.getsource(type(self._source).score_answer)))

    def generate(self, rng: random.Random) -> Problem:
        entry = self._source[rng.randrange(self.size)]
        answer = "" if entry["answer"] is None else str(entry["answer"])
        return Problem(prompt=entry["question"], answer=answer, task=self.name, metadata={"entry": entry})

    def warm_up(self) -> None:
        """Open the data set in a grader's worker before its first deadline runs."""
        self._open()

    def verify(self, problem: Problem, answer_text: str) -> float:
        if self._evaluates and not is_harmless(answer_text):
            return 0.0
        try:
            score = float(self._source.score_answer(answer_text, problem.metadata["entry"]))
        except Exception:  # the library's scorers raise whatever a malformed answer makes them raise
            return 0.0
        return score if self.partial_credit else float(score >= 1.0)

    def _open(self) -> Any:
        try:
            from reasoning_gym.factory import DATASETS
        except ImportError as error:
            raise ImportError("task 'gym' needs reasoning-gym: pip install 'r1[gym]'") from error
        if self.dataset not in DATASETS:
            raise ValueError(f"no reasoning-gym data set {self.dataset!r}.{did_you_mean(self.dataset, DATASETS)}")
        make_dataset, make_config = DATASETS[self.dataset]
        known = inspect.signature(make_config).parameters
        for key in self.options:
            if key not in known:
                raise ValueError(
                    f"reasoning-gym data set {self.dataset!r} has no option {key!r}.{did_you_mean(key, known)} "
                    f"Options: {', '.join(known)}"
                )
        try:
            return make_dataset(make_config(**{"seed": 0, "size": self.size, **self.options}))
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"reasoning-gym data set {self.dataset!r} refuses options={self.options} with size={self.size}: {error}"
            ) from error


def is_harmless(answer_text: str) -> bool:
    """Whether text can be evaluated as a formula or a literal without calling or reaching anything."""
    if len(answer_text) > _MAX_EVALUATED:
        return False
    return not _DANGEROUS.search(answer_text) and not _CALL.search(answer_text)
