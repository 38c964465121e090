import pickle

import pytest

from r1.tasks import TASKS
from r1.tasks.gym import is_harmless

pytest.importorskip("reasoning_gym")


@pytest.mark.parametrize("dataset", ["basic_arithmetic", "spell_backward", "countdown", "leg_counting"])
def test_gold_answers_score_one_and_others_zero(dataset):
    task = TASKS.build("gym", dataset=dataset)
    assert task.name == dataset and task.isolated
    for problem in task.problems("train").take(10):
        assert task.verify(problem, problem.answer) == 1.0
        assert task.verify(problem, "no idea") == 0.0


def test_settings_reach_the_data_set():
    task = TASKS.build("gym", dataset="basic_arithmetic", options={"min_terms": 6, "max_terms": 6})
    assert all(p.metadata["entry"]["metadata"]["num_terms"] == 6 for p in task.problems("train").take(10))


def test_problems_depend_on_seed_and_position_alone():
    first = TASKS.build("gym", dataset="leg_counting")
    second = pickle.loads(pickle.dumps(first))
    assert first.problems("test", 2).take(5) == second.problems("test", 2).take(5)


def test_partial_credit_is_off_unless_asked_for():
    # The library scores a sentence holding the answer by len(answer) / len(sentence).
    strict = TASKS.build("gym", dataset="leg_counting")
    lenient = TASKS.build("gym", dataset="leg_counting", partial_credit=True)
    problem = strict.problems("train").take(1)[0]
    text = f"{problem.answer} legs"
    assert strict.verify(problem, text) == 0.0
    assert lenient.verify(problem, text) == pytest.approx(len(problem.answer) / len(text))


def test_a_scorer_that_raises_counts_as_wrong():
    task = TASKS.build("gym", dataset="prime_factorization")
    assert task.verify(task.problems("train").take(1)[0], "zzz") == 0.0


@pytest.mark.parametrize("dataset", ["countdown", "puzzle24", "n_queens", "spiral_matrix", "polynomial_multiplication"])
def test_answers_cannot_run_code_in_scorers_that_evaluate(dataset, tmp_path):
    task = TASKS.build("gym", dataset=dataset)
    problem = task.problems("train").take(1)[0]
    target = tmp_path / "ran"
    assert task.verify(problem, f"open({str(target)!r}, 'w')") == 0.0
    assert task.verify(problem, f"[open({str(target)!r}, 'w')]") == 0.0
    assert not target.exists()


@pytest.mark.parametrize(
    "text",
    [
        "exit()",
        "exit ()",
        "(exit)()",
        "[exit][0]()",
        "().__class__",
        "x.y",
        "xsin(1)",
        "exit\\\n()",
        "exit#\n()",
        "(lambda: 1)",
        "'a' 'b'('c')",
        "sin(exit())",
        "1" * 3000,
    ],
)
def test_harmful_text_is_recognised(text):
    assert not is_harmless(text)


@pytest.mark.parametrize(
    "text", ["3*(4+5)", "sin(x)*exp(2*x) + C", "x**2 - 0.5*log(x)", "[[1, 2], [3, 4]]", "['a','b']"]
)
def test_formulas_and_literals_pass(text):
    assert is_harmless(text)


def test_mistakes_of_the_user_are_named():
    with pytest.raises(ValueError, match="Did you mean 'leg_counting'"):
        TASKS.build("gym", dataset="leg_countin")
    with pytest.raises(ValueError, match=r"no option 'min_term'\. Did you mean 'min_terms'"):
        TASKS.build("gym", dataset="basic_arithmetic", options={"min_term": 3})
    with pytest.raises(ValueError, match=r"refuses options=.* with size=100000: Dataset size too large"):
        TASKS.build("gym", dataset="word_ladder")
    assert len(TASKS.build("gym", dataset="word_ladder", size=500).problems("train").take(3)) == 3
