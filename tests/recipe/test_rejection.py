"""Which completions rejection sampling keeps, on hand-made groups."""

import pytest

from r1.recipe.decontamination import Benchmarks
from r1.recipe.rejection import FILTERS, FilterCounts, RejectionSettings, judge, repeated_share
from r1.types import Completion, Problem, Prompt, Rollout, RolloutGroup

GOOD = "<think>one and one is two</think><answer>2</answer>"


def rollout(turn=GOOD, accuracy=1.0, finish="stop", tokens=5, seed=0):
    completion = Completion(text=turn, finish_reason=finish, token_ids=tuple(range(tokens)), seed=seed)
    return Rollout(completion=completion, rewards={"accuracy": accuracy}, reward=accuracy)


def group_of(*rollouts, question="1+1?"):
    problem = Problem(prompt=question, answer="2")
    return RolloutGroup(prompt=Prompt(problem=problem, text=question, token_ids=()), rollouts=rollouts)


def verdicts(*rollouts, question="1+1?", benchmarks=None, seen=None, **changes):
    return judge(group_of(*rollouts, question=question), RejectionSettings(**changes), benchmarks=benchmarks, seen=seen)


def think(text, answer="2"):
    return f"<think>{text}</think><answer>{answer}</answer>"


def test_a_correct_well_formed_completion_is_kept():
    assert verdicts(rollout()) == [None]


@pytest.mark.parametrize("score", [0.0, None, 0.5])
def test_wrong_unscored_and_half_right_answers_are_refused(score):
    assert verdicts(rollout(accuracy=score)) == ["correct"]
    assert verdicts(rollout(accuracy=score), correct=None) == [None]
    assert verdicts(rollout(accuracy=score), min_score=0.5) == [None if score == 0.5 else "correct"]


@pytest.mark.parametrize(
    "turn",
    [
        "<answer>2</answer>",
        "<think>one</think>2",
        "<think>one</think><answer>2</answer><answer>2</answer>",
        "<think>one</think><think>two</think><answer>2</answer>",
        "<answer>2</answer><think>one</think>",
        "<think>one<answer>2</answer>",
        "So: <think>one</think><answer>2</answer>",
    ],
)
def test_only_one_think_block_and_then_one_answer_is_well_formed(turn):
    assert verdicts(rollout(turn)) == ["well_formed"]
    assert verdicts(rollout(turn), well_formed=None) == [None]


def test_a_completion_that_was_cut_is_not_well_formed():
    assert verdicts(rollout(finish="length")) == ["well_formed"]


def test_boxed_answers_are_well_formed_when_only_thinking_is_asked_for():
    boxed = rollout("<think>one and one</think>\n\nIt is \\boxed{2}.")
    assert verdicts(boxed) == ["well_formed"]
    assert verdicts(boxed, well_formed="think") == [None]


def test_chains_of_mixed_languages_are_refused():
    # Two English words and two Han characters: 2 of 4 words are English. The answer's language does not count.
    mixed = think("one two \u4e00\u4e8c")
    assert verdicts(rollout(mixed), min_language=0.51) == ["language"]
    assert verdicts(rollout(mixed), min_language=0.5) == [None]
    assert verdicts(rollout(mixed), language=None) == [None]
    assert verdicts(rollout(think("one", "\u4e8c"))) == [None]
    assert verdicts(rollout(think("1+1=2")), min_language=1.0) == [None]  # no words at all


def test_repetition_is_the_share_of_ngrams_that_occurred_before():
    # a b a b a b has 5 bigrams, ab ba ab ba ab: 2 distinct, so 3 of 5 are repeats.
    assert repeated_share("a b a b a b", 2) == pytest.approx(0.6)
    assert repeated_share("a", 2) == 0.0
    assert verdicts(rollout(think("wait so " * 20))) == ["repetition"]
    assert verdicts(rollout(think("wait so " * 20)), max_repetition=None) == [None]


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({"max_tokens": 5}, True),
        ({"max_tokens": 4}, False),
        ({"min_tokens": 6}, False),
        ({"max_chars": len(GOOD)}, True),
        ({"max_chars": len(GOOD) - 1}, False),
        ({"min_chars": len(GOOD) + 1}, False),
    ],
)
def test_length_bounds_are_inclusive(bounds, kept):
    assert verdicts(rollout(), **bounds) == [None if kept else "length"]


def test_bounds_on_tokens_that_nobody_counted_are_an_error():
    with pytest.raises(ValueError, match=r"filters\.max_chars"):
        verdicts(rollout(tokens=0), max_tokens=10)
    assert verdicts(rollout(tokens=0), max_chars=100) == [None]


def test_duplicates_of_one_question_are_refused_exactly_or_normalised():
    a, b, c = rollout(think("one  two")), rollout(think("One two")), rollout(think("one  two"))
    assert verdicts(a, b, c) == [None, "unique", "unique"]
    assert verdicts(a, b, c, unique="exact") == [None, None, "unique"]
    assert verdicts(a, b, c, unique=None) == [None] * 3


def test_duplicates_are_those_of_the_same_question_over_all_groups():
    seen = set()
    assert verdicts(rollout(), question="1+1?", seen=seen) == [None]
    assert verdicts(rollout(), question="3-1?", seen=seen) == [None]
    assert verdicts(rollout(), question="1+1? ", seen=seen) == ["unique"]


def test_at_most_n_of_a_problem_are_kept_and_prefer_says_which():
    turns = [think("one two three"), think("one two"), think("one")]
    rollouts = [rollout(turn, seed=i) for i, turn in enumerate(turns)]
    assert verdicts(*rollouts, keep_per_problem=2) == [None, None, "per_problem"]
    assert verdicts(*rollouts, keep_per_problem=1, prefer="shortest") == ["per_problem", "per_problem", None]
    # sha256("0") = 5fec..., sha256("1") = 6b86..., sha256("2") = d473...: stream 0 comes first, in any order.
    assert verdicts(*reversed(rollouts), keep_per_problem=1, prefer="seed") == ["per_problem", "per_problem", None]
    assert verdicts(*rollouts, keep_per_problem=5) == [None] * 3


def test_refused_completions_do_not_use_up_the_problems_share():
    assert verdicts(rollout(accuracy=0.0), rollout(), keep_per_problem=1) == ["correct", None]


def test_questions_and_completions_that_overlap_a_benchmark_are_refused():
    benchmarks = Benchmarks(ngram_size=3)
    benchmarks.add("exam", ["How many apples are left?"])
    assert verdicts(rollout(), question="Say how many apples!", benchmarks=benchmarks) == ["decontaminated"]
    said = rollout(think("many apples are good"))
    assert verdicts(said, rollout(), benchmarks=benchmarks) == ["decontaminated", None]


def test_counts_say_what_every_filter_left():
    counts = FilterCounts()
    groups = [
        group_of(rollout(accuracy=None), rollout(accuracy=0.0), question="a"),
        group_of(rollout(accuracy=0.0), rollout("<answer>2</answer>"), question="b"),
        group_of(rollout(), rollout(), question="c"),
    ]
    for group in groups:
        counts.add(group, judge(group, RejectionSettings()))
    left = {row["filter"]: (row["num_refused"], row["num_completions"], row["num_problems"]) for row in counts.report()}
    # Problem a ends at `correct`, problem b at `well_formed`; of c's two equal completions one is left.
    assert left == {
        "sampled": (0, 6, 3),
        "correct": (3, 3, 2),
        "well_formed": (1, 2, 1),
        **dict.fromkeys(("language", "repetition", "length", "decontaminated"), (0, 2, 1)),
        "unique": (1, 1, 1),
        "per_problem": (0, 1, 1),
    }
    assert (counts.num_kept, counts.num_unscored, counts.num_tokens) == (1, 1, 30)
    assert tuple(left) == ("sampled", *FILTERS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"well_formed": "answers"}, r"filters\.well_formed: found 'answers'\. Did you mean 'answer'"),
        ({"language": "de"}, r"filters\.language: .*en, zh, null"),
        ({"prefer": "short"}, "Did you mean 'shortest'"),
        ({"keep_per_problem": 0}, "keep_per_problem must be at least 1"),
        ({"repetition_ngram": 0}, "repetition_ngram"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RejectionSettings(**changes)


def test_an_unknown_reward_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"filters\.correct: no reward 'acuracy'\. Did you mean 'accuracy'"):
        verdicts(rollout(), correct="acuracy")
