"""Benchmarks, or the held-out problems of a task, from beginning to end: check, sample, judge, count, report."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from r1.evaluation.benchmarks import Benchmark, Instructed, build_benchmarks, build_template, few_shot_stops
from r1.evaluation.numbers import (
    benchmark_metrics,
    majority_votes,
    paired_difference,
    problem_scores,
    sample_statistics,
    verdict_counts,
)
from r1.evaluation.report import as_markdown, benchmarks_of, scalars, show, write_tensorboard
from r1.evaluation.samples import SampleFolder
from r1.evaluation.sampling import draw_samples
from r1.evaluation.scoring import Scorer, score_rows, unusable
from r1.recipe.harvest import sampling_identity
from r1.recipe.measure import as_json, read_evaluation
from r1.recipe.parts import build_engine, build_sampling
from r1.recipe.source import load_source
from r1.recipe.stages import write_json, write_text
from r1.rewards import Grader
from r1.types import Problem, SamplingParams

SAMPLES = "samples"
_EVERY_SECONDS = 10.0


def evaluate_benchmarks(config: dict[str, Any], folder: Path, *, begin: Callable[[], Any]) -> dict[str, Any]:
    """Evaluate a model on the benchmarks of a config, or its task, going on from the samples that are in `folder`.

    Args:
        config: of `r1.evaluate`.
        folder: run directory.
        begin: called once everything is checked, before the first sample is drawn.

    Returns:
        What `evaluation.json` holds: source, prompt or few_shot, sampling, seed, and for each benchmark metrics,
        verdicts, left_out, statistics (`sample_statistics`), problems (`problem_scores`) and where its rows came from.
        Of a task (no benchmark is named) these stand beside the former, with task and split.

    Raises:
        ValueError: a mistake in the config, a benchmark file that does not fit, or samples of another evaluation.
        SandboxError: programs cannot be run safely here.
    """
    started = time.perf_counter()
    benchmarks = build_benchmarks(config)
    if config["few_shot"]["path"]:
        sampling = config["rollout"]["sampling"]
        sampling["stop"] = few_shot_stops(config["few_shot"], sampling.get("stop") or [])
    params = build_sampling(config, num_generations=1)
    baseline = read_baseline(config["baseline"])
    with contextlib.ExitStack() as stack:
        grader = stack.enter_context(Grader(num_workers=2))
        left_out = {b.name: _left_out(grader, b) for b in benchmarks}
        engine = stack.enter_context(contextlib.closing(build_engine(config)))
        source = load_source(config)
        template, asked = build_template(config, source.policy.tokenizer)
        drawn_with = sampling_identity(config | asked, source) | {"few_shot": asked.get("few_shot")}
        folders = {}
        for benchmark in benchmarks:
            folders[benchmark.name] = samples = SampleFolder(folder / SAMPLES / benchmark.name)
            stack.callback(samples.close)
            samples.claim(_identity(benchmark, drawn_with, params), benchmark.problems)
        begin()
        engine.load_weights(source.policy)
        print(f"Samples: {folder / SAMPLES}. An interrupted evaluation goes on with hydra.run.dir={folder}", flush=True)
        found = {}
        for benchmark in benchmarks:
            name, samples = benchmark.name, folders[benchmark.name]
            _sample(benchmark, samples, left_out[name], template, source, engine, params, asked)
            problems = {problem.index: problem for problem in benchmark.problems}
            judge(grader, benchmark.scorer, samples, problems, timeout=benchmark.timeout)
            found[name] = count(grader, samples, left_out[name])
    result = {
        "source": source.record,
        **asked,
        "sampling": {k: v for k, v in asdict(params).items() if k != "num_generations"} | {"stop": list(params.stop)},
        "seed": config["seed"],
    }
    if config["benchmark"]:
        result["benchmarks"] = {
            b.name: {"origin": b.origin, "paper": b.settings.paper or b.name, **found[b.name]} for b in benchmarks
        }
    else:
        (name,) = found
        result["sampling"]["num_generations"] = found[name]["num_samples"]
        result |= {"task": config["task"], "split": config["split"], "benchmark": name, **found[name]}
    if baseline is not None:
        compare(result, baseline, str(config["baseline"]))
    write_result(folder, result, seconds=time.perf_counter() - started)
    show(result)
    print(f"Numbers: {folder / 'evaluation.json'}, table: {folder / 'evaluation.md'}", flush=True)
    return result


def _left_out(grader: Grader, benchmark: Benchmark) -> list[dict[str, Any]]:
    """Return the problems that cannot be scored, each with the reason."""
    where = f"benchmark {benchmark.name}"
    faults = unusable(grader, benchmark.scorer, benchmark.problems, timeout=benchmark.timeout, where=where)
    if len(faults) == len(benchmark.problems):
        reason = next(iter(faults.values()))
        raise ValueError(f"{where}: none of its {len(faults)} problems can be scored; of the first, {reason}")
    return [
        {"index": p.index, "problem_id": p.id, "answer": p.answer, "reason": faults[p.index]}
        for p in benchmark.problems
        if p.index in faults
    ]


def _identity(benchmark: Benchmark, drawn_with: Mapping[str, Any], params: SamplingParams) -> dict[str, Any]:
    other = {key: value for key, value in drawn_with.items() if key not in ("task", "rollout", "split")}
    # The batch decides nothing about a sample: after running out of memory one goes on with a smaller one.
    rollout = {k: v for k, v in drawn_with["rollout"].items() if k not in ("sampling", "max_batch_size")}
    sampling = {key: value for key, value in asdict(params).items() if key not in ("num_generations", "seed")}
    if benchmark.is_task and other["few_shot"]:  # a pipeline's folder may move; the file's hash stands beside its path
        other["few_shot"] = {key: value for key, value in other["few_shot"].items() if key != "path"}
    return {
        **other,
        "rollout": rollout,
        "sampling": sampling,
        "num_samples": benchmark.num_samples,
        **benchmark.identity(),
    }


def _sample(
    benchmark: Benchmark,
    samples: SampleFolder,
    left_out: list[dict[str, Any]],
    template: Any,
    source: Any,
    engine: Any,
    params: SamplingParams,
    asked: Mapping[str, Any],
) -> None:
    gone = {left["index"] for left in left_out}
    problems = [problem for problem in benchmark.problems if problem.index not in gone]
    model = getattr(source.policy, "language_model", None)
    draw_samples(
        samples,
        problems,
        benchmark=benchmark.name,
        is_task=benchmark.is_task,
        num_samples=benchmark.num_samples,
        template=Instructed(template, "" if "few_shot" in asked else benchmark.settings.instruction),
        tokenizer=source.policy.tokenizer,
        engine=engine,
        params=params,
        context=None if model is None else getattr(model.config, "max_position_embeddings", None),
        report=_progress(benchmark.name),
    )


def judge(
    grader: Grader,
    scorer: Scorer,
    samples: SampleFolder,
    problems: Mapping[int, Problem],
    *,
    timeout: float,
    again: bool = False,
) -> list[Any]:
    """Judge the samples that have no verdict yet, or all of them again, and return the rows."""
    rows = samples.rows()
    wanted = [row for row in rows if again or row["verdict"] is None]
    if wanted:
        score_rows(grader, scorer, wanted, problems, timeout=timeout, where=f"benchmark {samples.path.name}")
        samples.replace(rows)
    return rows


def count(grader: Grader, samples: SampleFolder, left_out: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of one benchmark's judged samples."""
    rows, identity = samples.rows(), samples.identity()
    is_code = identity["benchmark"]["reward"].get("name") == "code"
    votes, num_late = ({}, 0) if is_code else majority_votes(grader, rows, samples.problems())
    lengths = [row["num_tokens"] for row in rows if row["num_tokens"] is not None]
    return {
        "metrics": as_json(benchmark_metrics(rows, votes)),
        "num_problems": len({row["index"] for row in rows if row["reward"] is not None}),
        "num_samples": identity["num_samples"],
        "left_out": left_out,
        "verdicts": verdict_counts(rows),
        "num_truncated": sum(row["finish_reason"] == "length" for row in rows),
        "num_vote_timeouts": num_late,
        "mean_length": sum(lengths) / len(lengths) if lengths else None,
        "num_tokens": sum(lengths),
        "statistics": sample_statistics(rows),
        "problems": problem_scores(rows),
    }


def read_baseline(folder: str | None) -> dict[str, Any] | None:
    """Return the `evaluation.json` of another evaluation, or None.

    Raises:
        ValueError: there is none.
    """
    if folder is None:
        return None
    path = Path(folder) / "evaluation.json"
    if not path.is_file():
        raise ValueError(f"baseline: no evaluation.json in {folder}")
    return read_result(path, key="baseline")


def read_result(path: Path, *, key: str) -> dict[str, Any]:
    """Return what the `evaluation.json` that the config's `key` names holds.

    Raises:
        ValueError: it cannot be read, or holds no evaluation.
    """
    found = read_evaluation(path, key=key)
    if not benchmarks_of(found):
        raise ValueError(f"{key}: {path} is no evaluation")
    return found


def compare(result: dict[str, Any], baseline: Mapping[str, Any], name: str) -> None:
    """Add the paired difference to another evaluation to each benchmark that both have.

    Raises:
        ValueError: they have none in common.
    """
    mine, theirs = benchmarks_of(result), benchmarks_of(baseline)
    shared = [key for key in mine if key in theirs]
    if not shared:
        raise ValueError(f"baseline: {name} has none of {', '.join(mine)}")
    result["baseline"] = name
    for key in shared:
        difference, num_problems = paired_difference(mine[key]["problems"], theirs[key]["problems"])
        mine[key]["difference"] = as_json({"": difference})[""] | {"num_problems": num_problems}


def write_result(folder: Path, result: Mapping[str, Any], *, seconds: float) -> None:
    """Write evaluation.json, evaluation.md, tensorboard/ and summary.json."""
    write_json(folder / "evaluation.json", result)
    write_text(folder / "evaluation.md", as_markdown(result))
    write_tensorboard(folder / "tensorboard", result)
    tokens = sum(found["num_tokens"] for found in benchmarks_of(result).values())
    summary = {"stage": "evaluate", "status": "finished", "seconds": seconds, "tokens": tokens}
    write_json(folder / "summary.json", summary | {"metrics": scalars(result)})


def _progress(name: str) -> Any:
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last > _EVERY_SECONDS:
            print(f"{name}: {done} of {total} samples", file=sys.stderr, flush=True)
            last = now

    return report
