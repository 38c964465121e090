import pickle
import random

import pytest

from r1.tasks import TASKS
from r1.tasks.countdown import parse_expression
from r1.types import Problem

# (2+6)*5 = 40 uses 2, 5 and 6 once each.
PROBLEM = Problem(prompt="2 5 6=40:", answer="(2+6)*5", metadata={"numbers": [2, 5, 6], "target": 40})


@pytest.fixture
def task():
    return TASKS.build("countdown")


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("(2+6)*5", 1.0),
        ("5 * (6 + 2)", 1.0),
        ("(2+6)*5=40", 1.0),
        ("(2 + 6) \u00d7 5 = 40", 1.0),
        ("(2+6)*5=41", 0.0),
        ("2+6*5", 0.0),  # 32
        ("5*6+2*5", 0.0),  # 40, but 5 is used twice
        ("5*8", 0.0),  # 40, but 8 is not given
        ("40", 0.0),
        ("(2+6)*5*1", 0.0),
        ("", 0.0),
        ("((2+6)*5", 0.0),
        ("(2+6)**5", 0.0),
        ("(2+6)//5", 0.0),
        ("-2+6*5", 0.0),
        ("2+6.0*5", 0.0),
        ("__import__('os').system('true')", 0.0),
        ("(" * 150 + "2" + ")" * 150, 0.0),
        ("9" * 100_000, 0.0),
    ],
)
def test_verify(task, answer, score):
    assert task.verify(PROBLEM, answer) == score


def test_values_are_exact_fractions():
    # 8/(3-8/3) = 8/(1/3) = 24: floating point gives 23.999...
    assert parse_expression("8/(3-8/3)") == (24, [8, 3, 8, 3])
    assert parse_expression("1/0") is None
    assert parse_expression("True+1") is None


@pytest.mark.parametrize("wording", ["words", "compact"])
def test_every_generated_target_is_reached_by_its_gold_answer(wording):
    task = TASKS.build("countdown", wording=wording, min_numbers=2, max_numbers=5)
    for problem in task.problems("train").take(200):
        assert task.verify(problem, problem.answer) == 1.0
        assert 1 <= problem.metadata["target"] <= 100
        assert 2 <= len(problem.metadata["numbers"]) <= 5


def test_compact_prompt_holds_numbers_and_target():
    problem = TASKS.build("countdown", wording="compact").problems("train").take(1)[0]
    numbers, target = problem.metadata["numbers"], problem.metadata["target"]
    assert problem.prompt == f"{' '.join(map(str, numbers))}={target}:"


def test_steps_of_a_clean_demonstration_are_true_and_lead_to_the_target(task):
    for problem in task.problems("train").take(50):
        turn = task.demonstration(problem, random.Random(0), "clean")
        steps = turn[len("<think>") : turn.index("</think>")].split(", ")
        assert len(steps) == len(problem.metadata["numbers"]) - 1
        for step in steps:
            left, _, right = step.partition("=")
            assert parse_expression(left)[0] == int(right)
        assert int(steps[-1].rpartition("=")[2]) == problem.metadata["target"]
        assert turn.endswith(f"<answer>{problem.answer}</answer>")


def test_search_demonstrations_fail_before_they_succeed(task):
    turns = [task.demonstration(p, random.Random(i), "search") for i, p in enumerate(task.problems("train").take(50))]
    assert sum("wait" in turn for turn in turns) > 40


def test_the_task_and_its_problems_can_be_pickled(task):
    problem = task.problems("test").take(1)[0]
    task, problem = pickle.loads(pickle.dumps((task, problem)))
    assert task.verify(problem, problem.answer) == 1.0


def test_mistakes_of_the_user_are_named():
    with pytest.raises(ValueError, match="Did you mean 'compact'"):
        TASKS.build("countdown", wording="compac")
    with pytest.raises(ValueError, match="2 <= min_numbers <= max_numbers"):
        TASKS.build("countdown", min_numbers=1)
