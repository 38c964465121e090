import json
from pathlib import Path

import pytest

from r1.rewards import REWARDS, cosine_reward, shorter_reward, soft_overlong_punishment
from r1.types import Completion, Problem

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_grpo.json").read_text())["overlong"]
A, B = Problem(prompt="a", answer="1"), Problem(prompt="b", answer="2")


def completions(*lengths):
    return [Completion(text="x", token_ids=(0,) * n) for n in lengths]


@pytest.mark.parametrize("setting", GOLDEN)
def test_soft_overlong_punishment_reproduces_the_golden_table(setting):
    max_tokens, cache_tokens = (int(part.partition("=")[2]) for part in setting.split(","))
    for num_tokens, golden in GOLDEN[setting].items():
        found = soft_overlong_punishment(int(num_tokens), max_tokens=max_tokens, cache_tokens=cache_tokens)
        assert found == pytest.approx(golden, abs=1e-15)


def test_soft_overlong_reward_counts_tokens():
    reward = REWARDS.build("soft_overlong", max_tokens=100, cache_tokens=20)
    assert reward(completions(80, 90, 100), [A] * 3) == [0.0, -0.5, -1.0]
    with pytest.raises(ValueError, match=r"reward\.soft_overlong\.cache_tokens"):
        REWARDS.build("soft_overlong", max_tokens=100, cache_tokens=0)
    with pytest.raises(ValueError, match="no ids"):
        reward([Completion(text="words")], [A])


def test_cosine_reward_goes_from_its_short_to_its_long_value():
    # cos(0) = 1 at length 0; cos(pi / 2) = 0 half-way: the mean of both ends; cos(pi / 3) = 1/2 at a third: 3/4 of
    # the way back to the short end
    assert cosine_reward(0, correct=True, max_tokens=60) == 2.0
    assert cosine_reward(30, correct=True, max_tokens=60) == pytest.approx(1.5, abs=1e-15)
    assert cosine_reward(20, correct=True, max_tokens=60) == pytest.approx(1.75, abs=1e-15)
    assert cosine_reward(0, correct=False, max_tokens=60) == -10.0
    assert cosine_reward(30, correct=False, max_tokens=60) == pytest.approx(-5.0, abs=1e-14)
    assert cosine_reward(60, correct=True, max_tokens=60) == -10.0


def test_cosine_uses_the_scores_of_another_reward():
    reward = REWARDS.build("cosine", max_tokens=60, correct_by="maths", values={"wrong_short": -1.0})
    assert reward.uses == ("maths",)
    assert reward(completions(30, 30, 30), [A] * 3, {"maths": [1.0, 0.0, None]}) == [
        pytest.approx(1.5),
        pytest.approx(-0.5),  # half-way between -1 and 0
        None,
    ]
    with pytest.raises(ValueError, match=r"reward\.cosine\.values has no 'right'"):
        REWARDS.build("cosine", max_tokens=60, values={"right": 1.0})


def test_shorter_rewards_short_right_answers_and_punishes_long_wrong_ones():
    # lambda = 0.5, 0.25, 0, -0.5 for lengths 10, 15, 20, 30
    assert shorter_reward([10, 15, 20, 30], [True] * 4) == [0.5, 0.25, 0.0, -0.5]
    assert shorter_reward([10, 15, 20, 30], [False] * 4) == [0.0, 0.0, 0.0, -0.5]
    assert shorter_reward([7, 7], [True, False]) == [0.0, 0.0]


def test_shorter_compares_within_consecutive_completions_of_one_problem():
    reward = REWARDS.build("shorter")
    scores = {"accuracy": [1.0, 1.0, 0.0, 1.0, None, 1.0]}
    found = reward(completions(10, 20, 5, 40, 500, 80), [A, A, B, B, B, B], scores)
    # group a: 10 and 20; group b: 5 (wrong), 40, 80, without the unknown one: lambda(40) = 0.5 - 35/75
    assert found == [0.5, -0.5, 0.0, pytest.approx(0.5 - 35 / 75), None, -0.5]
