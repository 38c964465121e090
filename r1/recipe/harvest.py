"""Sample, verify, filter, write: completions on disk become a trace file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from r1.data.manifest import file_sha256
from r1.recipe.decontamination import Benchmarks
from r1.recipe.rejection import FilterCounts, RejectionSettings, is_correct, judge
from r1.recipe.source import Source
from r1.recipe.traces import TraceWriter, trace_row
from r1.rewards import RewardSum
from r1.types import Completion, Rollout, RolloutGroup

# How a server is reached, started and brought back: nothing of what is drawn depends on it.
_CONNECTION = (
    "url",
    "api_key_env",
    "concurrency",
    "requests_per_minute",
    "timeout",
    "max_retries",
    "backoff",
    "max_backoff",
    "python",
    "env",
    "log",
    "transfer",
    "start_timeout",
    "max_restarts",
)


def harvest(
    shards: Iterable[list[RolloutGroup]],
    *,
    rewards: RewardSum,
    settings: RejectionSettings,
    benchmarks: Benchmarks | None,
    source: Source,
    out: Path,
    all_out: Path | None,
    manifest: Callable[[FilterCounts], Mapping[str, Any]],
) -> FilterCounts:
    """Score completions, write those that every filter keeps, and count the rest.

    Args:
        shards: completions of a few problems at a time.
        rewards: scores them.
        settings, benchmarks: see `judge`.
        source: whose they are.
        out: trace file.
        all_out: file for all of them, with the filter that refused each, or None.
        manifest: what the manifests say, given the counts.

    Raises:
        ValueError: no completion was kept; `out` is left as it was, `all_out` is written.
    """
    if settings.correct is not None:  # an unknown name is refused before anything is sampled
        is_correct(Rollout(completion=Completion(text=""), rewards=dict.fromkeys(rewards.weights)), settings)
    counts, seen = FilterCounts(), set()
    with TraceWriter(out) as kept, TraceWriter(all_out) if all_out else nullcontext() as everything:
        for shard in shards:
            for group in rewards.score_groups(shard):
                verdicts = judge(group, settings, benchmarks=benchmarks, seen=seen)
                counts.add(group, verdicts, benchmarks)
                for rollout, verdict in zip(group.rollouts, verdicts, strict=True):
                    row = trace_row(group, rollout, source=source.label, refused_by=verdict)
                    if verdict is None:
                        kept.write(row)
                    if everything is not None:
                        everything.write(row)
        kept.manifest = manifest(counts)
        if everything is not None:
            everything.manifest = kept.manifest
        if not counts.num_kept:
            kept.discard()
    if not counts.num_kept:
        left = ", ".join(f"{r['filter']} {r['num_completions']}" for r in counts.report() if r["num_refused"])
        raise ValueError(
            f"filters: none of {counts.num_completions} completions was kept, so {out} is not written. Left after each "
            f"filter: {left}. See filters.* and k, or set all_out=... to look at what was refused"
        )
    return counts


def sampling_identity(config: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Return what decides which completions are drawn: the same for two runs exactly when they draw the same."""
    rollout = {key: value for key, value in config["rollout"].items() if key not in _CONNECTION}
    return {
        "fingerprint": source.record["fingerprint"] or source.name,
        # What was sampled from may have moved: its weights are known by their hash.
        "model": {key: value for key, value in config["model"].items() if key != "path"},
        **{key: config[key] for key in ("task", "prompt", "split", "seed", "tokenizer")},
        "rollout": {key: value for key, value in rollout.items() if key != "model"},
    }


def manifest_record(config: Mapping[str, Any], source: Source, counts: FilterCounts) -> dict[str, Any]:
    """Return what a manifest says of a sample: where it comes from, how it was drawn, and what was left out."""
    rollout = config["rollout"]
    return {
        "source": source.record,
        "engine": {key: value for key, value in rollout.items() if key not in ("sampling", "api_key_env")},
        "sampling": dict(rollout["sampling"]),
        "seed": config["seed"],
        "split": config["split"],
        "num_problems": config["num_problems"],
        "task": config["task"],
        "prompt": config["prompt"],
        "reward": config["reward"],
        "rewrite": config["rewrite"],
        "filters": {**config["filters"], "keep_per_problem": config["keep_per_problem"]},
        "decontamination": {
            **config["decontamination"],
            "benchmarks": {path: file_sha256(path) for path in config["decontaminate"]},
            "num_overlapping_problems": dict(counts.overlaps),
        },
        "counts": counts.report(),
        "num_unscored": counts.num_unscored,
    }
