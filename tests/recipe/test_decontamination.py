import json

import pytest

from r1.config import compose_config, plain
from r1.models import byte_tokenizer
from r1.recipe.assemble import assemble
from r1.recipe.decontamination import (
    Benchmarks,
    decontaminate_task,
    load_benchmarks,
    ngrams,
    read_benchmark,
    token_units,
    words,
)
from r1.recipe.dry_run import check_training
from r1.recipe.hashes import stage_hash
from r1.tasks import TASKS

TEN = "A train leaves the old station at noon going due"  # ten words


def benchmarks_of(*texts, **options):
    benchmarks = Benchmarks(**options)
    benchmarks.add("exam", texts)
    return benchmarks


QUESTION = "Write a function that returns the largest number of a list that is even"
SOLUTION = "def largest_even(numbers):\n    return max(n for n in numbers if n % 2 == 0) if numbers else None"


def test_words_are_lower_case_without_punctuation_and_a_han_character_is_a_word():
    assert words("The  CAT's 2 hats;\n\u4e8c\u4e09 snake_case") == [
        "the", "cat", "s", "2", "hats", "\u4e8c", "\u4e09", "snake", "case",
    ]  # fmt: skip


def test_ngrams_are_all_windows():
    assert list(ngrams([1, 2, 3], 2)) == [(1, 2), (2, 3)]
    assert list(ngrams([1], 2)) == []


def test_ten_words_in_a_row_are_an_overlap_and_nine_are_not():
    benchmarks = benchmarks_of(f"{TEN} east. How far does it go?")
    assert benchmarks.overlap(f"Once, {TEN.upper()}: where?") == "exam"
    assert benchmarks.overlap(f"Once, {TEN.removesuffix(' due')}, north") is None
    assert benchmarks_of(TEN, ngram_size=9).overlap(TEN.removesuffix(" due")) == "exam"


def test_a_benchmark_text_shorter_than_an_ngram_is_found_as_a_whole_only():
    benchmarks = benchmarks_of("What is 2+2?")
    assert benchmarks.overlap("  what is 2+2?\n") == "exam"
    assert benchmarks.overlap("What is 2-2?") is None
    assert benchmarks.overlap("So: What is 2+2?") is None


def test_the_first_benchmark_that_holds_an_ngram_is_named():
    benchmarks = benchmarks_of(TEN)
    benchmarks.add("other", [TEN, "alpha beta gamma delta epsilon zeta eta theta iota kappa"])
    assert benchmarks.overlap(TEN) == "exam"
    assert benchmarks.overlap("x alpha beta gamma delta epsilon zeta eta theta iota kappa") == "other"


def test_no_benchmark_overlaps_nothing():
    assert Benchmarks().overlap(TEN) is None


def test_tokens_can_be_the_units():
    # A byte-level tokenizer: 5 bytes in a row, after lower-casing and closing up white space.
    benchmarks = benchmarks_of("abcdefgh", ngram_size=5, units=token_units(byte_tokenizer()))
    assert benchmarks.overlap("xx CDEFG") == "exam"
    assert benchmarks.overlap("xx cdef") is None


def test_questions_and_worked_solutions_of_a_file_count_and_bare_answers_do_not(tmp_path):
    path = tmp_path / "exam.jsonl"
    row = {"question": "How far?", "answer": "It is seven miles from here to there", "level": "x " * 20}
    path.write_text(json.dumps(row) + "\n" + json.dumps({"question": "Who?", "answer": "5"}) + "\n")
    assert read_benchmark(path) == ["How far?", "It is seven miles from here to there", "Who?"]
    lines = tmp_path / "exam.txt"
    lines.write_text("one\n\ntwo\n")
    assert read_benchmark(lines) == ["one", "two"]


def test_benchmark_files_that_cannot_be_used_are_refused(tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    with pytest.raises(ValueError, match="holds no questions"):
        read_benchmark(empty)
    with pytest.raises(ValueError, match="no file"):
        load_benchmarks([str(tmp_path / "gone.jsonl")])
    other = tmp_path / "other.jsonl"
    other.write_text('{"words": "q"}\n')
    with pytest.raises(ValueError, match=r"^decontaminate: .*: none of the usual columns .*; columns found: words$"):
        load_benchmarks([str(other)])
    with pytest.raises(ValueError, match="Did you mean 'word'"):
        load_benchmarks([], unit="words")
    with pytest.raises(ValueError, match="needs a tokenizer"):
        load_benchmarks([], unit="token")
    with pytest.raises(ValueError, match=r"decontamination\.ngram_size"):
        load_benchmarks([], ngram_size=0)


def test_the_shipped_sample_of_gsm8k_is_found_in_itself(request):
    path = request.config.rootpath / "tests" / "data" / "gsm8k_10.jsonl"
    benchmarks = load_benchmarks([str(path)])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [benchmarks.overlap(f"Solve: {row['question']}") for row in rows] == [str(path)] * 10


@pytest.mark.parametrize(
    "row",
    [
        {"task_id": 11, "text": QUESTION, "code": SOLUTION, "test_list": ["assert f() == 1"]},  # MBPP
        {"Question": QUESTION, "Correct Answer": "1", "Explanation": SOLUTION},  # GPQA
        {"prompt": QUESTION, "canonical_solution": SOLUTION, "test": "x", "entry_point": "f"},  # HumanEval
        {"question_content": QUESTION, "public_test_cases": "[]", "solution": SOLUTION},  # LiveCodeBench
    ],
)
def test_the_columns_of_published_benchmarks_are_known(tmp_path, row):
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + "\n")
    known = load_benchmarks([str(tmp_path / "b.jsonl")])
    assert known.overlap(f"see: {QUESTION}") and known.overlap(f"see: {SOLUTION}")


@pytest.fixture
def files(tmp_path):
    """A task file of 60 questions, of which every tenth has ten words of the exam's in it, and the exam."""
    rows = [{"question": f"{TEN if i % 10 == 0 else 'Slowly'} number {i}?", "answer": str(i)} for i in range(60)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": f"{TEN} east. How far?", "answer": "9"}) + "\n")
    return tmp_path


def test_training_problems_that_overlap_with_a_benchmark_are_dropped_and_those_held_out_stay(files, capsys):
    whole, task = (TASKS.build("jsonl", path=str(files / "mine.jsonl")) for _ in range(2))
    before = {split: {p.prompt for p in whole.rows(split)} for split in ("train", "test")}
    task.problems("train").take(1)  # an order of the problems that are there now
    dropped = {prompt for prompt in before["train"] if prompt.startswith(TEN)}
    assert dropped and len(before["train"]) + len(before["test"]) == 60
    assert decontaminate_task(task, [str(files / "exam.jsonl")]) == {"mine": len(dropped)}
    assert {p.prompt for p in task.rows("train")} == before["train"] - dropped
    assert {p.prompt for p in task.rows("test")} == before["test"]
    drawn = {p.prompt for p in task.problems("train").take(2 * len(before["train"]))}
    assert drawn == before["train"] - dropped
    said = f"{len(dropped)} of {len(before['train'])} problems of mine are left out; {files}/exam.jsonl {len(dropped)}"
    assert f"decontaminate: {said}" in capsys.readouterr().out


def test_of_a_mixture_what_is_generated_stays_and_alone_it_is_refused(files):
    mine = {"name": "jsonl", "path": str(files / "mine.jsonl"), "share": 1}
    task = TASKS.build("mixture", tasks={"chain": {"share": 1}, "mine": mine})
    assert decontaminate_task(task, [str(files / "exam.jsonl")])["mine"] > 0
    with pytest.raises(ValueError, match="decontaminate: the problems of task 'chain' are generated"):
        decontaminate_task(TASKS.build("chain"), [str(files / "exam.jsonl")])
    (files / "all.txt").write_text("".join(f"{TEN} {i}\n" for i in range(2)))
    (files / "only.jsonl").write_text(json.dumps({"question": f"{TEN} east?", "answer": "1"}) + "\n")
    with pytest.raises(ValueError, match="all 1 problems of split 'train'"):
        only = TASKS.build("jsonl", path=str(files / "only.jsonl"), shares={"train": 1.0})
        decontaminate_task(only, [str(files / "all.txt")])


def test_a_training_run_leaves_out_what_overlaps_and_says_how_many(files, capsys):
    overrides = ["task=jsonl", f"data_path={files}/mine.jsonl", f"decontaminate=[{files}/exam.jsonl]", "init_from=null"]
    config = plain(compose_config(["experiment=gsm8k_tiny", *overrides, "evaluation.num_problems=2"]))
    module, _ = assemble(config, model=config["model"])
    drawn = {p.prompt for p in module.loader.source.stream.take(100)}
    module.loader.source.rewards.close()
    assert len(drawn) > 40 and not any(prompt.startswith(TEN) for prompt in drawn)
    assert "problems of gsm8k are left out" in capsys.readouterr().out
    check_training(config | {"decontaminate": ["elsewhere.jsonl"]})


def test_without_files_the_key_changes_no_stage():
    config = {"trainer": {}, "seed": 1}
    assert stage_hash(config | {"decontaminate": []}) == stage_hash(config)
    assert stage_hash(config | {"decontaminate": ["exam.jsonl"]}) != stage_hash(config)
