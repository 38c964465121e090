"""`r1.evaluate` on benchmarks: tiny models, a server that answers as told, kills, rescoring, contamination."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from http_server import completion, serving
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from r1.config import compose_config
from r1.evaluate import evaluate
from r1.evaluation.samples import SampleFolder
from r1.models import tiny_llama
from r1.rollout.endpoint import EndpointError
from r1.tasks import TASKS

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data" / "benchmarks"
GSM8K = ["benchmark=[gsm8k]", f"data_dir={DATA}", "device=cpu"]
# Gold answers of the first eight rows of GSM8K's test set.
GOLDS = ["18", "3", "70000", "540", "20", "64", "260", "160"]


def run(folder, *overrides):
    return evaluate(compose_config([f"output_dir={folder}", *overrides], name="evaluate"))


def rows_of(folder, name="gsm8k"):
    return SampleFolder(Path(folder) / "samples" / name).rows()


@contextmanager
def scripted(script):
    """Yield the overrides for a server whose `script(request)` returns the completion, or None to fail."""

    def answer(request, body):
        with server.lock:
            text = script(body)
        return 500 if text is None else 200, completion(text or "")

    with serving(answer) as server:
        yield [
            "rollout=remote",
            f"rollout.url={server.url}/v1",
            "model=teacher",
            "rollout.max_retries=0",
            "rollout.concurrency=1",
        ]


class Answers:
    """Gives the answers listed for each problem, one after another."""

    def __init__(self, task, *answers):
        self.answers = dict(zip([p.prompt for p in task.rows()], answers, strict=False))
        self.num_asked = Counter()
        self.requests = []

    def __call__(self, body):
        self.requests.append(body)
        prompt = next(p for p in self.answers if body["prompt"].startswith(p))
        answer = self.answers[prompt][self.num_asked[prompt]]
        self.num_asked[prompt] += 1
        return answer and f"<think>1 + 1</think>So it is \\boxed{{{answer}}}."


def gsm8k():
    return TASKS.build("benchmark", label="gsm8k", files=["gsm8k_test"], data_dir=str(DATA))


# ----------------------------------------------------------------------------------------------- numbers and files


def test_pass_and_cons_follow_from_what_a_server_answers(tmp_path, capsys):
    # Of 4 samples right: 4, 2 (the others differ), 1 (the others agree), 0.
    script = Answers(
        gsm8k(),
        ["18", "18.0", "$18", "18"],
        ["3", "4", "5", "3.0"],
        ["1,000", "70,000", "1000", "7"],
        ["1", "2", "3", "4"],
    )
    with scripted(script) as remote:
        result = run(tmp_path, *GSM8K, *remote, "k=4", "limit=4")
    found = result["benchmarks"]["gsm8k"]
    means = {name: value["mean"] for name, value in found["metrics"].items()}
    # pass@2 of 2 in 4: 1 - C(2,2)/C(4,2) = 5/6; of 1 in 4: 1 - C(3,2)/C(4,2) = 1/2.
    expected = {"pass@1": 7 / 16, "pass@2": (1 + 5 / 6 + 1 / 2) / 4, "pass@4": 3 / 4, "cons@4": 2 / 4}
    assert means == pytest.approx(expected)
    assert (found["num_problems"], found["num_samples"], found["left_out"]) == (4, 4, [])
    assert found["verdicts"] == {"right": 7, "wrong": 9}
    # The paper's protocol, with the instruction below the question.
    body = script.requests[0]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.6, 0.95, 32768)
    assert body["prompt"].endswith("put your final answer within \\boxed{}.")
    assert len({request["seed"] for request in script.requests}) == 16
    assert "43.8" in capsys.readouterr().out


def test_every_sample_is_kept_with_its_verdict(tmp_path, model):
    run(tmp_path, *GSM8K, f"model={model}", "k=2", "limit=2", "max_tokens=6")
    rows = rows_of(tmp_path)
    assert [(r["index"], r["sample"]) for r in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for row in rows:
        assert row["problem_id"] == gsm8k().rows()[row["index"]].id
        assert gsm8k().rows()[row["index"]].prompt in row["prompt"]
        assert 1 <= row["num_tokens"] <= 6
        assert (row["finish_reason"] == "length") <= (row["num_tokens"] == 6)
        assert row["reward"] == 0.0 and row["verdict"] in ("wrong", "no answer", "truncated")
    assert len({row["seed"] for row in rows}) == 4


def test_a_table_goes_to_terminal_markdown_json_and_tensorboard_beside_the_papers_rows(tmp_path, model, capsys):
    result = run(
        tmp_path, f"model={model}", "benchmark=[math500,aime24]", f"data_dir={DATA}", "k=2", "limit=2", "max_tokens=4"
    )
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result
    printed, markdown = capsys.readouterr().out, (tmp_path / "evaluation.md").read_text()
    line = "| aime24 | DeepSeek-R1-Zero | paper v1 Table 2 | 64 | 71.0 |  | 86.7 |  |  |  |"
    assert line in markdown and "paper v1 Table 2" in printed and "temperature 0.6, top-p 0.95" in markdown
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"eval/math500/pass@1", "eval/math500/pass@1_low", "eval/aime24/cons@2"} <= set(tags)
    assert events.Scalars("paper/aime24/cons@64/DeepSeek-R1-Zero")[0].value == pytest.approx(0.867)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["metrics"]["eval/aime24/pass@1"] == result["benchmarks"]["aime24"]["metrics"]["pass@1"]["mean"]


def test_tasks_of_ours_are_benchmarks_too(tmp_path, model):
    overrides = [f"model={model}", "k=2", "limit=3", "max_tokens=4"]
    chain = run(tmp_path / "a", "benchmark=[chain]", *overrides)
    task = run(tmp_path / "b", "benchmark=task", "task=countdown", "rollout=transformers", *overrides)
    assert chain["benchmarks"]["chain"]["num_problems"] == task["benchmarks"]["task"]["num_problems"] == 3


def test_a_prompt_longer_than_the_context_counts_as_wrong_and_is_named(tmp_path, capsys):
    tiny_llama(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, max_position_embeddings=400).save(
        tmp_path / "model"
    )
    result = run(tmp_path / "out", *GSM8K, f"model={tmp_path}", "prompt=plain", "k=1")
    lengths = {row["index"]: len(row["prompt"].encode()) for row in rows_of(tmp_path / "out")}
    too_long = {index for index, length in lengths.items() if length >= 400}
    found = result["benchmarks"]["gsm8k"]
    assert 0 < len(too_long) < 8
    assert found["verdicts"]["prompt too long"] == len(too_long)
    assert found["num_problems"] == 8
    for row in rows_of(tmp_path / "out"):
        assert row["num_tokens"] <= max(0, 400 - lengths[row["index"]])
    assert f"gsm8k: {len(too_long)} samples count as wrong: prompt too long" in capsys.readouterr().out


def test_a_gold_answer_that_cannot_be_parsed_is_named_and_left_out(tmp_path, model, capsys):
    rows = [{"question": "1 + 1?", "answer": "2"}, {"question": "What?", "answer": "\\frac{1}{"}]
    (tmp_path / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ["benchmark=gsm8k", f"data_dir={tmp_path}", f"model={model}", "k=2", "max_tokens=4"]
    found = run(tmp_path / "out", *overrides)["benchmarks"]["gsm8k"]
    assert [(left["index"], left["reason"]) for left in found["left_out"]] == [(1, "its gold answer cannot be parsed")]
    assert (found["num_problems"], {row["index"] for row in rows_of(tmp_path / "out")}) == (1, {0})
    out = capsys.readouterr().out
    assert re.search(r"gsm8k, problem 1 \(\w{16}\) is left out: its gold answer cannot be parsed .*frac\{1\}\{", out)


def test_a_baseline_gives_the_paired_difference(tmp_path, capsys):
    task = gsm8k()
    with scripted(Answers(task, *[[gold] for gold in GOLDS])) as remote:
        run(tmp_path / "good", *GSM8K, *remote, "k=1")
    with scripted(Answers(task, *[[gold] if i < 4 else ["0"] for i, gold in enumerate(GOLDS)])) as remote:
        result = run(tmp_path / "bad", *GSM8K, *remote, "k=1", f"baseline={tmp_path / 'good'}")
    difference = result["benchmarks"]["gsm8k"]["difference"]
    assert (difference["mean"], difference["num_problems"]) == (-0.5, 8)
    assert f"gsm8k: pass@1 minus that of {tmp_path / 'good'}: -50.0 (" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- going on, and refusing


def test_a_server_that_fails_costs_no_sample_that_came(tmp_path):
    task = gsm8k()
    failing = Answers(task, ["18", "18"], ["3", None])
    with scripted(failing) as remote, pytest.raises(EndpointError):
        run(tmp_path, *GSM8K, *remote, "k=2", "limit=2")
    kept = rows_of(tmp_path)
    assert len(kept) == 3 and {row["verdict"] for row in kept} == {None}
    healthy = Answers(task, [], ["4"])
    with scripted(healthy) as remote:
        result = run(tmp_path, *GSM8K, *remote, "k=2", "limit=2")
    assert len(healthy.requests) == 1
    assert result["benchmarks"]["gsm8k"]["metrics"]["pass@1"]["mean"] == 0.75
    assert [row["completion"] for row in rows_of(tmp_path)][:3] == [row["completion"] for row in kept]


def test_an_interrupted_evaluation_ends_like_an_unbroken_one(tmp_path, model):
    overrides = [*GSM8K, f"model={model}", "k=3", "limit=4", "max_tokens=5"]
    whole = run(tmp_path / "whole", *overrides)
    samples = tmp_path / "whole" / "samples" / "gsm8k" / "samples.jsonl"
    broken = tmp_path / "broken" / "samples" / "gsm8k"
    run(tmp_path / "broken", *overrides)
    lines = [json.loads(line) | {"verdict": None, "reward": None} for line in samples.read_text().splitlines()]
    kept = "".join(json.dumps(lines[i]) + "\n" for i in (7, 0, 4))
    (broken / "samples.jsonl").write_text(kept + json.dumps(lines[5])[:50])
    again = run(tmp_path / "broken", *overrides)
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "whole")
    assert again["benchmarks"] == whole["benchmarks"]


def test_another_config_is_refused_with_the_keys_that_differ_and_nothing_is_lost(tmp_path, model):
    overrides = [*GSM8K, f"model={model}", "k=2", "limit=2", "max_tokens=4"]
    run(tmp_path, *overrides)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError) as caught:
        run(tmp_path, *overrides, "temperature=1.0", "num_samples=3", "seed=7")
    for text in ("num_samples was 2 and is now 3", "sampling.temperature was 0.6 and is now 1.0", "seed was 4321"):
        assert text in str(caught.value)
    with pytest.raises(ValueError, match="num_problems was 2 and is now 1; problems was"):
        run(tmp_path, *overrides, "limit=1")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmark=[gsm8k]", "data_dir=gone"], "data_dir: no folder gone"),
        (["benchmark=[aime25]"], "benchmark aime25: expected aime25_test.jsonl .*Did you mean 'aime24_test.jsonl'"),
        (["benchmark=[gsm8k]", "limit=0"], "num_problems must be at least 1"),
        (["benchmark=[gsm8k]", "+benchmark.gsm8k.instructoin=x"], "Did you mean 'instruction'"),
        (["benchmark=[gsm8k]", "benchmark.gsm8k.task.format=txt"], "Did you mean 'text'"),
        (["benchmark=[gsm8k]", "baseline=gone"], "baseline: no evaluation.json in gone"),
        (["benchmark=[gsm8k]", "top_p=0"], "top_p"),
    ],
)
def test_mistakes_are_named_before_a_model_is_loaded(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, f"data_dir={DATA}", "model=gone", *overrides)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------- rescoring and contamination


def test_rescoring_judges_kept_samples_again_and_prints_what_changed(tmp_path, capsys):
    with scripted(Answers(gsm8k(), ["18", "2"], ["3", "4"])) as remote:
        before = run(tmp_path, *GSM8K, *remote, "k=2", "limit=2")
    assert run(tmp_path, f"rescore={tmp_path}")["changes"] == []
    assert json.loads((tmp_path / "evaluation.json").read_text()) == before
    # What another verifier would have said of one sample.
    path = tmp_path / "samples" / "gsm8k" / "samples.jsonl"
    lines = path.read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | {"reward": 1.0, "verdict": "right"})
    path.write_text("\n".join(lines) + "\n")
    capsys.readouterr()
    result = run(tmp_path, f"rescore={tmp_path}")
    (change,) = result["changes"]
    assert (change["index"], change["sample"], change["old_verdict"], change["verdict"]) == (1, 1, "right", "wrong")
    out = capsys.readouterr().out
    assert "1 samples have another verdict" in out and "sample 1: right -> wrong, answer '4'" in out
    assert result["benchmarks"] == before["benchmarks"]


def test_rescoring_leaves_out_what_can_no_longer_be_scored(tmp_path):
    with scripted(Answers(gsm8k(), ["18", "2"], ["3", "4"])) as remote:
        run(tmp_path, *GSM8K, *remote, "k=2", "limit=2")
    path = tmp_path / "samples" / "gsm8k" / "problems.jsonl"
    path.write_text(path.read_text().replace('"answer": "3"', '"answer": "\\\\frac{1}{"'))
    found = run(tmp_path, f"rescore={tmp_path}")["benchmarks"]["gsm8k"]
    assert [left["index"] for left in found["left_out"]] == [1]
    assert found["metrics"]["pass@1"]["mean"] == 0.5  # of the first problem alone
    assert found["verdicts"] == {"right": 1, "wrong": 1, "unscored": 2}


def test_a_folder_without_samples_cannot_be_rescored(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match=r"no kept samples .*Did you mean 'runs'"):
        run(tmp_path, f"rescore={tmp_path / 'run'}")


def test_contaminated_rows_are_found_in_any_shape_with_the_problem_they_hold(tmp_path, capsys):
    first, second = (p.prompt for p in gsm8k().rows()[:2])
    solution = json.loads((DATA / "gsm8k_test.jsonl").read_text().splitlines()[3])["answer"]
    rows = [
        {"messages": [{"role": "user", "content": f"Solve: {first.upper()}"}]},
        {"prompt": "An innocent question of more than ten words that nobody has ever asked.", "completion": "18"},
        {"question": "?", "solutions": [{"text": f"I recall: {solution}"}]},
        {"text": " ".join(second.split()[:9])},  # nine words are none too many
    ]
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [f"contamination={path}", "benchmark=[gsm8k,math500]", f"data_dir={DATA}"]
    result = run(tmp_path, *arguments)
    assert (result["num_rows"], result["num_contaminated"]) == (4, 2)
    assert [(row["line"], row["benchmark"], row["problem"]) for row in result["rows"]] == [
        (1, "gsm8k", 0),
        (3, "gsm8k", 3),
    ]
    assert result["benchmarks"] == {"gsm8k": 2, "math500": 0}
    out = capsys.readouterr().out
    assert (
        "2 of 4 rows share 10 words in a row with a benchmark, or a shorter text as a whole (gsm8k 2, math500 0)" in out
    )
    assert "line 3: gsm8k, problem 3" in out
    assert run(tmp_path, *arguments, "ngram_size=9")["num_contaminated"] == 3
    with pytest.raises(ValueError, match="name the benchmarks"):
        run(tmp_path, f"contamination={path}")


# --------------------------------------------------------------------------------------------------- command line


def command(folder, *overrides, **options):
    arguments = [sys.executable, "-m", "r1.evaluate", *overrides, f"hydra.run.dir={folder}"]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def num_bytes(folder):
    return sum(path.stat().st_size for path in folder.glob("samples/*/samples.jsonl"))


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_was(tmp_path, model):
    overrides = [
        f"model={model}",
        "benchmark=[gsm8k,math500]",
        f"data_dir={DATA}",
        "k=8",
        "device=cpu",
        "max_tokens=300",
    ]
    overrides.append("rollout.max_batch_size=2")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = command(whole, *overrides)
    assert done.wait(300) == 0, done.stderr.read()
    num_kills = 0
    for _ in range(30):
        process = command(broken, *overrides)
        before = num_bytes(broken)
        while process.poll() is None and num_bytes(broken) <= before:
            time.sleep(0.01)
        if process.poll() is None and num_kills < 3:
            os.kill(process.pid, signal.SIGKILL)
            num_kills += 1
            process.wait()
            continue
        assert process.wait(300) == 0, process.stderr.read()
        if num_kills == 3:
            break
        shutil.rmtree(broken)  # it was over before it could be killed often enough: once more from the beginning
        num_kills = 0
    assert num_kills == 3
    for name in ("gsm8k", "math500"):
        assert rows_of(broken, name) == rows_of(whole, name)
    results = [json.loads((folder / "evaluation.json").read_text()) for folder in (whole, broken)]
    assert results[0] == results[1]


@pytest.mark.slow
def test_code_is_not_run_where_no_sandbox_can_be_set_up(tmp_path, model):
    # A limit of zero user namespaces, in a user namespace of its own, is what a locked-down machine looks like.
    blocked = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    arguments = [sys.executable, "-m", "r1.evaluate", f"model={model}", "benchmark=[humaneval]", f"data_dir={DATA}"]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", blocked, "sh", *arguments, f"hydra.run.dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "unshare" in done.stderr and "error:" not in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: benchmark humaneval: untrusted code was not run" in done.stderr
    assert "benchmark.humaneval.reward.isolation=limits" in done.stderr
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "evaluation.json cannot be read: Expecting property name"),
        ("[]", "evaluation.json: expected a JSON object, found a list"),
        ("{}", "evaluation.json is no evaluation"),
    ],
)
def test_a_damaged_evaluation_is_named(tmp_path, text, message):
    (tmp_path / "samples" / "gsm8k").mkdir(parents=True)
    (tmp_path / "samples" / "gsm8k" / "identity.json").write_text("{}")
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(ValueError, match=f"^baseline: .*{message}"):
        run(tmp_path / "out", *GSM8K, "model=m", f"baseline={tmp_path}")
    with pytest.raises(ValueError, match=f"^rescore: .*{message}"):
        run(tmp_path / "out", f"rescore={tmp_path}")
