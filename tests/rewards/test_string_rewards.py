from dataclasses import dataclass

import pytest

from r1.rewards import REWARDS, extract_answer, language_consistency, repetition_penalty
from r1.types import Completion, Problem

GOOD = "<think>two and two make four</think>\n<answer>4</answer>"
PROBLEM = Problem(prompt="2 + 2?", answer="4")


@dataclass(frozen=True)
class Exact:
    name: str = "exact"

    def verify(self, problem, answer_text):
        return None if not problem.answer else float(answer_text == problem.answer)


def score(name, *texts, **options):
    reward = REWARDS.build(name, **options)
    completions = [Completion(text=text) if isinstance(text, str) else text for text in texts]
    return reward(completions, [PROBLEM] * len(completions))


@pytest.mark.parametrize(
    "text",
    [
        GOOD + "\ngarbage",
        GOOD + "\n" + GOOD,
        GOOD + "\n<answer>\n5\n</answer>",
        "<think>\na\n</think>\n" + GOOD,
        # What re.match with MULTILINE and DOTALL lets through, because $ matches at any line end:
        "<think>\na\n</think>\n<answer>\n4\n</answer>\ngarbage",
        "<think>\na\n</think>\n<answer>\n4\n</answer>\n<answer>\n5\n</answer>",
        "<answer>4</answer>",
    ],
)
def test_format_refuses_trailing_text_and_second_blocks(text):
    assert score("format", text) == [0.0]


def test_format_accepts_a_turn_whose_think_tag_was_prefilled():
    rest = GOOD.removeprefix("<think>")
    assert score("format", GOOD, Completion(text=rest, prefill="<think>"), rest) == [1.0, 1.0, 0.0]
    assert score("format", Completion(text=GOOD, prefill="<think>")) == [0.0]  # opened twice


def test_format_forgives_a_stripped_stop_string_only_to_completions_that_stopped():
    text = GOOD.removesuffix("</answer>")
    stopped, cut = Completion(text=text), Completion(text=text, finish_reason="length")
    assert score("format", stopped, cut) == [0.0, 0.0]
    assert score("format", stopped, cut, stop_stripped=True) == [1.0, 0.0]


def test_tag_count_gives_a_quarter_for_each_tag_that_occurs_once():
    assert score("tag_count", GOOD, "<think>a</think>", "4", GOOD + "<answer>5</answer>") == [1.0, 0.5, 0.0, 0.5]
    assert score("tag_count", Completion(text="a</think>", prefill="<think>")) == [0.5]


@pytest.mark.parametrize(
    ("turn", "extraction", "answer"),
    [
        (GOOD, "auto", "4"),
        (GOOD, "answer_tag", "4"),
        (GOOD, "boxed", None),
        ("<think>\\boxed{5}</think> so \\boxed{4}", "boxed", "4"),
        ("<think>\\boxed{4}</think> so it is", "boxed", None),
        ("<think>\\boxed{4}</think> so it is", "answer_tag", None),
        ("<think>a<answer>4</answer>", "auto", None),  # the thinking never ended
        (
            "<think>a</think>\\boxed{3} or rather \\boxed{\\frac{1}{2}}",
            "auto",
            "3, \\frac{1}{2}",
        ),  # a list, right if asked
        ("<think>a</think>\\boxed{\\{1, 2\\}}", "boxed", "\\{1, 2\\}"),
        ("<think>a</think>\\boxed{4} then \\boxed{}", "boxed", None),
        ("<think>a</think>\\boxed{4} then \\boxed{5", "auto", None),
        ("<think>a</think><answer>It is \\boxed{4}.</answer>", "auto", "4"),
        ("<think>a</think><answer>It is \\boxed{4}.</answer>", "answer_tag", "It is \\boxed{4}."),
        ("<think>a</think><answer>5</answer><answer>4</answer>", "auto", None),
        ("<think>a</think><answer>5</answer><answer>4</answer>", "answer_tag", None),
        ("<think>a</think><answer>4</answer> that is <answer> 4 </answer>", "auto", "4"),
        ("<think>a</think>So the answer is $4$. Check: 2 + 2.", "auto", "$4$"),
        ("<think>a</think>**Answer:** 4", "auto", "4"),
        ("<think>a</think>The answer is 3. No, the answer is 4.", "auto", "The answer is 3. No, the answer is 4."),
        ("The answer is 3. Wait, that is wrong. The answer is 4.", "auto", "4"),
        ("The answer is 3. Or maybe 4.", "auto", "The answer is 3. Or maybe 4."),
        ("Final Answer: The final answer is $4$. I hope it is correct.", "auto", "$4$"),
        ("A) 3 or B) 4?\nLet me go through each option:\n- A is odd.\nSo the correct option is B.", "auto", "B"),
        ("<think>a</think>2 and 2 make 4. So there are 4 apples.", "auto", "4"),
        ("<think>a</think>So there are 4 or 5 apples.", "auto", "So there are 4 or 5 apples."),
        ("<think>a</think>There are 4 apples.", "auto", "There are 4 apples."),  # no conclusion
        ("<think>a</think><answer>There are 4 apples.</answer>", "auto", "4"),
        ("<think>a</think><answer>print(int('4'))</answer>", "auto", "print(int('4'))"),
        ("Option C looks tempting. Hence, option A is correct.", "auto", "A"),
        ("Option C is correct. Option A is correct.", "auto", "Option C is correct. Option A is correct."),
        ("Option C is not correct.", "auto", "Option C is not correct."),
        ("2x = 8\n\u2234 x = 4", "auto", "x = 4"),
        ("### Answer\n9.6 N", "auto", "9.6 N"),
        ("Thus, the day will be Tuesday.", "auto", "Tuesday"),
        ("Thus, the day will not be Tuesday.", "auto", "Thus, the day will not be Tuesday."),
        ("$6 \\cdot 2$\n$= 12$", "auto", "12"),
        ("\u7b54\u6848\u662f60\u3002", "auto", "60"),
        ("Die Antwort lautet 7.", "auto", "7"),
        ("<think>a</think><answer>4</answer> \\boxed{5}", "auto", None),
        ("<think>a</think><answer>14</answer> \\boxed{4}", "auto", None),
        ("<think>a</think><answer>$4$</answer> \\boxed{4}", "auto", "$4$"),
        ("<think>a</think><answer>The answer is 4.</answer> \\boxed{4}", "auto", "4"),
        ("<think>a</think>The train arrives at **10:20**.", "auto", "10:20"),
        ("<think>a</think>2 + 2 = 4\n#### 4", "auto", "4"),
        ("<think>a</think><answer>4", "auto", None),
        (" 4 ", "auto", "4"),
        (" 4 ", "text", "4"),
        (" 4 ", "answer_tag", None),
        ("<think>4</think>", "text", None),
    ],
)
def test_the_answer_is_taken_from_outside_the_thinking(turn, extraction, answer):
    assert extract_answer(turn, extraction) == answer


def test_accuracy_is_the_verifiers_verdict():
    assert score("accuracy", GOOD, "<think>4</think>", "5", task=Exact()) == [1.0, 0.0, 0.0]


def test_accuracy_is_none_when_the_gold_answer_is_unusable_even_without_an_answer():
    reward = REWARDS.build("accuracy", task=Exact())
    unusable = Problem(prompt="2 + 2?", answer="")
    assert reward([Completion(text=GOOD), Completion(text="<think>")], [unusable] * 2) == [None, None]


def test_accuracy_reads_an_answer_whose_closing_tag_was_the_stop_string():
    text = GOOD.removesuffix("</answer>")
    cut = Completion(text=text, finish_reason="length")
    assert score("accuracy", text, task=Exact()) == [0.0]
    assert score("accuracy", text, cut, task=Exact(), stop_stripped=True) == [1.0, 0.0]


def test_accuracy_runs_isolated_when_its_task_asks_for_it():
    assert REWARDS.build("accuracy", task=Exact()).isolated is False
    isolated = Exact()
    object.__setattr__(isolated, "isolated", True)
    assert REWARDS.build("accuracy", task=isolated).isolated is True


def test_accuracy_refuses_an_unknown_extraction():
    with pytest.raises(ValueError, match="Did you mean 'boxed'"):
        REWARDS.build("accuracy", task=Exact(), extraction="boxd")


@pytest.mark.parametrize(
    ("text", "target", "share"),
    [
        ("so we add two and three \u7136\u540e\u4e58", "en", 6 / 9),  # 6 English words, 3 Han characters
        ("so we add two and three \u7136\u540e\u4e58", "zh", 3 / 9),
        ("one two three four five six seven \u4e00\u4e8c\u4e09", "en", 0.7),  # 7 of 10
        ("\u8bbe x = 3, \\frac{y}{2} = 4", "zh", 1.0),  # variables, numbers and LaTeX are no words
        ("I don't know a thing", "en", 1.0),
        ("hello \u043c\u0438\u0440", "en", 0.5),  # a Cyrillic word is of neither language
        ("3 + 4 = 7", "en", None),
        ("", "zh", None),
    ],
)
def test_language_consistency_is_the_share_of_words_in_the_target_language(text, target, share):
    assert language_consistency(text, target) == (None if share is None else pytest.approx(share, abs=1e-15))


def test_the_language_reward_reads_the_chain_of_thought_only():
    turn = "<think>all in English</think><answer>\u56db</answer>"
    assert score("language", turn) == [1.0]
    assert score("language", "<think>\u56db</think><answer>four</answer>") == [0.0]
    assert score("language", "three words here") == [1.0]


def test_an_empty_chain_of_thought_is_not_the_most_consistent_one():
    assert score("language", "<think></think><answer>four</answer>") == [0.0]
    assert score("language", "<think>3 + 4</think>", no_words=1.0) == [1.0]


def test_reasoning_steps_count_once_each():
    think = "<think>a = 1\nb = 2\nb = 2\nb = 2</think><answer>c\nd\ne</answer>"
    assert score("reasoning_steps", think, "4", num_steps=4) == [0.5, 0.0]
    assert score("reasoning_steps", think, num_steps=2) == [1.0]


def test_repetition_is_the_share_of_repeated_ngrams():
    # "a b a b a": trigrams aba bab aba, 2 of 3 distinct, so -(1 - 2/3)
    assert repetition_penalty("a b a b a") == pytest.approx(-1 / 3, abs=1e-15)
    assert repetition_penalty("a b c d e") == 0.0
    assert repetition_penalty("a b") == 0.0
    assert repetition_penalty("\u54c8" * 6, ngram_size=2, max_penalty=-2.0) == pytest.approx(-1.6)  # 1 of 5 distinct
    assert score("repetition", "a b a b a", max_penalty=-3.0) == [pytest.approx(-1.0)]


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("language", {"target": "fr"}, "target"),
        ("reasoning_steps", {"num_steps": 0}, "num_steps"),
        ("repetition", {"ngram_size": 0}, "ngram_size"),
        ("repetition", {"max_penalty": 1.0}, "max_penalty"),
    ],
)
def test_impossible_options_name_their_key(name, options, key):
    with pytest.raises(ValueError, match=rf"reward\.{name}\.{key}"):
        REWARDS.build(name, **options)


@pytest.mark.parametrize(
    ("turn", "score"),
    [
        ("<answer>7</answer>", 1.0),
        ("<think>a</think><answer>7</answer>\n", 1.0),
        ("6A-2=4</think><answer>7</answer>", 1.0),  # the thinking is not judged
        ("<think>a<answer>7</answer>", 0.0),  # it never ends
        ("7", 0.0),
        ("<think>a</think>7</answer>", 0.0),
        ("<answer>6</answer><answer>7</answer>", 0.0),
        ("well, <answer>7</answer>", 0.0),
    ],
)
def test_without_thinking_the_format_is_one_answer_block(turn, score):
    assert REWARDS.build("format", thinking=False)([Completion(text=turn)], []) == [score]
