"""The held-out problems of a task, evaluated: what is drawn, kept, gone on with and judged again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from r1.config import compose_config, plain
from r1.evaluate import evaluate
from r1.evaluation.samples import SampleFolder
from r1.pipeline import pipeline
from r1.prompts import TEMPLATES
from r1.recipe.parts import build_engine, build_evaluator, build_task
from r1.recipe.source import load_source
from r1.rollout.local import LocalEngine
from r1.tasks import TASKS

ROOT = Path(__file__).parents[1]
SMALL = ["device=cpu", "num_problems=5", "num_samples=3", "max_tokens=6"]


def run(folder, *overrides):
    return evaluate(compose_config([f"output_dir={folder}", *overrides], name="evaluate"))


def rows_of(folder, name="chain"):
    return SampleFolder(Path(folder) / "samples" / name).rows()


@pytest.fixture
def failing(monkeypatch):
    """Make the engine fail after so many completions; `num_drawn` counts those that it handed over."""
    generate = LocalEngine.generate

    class Failing:
        after, num_drawn = 1 << 30, 0

    def interrupted(self, prompts, params, *, on_completion=None):
        def tell(place, completion):
            if Failing.num_drawn >= Failing.after:
                raise KeyboardInterrupt
            Failing.num_drawn += 1
            on_completion(place, completion)

        return generate(self, prompts, params, on_completion=tell)

    monkeypatch.setattr(LocalEngine, "generate", interrupted)
    return Failing


def test_a_task_is_drawn_and_counted_as_in_training(tmp_path, model):
    overrides = [*SMALL, f"model={model}", "task=chain", "split=train", "seed=9", "temperature=0.8", "top_p=0.9"]
    result = run(tmp_path, *overrides)
    config = plain(compose_config(overrides, name="evaluate"))
    source, task = load_source(config), build_task(config)
    node = {key: config[key] for key in ("num_problems", "num_samples", "temperature", "top_p", "split", "seed")}
    evaluator = build_evaluator(config, node, task=task, template=TEMPLATES.build("plain"), engine=build_engine(config))
    found = evaluator.evaluate(source.policy)
    evaluator.rewards.close()
    expected = [(g.prompt.problem.id, g.prompt.text, r.completion) for g in found.groups for r in g.rollouts]
    rows = rows_of(tmp_path)
    assert [(r["problem_id"], r["prompt"], r["completion"], r["seed"], r["num_tokens"]) for r in rows] == [
        (name, text, c.turn, c.seed, len(c.token_ids)) for name, text, c in expected
    ]
    assert (result["statistics"], result["metrics"]["pass@1"]["mean"]) == (found.statistics, found.accuracy)
    assert result["task"]["name"] == "chain" and (result["split"], result["seed"]) == ("train", 9)
    assert (result["num_problems"], result["num_samples"], result["sampling"]["num_generations"]) == (5, 3, 3)
    lengths = [r["num_tokens"] for r in rows[:3]]
    assert result["problems"][rows[0]["problem_id"]]["length"] == lengths


def test_an_interrupted_evaluation_goes_on_and_ends_like_an_unbroken_one(tmp_path, model, failing):
    overrides = [*SMALL, f"model={model}", "task=chain", "rollout.max_batch_size=2"]
    whole = run(tmp_path / "whole", *overrides)
    failing.after = failing.num_drawn + 7
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", *overrides)
    assert len(rows_of(tmp_path / "broken")) == 7 and not (tmp_path / "broken" / "evaluation.json").exists()
    failing.after, before = 1 << 30, failing.num_drawn
    again = run(tmp_path / "broken", *overrides)
    assert failing.num_drawn - before == 15 - 7
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "whole") and again == whole
    # With more samples the first ones stay.
    more = run(tmp_path / "broken", *overrides, "num_samples=4")
    assert more["num_samples"] == 4 and [r for r in rows_of(tmp_path / "broken") if r["sample"] < 3] == rows_of(
        tmp_path / "whole"
    )


def test_an_interrupted_evaluation_goes_on_where_its_examples_have_moved(tmp_path, model, failing):
    demonstrations = [TASKS.build("chain").demonstrate("pretrain", i, style="clean") for i in range(6)]
    rows = [json.dumps({"prompt": problem.prompt, "completion": turn}) + "\n" for problem, turn in demonstrations]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    overrides = [*SMALL, f"model={model}", "task=chain", "few_shot.k=2"]
    failing.after = 7
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", *overrides, f"few_shot={tmp_path}/a.jsonl")
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    failing.after = 15
    assert run(tmp_path / "out", *overrides, f"few_shot={tmp_path}/b.jsonl")["num_samples"] == 3
    (tmp_path / "b.jsonl").write_text("".join(rows[::-1]))
    with pytest.raises(ValueError, match=r"another evaluation: few_shot\.sha256 was"):
        run(tmp_path / "out", *overrides, f"few_shot={tmp_path}/b.jsonl")


def test_an_interrupted_stage_of_a_pipeline_goes_on_with_its_samples(tmp_path, model, failing, capsys):
    config = [*SMALL, f"model={model}", "task=chain", "rollout.max_batch_size=2"]
    definitions = {
        "eval_a": {"run": "evaluate", "config": config},
        "eval_b": {"run": "evaluate", "config": [*config, "prompt.prefill='<think>'"]},
    }

    def recipe(folder):
        cfg = compose_config(["pipeline=r1_tiny", "seed=3", f"output_dir={folder}"], name="pipeline")
        cfg.pipeline = OmegaConf.create({"name": "mine", "stages": None, "plan": False, "definitions": definitions})
        return pipeline(cfg)

    whole = recipe(tmp_path / "whole")
    failing.after = failing.num_drawn + 15 + 6
    with pytest.raises(KeyboardInterrupt):
        recipe(tmp_path / "broken")
    failing.after, before = 1 << 30, failing.num_drawn
    capsys.readouterr()
    records = recipe(tmp_path / "broken")
    out = capsys.readouterr().out
    assert "[1/2] eval_a: done before" in out and "[2/2] eval_b: going on" in out
    assert failing.num_drawn - before == 15 - 6
    assert {name: r["outputs"] for name, r in records.items()} == {name: r["outputs"] for name, r in whole.items()}


def test_the_kept_samples_of_a_task_are_judged_again_without_drawing_any(tmp_path, model, failing):
    before = run(tmp_path, *SMALL, f"model={model}", "task=chain")
    num_drawn = failing.num_drawn
    assert run(tmp_path, f"rescore={tmp_path}")["changes"] == []
    assert json.loads((tmp_path / "evaluation.json").read_text()) == before
    # What another verifier would have said of one sample.
    path = tmp_path / "samples" / "chain" / "samples.jsonl"
    lines = path.read_text().splitlines()
    verdict = json.loads(lines[3])["verdict"]
    lines[3] = json.dumps(json.loads(lines[3]) | {"reward": 1.0, "verdict": "right"})
    path.write_text("\n".join(lines) + "\n")
    result = run(tmp_path, f"rescore={tmp_path}")
    assert [(c["old_verdict"], c["verdict"]) for c in result.pop("changes")] == [("right", verdict)]
    assert result == before and failing.num_drawn == num_drawn
    assert json.loads((tmp_path / "summary.json").read_text())["metrics"]["eval/pass@1"] == 0.0


@pytest.mark.slow
def test_a_mixture_is_judged_by_its_tasks_and_again_without_their_files(tmp_path, model):
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(f'{{"question": "{i} + 1?", "answer": "{i + 1}"}}\n' for i in range(40)))
    node = f"{{name: jsonl, path: {data}, share: 1}}"
    task = ["task=mixture", f"+task.tasks.mine={node}", "task.tasks.chain.share=1"]
    result = run(tmp_path / "out", *SMALL, f"model={model}", *task, "num_problems=12")
    kept = SampleFolder(tmp_path / "out" / "samples" / "mixture").problems()
    assert {problem.task for problem in kept.values()} == {"chain", "general", "mine"}
    assert result["num_problems"] == 12
    path = tmp_path / "out" / "samples" / "mixture" / "samples.jsonl"
    right = {i: f"<answer>{p.answer}</answer>" for i, p in kept.items()}
    rows = [row | {"completion": right[row["index"]]} for row in rows_of(tmp_path / "out", "mixture")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data.unlink()
    assert run(tmp_path / "out", f"rescore={tmp_path / 'out'}")["metrics"]["pass@1"]["mean"] == 1.0


@pytest.mark.slow
def test_a_verifier_that_needs_more_than_json_holds_gets_it_again(tmp_path, model):
    pytest.importorskip("reasoning_gym")
    # The scorer of rearc compares tuples with the answer's; lists, as JSON has them, would be another board.
    task = ["task=gym", "task.dataset=rearc", "+task.size=50"]
    run(tmp_path, *SMALL, f"model={model}", *task, "num_problems=1")
    kept = SampleFolder(tmp_path / "samples" / "rearc").problems()
    rows = [
        r | {"completion": f"<answer>{kept[0].answer}</answer>", "verdict": "wrong"} for r in rows_of(tmp_path, "rearc")
    ]
    path = tmp_path / "samples" / "rearc" / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(tmp_path, f"rescore={tmp_path}")["metrics"]["pass@1"]["mean"] == 1.0


def test_the_evaluation_of_an_earlier_version_has_nothing_to_judge_and_is_a_baseline(tmp_path, model):
    result = run(tmp_path / "new", *SMALL, f"model={model}", "task=chain")
    old = {key: value for key, value in result.items() if key not in ("benchmark", "left_out", "verdicts")}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "evaluation.json").write_text(json.dumps(old))
    (tmp_path / "old" / "samples.jsonl").write_text("")
    with pytest.raises(ValueError, match="earlier version, which kept no problems"):
        run(tmp_path / "x", f"rescore={tmp_path / 'old'}")
    again = run(tmp_path / "again", *SMALL, f"model={model}", "task=chain", f"baseline={tmp_path / 'old'}")
    assert (again["difference"]["mean"], again["difference"]["num_problems"]) == (0.0, 5)


@pytest.mark.slow
def test_a_killed_evaluation_of_a_task_goes_on_where_it_was(tmp_path, model):
    overrides = [f"model={model}", "task=chain", "device=cpu", "num_problems=60", "num_samples=4", "max_tokens=300"]
    overrides.append("rollout.max_batch_size=2")

    def command(folder):
        arguments = [sys.executable, "-m", "r1.evaluate", *overrides, f"hydra.run.dir={folder}"]
        return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def num_bytes():
        return sum(path.stat().st_size for path in broken.glob("samples/*/samples.jsonl"))

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = command(whole)
    assert done.wait(300) == 0, done.stderr.read()
    for _ in range(2):
        process, before = command(broken), num_bytes()
        while process.poll() is None and num_bytes() <= before:
            time.sleep(0.002)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert 0 < len(rows_of(broken)) < 240
    last = command(broken)
    assert last.wait(300) == 0, last.stderr.read()
    assert rows_of(broken) == rows_of(whole)
    assert (broken / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()
