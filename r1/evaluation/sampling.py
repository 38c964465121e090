"""Draws the samples that are not there yet, each from a random stream of its own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from r1.evaluation.samples import SampleFolder
from r1.rollout.base import RolloutEngine, mix_seed
from r1.types import Completion, Problem, Prompt, SamplingParams

_SAMPLES = 1 << 20  # more than anyone draws of a problem: (index, sample) becomes one number
_AT_ONCE = 256  # prompts given at a time to an engine that tells nothing before all of them are done


def draw_samples(
    folder: SampleFolder,
    problems: Sequence[Problem],
    *,
    benchmark: str,
    is_task: bool = False,
    num_samples: int,
    template: Any,
    tokenizer: Any,
    engine: RolloutEngine,
    params: SamplingParams,
    context: int | None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Append every missing sample of these problems to the folder and return how many were drawn.

    Sample g of problem i draws from stream (seed, benchmark, i, g), or (seed, i, g) where it is of a task, as in
    training's evaluation: which others are drawn with it, and when, does not matter. A prompt that leaves the model's
    context no room has an empty completion ("prompt too long").

    Args:
        benchmark: name in the rows.
        is_task: whether it is a task's.
        params: of sampling; max_tokens is cut to what the context leaves.
        context: tokens of prompt and completion together, None where it is not known.
        report: called with the samples there are and their total.
    """
    prompts = {problem.index: template.render(problem, tokenizer) for problem in problems}
    have = {(row["index"], row["sample"]) for row in folder.rows()}
    total = len(problems) * num_samples
    missing = [(p.index, g) for p in problems for g in range(num_samples) if (p.index, g) not in have]
    caps = max_tokens_of(prompts, params.max_tokens, context)
    done = total - len(missing)
    report(done, total)

    def keep(index: int, sample: int, completion: Completion, verdict: str | None = None) -> None:
        nonlocal done
        folder.append(_row(benchmark, prompts[index], sample, completion, verdict))
        done += 1
        report(done, total)

    params = replace(params, num_generations=1)
    if not is_task:
        params = replace(params, seed=mix_seed(params.seed, *benchmark.encode()))
    for cap in sorted(set(caps.values())):
        jobs = [(index, sample) for index, sample in missing if caps[index] == cap]
        if cap == 0:
            for index, sample in jobs:
                keep(index, sample, Completion(text="", finish_reason="length"), "prompt too long")
        else:
            stream = _of_task if is_task else _of_benchmark
            asked = [stream(prompts[index], sample) for index, sample in jobs]
            _generate(engine, asked, jobs, replace(params, max_tokens=cap), keep)
    return len(missing)


def max_tokens_of(prompts: Mapping[int, Prompt], max_tokens: int, context: int | None) -> dict[int, int]:
    """Return, by index, the most new tokens of each prompt: 0 where the context has no room.

    Prompts with about the same room have the same number, so that they are decoded together: the least of those whose
    room lies between the same powers of two parts of max_tokens. It never depends on what is still missing.
    """
    if context is None:
        return dict.fromkeys(prompts, max_tokens)
    room = {index: context - len(prompt.token_ids) for index, prompt in prompts.items()}
    classes: dict[int, int] = {}
    for left in room.values():
        if left > 0:
            classes[_class(left, max_tokens)] = min(left, max_tokens, classes.get(_class(left, max_tokens), max_tokens))
    return {index: classes[_class(left, max_tokens)] if left > 0 else 0 for index, left in room.items()}


def _class(room: int, max_tokens: int) -> int:
    return max(0, math.floor(math.log2(max_tokens / room))) if room < max_tokens else -1


def _generate(
    engine: RolloutEngine,
    asked: list[Prompt],
    jobs: Sequence[tuple[int, int]],
    params: SamplingParams,
    keep: Callable[[int, int, Completion], None],
) -> None:
    if "on_completion" in inspect.signature(engine.generate).parameters:
        engine.generate(asked, params, on_completion=lambda place, completion: keep(*jobs[place], completion))
        return
    for start in range(0, len(jobs), _AT_ONCE):
        groups = engine.generate(asked[start : start + _AT_ONCE], params)
        for job, group in zip(jobs[start : start + _AT_ONCE], groups, strict=True):
            keep(*job, group.rollouts[0].completion)


def _of_task(prompt: Prompt, sample: int) -> Prompt:
    return replace(prompt, first_sample=sample)


def _of_benchmark(prompt: Prompt, sample: int) -> Prompt:
    return replace(prompt, problem=replace(prompt.problem, index=prompt.problem.index * _SAMPLES + sample))


def _row(benchmark: str, prompt: Prompt, sample: int, completion: Completion, verdict: str | None) -> dict[str, Any]:
    known = len(completion.token_ids) or len(completion.logps) or None
    return {
        "benchmark": benchmark,
        "index": prompt.problem.index,
        "problem_id": prompt.problem.id,
        "sample": sample,
        "prompt": prompt.text,
        "completion": completion.turn,
        "num_tokens": 0 if verdict else known,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "answer": None,
        "reward": 0.0 if verdict else None,
        "verdict": verdict,
        "detail": "",
    }
