import pytest

from r1.chains import REFLECTION_WORDS, has_reflection, reflection_counts, split_steps


@pytest.mark.parametrize(
    ("think", "steps"),
    [
        ("", []),
        ("First.\nstill first\n\nSecond.", ["First.\nstill first", "Second."]),
        ("3 + 4 = 7\n7 * 2 = 14\n", ["3 + 4 = 7", "7 * 2 = 14"]),
        ("Half of 5 is 2.5. So 2.5 + 1 = 3.5.", ["Half of 5 is 2.5.", "So 2.5 + 1 = 3.5."]),
        ("1. Add. 2. Double.", ["1. Add.", "2. Double."]),
        ("\u5148\u52a0\u3002\u518d\u4e58\u3002", ["\u5148\u52a0\u3002", "\u518d\u4e58\u3002"]),
    ],
)
def test_steps_end_at_the_coarsest_boundary_present(think, steps):
    assert split_steps(think) == steps


def test_reflection_words_are_counted_whole_and_in_any_case():
    counts = reflection_counts("Wait, wait. WAIT! But I am waiting; the button is checked.")
    assert counts["wait"] == 3
    assert counts["but"] == 1  # not in "button"
    assert counts["check"] == 0  # "checked" is another word
    assert tuple(counts) == REFLECTION_WORDS


def test_reflection_is_noticed_for_the_words_asked_for():
    assert has_reflection("However, no.")
    assert not has_reflection("2 + 2 = 4")
    assert not has_reflection("However, no.", words=("wait",))
