"""Training text that shares an n-gram with a benchmark's questions or solutions (10-grams in arXiv 2501.12948)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path

from r1.distributed import rank_and_world
from r1.registry import did_you_mean
from r1.tasks import FiniteTask, Task
from r1.tasks.benchmark_rows import QUESTIONS, SOLUTIONS
from r1.tasks.jsonl import columns_in, existing_file, read_jsonl
from r1.tasks.mixture import MixtureTask
from r1.tasks.text import PROMPT_COLUMNS, SOLUTION_COLUMNS, find_column
from r1.types import Problem

Units = Callable[[str], Sequence[Hashable]]

# Of question-and-answer files, and of benchmarks as they are published.
_QUESTIONS = tuple(dict.fromkeys((*PROMPT_COLUMNS, *QUESTIONS)))
_SOLUTIONS = tuple(dict.fromkeys((*SOLUTION_COLUMNS, *SOLUTIONS, "answer")))
_WORD = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]|[^\W_\u3400-\u4dbf\u4e00-\u9fff]+")


def normalise(text: str) -> str:
    """Return a text without what re-formatting changes: Unicode forms, case and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def words(text: str) -> list[str]:
    """Return the words of a text, lower-cased and without punctuation; a Han character is a word."""
    return _WORD.findall(normalise(text))


def token_units(tokenizer: object) -> Units:
    """Return a function that cuts a normalised text into a tokenizer's ids, for token-level n-grams."""
    return lambda text: tokenizer.encode(normalise(text), add_special_tokens=False)


def ngrams(units: Sequence[Hashable], size: int) -> Iterator[tuple[Hashable, ...]]:
    """Yield the len(units) - size + 1 windows of `size` units; none when there are fewer."""
    return (tuple(units[i : i + size]) for i in range(len(units) - size + 1))


class Benchmarks:
    """The n-grams of benchmark texts.

    A benchmark text shorter than one n-gram has none; it is found when a whole text equals it, up to `normalise`.

    Args:
        ngram_size: n.
        units: cuts a text into words or token ids.
    """

    def __init__(self, *, ngram_size: int = 10, units: Units = words) -> None:
        if ngram_size < 1:
            raise ValueError(f"decontamination.ngram_size must be at least 1, found {ngram_size}")
        self.ngram_size, self.units = ngram_size, units
        self._name_of: dict[Hashable, str] = {}

    def add(self, name: str, texts: Iterable[str]) -> None:
        """File the texts of the benchmark `name`; an n-gram of two benchmarks counts for the first."""
        for text in texts:
            units = self.units(text)
            if len(units) < self.ngram_size:
                self._name_of.setdefault(normalise(text), name)
            for ngram in ngrams(units, self.ngram_size):
                self._name_of.setdefault(ngram, name)

    def overlap(self, text: str) -> str | None:
        """Return the benchmark with which a text shares an n-gram, or None."""
        found = self.match(text)
        return None if found is None else found[0]

    def match(self, text: str) -> tuple[str, str] | None:
        """Return the benchmark with which a text shares an n-gram, and that n-gram, or None."""
        if found := self._name_of.get(normalise(text)):
            return found, normalise(text)
        if not self._name_of:
            return None
        shared = (g for g in ngrams(self.units(text), self.ngram_size) if g in self._name_of)
        return next(((self._name_of[g], " ".join(map(str, g))) for g in shared), None)


def read_benchmark(path: str | Path) -> list[str]:
    """Return the questions and worked solutions of a benchmark file: JSONL with the usual columns, or text lines.

    Raises:
        ValueError: no such file, a broken line, no column of questions, or nothing in it.
    """
    file = existing_file(path)
    if file.suffix == ".txt":
        texts = [line for line in file.read_text().splitlines() if line.strip()]
    else:
        columns = columns_in(file)
        question = find_column(columns, None, _QUESTIONS, key=None, where=f"decontaminate: {file}")
        wanted = [question, *(c for c in _SOLUTIONS if c in columns and c != question)]
        rows = read_jsonl(file, lambda row, where: [row.get(c) for c in wanted], broken_lines=None)
        # A short answer (a number, a letter) is no text that training could have memorised.
        texts = [
            text
            for question_text, *rest in rows
            for text in (question_text, *(t for t in rest if isinstance(t, str) and len(words(t)) > 5))
            if isinstance(text, str) and text.strip()
        ]
    if not texts:
        raise ValueError(f"decontaminate: {file} holds no questions")
    return texts


def load_benchmarks(
    paths: Sequence[str], *, ngram_size: int = 10, unit: str = "word", tokenizer: object = None
) -> Benchmarks:
    """Return the n-grams of benchmark files, named by file.

    Args:
        paths: see `read_benchmark`.
        ngram_size: n.
        unit: "word" or "token".
        tokenizer: for token-level n-grams.

    Raises:
        ValueError: an unknown unit, no tokenizer for tokens, or an unreadable file.
    """
    if unit not in ("word", "token"):
        raise ValueError(
            f"decontamination.unit: found {unit!r}.{did_you_mean(unit, ('word', 'token'))} Expected word or token"
        )
    if unit == "token" and getattr(tokenizer, "eos_token_id", None) is None:
        raise ValueError("decontamination.unit=token needs a tokenizer: set tokenizer=..., or use unit=word")
    benchmarks = Benchmarks(ngram_size=ngram_size, units=words if unit == "word" else token_units(tokenizer))
    for path in paths:
        benchmarks.add(str(path), read_benchmark(path))
    return benchmarks


def decontaminate_task(task: Task, paths: Sequence[str], *, ngram_size: int = 10) -> dict[str, int]:
    """Drop a task's training problems that overlap with benchmark files; return and print how many, by task.

    Problems of the split "test" stay. Of a mixture, tasks that generate their problems stay as they are.

    Args:
        task: one whose problems come from a file or the hub, or a mixture with such.
        paths: see `read_benchmark`.
        ngram_size: words in a row, 10 as in arXiv 2501.12948.

    Raises:
        ValueError: all problems of the task are generated, none would be left, or an unreadable file.
    """
    parts = task.tasks if isinstance(task, MixtureTask) else {task.name: task}
    parts = {label: part for label, part in parts.items() if isinstance(part, FiniteTask)}
    if not parts:
        raise ValueError(f"decontaminate: the problems of task {task.name!r} are generated, none is of a benchmark")
    benchmarks, found = load_benchmarks(paths, ngram_size=ngram_size), {}
    for label, part in parts.items():
        total = sum(part.num_problems(split) for split in ("pretrain", "train"))
        hits: Counter[str] = Counter()

        def overlaps(problem: Problem, hits: Counter[str] = hits) -> bool:
            name = benchmarks.overlap(problem.prompt)
            hits.update([] if name is None else [name])
            return name is not None

        found[label] = sum(part.leave_out(split, overlaps) for split in ("pretrain", "train"))
        if rank_and_world()[0] == 0:
            listed = "".join(f"; {name} {count}" for name, count in hits.items())
            print(f"decontaminate: {found[label]} of {total} problems of {label} are left out{listed}", flush=True)
    return found
