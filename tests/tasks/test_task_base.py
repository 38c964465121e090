import pickle
import random

import pytest

from r1.tasks import SPLITS, TASKS, FiniteTask, GeneratedTask
from r1.tasks.base import check_shares, split_of
from r1.types import Problem


class Coins(GeneratedTask):
    """Seven distinct questions at most."""

    name = "coins"

    def generate(self, rng):
        return Problem(prompt=f"coin {rng.randrange(7)}", answer="1")

    def verify(self, problem, answer_text):
        return float(answer_text == problem.answer)


class Listed(FiniteTask):
    name = "listed"

    def __init__(self, prompts, test_prompts=(), **kwargs):
        super().__init__(has_test_set=bool(test_prompts), **kwargs)
        self.prompts, self.test_prompts = prompts, test_prompts

    def load(self):
        everything = [Problem(prompt=p, answer=str(i)) for i, p in enumerate(self.prompts)]
        return everything, [Problem(prompt=p, answer="t") for p in self.test_prompts]

    def verify(self, problem, answer_text):
        return float(answer_text == problem.answer)


def test_no_question_is_in_two_splits_whatever_the_seed():
    task = TASKS.build("chain", min_ops=1, max_ops=2)  # 900 questions, so that 600 draws would collide
    drawn = {s: {p.id for seed in range(3) for p in task.problems(s, seed).take(200)} for s in SPLITS}
    assert not drawn["pretrain"] & drawn["train"]
    assert not drawn["pretrain"] & drawn["test"]
    assert not drawn["train"] & drawn["test"]


def test_splits_have_their_shares():
    task = TASKS.build("chain")
    rng = random.Random(0)
    splits = [split_of(task.generate(rng), task.shares) for _ in range(4000)]
    # Three standard errors of a share of .45 over 4000 draws are .024, of .10 .014.
    assert splits.count("pretrain") / 4000 == pytest.approx(0.45, abs=0.024)
    assert splits.count("train") / 4000 == pytest.approx(0.45, abs=0.024)
    assert splits.count("test") / 4000 == pytest.approx(0.10, abs=0.014)


def test_moving_the_border_of_pretrain_and_train_leaves_the_test_split_alone():
    rng = random.Random(1)
    problems = [TASKS.build("chain").generate(rng) for _ in range(500)]
    tests = [
        [split_of(p, check_shares({"pretrain": a, "train": 0.9 - a, "test": 0.1})) == "test" for p in problems]
        for a in (0.0, 0.3, 0.9)
    ]
    assert tests[0] == tests[1] == tests[2]


def test_stream_restored_from_its_state_continues_exactly():
    task = TASKS.build("chain")
    stream = task.problems("train", seed=5)
    stream.take(17)
    state = stream.state_dict()
    expected = stream.take(20)
    other = pickle.loads(pickle.dumps(task)).problems("train")
    other.load_state_dict(state)
    assert other.take(20) == expected


def test_state_of_another_split_is_refused():
    task = TASKS.build("chain")
    state = task.problems("test").state_dict()
    with pytest.raises(ValueError, match=r"split='test'.*split='train'"):
        task.problems("train").load_state_dict(state)


def test_batching_does_not_change_a_stream():
    task = TASKS.build("chain")
    one, two = task.problems("train"), task.problems("train")
    assert [p for _ in range(6) for p in one.take(2)] == two.take(12)


def test_seeds_and_splits_give_different_streams():
    task = TASKS.build("chain")
    first = [p.prompt for p in task.problems("train", 0).take(5)]
    assert first != [p.prompt for p in task.problems("train", 1).take(5)]
    assert first != [p.prompt for p in task.problems("pretrain", 0).take(5)]


def test_index_is_the_position_and_never_repeats_over_epochs():
    stream = Listed(["a", "b", "c"], shares={"train": 1.0}).problems("train")
    drawn = stream.take(4) + stream.take_unique(3)
    assert [p.index for p in drawn[:4]] == [0, 1, 2, 3]
    assert len({p.index for p in drawn}) == 7


def test_finite_data_is_reshuffled_each_epoch_and_complete_in_each():
    prompts = [f"question {i}" for i in range(30)]
    stream = Listed(prompts, shares={"train": 1.0}).problems("train", seed=3)
    epochs = [[p.prompt for p in stream.take(30)] for _ in range(3)]
    assert all(sorted(epoch) == sorted(prompts) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_take_unique_gives_distinct_problems():
    problems = TASKS.build("chain", min_ops=1, max_ops=2).problems("test").take_unique(60)
    assert len({p.id for p in problems}) == 60


def test_take_unique_over_finite_data_is_the_whole_split():
    task = Listed([f"question {i}" for i in range(40)], shares={"train": 0.5, "test": 0.5})
    size = task.num_problems("test")
    assert 0 < size < 40
    assert {p.prompt for p in task.problems("test").take_unique(size)} == {p.prompt for p in task.rows("test")}


@pytest.mark.parametrize("n", [8, 100])
def test_take_unique_says_when_a_generated_task_has_too_few(n):
    task = Coins(shares={"train": 1.0})
    assert len(task.problems("train").take_unique(7)) == 7
    with pytest.raises(ValueError, match=f"{n} distinct problems .* only 7 turned up"):
        task.problems("train").take_unique(n)


def test_take_unique_says_when_a_finite_split_has_too_few():
    with pytest.raises(ValueError, match=r"4 distinct problems .* it has 3"):
        Listed(["a", "b", "c"], shares={"train": 1.0}).problems("train").take_unique(4)


def test_repeated_questions_are_dropped_and_counted():
    task = Listed(["a", "b", "a", "a"], shares={"train": 1.0})
    assert [(p.prompt, p.answer) for p in task.rows("train")] == [("a", "0"), ("b", "1")]
    assert task.num_duplicates == 2


def test_explicit_test_questions_are_dropped_from_train():
    task = Listed(["a", "b", "c", "b"], ["b", "x", "b"])
    assert [p.prompt for p in task.rows("train")] == ["a", "c"]
    assert [p.prompt for p in task.rows("test")] == ["b", "x"]
    assert task.num_overlapping == 2
    assert task.num_duplicates == 1
    assert {p.prompt for p in task.problems("test").take(2)} == {"b", "x"}


def test_a_finite_task_travels_without_its_rows_and_finds_them_again():
    task = Listed([f"a long question number {i}" for i in range(500)], shares={"train": 1.0})
    before = task.problems("train").take(3)
    task.prompts = tuple(task.prompts)
    sent = pickle.dumps(task)
    assert len(sent) < 20_000  # the prompts themselves, but not 500 problems
    assert pickle.loads(sent).problems("train").take(3) == before


def test_empty_split_is_refused():
    with pytest.raises(ValueError, match="no problems in split 'pretrain'"):
        Listed(["a"], shares={"train": 1.0}).problems("pretrain")
    with pytest.raises(ValueError, match="no problems in split 'test'"):
        Coins(shares={"train": 1.0}).problems("test")


def test_unknown_split_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'train'"):
        TASKS.build("chain").problems("trian")


@pytest.mark.parametrize("shares", [{"train": 0.5}, {"train": 1.5, "test": -0.5}])
def test_shares_must_add_up(shares):
    with pytest.raises(ValueError, match="add up to 1"):
        TASKS.build("chain", shares=shares)


def test_a_task_without_demonstrations_says_so():
    with pytest.raises(ValueError, match="writes no demonstrations"):
        Coins().demonstration(Problem(prompt="coin 1", answer="1"), random.Random(0), "clean")
