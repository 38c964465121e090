"""`r1.evaluate` on a task: untrained tiny models, prompts, examples, mistakes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r1.config import compose_config
from r1.evaluate import evaluate
from r1.evaluation.benchmarks import few_shot_template
from r1.intervals import wilson_interval
from r1.rollout.evaluate import summarise
from r1.rollout.remote import NoTokenizer
from r1.tasks import TASKS
from r1.types import Completion, Problem, Prompt, Rollout, RolloutGroup

ROOT = Path(__file__).parents[1]
SMALL = ["num_problems=5", "max_tokens=6", "device=cpu"]


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    task = TASKS.build("chain")
    pairs = [task.demonstrate("pretrain", i, style="clean") for i in range(6)]
    rows = [{"prompt": problem.prompt, "completion": turn} for problem, turn in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(folder, model, *overrides):
    return evaluate(compose_config([*SMALL, f"model={model}", f"output_dir={folder}", *overrides], name="evaluate"))


def test_an_accuracy_of_several_samples_has_bounds_near_0_too():
    # As 0 of 4 problems: Wilson's upper bound is 0.49.
    wrong = Rollout(completion=Completion(text="4", token_ids=(1,)), rewards={"accuracy": 0.0}, reward=0.0)
    prompt = Prompt(problem=Problem(prompt="q", answer="5"), text="q", token_ids=())
    groups = [RolloutGroup(prompt=prompt, rollouts=(wrong, wrong))] * 4
    assert summarise(groups).interval == (0.0, pytest.approx(wilson_interval(0, 4).high))


def test_an_evaluation_leaves_its_numbers_and_a_summary(tmp_path, model, capsys):
    result = run(tmp_path, model)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result
    # An untrained model solves none of 5: Wilson's upper bound for 0 of 5 is 0.43.
    assert result["metrics"] == {"pass@1": {"mean": 0.0, "low": 0.0, "high": pytest.approx(wilson_interval(0, 5).high)}}
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["metrics"]) == ("finished", {"eval/pass@1": 0.0})
    assert "pass@1" in capsys.readouterr().out
    assert result["prompt"]["name"] == "plain" and "few_shot" not in result


def test_the_prompt_is_that_of_the_run_that_made_the_model(tmp_path, model):
    shutil.copytree(model, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("prompt: {name: r1_zero, prefill: <think>}\n")
    made_by = {"name": "r1_zero", "prefill": "<think>"}
    assert run(tmp_path / "a", tmp_path / "run")["prompt"] == made_by
    assert run(tmp_path / "b", tmp_path / "run", "prompt=plain")["prompt"]["name"] == "plain"
    assert run(tmp_path / "c", tmp_path / "run", "prompt.prefill='<answer>'")["prompt"]["prefill"] == "<answer>"
    # A model without a run is asked through its chat template.
    assert run(tmp_path / "d", tmp_path / "run" / "model")["prompt"] == made_by
    shutil.move(tmp_path / "run" / "model", tmp_path / "alone" / "model")
    assert run(tmp_path / "e", tmp_path / "alone" / "model")["prompt"] == {"name": "chat"}


def test_several_samples_give_pass_and_cons(tmp_path, model):
    result = run(tmp_path, model, "num_samples=4")
    assert set(result["metrics"]) == {"pass@1", "pass@2", "pass@4", "cons@4"} and result["num_samples"] == 4


def test_the_same_seed_gives_the_same_numbers(tmp_path, model):
    first, second = (run(tmp_path / name, model, "num_samples=2") for name in "ab")
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_examples_stand_before_the_question(traces):
    node = {"path": str(traces), "k": 2, "question": "Q: ", "answer": "A:", "prefill": ""}
    rows = [json.loads(line) for line in traces.read_text().splitlines()]
    prompt = few_shot_template(node).render(Problem(prompt="6A-2:", answer="4"), NoTokenizer())
    shown = "".join(f"Q: {row['prompt']}\nA: {row['completion']}\n\n" for row in rows[:2])
    assert prompt.text == f"{shown}Q: 6A-2:\nA:"


def test_few_shot_takes_a_file_and_a_number_of_examples(tmp_path, model, traces):
    result = run(tmp_path, model, f"few_shot={traces}", "few_shot.k=4")
    assert (result["few_shot"]["path"], result["few_shot"]["k"]) == (str(traces), 4)
    assert result["sampling"]["stop"] == ["</answer>", "\n\nQuestion:"]
    assert "prompt" not in result


def test_a_broken_example_is_named_without_an_offer_that_cannot_be_taken(tmp_path, model):
    (tmp_path / "traces.jsonl").write_text('{"prompt": "q"\n')
    with pytest.raises(ValueError, match=r"traces\.jsonl:1: expected a JSON object") as caught:
        run(tmp_path / "out", model, f"few_shot={tmp_path}/traces.jsonl")
    assert "broken_lines" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["few_shot.k=6"], "needs traces of at least k \\+ 1 questions"),
        (["num_problems=0"], "num_problems must be at least 1"),
        (["split=tst"], "Did you mean 'test'"),
        (["few_shot.path=gone.jsonl"], r"no file gone\.jsonl"),
    ],
)
def test_mistakes_are_named(tmp_path, model, traces, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, model, f"few_shot={traces}", *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["few_shot.k=2"], r"few_shot\.k=2: examples come from a trace file"),
        (["num_samples=0"], "num_samples must be at least 1, found 0"),
        (["benchmark=[chain]", "k=0"], "num_samples must be at least 1, found 0"),
    ],
)
def test_what_would_have_no_effect_is_refused(tmp_path, model, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, model, *overrides)


@pytest.mark.slow
def test_the_command_line_takes_both_spellings_and_refuses_others(tmp_path, model, traces):
    def call(*overrides):
        arguments = [*SMALL, f"model={model}", f"hydra.run.dir={tmp_path}", *overrides]
        return subprocess.run(
            [sys.executable, "-m", "r1.evaluate", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
        )

    assert call(f"few_shot={traces}", "few_shot.k=3").returncode == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["few_shot"]["k"] == 3
    wrong = call("num_sampels=3")
    assert wrong.returncode == 1 and "Did you mean 'num_samples'" in wrong.stderr
