import pytest

from r1.tasks import TASKS
from r1.types import Problem


def mixture(**tasks):
    return TASKS.build("mixture", tasks=tasks)


@pytest.fixture
def task():
    return mixture(chain={"share": 3}, small={"name": "general", "share": 1, "max_letters": 2})


def test_tasks_come_in_their_shares_and_say_which_they_are(task):
    problems = task.problems("train", seed=1).take(2000)
    share = sum(p.task == "small" for p in problems) / 2000
    assert abs(share - 0.25) < 0.04  # four standard deviations: 4 sqrt(0.25 * 0.75 / 2000)
    assert {p.task for p in problems} == {"chain", "small"}
    assert all((p.prompt[0].isdigit()) == (p.task == "chain") for p in problems)
    assert [p.index for p in problems] == list(range(2000))


def test_a_problem_is_the_one_its_task_makes_at_that_place(task):
    for index in range(20):
        problem = task.problem_at("test", index, seed=2)
        own = task.tasks[problem.task].problem_at("test", index, seed=2)
        assert (own.prompt, own.answer) == (problem.prompt, problem.answer)


def test_each_problem_is_judged_by_its_own_task(task):
    for problem in task.problems("train").take(20):
        assert task.verify(problem, problem.answer) == 1.0
        assert task.verify(problem, "?") == 0.0
    with pytest.raises(ValueError, match="a problem of task 'other' is none of chain, small"):
        task.verify(Problem(prompt="p", answer="a", task="other"), "a")


def test_demonstrations_are_those_of_the_task_in_styles_that_all_have(task):
    assert task.styles == ("clean", "noisy_mixture")
    turns = {p.task: turn for p, turn in (task.demonstrate("pretrain", i, style="clean") for i in range(20))}
    assert "<think>" in turns["chain"] and "<think>" not in turns["small"]
    with pytest.raises(ValueError, match="has no demonstration style 'terse'"):
        task.demonstrate("pretrain", 0, style="terse")


def test_splits_stay_disjoint(task):
    seen = {split: {p.id for p in task.problems(split).take(300)} for split in ("pretrain", "train", "test")}
    assert not seen["pretrain"] & seen["test"] and not seen["train"] & seen["test"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "task.tasks: expected at least one task"),
        ({"chain": {}}, r"task.tasks.chain.share must be a number above 0, found None"),
        ({"chain": {"share": -1}}, r"task.tasks.chain.share must be a number above 0, found -1"),
        ({"chian": {"share": 1}}, "unknown task 'chian'. Did you mean 'chain'"),
    ],
)
def test_bad_mixtures_are_refused(tasks, message):
    with pytest.raises(ValueError, match=message):
        mixture(**tasks)
