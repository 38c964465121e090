import pytest

from r1.rewards.base import RewardError, build_rewards
from r1.types import Completion, Problem

PROBLEMS = [Problem(prompt=str(i), answer="1", task=task) for i, task in enumerate(["chain", "general", "chain"])]
COMPLETIONS = [Completion(text=text, token_ids=(1,) * len(text)) for text in ("a", "bb", "ccc")]


def lengths(completions, problems):
    return [float(len(c.text)) for c in completions]


def one_too_many(completions, problems):
    return [0.0] * (len(completions) + 1)


def length_if_right(completions, problems, scores):
    return [len(c.text) * s for c, s in zip(completions, scores["right"], strict=True)]


lengths.isolated = one_too_many.isolated = length_if_right.isolated = False
length_if_right.uses = ("right",)
HERE = __name__


def test_problems_of_other_tasks_stay_unscored():
    rewards = build_rewards({"length": {"name": f"{HERE}.lengths", "tasks": ["chain"]}})
    found = rewards.score(COMPLETIONS, PROBLEMS)
    assert [b.rewards["length"] for b in found] == [1.0, None, 3.0]
    assert [b.reward for b in found] == [1.0, None, 3.0]


def test_the_sum_of_rewards_of_different_tasks_has_one_part_for_each_problem():
    rewards = build_rewards(
        {
            "long": {"name": f"{HERE}.lengths", "tasks": "chain"},
            "longer": {"name": f"{HERE}.lengths", "tasks": ["general"], "weight": 10.0},
        }
    )
    assert [b.reward for b in rewards.score(COMPLETIONS, PROBLEMS)] == [1.0, 20.0, 3.0]


def test_scores_of_other_rewards_are_those_of_the_same_completions():
    config = {
        "right": {"name": f"{HERE}.lengths", "weight": 0.0},
        "x": {"name": f"{HERE}.length_if_right", "tasks": ["chain"]},
    }
    # Length times length: 1 * 1 and 3 * 3.
    assert [b.rewards["x"] for b in build_rewards(config).score(COMPLETIONS, PROBLEMS)] == [1.0, None, 9.0]


def test_an_isolated_reward_stays_isolated_and_reads_its_task():
    class Task:
        isolated = True

        def verify(self, problem, answer):
            return 1.0

    rewards = build_rewards({"accuracy": {"tasks": ["chain"]}}, task=Task())
    assert rewards.rewards["accuracy"].isolated and rewards.rewards["accuracy"].item_wise


def test_a_batch_without_any_of_its_tasks_never_reaches_the_reward():
    rewards = build_rewards({"x": {"name": f"{HERE}.one_too_many", "tasks": ["other"]}})
    assert [b.reward for b in rewards.score(COMPLETIONS, PROBLEMS)] == [None, None, None]


def test_a_wrong_number_of_scores_is_an_error_even_when_it_fits_the_whole_batch():
    # Two completions are of the task, three come back: as many as the batch has.
    rewards = build_rewards({"x": {"name": f"{HERE}.one_too_many", "tasks": ["chain"]}})
    with pytest.raises(RewardError, match="expected a list of 2 scores"):
        rewards.score(COMPLETIONS, PROBLEMS)
