"""A plan as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r1.recipe.memory import checkpoint_bytes, host_bytes, memory_parts, peak_bytes, size
from r1.recipe.memory_setup import MemorySetup
from r1.recipe.parts import VLLM_ENGINES
from r1.recipe.plan import DTYPE_BYTES, IN_PROCESS_ENGINES, Counts, Lengths
from r1.recipe.shapes import ModelShape


def work_lines(config: Mapping[str, Any], counts: Counts, lengths: Lengths) -> list[str]:
    """Say how prompts become optimizer steps, and how many tokens a step has."""
    ranks = f"{counts.world} rank{'s' * (counts.world > 1)}"
    lines = []
    if counts.num_prompts:
        rows = counts.num_prompts * counts.num_generations
        lines.append(
            f"rollout     {counts.num_prompts:,} prompts x {counts.num_generations} completions = {rows:,} rows; "
            f"{counts.num_iterations} pass{'es' * (counts.num_iterations > 1)} x {counts.num_minibatches} "
            f"minibatches = {counts.steps_per_rollout} optimizer steps"
        )
        if counts.num_prompts < counts.world:
            lines.append(f"            {counts.world - counts.num_prompts} ranks have no prompt to sample")
    lines.append(
        f"step        {ranks} x {counts.accumulation} micro-batches x {counts.micro_batch_size} rows = "
        f"{counts.step_rows:,} rows"
    )
    row = lengths.prompt + lengths.completion
    lines.append(
        f"tokens      a row has up to {lengths.prompt:,} + {lengths.completion:,} ({lengths.source}), "
        f"a step up to {row * counts.step_rows:,}"
    )
    steps = config["trainer"].get("max_steps", -1)
    if steps and steps > 0:
        rollouts = f" = {-(-steps // counts.steps_per_rollout):,} rollouts" if counts.num_prompts else ""
        lines.append(
            f"run         {steps:,} optimizer steps{rollouts}, up to {row * counts.step_rows * steps:.3g} tokens"
        )
    return lines


def model_lines(policy: ModelShape, teacher: ModelShape | None) -> list[str]:
    """Say how large the models are, and how that is known."""
    lines = []
    for label, shape in (("policy", policy), ("teacher", teacher)):
        if shape is None:
            continue
        trained = "" if shape.num_trainable == shape.num_parameters else f", {shape.num_trainable:,} of them trained"
        lines.append(f"{label:<11} {shape.name} ({shape.source}): {shape.num_parameters:,} parameters{trained}")
    return lines


def memory_lines(setup: MemorySetup, rollout: Mapping[str, Any]) -> list[str]:
    """List the parts by phase, and the peak."""
    ranks = f"{setup.world} rank{'s' * (setup.world > 1)}"
    checkpointing = "gradient checkpointing" if setup.policy.gradient_checkpointing else "no gradient checkpointing"
    parts = memory_parts(setup)
    lines = [f"memory      of one device: strategy {setup.strategy}, {ranks}, {setup.precision}, {checkpointing}"]
    for phase in ("always", "sampling", "update", "step"):
        some = [part for part in parts if part.phase == phase]
        for number, part in enumerate(some):
            lines.append(f"  {'' if number else phase:<9} {part.name:<40} {size(part.num_bytes):>11}")
        if len(some) > 1:
            lines.append(f"  {'':<9} {'':<40} {'= ' + size(sum(part.num_bytes for part in some)):>11}")
    lines.append(f"  {'peak':<9} {'always + the largest phase':<40} {size(peak_bytes(parts)):>11}")
    lines += engine_lines(setup, rollout)
    if host_bytes(setup):
        lines.append(f"host        {size(host_bytes(setup))} for each rank: optimizer and master weights")
    lines.append(f"checkpoint  {size(checkpoint_bytes(setup))}")
    return lines


def engine_lines(setup: MemorySetup, rollout: Mapping[str, Any]) -> list[str]:
    """Say what an engine that samples outside this process is set to take: none of it is counted."""
    if rollout["name"] in IN_PROCESS_ENGINES:
        return []
    if rollout["name"] not in VLLM_ENGINES or rollout.get("url"):
        return ["engine      outside this process: its memory is not counted"]
    width = DTYPE_BYTES.get(rollout.get("dtype"), setup.weight_bytes)
    weights = size(setup.policy.num_parameters * width)
    options = rollout.get("options" if rollout["name"] == "vllm_colocated" else "flags") or {}
    if setup.on_cpu:
        space = f"{(rollout.get('env') or {}).get('VLLM_CPU_KVCACHE_SPACE', 1)} GiB of key-value cache"
        taken = f"weights {weights} + {space} (VLLM_CPU_KVCACHE_SPACE)"
    else:
        share = options.get("gpu_memory_utilization")
        share = "vLLM's default of" if share is None else f"{share:g} of"
        taken = f"{share} its GPUs' memory (gpu_memory_utilization), weights {weights} and key-value cache in it"
    return [
        f"engine      vLLM takes {taken}: not counted above",
        f"            and the host's memory holds a copy of the weights on their way to it, {weights}",
    ]
