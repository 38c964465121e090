"""Trace files as open-r1, OpenThoughts and s1 publish them. The rows are our own, in their shapes."""

import json

import pytest

from r1.data.formats import check_trace, read_traces, trace_of
from r1.data.traces import FileTraces
from r1.models import byte_tokenizer
from r1.types import Problem, Trace

TURN = "<think>\n1 and 1\n</think>\n\nIt is \\boxed{2}."
ROWS = {
    "open-r1": {
        "problem": "1+1?",
        "solution": "Add them: \\boxed{2}",
        "answer": "2",
        "source": "sums",
        "messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": TURN}],
    },
    "OpenThoughts, markers": {
        "system": "Write <|begin_of_thought|> ... <|end_of_thought|>, then <|begin_of_solution|>.",
        "conversations": [
            {"from": "user", "value": "1+1?"},
            {
                "from": "assistant",
                "value": "<|begin_of_thought|>\n\n1 and 1\n\n<|end_of_thought|>\n\n"
                "<|begin_of_solution|>\n\nIt is \\boxed{2}.\n\n<|end_of_solution|>",
            },
        ],
    },
    "OpenThoughts, tags": {"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": TURN}]},
    "s1K": {
        "question": "1+1?",
        "solution": "Add them: \\boxed{2}",
        "thinking_trajectories": ["1 and 1"],
        "attempt": "It is \\boxed{2}.",
    },
    "s1K-1.1": {
        "question": "1+1?",
        "deepseek_thinking_trajectory": "1 and 1\n",
        "deepseek_attempt": "It is \\boxed{2}.",
    },
}


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("name", ROWS)
def test_every_shape_gives_the_same_question_and_turn(name):
    trace = trace_of(ROWS[name])
    assert (trace.prompt, trace.completion) == ("1+1?", TURN)
    check_trace(trace, shape="think")


def test_question_and_gold_answer_beside_a_conversation_are_the_problem():
    assert trace_of(ROWS["open-r1"]).problem == Problem(prompt="1+1?", answer="2")
    assert trace_of(ROWS["open-r1"]).source == "sums"
    assert trace_of(ROWS["s1K"]).problem == Problem(prompt="1+1?", answer="2")
    assert trace_of(ROWS["s1K-1.1"]).problem == Problem(prompt="1+1?", answer="")
    assert trace_of(ROWS["OpenThoughts, tags"]).problem is None


@pytest.mark.parametrize("name", ROWS)
def test_every_shape_goes_through_a_chat_template(name, tmp_path):
    tokenizer = byte_tokenizer()
    first = FileTraces(tokenizer, path=write(tmp_path / "t.jsonl", ROWS[name]))[0]
    assert tokenizer.decode(first.prompt_ids) == "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(first.completion_ids) == TURN + tokenizer.eos_token


def test_a_system_message_that_is_not_about_markers_stays(tmp_path):
    tokenizer = byte_tokenizer()
    row = ROWS["OpenThoughts, tags"] | {"system": "Be brief."}
    first = FileTraces(tokenizer, path=write(tmp_path / "t.jsonl", row))[0]
    assert "Be brief." in tokenizer.decode(first.prompt_ids)


def test_an_opening_tag_that_the_generation_prompt_wrote_is_put_back():
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "1 and 1\n</think>\n\n2"}]
    assert trace_of({"messages": messages}).completion == "<think>1 and 1\n</think>\n\n2"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": "hello"}, "expected a list of turns in 'conversations'"),
        ({"conversations": [{"from": "human", "value": "q"}]}, r"the last by the assistant, found \['user'\]"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": None}]}, "role and content"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]}, "found nothing"),
        (ROWS["s1K"] | {"attempt": None}, "expected text in 'attempt'"),
        (ROWS["s1K"] | {"thinking_trajectories": []}, "expected text in 'thinking_trajectories'"),
        ({"deepseek_thinking_trajectory": "t", "deepseek_attempt": "a"}, "expected text in 'question'"),
        (ROWS["open-r1"] | {"problem": 3}, "expected an object with 'prompt' in 'problem'"),
    ],
)
def test_broken_rows_are_named_by_file_and_line_and_left_out_only_when_asked(tmp_path, row, message):
    path = write(tmp_path / "t.jsonl", ROWS["open-r1"], row)
    with pytest.raises(ValueError, match=rf"t\.jsonl:2: .*{message}"):
        read_traces(path)
    with pytest.warns(UserWarning, match=r"1 broken lines left out; the first: .*t\.jsonl:2"):
        assert len(read_traces(path, broken_lines="skip")) == 1


# --------------------------------------------------------------------------------------------------- what it must be


def check(turn, **options):
    check_trace(Trace(prompt="q", completion=turn), where="t.jsonl:1", **options)


def test_turns_of_the_shape_that_is_asked_for_pass():
    check("2")
    check("<think>1</think>2", shape="think")
    check("<think>1</think><answer>2</answer>", shape="answer")
    check("<think>a draft: <answer>1</answer></think><answer>2</answer>")
    check("<think>1</think>2<|im_end|>", shape="think", eos_token="<|im_end|>")


@pytest.mark.parametrize(
    ("turn", "shape", "message"),
    [
        ("It is 2.", "think", "expected <think>...</think> and then an answer.* found no tags in 'It is 2.'"),
        ("<reasoning>1</reasoning>2", "think", "found <reasoning>, </reasoning> in"),
        ("<|begin_of_thought|>1", "think", "found <|begin_of_thought|> in"),
        ("<think>1</think>", "think", "and then an answer"),
        ("<think>1", "think", "found <think> in '<think>1'"),
        ("<think>1</think>2", "answer", "and then <answer>...</answer>"),
        ("<think>1</think><answer>2</answer><answer>3</answer>", "any", "expected one answer, found 2"),
        ("2<|im_end|>\n<|im_start|>user\nmore", "any", "holds '<|im_start|>'"),
        ("[INST] 1+1? [/INST] 2", "any", r"holds '\[INST\]'"),
    ],
)
def test_turns_of_another_shape_are_refused_by_name(turn, shape, message):
    with pytest.raises(
        ValueError, match="t.jsonl:1: .*" + message.replace("|", r"\|").replace(".", r"\.").replace(r"\.*", ".*")
    ):
        check(turn, shape=shape)


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="any, think, answer"):
        check("2", shape="thinking")


def test_a_file_with_nothing_left_after_leaving_out_is_an_error(tmp_path):
    path = write(tmp_path / "t.jsonl", {"prompt": "q", "completion": "2"})
    with pytest.warns(UserWarning, match="1 broken lines"), pytest.raises(ValueError, match="found none"):
        FileTraces(byte_tokenizer(), path=path, shape="think", broken_lines="skip")
