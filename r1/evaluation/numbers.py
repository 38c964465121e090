"""pass@1, pass@k and cons@k of kept samples, each with its 95 % interval over problems.

Legend: P problems, n samples of each, c right ones among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from r1.chains import has_reflection
from r1.evaluation.scoring import VERDICTS, Voter
from r1.intervals import Interval, clustered_interval, paired_bootstrap_interval
from r1.metrics import pass_at_k
from r1.rewards import Grader
from r1.rollout.statistics import rollout_metrics
from r1.types import Completion, Problem, Prompt, Rollout, RolloutGroup

Row = Mapping[str, Any]


def by_problem(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Return the samples of each problem, in sampling order."""
    found: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["index"], row["sample"])):
        found.setdefault(row["index"], []).append(row)
    return found


def benchmark_metrics(rows: Sequence[Row], votes: Mapping[int, float]) -> dict[str, Interval]:
    """Return pass@1 (mean over samples), pass@k for k = 2, 4, ... n, and cons@n of judged samples.

        pass@1 = mean_i c_i / n;   pass@k = mean_i 1 - C(n - c_i, k) / C(n, k);   cons@n = mean_i [majority right]

    DeepSeek-R1 (arXiv 2501.12948, section 3); Chen et al. 2021, Eq. 1 (arXiv 2107.03374). Samples that could not be
    scored are left out; a problem that lost one counts for pass@1 alone.

    Args:
        rows: samples with their reward.
        votes: 1.0 or 0.0 of each problem whose majority was counted (`majority_votes`).

    Raises:
        ValueError: nothing was scored.
    """
    scored = {
        index: [row["reward"] for row in some if row["reward"] is not None] for index, some in by_problem(rows).items()
    }
    scored = {index: rewards for index, rewards in scored.items() if rewards}
    if not scored:
        raise ValueError("none of the samples could be scored")
    n = max(map(len, scored.values()))
    metrics = {"pass@1": clustered_interval(list(scored.values()))}
    right = [sum(r >= 1.0 for r in rewards) for rewards in scored.values() if len(rewards) == n]
    for k in pass_ks(n):
        metrics[f"pass@{k}"] = clustered_interval([[pass_at_k(c, n, k)] for c in right], num_trials=n * len(right))
    if n > 1 and votes:
        metrics[f"cons@{n}"] = clustered_interval([[vote] for vote in votes.values()])
    return metrics


def pass_ks(n: int) -> list[int]:
    """Return 2, 4, 8, ... up to n, and n itself."""
    powers = [1 << i for i in range(1, n.bit_length()) if 1 << i <= n]
    return sorted({*powers, *([n] if n > 1 else [])})


def majority_votes(
    grader: Grader, rows: Sequence[Row], problems: Mapping[int, Problem], *, timeout: float = 60.0
) -> tuple[dict[int, float], int]:
    """Return, for each problem, whether the answer given most often is right, and how many votes timed out.

    Answers are one when the verifier takes them for one: all right ones, which equal the gold answer, and wrong ones
    by `same_answer`. A sample without an answer has no vote. Of equally frequent answers the one sampled first wins
    (arXiv 2203.11171 leaves that open). Problems with a sample that could not be scored have no vote. Where comparing
    takes longer than `timeout` seconds, wrong answers are compared as text.

    Args:
        rows: judged samples.
        problems: by index.
    """
    votes: dict[int, float] = {}
    open_ones: list[tuple[int, list[Row]]] = []
    for index, some in by_problem(rows).items():
        if any(row["reward"] is None for row in some):
            continue
        voters = [row for row in some if row["answer"] is not None]
        num_right = sum(row["reward"] >= 1.0 for row in voters)
        if num_right == 0 or 2 * num_right > len(voters):  # whatever the wrong answers are
            votes[index] = float(num_right > 0)
        else:
            open_ones.append((index, voters))
    items = []
    for index, voters in open_ones:
        wrong = [row["answer"] for row in voters if row["reward"] < 1.0]
        items.append((wrong, problems[index].metadata.get("choices") or ()))
    num_timeouts = 0
    for (index, voters), (wrong, _), outcome in zip(
        open_ones, items, grader.map(Voter(), items, timeout=timeout), strict=True
    ):
        num_timeouts += outcome.failure is not None
        classes = iter(outcome.value if outcome.failure is None else _text_classes(wrong))
        ballots = ["right" if row["reward"] >= 1.0 else str(next(classes)) for row in voters]
        votes[index] = float(winner(ballots) == "right")
    return dict(sorted(votes.items())), num_timeouts


def winner(ballots: Sequence[str]) -> str:
    """Return the class with most ballots; of equals, the one that was cast first."""
    return max(dict.fromkeys(ballots), key=ballots.count)


def verdict_counts(rows: Sequence[Row]) -> dict[str, int]:
    """Return how many samples have each verdict."""
    return {name: count for name in VERDICTS if (count := sum(row["verdict"] == name for row in rows))}


def problem_scores(rows: Sequence[Row]) -> dict[str, dict[str, list[Any]]]:
    """Return accuracy, length (tokens) and reflection (0 or 1) of each scored sample, by problem id.

    For paired comparisons. Where a benchmark asks a question again, its index stands behind the id. Without lengths
    where the engine does not tell them.
    """
    has_lengths = all(row["num_tokens"] is not None for row in rows)
    found: dict[str, dict[str, list[Any]]] = {}
    asked: set[str] = set()
    for index, some in by_problem(rows).items():
        name = some[0]["problem_id"]
        name = f"{name}#{index}" if name in asked else name
        asked.add(name)
        scored = [row for row in some if row["reward"] is not None]
        if scored:
            found[name] = {"accuracy": [row["reward"] for row in scored]}
            if has_lengths:
                found[name]["length"] = [float(row["num_tokens"]) for row in scored]
            found[name]["reflection"] = [float(has_reflection(row["completion"])) for row in scored]
    return found


def sample_statistics(rows: Sequence[Row]) -> dict[str, float]:
    """Return what `rollout_metrics` says of judged samples: rewards, lengths, format and reflection."""
    groups = []
    for some in by_problem(rows).values():
        # Of the tokens their number is kept, which is all that counts here.
        rollouts = [
            Rollout(
                completion=Completion(
                    text=row["completion"],
                    token_ids=(0,) * (row["num_tokens"] or 0),
                    finish_reason=row["finish_reason"],
                ),
                rewards={"accuracy": row["reward"]},
                reward=row["reward"],
            )
            for row in some
        ]
        prompt = Prompt(problem=Problem(prompt="", answer=""), text=some[0]["prompt"], token_ids=())
        groups.append(RolloutGroup(prompt=prompt, rollouts=tuple(rollouts)))
    return rollout_metrics(groups)


def paired_difference(scores: Mapping[str, Any], baseline: Mapping[str, Any]) -> tuple[Interval, int]:
    """Return the difference in pass@1 on the problems that two evaluations share, and how many those are.

    Raises:
        ValueError: they share none.
    """
    shared = [key for key in scores if key in baseline]
    if not shared:
        raise ValueError("baseline: the two evaluations share no problem")
    means = [[sum(side[key]["accuracy"]) / len(side[key]["accuracy"]) for key in shared] for side in (scores, baseline)]
    return paired_bootstrap_interval(means[0], means[1]), len(shared)


def _text_classes(answers: Sequence[str]) -> list[int]:
    first = {answer: i for i, answer in reversed(list(enumerate(answers)))}
    return [first[answer] for answer in answers]
