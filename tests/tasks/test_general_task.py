import random
from collections import Counter

import pytest

from r1.rewards import extract_answer
from r1.tasks import TASKS
from r1.tasks.general import NOISY_STYLES
from r1.types import Problem


@pytest.fixture
def task():
    return TASKS.build("general")


@pytest.mark.parametrize(
    ("prompt", "answer"), [("say kdf:", "kdf"), ("hi kdf:", "hi kdf"), ("first kdf:", "k"), ("last kdf:", "f")]
)
def test_every_request_has_the_answer_it_names(task, prompt, answer):
    found = next(p for p in task.problems("train").take(500) if p.prompt.split()[0] == prompt.split()[0])
    word = found.prompt.split()[1].rstrip(":")
    expected = {"say": word, "hi": f"hi {word}", "first": word[0], "last": word[-1]}[prompt.split()[0]]
    assert found.answer == expected
    problem = Problem(prompt=prompt, answer=answer)
    assert task.verify(problem, f" {answer}\n") == 1.0
    assert task.verify(problem, answer + "x") == 0.0


def test_words_have_the_asked_length():
    problems = TASKS.build("general", min_letters=3, max_letters=5).problems("train").take(200)
    assert {len(p.prompt.split()[1]) - 1 for p in problems} == {3, 4, 5}


def test_demonstrations_answer_without_thinking(task):
    problem, turn = task.demonstrate("pretrain", 0, style="clean")
    assert turn == f"<answer>{problem.answer}</answer>"
    assert task.demonstrate("pretrain", 0, style="clean") == (problem, turn)


def test_styles_are_right_or_wrong_as_they_say(task):
    for i in range(50):
        for style, right in (("clean", 1.0), ("untagged", 1.0), ("wrong", 0.0), ("wordy", 0.0)):
            problem, turn = task.demonstrate("train", i, style=style)
            assert task.verify(problem, extract_answer(turn)) == right, (style, problem, turn)


def test_the_noisy_mixture_has_its_shares(task):
    problem = Problem(prompt="say kdf:", answer="kdf")
    rng = random.Random(0)
    kinds = Counter()
    for _ in range(2000):
        turn = task.demonstration(problem, rng, "noisy_mixture")
        known = {"<answer>kdf</answer>": "clean", "kdf": "untagged", "<answer>sure, kdf</answer>": "wordy"}
        kinds[known.get(turn, "wrong")] += 1
    # Four standard deviations of a share of 0.5 in 2,000 draws are 0.045.
    assert all(abs(kinds[style] / 2000 - share) < 0.045 for style, share in NOISY_STYLES.items()), kinds


def test_bad_lengths_are_refused():
    with pytest.raises(ValueError, match="found min_letters=5, max_letters=4"):
        TASKS.build("general", min_letters=5)
