"""Verdicts on samples, with the reason where they are not "right"; verifiers that may hang run in killable workers."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from r1.rewards import Code, Grader, RewardError, build_rewards, extract_answer, extract_program, run_tests
from r1.rewards import maths as maths_reward
from r1.rewards.code import code_tests_of
from r1.rewards.grader import Outcome
from r1.rewards.maths import equivalent
from r1.tasks import BenchmarkTask, TextTask
from r1.tasks.text import verify_text
from r1.types import Completion, Problem

VERDICTS = ("right", "wrong", "no answer", "truncated", "prompt too long", "timeout", "crash", "unscored")
_LONGEST = 2000  # characters of an answer that are kept


class Scorer:
    """Judges one sample. Picklable; it runs in a worker if its reward is isolated (`r1.rewards.base`).

    Args:
        task: whose verifier the reward `accuracy` asks.
        reward: {name: accuracy, code or another, **its arguments}.

    Raises:
        ValueError: no such reward or argument.
        SandboxError: a reward that runs programs, where no sandbox can be set up.
    """

    def __init__(self, *, task: Any, reward: Mapping[str, Any]) -> None:
        self.extraction = reward.get("extraction", "auto")
        self.reward = build_rewards({"accuracy": reward}, task=task).rewards["accuracy"]
        self.isolated = bool(getattr(self.reward, "isolated", True))
        self.is_code = isinstance(self.reward, Code)
        self.has_text_answers = not self.is_code and isinstance(task, BenchmarkTask | TextTask)

    def warm_up(self) -> None:
        """Do the reward's slow imports."""
        getattr(self.reward, "warm_up", lambda: None)()

    def __call__(self, turn: str, finish_reason: str, problem: Problem) -> list[Any]:
        """Return [answer or None, reward or None, detail]."""
        if self.is_code:
            return self._run_program(turn, problem)
        answer = extract_answer(turn, self.extraction)
        completion = Completion(text=turn, finish_reason=finish_reason)
        (score,) = self.reward([completion], [problem])
        return [None if answer is None else answer[:_LONGEST], score, ""]

    def gold_fault(self, problem: Problem) -> str:
        """Return why a problem cannot be scored, or ""."""
        if self.is_code:
            try:
                tests = code_tests_of(problem)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                return f"its tests cannot be read ({type(error).__name__}: {error})"
            if tests is None or not tests.num_tests or len(tests.inputs) != len(tests.outputs):
                return "it has no tests"
            return ""
        if self.has_text_answers:
            if not problem.answer.strip():
                return "it has no gold answer"
            # An empty answer is wrong where the gold answer can be parsed.
            return "" if equivalent(problem.answer, "") is not None else "its gold answer cannot be parsed"
        (score,) = self.reward([Completion(text="")], [problem])
        return "" if score is not None else "its gold answer cannot be used"

    def _run_program(self, turn: str, problem: Problem) -> list[Any]:
        tests = code_tests_of(problem)
        program = None if tests is None else extract_program(turn, tests.entry_point)
        if tests is None or program is None:
            return [None, None if tests is None else 0.0, ""]
        given = tests.setup if tests.entry_point and f"def {tests.entry_point}" in program else ""
        # The head that HumanEval gives holds imports and helpers, which an answer need not repeat.
        verdict = run_tests(
            f"{given}\n{program}" if given else program,
            tests,
            limits=self.reward.limits,
            isolation=self.reward.isolation,
            stop_at_failure=not self.reward.partial,
        )
        score = verdict.score if self.reward.partial else float(verdict.score == 1.0)
        return [program[:_LONGEST], score, verdict.detail]


def unusable(
    grader: Grader, scorer: Scorer, problems: Sequence[Problem], *, timeout: float, where: str
) -> dict[int, str]:
    """Return, by index, why problems cannot be scored: they are left out, and no sample of theirs counts as wrong."""
    outcomes = _map(grader, _GoldCheck(scorer), [(problem,) for problem in problems], timeout=timeout)
    found = {}
    for problem, outcome in zip(problems, outcomes, strict=True):
        if outcome.failure == "raised":
            raise RewardError(f"{where}, problem {problem.index}: {outcome.detail}")
        if fault := f"checking it ended in a {outcome.failure}" if outcome.failure else outcome.value:
            found[problem.index] = fault
    return found


def score_rows(
    grader: Grader,
    scorer: Scorer,
    rows: Sequence[dict[str, Any]],
    problems: Mapping[int, Problem],
    *,
    timeout: float,
    where: str,
    report: Callable[[int], None] = lambda done: None,
) -> None:
    """Fill in answer, reward, verdict and detail of sample rows.

    Args:
        rows: each has index, completion and finish_reason.
        problems: by index.
        report: called with the number done now and then.

    Raises:
        RewardError: the verifier raised; the message names the benchmark and the problem.
    """
    rows = [row for row in rows if row["verdict"] != "prompt too long"]
    for start in range(0, len(rows), 256):
        some = rows[start : start + 256]
        items = [(row["completion"], row["finish_reason"], problems[row["index"]]) for row in some]
        for row, outcome in zip(some, _map(grader, scorer, items, timeout=timeout), strict=True):
            if outcome.failure == "raised":
                raise RewardError(f"{where}, problem {row['index']}: {outcome.detail}\n{outcome.traceback}".strip())
            answer, reward, detail = outcome.value if outcome.failure is None else (None, 0.0, outcome.detail)
            row |= {"answer": answer, "reward": reward, "detail": detail}
            row["verdict"] = outcome.failure or verdict_of(answer, reward, row["finish_reason"])
        report(start + len(some))


def verdict_of(answer: str | None, reward: float | None, finish_reason: str) -> str:
    """Return what became of a sample in a word or two, one of VERDICTS."""
    if reward is None:
        return "unscored"
    if reward >= 1.0:
        return "right"
    if finish_reason == "length":
        return "truncated"
    return "wrong" if answer is not None else "no answer"


def _map(grader: Grader, function: Any, items: Sequence[tuple[Any, ...]], *, timeout: float) -> list[Outcome]:
    """Call a function that judges for each item: in workers, or here where its reward cannot hang."""
    if function.isolated:
        return grader.map(function, items, timeout=timeout)
    outcomes = []
    for item in items:
        try:
            outcomes.append(Outcome(value=function(*item)))
        except Exception as error:  # whatever a task's verifier raises
            detail = f"{type(error).__name__}: {error}"
            outcomes.append(Outcome(failure="raised", detail=detail, traceback=traceback.format_exc()))
    return outcomes


class _GoldCheck:
    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.isolated = scorer, scorer.isolated

    def warm_up(self) -> None:
        self.scorer.warm_up()

    def __call__(self, problem: Problem) -> str:
        return self.scorer.gold_fault(problem)


class Voter:
    """Sorts answers into classes of equivalent ones. Picklable; it runs in a worker."""

    def warm_up(self) -> None:
        """Import math-verify."""
        maths_reward.warm_up()

    def __call__(self, answers: Sequence[str], choices: Sequence[str]) -> list[int]:
        """Return the class of each answer: the first whose first member it equals, by the verifier.

        Args:
            answers: in sampling order.
            choices: of a multiple-choice question, or ().
        """
        members: list[str] = []
        found = []
        for answer in answers:
            place = next((i for i, member in enumerate(members) if same_answer(member, answer, choices)), None)
            if place is None:
                place = len(members)
                members.append(answer)
            found.append(place)
        return found


def same_answer(left: str, right: str, choices: Sequence[str] = ()) -> bool:
    """Whether the verifier takes one answer for the other."""
    if left.strip() == right.strip():
        return True
    metadata = {"choices": list(choices)} if choices else {}
    pairs = ((left, right), (right, left)) if choices else ((left, right),)
    return any(verify_text(Problem(prompt="", answer=a.strip(), metadata=metadata), b) == 1.0 for a, b in pairs)
