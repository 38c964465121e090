"""What a task is: a stream of problems and a verifier, with splits that cannot overlap.

A problem's split is decided by the hash of its prompt, so the same question lands in the same split in every run,
whatever the seed. Problem i of a stream is a pure function of (seed, split, i): the position is the whole state.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from r1.registry import Registry, did_you_mean
from r1.types import Problem

TASKS = Registry("task")

Split = Literal["pretrain", "train", "test"]
SPLITS: tuple[Split, ...] = ("pretrain", "train", "test")
GENERATED_SHARES: Mapping[str, float] = {"pretrain": 0.45, "train": 0.45, "test": 0.10}
FINITE_SHARES: Mapping[str, float] = {"pretrain": 0.0, "train": 0.90, "test": 0.10}

_NUM_BUCKETS = 1 << 20
_MAX_DRAWS = 10_000  # consecutive draws without success before a split counts as empty or exhausted


def check_split(split: str) -> None:
    """Raise ValueError unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}.{did_you_mean(split, SPLITS)} Splits: {', '.join(SPLITS)}")


def check_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """Return the share of every split (0 where unnamed); ValueError unless they are non-negative and add up to 1."""
    for split in shares:
        check_split(split)
    full = {split: float(shares.get(split, 0.0)) for split in SPLITS}
    if min(full.values()) < 0 or not math.isclose(sum(full.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"shares must be non-negative and add up to 1, found {dict(shares)}")
    return full


def split_of(problem: Problem, shares: Mapping[str, float]) -> Split:
    """Return the split that the hash of the prompt puts a problem in.

    The test split takes the lowest buckets, so that moving the border between pretrain and train leaves it as it is.
    """
    place = (int(problem.id, 16) % _NUM_BUCKETS) / _NUM_BUCKETS
    if place < shares["test"]:
        return "test"
    return "train" if place < shares["test"] + shares["train"] else "pretrain"


class Task(ABC):
    """Problems of one kind and the verifier of their answers. Picklable.

    Attributes:
        name: what logs and metrics call it.
        isolated: whether `verify` may hang or crash and must run in a worker that can be killed.
        styles: demonstration styles that the task can write itself.
        shares: share of each split.
    """

    name: str = ""
    isolated: bool = False
    styles: tuple[str, ...] = ()
    shares: Mapping[str, float] = GENERATED_SHARES

    @abstractmethod
    def problem_at(self, split: str, index: int, *, seed: int = 0) -> Problem:
        """Return problem number `index` of a split's stream: a pure function of (seed, split, index)."""

    @abstractmethod
    def verify(self, problem: Problem, answer_text: str) -> float | None:
        """Return 1.0 for a right answer, 0.0 for a wrong one, None where the gold answer is unusable."""

    def num_problems(self, split: str) -> int | None:
        """Return how many distinct problems a split holds, or None where they are generated."""
        return None

    def problems(self, split: str, seed: int = 0) -> ProblemStream:
        """Return the endless stream of a split.

        Raises:
            ValueError: no such split, or its share is 0.
        """
        check_split(split)
        size = self.num_problems(split)
        if size == 0 or (size is None and self.shares[split] == 0):
            raise ValueError(f"task {self.name!r} has no problems in split {split!r}: shares={dict(self.shares)}")
        return ProblemStream(self, split, seed)

    def demonstration(self, problem: Problem, rng: random.Random, style: str) -> str:
        """Return an assistant's turn for a problem, written by the task itself.

        Raises:
            ValueError: the task writes no demonstrations, or none in this style.
        """
        self.check_style(style)
        raise NotImplementedError(f"{type(self).__name__} names style {style!r} but does not write it")

    def check_style(self, style: str) -> None:
        """Raise ValueError unless the task writes demonstrations in `style`."""
        if not self.styles:
            raise ValueError(
                f"task {self.name!r} writes no demonstrations (style={style!r}): sample its traces from a model"
            )
        if style not in self.styles:
            raise ValueError(
                f"task {self.name!r} has no demonstration style {style!r}.{did_you_mean(style, self.styles)} "
                f"Styles: {', '.join(self.styles)}"
            )

    def demonstrate(self, split: str, index: int, *, style: str, seed: int = 0) -> tuple[Problem, str]:
        """Return problem number `index` of a split with a demonstration: a pure function of the arguments."""
        self.check_style(style)
        problem = self.problem_at(split, index, seed=seed)
        rng = random.Random(f"demonstration/{style}/{seed}/{split}/{index}")
        return problem, self.demonstration(problem, rng, style)


class ProblemStream:
    """Endless problems of one split. The position is the state: restoring it restores what follows exactly."""

    def __init__(self, task: Task, split: str, seed: int = 0) -> None:
        self.task = task
        self.split = split
        self.seed = seed
        self.position = 0

    def take(self, n: int) -> list[Problem]:
        """Return the next n problems; `Problem.index` is the position of each, so it never repeats in a stream."""
        start, self.position = self.position, self.position + n
        return [self.task.problem_at(self.split, i, seed=self.seed) for i in range(start, self.position)]

    def take_unique(self, n: int) -> list[Problem]:
        """Return the next n problems that differ from one another, skipping repeats: a held-out evaluation draw.

        Raises:
            ValueError: the split holds fewer than n distinct problems (for generated problems: no new one turned up
                in 10,000 draws).
        """
        size = self.task.num_problems(self.split)
        if size is not None and n > size:
            raise ValueError(
                f"{n} distinct problems asked of task {self.task.name!r}, split {self.split!r}: it has {size}"
            )
        found: dict[str, Problem] = {}
        num_repeats = 0
        while len(found) < n:
            (problem,) = self.take(1)
            num_repeats = num_repeats + 1 if problem.id in found else 0
            found.setdefault(problem.id, problem)
            if size is None and num_repeats >= _MAX_DRAWS:
                raise ValueError(
                    f"{n} distinct problems asked of task {self.task.name!r}, split {self.split!r}: only "
                    f"{len(found)} turned up"
                )
        return list(found.values())

    def state_dict(self) -> dict[str, Any]:
        return {"task": self.task.name, "split": self.split, "seed": self.seed, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where a stream of the same task and split stood; the saved seed replaces this stream's.

        Raises:
            ValueError: the state is of another task or split.
        """
        for key, mine in (("task", self.task.name), ("split", self.split)):
            if state[key] != mine:
                raise ValueError(f"stream state has {key}={state[key]!r}, but this stream has {key}={mine!r}")
        self.seed = state["seed"]
        self.position = state["position"]


class GeneratedTask(Task):
    """A task whose problems are drawn from a random stream of their own: `generate` makes one."""

    def __init__(self, *, shares: Mapping[str, float] | None = None) -> None:
        self.shares = check_shares(GENERATED_SHARES if shares is None else shares)

    @abstractmethod
    def generate(self, rng: random.Random) -> Problem:
        """Draw one problem, of whatever split."""

    def problem_at(self, split: str, index: int, *, seed: int = 0) -> Problem:
        rng = random.Random(f"{seed}/{split}/{index}")
        return replace(self.draw(split, rng), index=index)

    def draw(
        self, split: str, rng: random.Random, generate: Callable[[random.Random], Problem] | None = None
    ) -> Problem:
        """Draw a problem of one split, made by `generate` (the task's own unless given).

        Raises:
            ValueError: 10,000 draws gave none; the task is too small, or the split's share is 0.
        """
        for _ in range(_MAX_DRAWS):
            problem = (generate or self.generate)(rng)
            if split_of(problem, self.shares) == split:
                return problem
        raise ValueError(
            f"task {self.name!r} drew no problem of split {split!r} in {_MAX_DRAWS} tries: shares={dict(self.shares)}"
        )


class FiniteTask(Task):
    """A task over a list of problems, reshuffled each epoch by (seed, split, epoch). Repeated questions are dropped.

    Attributes:
        num_duplicates: rows dropped because an earlier row asks the same question.
        num_overlapping: rows dropped from pretrain and train because the explicit test set asks the same question.
    """

    def __init__(self, *, shares: Mapping[str, float] | None = None, has_test_set: bool = False) -> None:
        default = {"train": 1.0} if has_test_set else FINITE_SHARES
        self.shares = check_shares(default if shares is None else shares)
        if has_test_set and self.shares["test"] > 0:
            raise ValueError(
                f"an explicit test set leaves no share for a hashed one: set shares.test=0, found {shares}"
            )
        self.num_duplicates = 0
        self.num_overlapping = 0
        self._splits: dict[str, list[Problem]] | None = None
        self._order: tuple[tuple[str, int, int], list[int]] | None = None

    @abstractmethod
    def load(self) -> tuple[list[Problem], list[Problem]]:
        """Return all problems, and those of the explicit test set (empty without one)."""

    def rows(self, split: str) -> list[Problem]:
        """Return the distinct problems of a split in file order."""
        check_split(split)
        if self._splits is None:
            self._splits = self._split(*self.load())
        return self._splits[split]

    def leave_out(self, split: str, unwanted: Callable[[Problem], bool]) -> int:
        """Drop the problems of a split that are unwanted, and return how many those are.

        Raises:
            ValueError: all of them.
        """
        rows = self.rows(split)
        kept = [problem for problem in rows if not unwanted(problem)]
        if rows and not kept:
            raise ValueError(f"task {self.name!r}: all {len(rows)} problems of split {split!r} are to be left out")
        self._splits[split], self._order = kept, None
        return len(rows) - len(kept)

    def num_problems(self, split: str) -> int:
        return len(self.rows(split))

    def problem_at(self, split: str, index: int, *, seed: int = 0) -> Problem:
        rows = self.rows(split)
        if not rows:
            raise ValueError(f"task {self.name!r} has no problems in split {split!r}: shares={dict(self.shares)}")
        epoch, offset = divmod(index, len(rows))
        key = (split, seed, epoch)
        if self._order is None or self._order[0] != key:
            order = list(range(len(rows)))
            random.Random(f"{seed}/{split}/{epoch}").shuffle(order)
            self._order = (key, order)
        return replace(rows[self._order[1][offset]], index=index)

    def _split(self, everything: list[Problem], test: list[Problem]) -> dict[str, list[Problem]]:
        splits: dict[str, list[Problem]] = {split: [] for split in SPLITS}
        first: dict[str, Problem] = {}
        for problem in test:
            first.setdefault(problem.id, problem)
        splits["test"] = list(first.values())
        seen: set[str] = set()
        self.num_overlapping = sum(p.id in first for p in everything)
        for problem in everything:
            if problem.id not in seen and problem.id not in first:
                splits[split_of(problem, self.shares)].append(problem)
                seen.add(problem.id)
        self.num_duplicates = len(everything) - len(seen) - self.num_overlapping + len(test) - len(first)
        return splits

    def __getstate__(self) -> dict[str, Any]:
        # A grading worker needs the verifier, not a copy of the data set.
        return {**self.__dict__, "_splits": None, "_order": None}
