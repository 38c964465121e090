"""pass@k, cons@k and their intervals against numbers worked out by hand."""

import itertools
import json
import os
import random
import subprocess

import pytest

from r1.evaluation.numbers import (
    benchmark_metrics,
    majority_votes,
    paired_difference,
    pass_ks,
    problem_scores,
    winner,
)
from r1.evaluation.paper import paper_rows
from r1.intervals import wilson_interval
from r1.rewards import Grader
from r1.types import Problem


@pytest.fixture(scope="module")
def grader():
    with Grader(num_workers=1, timeout=30.0) as grader:
        yield grader


def samples(*problems):
    """Rows of problems, each a list of (answer, reward)."""
    return [
        {"index": i, "problem_id": f"p{i}", "sample": g, "answer": answer, "reward": reward}
        | {"num_tokens": 1, "prompt": "q", "completion": "wait", "finish_reason": "stop"}
        for i, some in enumerate(problems)
        for g, (answer, reward) in enumerate(some)
    ]


def right(count, n):
    return [("1", 1.0)] * count + [("2", 0.0)] * (n - count)


def test_pass_at_k_is_the_harness_estimator():
    # lm-evaluation-harness (code_eval): 1 - prod_{j=n-c+1..n} (1 - k/j), which for n = 8 gives
    #   c = 3, k = 2: 1 - (1-2/6)(1-2/7)(1-2/8) = 1 - (4/6)(5/7)(6/8) = 1 - 120/336 = 9/14
    #   c = 1, k = 2: 1 - (1-2/8) = 1/4;      c = 3, k = 4: 1 - (2/6)(3/7)(4/8) = 1 - 24/336 = 13/14
    #   c = 1, k = 4: 1 - 4/8 = 1/2;          c = 0: 0;      k = 8: whether c > 0
    found = benchmark_metrics(samples(right(3, 8), right(1, 8), right(0, 8)), {})
    means = {name: interval.mean for name, interval in found.items()}
    assert means == pytest.approx(
        {
            "pass@1": (3 / 8 + 1 / 8) / 3,
            "pass@2": (9 / 14 + 1 / 4) / 3,
            "pass@4": (13 / 14 + 1 / 2) / 3,
            "pass@8": 2 / 3,
        }
    )


def test_pass_at_k_is_the_share_of_all_choices_of_k_samples_that_hold_a_right_one():
    for n, c in ((4, 1), (6, 2), (8, 5)):
        found = benchmark_metrics(samples(right(c, n)), {})
        for k in (2, 4):
            choices = list(itertools.combinations([1] * c + [0] * (n - c), k))
            assert found[f"pass@{k}"].mean == pytest.approx(sum(map(max, choices)) / len(choices))


@pytest.mark.slow
def test_cons_at_k_is_what_the_harness_gets_by_its_majority_filter(grader):
    python = os.environ.get("R1_LM_EVAL_PYTHON")
    if not python:
        pytest.skip("R1_LM_EVAL_PYTHON names no interpreter with lm_eval")
    random_ = random.Random(0)
    answers = [[str(random_.randrange(2, 6)) for _ in range(9)] for _ in range(200)]
    rows = samples(*[[(a, float(a == "3")) for a in some] for some in answers])
    gold = {i: Problem(prompt="q", answer="3", index=i) for i in range(200)}
    code = (
        "import json, sys; from lm_eval.filters.selection import MajorityVoteFilter, TakeKFilter; "
        "rows = json.load(sys.stdin); kept = list(TakeKFilter(k=9).apply(rows, None)); "
        "print(json.dumps([r[0] for r in MajorityVoteFilter().apply(kept, None)]))"
    )
    done = subprocess.run([python, "-c", code], input=json.dumps(answers), capture_output=True, text=True, check=True)
    majority = json.loads(done.stdout.splitlines()[-1])
    votes, late = majority_votes(grader, rows, gold)
    assert (votes, late) == ({i: float(answer == "3") for i, answer in enumerate(majority)}, 0)
    assert 0.1 < sum(votes.values()) / 200 < 0.6  # neither always nor never right


def test_ks_are_the_powers_of_two_and_the_number_of_samples():
    assert [pass_ks(n) for n in (1, 2, 6, 8)] == [[], [2], [2, 4, 6], [2, 4, 8]]


def test_intervals_are_clustered_by_problem():
    # Eight samples of two problems, one wholly right and one wholly wrong: as much as two trials, not eight.
    found = benchmark_metrics(samples(right(4, 4), right(0, 4)), {})
    assert (found["pass@1"].low, found["pass@1"].high) == (wilson_interval(1, 2).low, wilson_interval(1, 2).high)


def test_a_sample_without_a_score_is_left_out_and_counts_as_nothing():
    rows = samples([("1", 1.0), ("2", 0.0)], [("1", 1.0), (None, None)])
    found = benchmark_metrics(rows, {0: 1.0})
    # pass@1: (1/2 + 1/1) / 2; pass@2 of the first problem alone.
    assert (found["pass@1"].mean, found["pass@2"].mean, found["cons@2"].mean) == (0.75, 1.0, 1.0)
    with pytest.raises(ValueError, match="none of the samples"):
        benchmark_metrics(samples([(None, None)]), {})


def problems(count, **changes):
    return {i: Problem(prompt="q", answer="1/2", index=i, **changes) for i in range(count)}


def test_equivalent_wrong_answers_vote_together(grader):
    # As text the right answer 1/2 (twice) is ahead of 3/4, 0.75 and 75/100 (once each); by value it has 2 of 5 votes.
    wrong = [("3/4", 0.0), ("0.75", 0.0), ("\\frac{75}{100}", 0.0)]
    votes, late = majority_votes(grader, samples([("1/2", 1.0), ("0.5", 1.0), *wrong]), problems(1))
    assert (votes, late) == ({0: 0.0}, 0)


def test_right_answers_written_differently_vote_together(grader):
    # Three right answers in three forms against two equal wrong ones.
    some = [("7", 0.0), ("7", 0.0), ("1/2", 1.0), ("0.5", 1.0), ("\\frac{1}{2}", 1.0)]
    assert majority_votes(grader, samples(some), problems(1))[0] == {0: 1.0}


def test_of_equally_frequent_answers_the_first_sampled_wins(grader):
    first, second = [("7", 0.0), ("1/2", 1.0)], [("1/2", 1.0), ("7", 0.0)]
    assert majority_votes(grader, samples(first, second), problems(2))[0] == {0: 0.0, 1: 1.0}
    assert winner(["a", "b", "b", "a"]) == "a"


def test_samples_without_an_answer_have_no_vote_and_unscored_problems_none(grader):
    silent = [(None, 0.0), (None, 0.0), ("1/2", 1.0)]
    unscored = [("1/2", 1.0), (None, None), (None, None)]
    nothing = [(None, 0.0)] * 3
    assert majority_votes(grader, samples(silent, unscored, nothing), problems(3))[0] == {0: 1.0, 2: 0.0}


def test_a_letter_and_the_text_of_its_choice_vote_together(grader):
    some = [("B", 0.0), ("A", 1.0), ("oxygen", 0.0)]
    found, _ = majority_votes(grader, samples(some), problems(1, metadata={"choices": ["argon", "oxygen"]}))
    assert found == {0: 0.0}


def test_a_vote_that_takes_too_long_compares_as_text(grader):
    some = [("1/2", 1.0), ("9^{9^{9^{9}}}+x", 0.0), ("3", 0.0)]  # nobody lives to see the tower's value
    votes, late = majority_votes(grader, samples(some), problems(1), timeout=0.5)
    assert (votes, late) == ({0: 1.0}, 1)


def test_a_difference_is_paired_by_problem():
    mine = {"a": {"accuracy": [1.0, 0.0]}, "b": {"accuracy": [1.0]}, "c": {"accuracy": [1.0]}}
    theirs = {"a": {"accuracy": [0.0]}, "b": {"accuracy": [0.5]}, "d": {"accuracy": [1.0]}}
    difference, shared = paired_difference(mine, theirs)  # +0.5 on both shared problems
    assert (difference.mean, difference.low, difference.high, shared) == (0.5, 0.5, 0.5, 2)
    with pytest.raises(ValueError, match="share no problem"):
        paired_difference(mine, {"z": {"accuracy": [1.0]}})


def test_a_question_that_is_asked_twice_is_two_problems():
    rows = [row | {"problem_id": "same"} for row in samples(right(1, 2), right(2, 2))]
    scores = problem_scores(rows)
    assert {name: found["accuracy"] for name, found in scores.items()} == {"same": [1.0, 0.0], "same#1": [1.0, 1.0]}
    assert paired_difference(scores, scores)[1] == 2


def test_lengths_that_an_engine_does_not_tell_are_left_out():
    rows = samples(right(1, 2), right(0, 1))
    assert problem_scores(rows)["p0"] == {"accuracy": [1.0, 0.0], "length": [1.0, 1.0], "reflection": [1.0, 1.0]}
    rows[2]["num_tokens"] = None
    assert problem_scores(rows)["p0"] == {"accuracy": [1.0, 0.0], "reflection": [1.0, 1.0]}


def test_the_papers_rows_are_labelled_and_in_shares():
    rows = {row["model"]: row for row in paper_rows("aime24")}
    # arXiv 2501.12948 v1, Table 5: DeepSeek-R1-Distill-Qwen-7B, AIME 2024 pass@1 55.5 and cons@64 83.3.
    assert rows["DeepSeek-R1-Distill-Qwen-7B"] == {
        "model": "DeepSeek-R1-Distill-Qwen-7B",
        "source": "paper v1 Table 5",
        "k": 64,
        "metrics": {"pass@1": {"mean": 0.555}, "cons@64": {"mean": 0.833}},
    }
    assert paper_rows("math500")[0]["metrics"]["pass@1"] == {"mean": 0.973}  # DeepSeek-R1, Table 4
    assert paper_rows("gsm8k") == []
