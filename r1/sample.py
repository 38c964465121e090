"""Completions of a model or a remote teacher, verified and filtered into a trace file with a manifest.

python -m r1.sample model=<saved model or run directory> task=chain k=8 out=traces.jsonl
python -m r1.sample rollout=remote rollout.url=http://127.0.0.1:8000/v1 model=<its name there> k=8 out=traces.jsonl
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from r1.entry import open_run, run_command_line
from r1.failure import guarded
from r1.prompts import TEMPLATES
from r1.recipe.chat import prompt_node
from r1.recipe.decontamination import load_benchmarks
from r1.recipe.harvest import harvest, manifest_record, sampling_identity
from r1.recipe.parts import build, build_engine, build_sampling, build_task
from r1.recipe.rejection import FilterCounts, RejectionSettings
from r1.recipe.rewrite import rewrite_groups
from r1.recipe.sampling import ShardedSampler
from r1.recipe.source import Source, load_source
from r1.recipe.stages import write_json
from r1.rewards import build_rewards
from r1.rollout.base import RolloutEngine
from r1.settings import settings

COMMAND = "python -m r1.sample"


def sample(cfg: DictConfig) -> dict[str, Any]:
    """Sample, verify and filter; return the summary.

    Args:
        cfg: a composed config of `sample.yaml`; `output_dir` must be set.

    Returns:
        What `summary.json` holds: stage, status, seconds, tokens, traces (the file), counts, metrics.
    """
    started = time.perf_counter()
    config, folder = open_run(cfg)
    out = Path(config["out"] or folder / "traces.jsonl")
    filters = settings(
        RejectionSettings, {**config["filters"], "keep_per_problem": config["keep_per_problem"]}, "filters"
    )
    task, engine = build_task(config), build_engine(config)
    problems = task.problems(config["split"], seed=config["seed"]).take_unique(config["num_problems"])
    rewards = build_rewards(config["reward"], task=task)
    source = load_source(config)
    config["prompt"] = prompt_node(config, source.policy.tokenizer)
    benchmarks = None
    if files := config["decontaminate"]:
        benchmarks = load_benchmarks(files, tokenizer=source.policy.tokenizer, **config["decontamination"])
    shards = out.with_suffix(".shards")
    sampler = build_sampler(config, source, engine, shards)
    try:
        engine.load_weights(source.policy)
        counts = harvest(
            (
                rewrite_groups(groups, config["rewrite"])
                for groups in sampler.groups(
                    problems, lambda done, total: print(f"{done} of {total} problems", flush=True)
                )
            ),
            rewards=rewards,
            settings=filters,
            benchmarks=benchmarks,
            source=source,
            out=out,
            all_out=Path(config["all_out"]) if config["all_out"] else None,
            manifest=lambda counts: manifest_record(config, source, counts),
        )
    finally:
        rewards.close()
        engine.close()
    if not config["keep_shards"]:
        shutil.rmtree(shards)
    show(counts)
    summary = {
        "stage": "sample",
        "status": "finished",
        "seconds": time.perf_counter() - started,
        "tokens": counts.num_tokens,
        "traces": str(out),
        "counts": counts.report(),
        "metrics": {"sample/kept": counts.num_kept / counts.num_completions},
    }
    write_json(folder / "summary.json", summary)
    print(f"{counts.num_kept} traces in {out} ({sampler.num_reused} shards were there already)", flush=True)
    return summary


def build_sampler(config: Mapping[str, Any], source: Source, engine: RolloutEngine, shards: Path) -> ShardedSampler:
    """Build what draws completions into the folder `shards`."""
    return ShardedSampler(
        shards,
        sampling_identity(config, source),
        template=build(TEMPLATES, config["prompt"]),
        policy=source.policy,
        engine=engine,
        params=build_sampling(config),
        shard_size=config["shard_size"],
    )


def show(counts: FilterCounts) -> None:
    """Print what each filter left."""
    table = Table("filter", "refused", "completions left", "problems left")
    for row in counts.report():
        if row["filter"] == "sampled" or row["num_refused"]:
            table.add_row(row["filter"], *(str(row[f"num_{k}"]) for k in ("refused", "completions", "problems")))
    Console().print(table)


@hydra.main(version_base="1.3", config_path="pkg://r1.configs", config_name="sample")
def _main(cfg: DictConfig) -> None:
    cfg.output_dir = cfg.output_dir or HydraConfig.get().runtime.output_dir
    guarded(lambda: sample(cfg), Path(cfg.output_dir), COMMAND)


def main() -> None:
    """Run the command line."""
    run_command_line(_main, name="sample")


if __name__ == "__main__":
    main()
