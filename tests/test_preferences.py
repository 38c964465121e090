import json

import pytest
import torch

from r1.data.preferences import (
    PreferenceDataset,
    PreferenceLoader,
    PreferencePair,
    build_pairs,
    collate_pairs,
    read_preferences,
    split_pairs,
    write_preferences,
)
from r1.models.tokenizer import byte_tokenizer
from r1.types import Completion, Problem, Prompt, Rollout, RolloutGroup


def group(prompt, *turns):
    """A group of (turn, score) under one reward, `accuracy`."""
    problem = Problem(prompt=prompt, answer="8", task="chain")
    rollouts = tuple(Rollout(completion=Completion(text=t), rewards={"accuracy": s}) for t, s in turns)
    return RolloutGroup(prompt=Prompt(problem=problem, text=prompt, token_ids=(1,)), rollouts=rollouts)


def texts(pairs):
    return [(pair.chosen, pair.rejected) for pair in pairs]


def encode(tokenizer):
    return lambda prompt, text: (tokenizer.encode(prompt), [*tokenizer.encode(text), tokenizer.eos_token_id])


# --------------------------------------------------------------------------------------------------- from rollouts


def test_chosen_is_right_and_rejected_is_wrong_and_the_thinking_is_left_out():
    groups = [group("6A+2:", ("<think>6A+2=8</think><answer>8</answer>", 1.0), ("<think>x</think>7", 0.0))]
    (pair,) = build_pairs(groups)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("6A+2:", "<answer>8</answer>", "7")
    assert pair.problem == groups[0].prompt.problem and pair.source == "accuracy"
    (whole,) = build_pairs(groups, part="response")
    assert whole.chosen == "<think>6A+2=8</think><answer>8</answer>"


def test_what_the_template_prefilled_belongs_to_the_turn():
    problem = Problem(prompt="p", answer="8")
    rollouts = tuple(
        Rollout(completion=Completion(text=text, prefill="<think>"), rewards={"accuracy": score})
        for text, score in (("a</think>8", 1.0), ("b</think>7", 0.0))
    )
    prompt = Prompt(problem=problem, text="p<think>", token_ids=(1,), prefill="<think>")
    assert texts(build_pairs([RolloutGroup(prompt=prompt, rollouts=rollouts)])) == [("8", "7")]


def test_what_cannot_be_compared_makes_no_pair():
    # Without a summary, unscored, of equal score, and the same text twice.
    turns = [("<think>6", 0.0), ("9", None), ("8", 1.0), ("8.", 1.0), ("8", 1.0)]
    assert build_pairs([group("p", *turns)]) == []
    assert texts(build_pairs([group("p", *turns, ("7", 0.0), ("7", 0.0))])) == [("8", "7"), ("8.", "7")]


def test_a_text_whose_scores_differ_is_left_out():
    # "8" was right once and wrong once, for reasons that the summary does not show.
    turns = [("<think>a</think>8", 1.0), ("<think>b</think>8", 0.0), ("<think>a</think>9", 1.0), ("7", 0.0)]
    assert texts(build_pairs([group("p", *turns)])) == [("9", "7")]


def test_no_problem_has_more_than_its_share_of_pairs():
    turns = [("8", 1.0), *((str(i), 0.0) for i in range(8))]
    assert len(build_pairs([group("p", *turns), group("q", *turns)], num_pairs=3)) == 6
    with pytest.raises(ValueError, match="num_pairs must be at least 1"):
        build_pairs([], num_pairs=0)


def test_lengths_balance_within_pairs_and_over_the_data():
    # Of the wrong ones, the one as long as the right one is taken.
    assert texts(build_pairs([group("p", ("888", 1.0), ("7", 0.0), ("777", 0.0), ("77777", 0.0))], num_pairs=1)) == [
        ("888", "777")
    ]
    # No pair is balanced by itself: the first may be longer, then the second is shorter.
    turns = [("888", 1.0), ("7", 0.0), ("77777", 0.0)]
    pairs = build_pairs([group("p", *turns), group("q", *turns)], num_pairs=1)
    assert sum(len(p.chosen) - len(p.rejected) for p in pairs) == 0


def test_right_answers_that_are_all_shorter_do_not_win_by_length():
    groups = [group(str(i), ("8" * (1 + i % 3), 1.0), *(("7" * n, 0.0) for n in range(1, 8))) for i in range(30)]
    pairs = build_pairs(groups, num_pairs=2)
    assert len(pairs) == 60
    assert abs(sum(len(p.chosen) - len(p.rejected) for p in pairs)) <= 2
    longer = sum(len(p.chosen) > len(p.rejected) for p in pairs)
    shorter = sum(len(p.chosen) < len(p.rejected) for p in pairs)
    assert abs(longer - shorter) <= 20


def test_a_reward_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"by: no reward 'acuracy'. Did you mean 'accuracy'"):
        build_pairs([group("p", ("8", 1.0))], by="acuracy")
    with pytest.raises(ValueError, match=r"part: found 'answer'. Parts: summary, response"):
        build_pairs([], part="answer")


def test_no_question_is_both_trained_on_and_held_out():
    pairs = [PreferencePair(prompt=str(i % 200), chosen="a", rejected="b") for i in range(600)]
    train, held_out = split_pairs(pairs, 0.25)
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}
    assert len(train) + len(held_out) == 600
    assert 0.12 < len(held_out) / 600 < 0.38  # four standard deviations of a quarter of 200 questions
    assert split_pairs(pairs, 0.0) == (pairs, [])
    with pytest.raises(ValueError, match=r"held_out must be in \[0, 1\), found 1"):
        split_pairs(pairs, 1)


# ----------------------------------------------------------------------------------------------------------- files


def test_pairs_come_back_from_their_file(tmp_path):
    problem = Problem(prompt="6A+2:", answer="8", index=3, task="chain", metadata={"num_operations": 1})
    pairs = [
        PreferencePair(prompt="6A+2:", chosen="8", rejected="\u4e03", problem=problem, source="accuracy"),
        PreferencePair(prompt="q", chosen="a", rejected="b"),
    ]
    assert read_preferences(write_preferences(tmp_path / "new" / "pairs.jsonl", pairs)) == pairs
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["pairs.jsonl"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "pairs.jsonl:2: expected text in 'rejected', found prompt, chosen"),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "pairs.jsonl:2: expected text in 'chosen', found int '3'"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "pairs.jsonl:2: expected text in 'prompt'"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "pairs.jsonl:2: expected two different texts"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "problem": 3}, "pairs.jsonl:2: expected an object with 'prom"),
        (["p"], "pairs.jsonl:2: expected a JSON object, found a list"),
    ],
)
def test_a_broken_line_is_named_and_skipped_only_when_asked(tmp_path, row, message):
    file = tmp_path / "pairs.jsonl"
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    file.write_text("\n".join(json.dumps(r) for r in (good, row, good)))
    with pytest.raises(ValueError, match=message):
        read_preferences(file)
    with pytest.warns(UserWarning, match="1 broken lines left out"):
        assert len(read_preferences(file, broken_lines="skip")) == 2


def test_a_file_without_pairs_is_refused(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="expected one preference pair a line, found none"):
        read_preferences(tmp_path / "pairs.jsonl")


# --------------------------------------------------------------------------------------------------------- batches


def test_a_batch_holds_all_chosen_then_all_rejected():
    tokenizer = byte_tokenizer()
    pairs = [
        PreferencePair(prompt="p", chosen="aa", rejected="b"),
        PreferencePair(prompt="q:", chosen="c", rejected=""),
    ]
    dataset = PreferenceDataset(pairs, encode=encode(tokenizer), pad_id=tokenizer.pad_token_id)
    batch = collate_pairs([dataset[0], dataset[1]], tokenizer.pad_token_id)
    assert batch.prompt_lengths.tolist() == [1, 2, 1, 2]
    rows = [row[: int(n)] for row, n in zip(batch.input_ids, batch.prompt_lengths + batch.mask.sum(1), strict=True)]
    end = tokenizer.eos_token
    assert [tokenizer.decode(row) for row in rows] == [f"paa{end}", f"q:c{end}", f"pb{end}", f"q:{end}"]


def test_batches_continue_exactly_where_a_loader_stopped():
    tokenizer = byte_tokenizer()
    pairs = [PreferencePair(prompt=f"{i}", chosen=f"a{i}", rejected=f"b{i}") for i in range(20)]
    dataset = PreferenceDataset(pairs, encode=encode(tokenizer), pad_id=tokenizer.pad_token_id)
    whole = PreferenceLoader(dataset, batch_size=4, seed=1)
    batches = [*whole, *whole]
    resumed = PreferenceLoader(dataset, batch_size=4)
    resumed.load_state_dict({"seed": 1, "position": 3})
    rest = [*resumed, *resumed]
    assert len(batches) == 10 and len(rest) == 7
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(batches[3:], rest, strict=True))
