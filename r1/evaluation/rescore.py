"""New verdicts on kept samples, without drawing any: what a change of the verifier changes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from r1.evaluation.benchmarks import BenchmarkSettings, build_scorer
from r1.evaluation.report import benchmarks_of, changes, per_cent, show
from r1.evaluation.run import SAMPLES, count, judge, read_result, write_result
from r1.evaluation.samples import IDENTITY, SampleFolder
from r1.evaluation.scoring import unusable
from r1.recipe.parts import build
from r1.recipe.stages import write_json
from r1.registry import did_you_mean
from r1.rewards import Grader
from r1.tasks import TASKS, BenchmarkTask, GeneratedTask
from r1.types import Problem

_SHOWN = 20


def rescore(folder: str | Path) -> dict[str, Any]:
    """Judge all samples of an evaluation again with the present verifier, and print what changed.

    Its evaluation.json, evaluation.md, tensorboard/ and samples are brought up to date; `rescore.json` keeps the
    changes and the numbers before.

    Raises:
        ValueError: no samples there, or an evaluation that never ended: it goes on with the command that began it.
    """
    started, folder = time.perf_counter(), Path(folder).expanduser()
    if (folder / "samples.jsonl").is_file():
        raise ValueError(
            f"rescore: {folder} is of an earlier version, which kept no problems beside the samples of a task"
        )
    names = sorted(path.parent.name for path in folder.glob(f"{SAMPLES}/*/{IDENTITY}"))
    if not names:
        near = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        hint = "" if folder.is_dir() else did_you_mean(folder.name, near)
        raise ValueError(f"rescore: no kept samples ({SAMPLES}/<benchmark>/) in {folder}.{hint}")
    path = folder / "evaluation.json"
    if not path.is_file():
        raise ValueError(f"rescore: {folder} has no evaluation.json: it did not end. Start it again to go on with it")
    result = read_result(path, key="rescore")
    before = {name: found["metrics"] for name, found in benchmarks_of(result).items()}
    changed: list[dict[str, Any]] = []
    with Grader(num_workers=2) as grader:
        for name in (n for n in names if n in before):
            changed += _rescore_one(grader, SampleFolder(folder / SAMPLES / name), name, result)
    write_json(folder / "rescore.json", {"changes": changed, "metrics_before": before})
    write_result(folder, result, seconds=time.perf_counter() - started)
    show(result)
    _show_changes(changed, before, result)
    return result | {"changes": changed}


def _rescore_one(grader: Grader, samples: SampleFolder, name: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    settings = BenchmarkSettings(**samples.identity()["benchmark"])
    verifier = _verifier(settings.task, name)
    problems = _problems(samples, verifier, result)
    scorer = build_scorer(name, verifier, settings.reward)
    timeout = settings.timeout or 15.0 + 2 * float(settings.reward.get("seconds", 0.0))
    samples.open()
    try:
        old = [dict(row) for row in samples.rows()]
        faults = unusable(grader, scorer, list(problems.values()), timeout=timeout, where=f"benchmark {name}")
        new = judge(grader, scorer, samples, problems, timeout=timeout, again=True)
        for row in new:
            if row["index"] in faults:
                row |= {"reward": None, "verdict": "unscored"}
        samples.replace(new)
        sampled = {row["index"] for row in new}
        reasons = {index: "it was left out when samples were drawn" for index in problems if index not in sampled}
        left_out = [_left(problems[index], reason) for index, reason in sorted((reasons | faults).items())]
        benchmarks_of(result)[name] |= count(grader, samples, left_out)
    finally:
        samples.close()
    return changes(old, new)


def _verifier(task: Mapping[str, Any], label: str) -> Any:
    """Return the task for its verifier alone: the rows of a benchmark are kept beside its samples."""
    arguments = dict(task)
    if arguments.get("name") == "mixture":
        parts = {part: {"name": part, **(node or {})} for part, node in arguments["tasks"].items()}
        return _Parts({part: _verifier(node, part) for part, node in parts.items()})
    arguments.pop("share", None)
    if arguments.get("name") not in ("benchmark", "jsonl", "hub"):
        return build(TASKS, arguments)
    return BenchmarkTask.verifier(label=label, format=arguments.get("format", "text"))


class _Parts:
    """The verifiers of a mixture, without the problems of those of its tasks that read files. Picklable."""

    isolated = True

    def __init__(self, tasks: Mapping[str, Any]) -> None:
        self.tasks = tasks

    def verify(self, problem: Problem, answer_text: str) -> float | None:
        return self.tasks[problem.task].verify(problem, answer_text)


def _problems(samples: SampleFolder, task: Any, result: Mapping[str, Any]) -> dict[int, Problem]:
    """Return the problems that are kept; where their task draws them, as it does: JSON does not hold all metadata."""
    found = samples.problems()
    for index, problem in found.items():
        part = task.tasks[problem.task] if isinstance(task, _Parts) else task
        if isinstance(part, GeneratedTask):
            drawn = part.problem_at(result.get("split", "test"), index, seed=result["seed"])
            if (drawn.prompt, drawn.answer) == (problem.prompt, problem.answer):
                found[index] = replace(drawn, task=problem.task)
    return found


def _left(problem: Problem, reason: str) -> dict[str, Any]:
    return {"index": problem.index, "problem_id": problem.id, "answer": problem.answer, "reason": reason}


def _show_changes(changed: list[dict[str, Any]], before: dict[str, Any], result: dict[str, Any]) -> None:
    print(f"{len(changed)} samples have another verdict")
    for row in changed[:_SHOWN]:
        print(
            f"  {row['benchmark']}, problem {row['index']} ({row['problem_id']}), sample {row['sample']}: "
            f"{row['old_verdict']} -> {row['verdict']}, answer {str(row['answer'])[:80]!r}"
        )
    if len(changed) > _SHOWN:
        print("  ... all of them are in rescore.json")
    for name, metrics in before.items():
        for metric, value in metrics.items():
            now = benchmarks_of(result)[name]["metrics"].get(metric)
            if now is None or now["mean"] != value["mean"]:
                print(f"  {name} {metric}: {per_cent(value)} -> {per_cent(now)}")
