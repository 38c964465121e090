import pytest

from r1.turns import after_thinking, split_turn, thinking

GOOD = "<think>2 + 2 = 4</think>\n<answer> 4 </answer>\n"


def test_a_turn_in_the_format_is_taken_apart():
    turn = split_turn(GOOD)
    assert (turn.think, turn.answer, turn.well_formed) == ("2 + 2 = 4", "4", True)


@pytest.mark.parametrize(
    "turn",
    [
        GOOD + "trailing garbage",
        GOOD + "<answer>5</answer>",
        GOOD + "<think>again</think>",
        GOOD.replace("</answer>", ""),
        GOOD.replace("</think>", ""),
        GOOD.replace("<think>", ""),
        "first " + GOOD,
        "<think>2 + 2 = 4</think> so <answer>4</answer>",
        "<answer>4</answer><think>2 + 2 = 4</think>",
        "<think>a<answer>4</think></answer>",
        "<answer><think>a</think>4</answer>",
        "</think><think><answer>4</answer>",
        "<think>a</think></answer>4<answer>",
        "4",
        "",
    ],
)
def test_a_turn_out_of_the_format_is_not_well_formed(turn):
    assert not split_turn(turn).well_formed


def test_tags_on_one_line_and_on_lines_of_their_own_are_both_well_formed():
    assert split_turn("<think>a</think><answer>b</answer>").well_formed
    assert split_turn("<think>\na\n</think>\n<answer>\nb\n</answer>").well_formed


def test_a_missing_closing_tag_is_accepted_only_when_it_was_the_stop_string():
    turn = "<think>a</think><answer>4"
    assert not split_turn(turn).well_formed
    assert split_turn(turn).answer is None
    assert split_turn(turn, stop_stripped=True).well_formed
    assert split_turn(turn, stop_stripped=True).answer == "4"
    assert not split_turn("<think>a</think><answer>4<answer>5", stop_stripped=True).well_formed


def test_without_answer_tags_the_answer_is_what_follows_the_thinking():
    turn = split_turn("<think>a</think>\n\nIt is \\boxed{4}.", answer_tags=False)
    assert (turn.answer, turn.well_formed) == ("It is \\boxed{4}.", True)
    assert not split_turn("<think>a</think>\n", answer_tags=False).well_formed
    assert not split_turn(GOOD, answer_tags=False).well_formed


@pytest.mark.parametrize(
    ("turn", "inside", "outside"),
    [
        ("<think>a</think>b", "a", "b"),
        ("<think>a", "a", None),  # cut before the thinking ended
        ("a</think>b", "a", "b"),  # the opening tag was in the prompt
        ("b", None, "b"),
        ("<think>a</think>b<think>c", "a", "b"),
        ("<think>a</think>b<think>c</think>d", "a", "d"),
        ("<think>\n\n</think>\n\nb", "\n\n", "\n\nb"),
    ],
)
def test_thinking_and_what_follows_it(turn, inside, outside):
    assert thinking(turn) == inside
    assert after_thinking(turn) == outside
