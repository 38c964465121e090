"""How often our verifier and math-verify judge the collected pairs of answers, and whole completions, right.

python scripts/bench/answer_pairs.py                     # every tests/data/answer_pairs*.tsv, and completions*.jsonl
python scripts/bench/answer_pairs.py --errors FILE ...   # chosen files, with every pair that is judged wrong
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import _clone  # noqa: F401
from _answer_graders import MathVerify, Ours

from r1.rewards import Grader, Outcome

DATA = Path(__file__).parents[2] / "tests" / "data"
TIMEOUT = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A gold answer, an answer (or the completion that gives it), and whether a reader takes the two for the same."""

    gold: str
    answer: str
    same: bool


def read_pairs(path: Path) -> list[Pair]:
    """Read gold, answer and same (yes or no) of a tab-separated file, or gold, completion and right of JSON lines."""
    if path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Pair(gold=row["gold"], answer=row["completion"], same=row["right"]) for row in rows]
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [Pair(gold=row["gold"], answer=row["answer"], same=row["same"] == "yes") for row in rows]


def report(name: str, pairs: Sequence[Pair], outcomes: Sequence[Outcome], *, errors: bool) -> None:
    """Print one line of the table, and the errors below it."""
    wrong = [(p, o) for p, o in zip(pairs, outcomes, strict=True) if o.value is not p.same]
    accepted = [pair for pair, outcome in wrong if outcome.value is True]
    rejected = [pair for pair, outcome in wrong if outcome.value is False]
    failed = [pair for pair, outcome in wrong if outcome.failure is not None]
    share = 100 * (len(pairs) - len(wrong)) / len(pairs)
    counts = (len(accepted), len(rejected), len(wrong) - len(accepted) - len(rejected) - len(failed), len(failed))
    print(f"| {name} | {len(pairs)} | {share:.2f} | " + " | ".join(map(str, counts)) + " |", flush=True)
    for pair, outcome in wrong if errors else ():
        print(f"    {outcome.value} {outcome.failure or ''} gold {pair.gold!r} answer {pair.answer!r}")


def main() -> None:
    """Print accuracy in per cent, the two kinds of error, gold answers not understood, and time-outs or crashes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--errors", action="store_true")
    options = parser.parse_args()
    print("| set, verifier | pairs | right | false accepts | false rejects | gold not understood | failed |")
    print("|---|---|---|---|---|---|---|")
    for path in options.files or [*sorted(DATA.glob("answer_pairs*.tsv")), *sorted(DATA.glob("completions*.jsonl"))]:
        pairs, completions = read_pairs(path), path.suffix == ".jsonl"
        graders: dict[str, Callable[..., object]] = {
            "ours": Ours(completions=completions),
            "math-verify": MathVerify(completions=completions),
        }
        for name, function in graders.items():
            started = time.perf_counter()
            with Grader(num_workers=1, timeout=TIMEOUT) as grader:
                outcomes = grader.map(function, [(pair.gold, pair.answer) for pair in pairs])
            took = time.perf_counter() - started
            report(f"{path.stem}, {name} ({took:.0f} s)", pairs, outcomes, errors=options.errors)


if __name__ == "__main__":
    main()
