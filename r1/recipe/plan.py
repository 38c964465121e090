"""What a config means before it runs: how rollouts become optimizer steps, and what its memory depends on.

Legend: P prompts, G completions of each.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1.recipe.memory import DIVERGENCE_COPIES
from r1.recipe.memory_setup import STRATEGIES, MemorySetup, Sampling
from r1.recipe.shapes import ModelShape
from r1.registry import did_you_mean
from r1.rollout.plan import RolloutPlan
from r1.settings import settings

Config = Mapping[str, Any]
ROLLOUT_ALGORITHMS = ("grpo", "on_policy", "minillm")
IN_PROCESS_ENGINES = ("local", "transformers")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true")
_ALIASES = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed", "None": "32-true"}
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class PlanError(ValueError):
    """A config that cannot work; the message names the nearest that does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """Keys of `plan` on the command line of `r1.plan`.

    Attributes:
        device_memory_gib: of one device; null takes that of the device here, where training would run on it.
        headroom: share of a device's memory left to libraries and the allocator.
        prompt_tokens: longest prompt; null measures the task's where task and tokenizer are here, else 512.
        completion_tokens: longest completion; null takes rollout.sampling.max_tokens, for traces their longest.
        model_config: a config.json or its folder, for a model that cannot be looked up.
    """

    device_memory_gib: float | None = None
    headroom: float = 0.1
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model_config: str | None = None

    def __post_init__(self) -> None:
        if self.device_memory_gib is not None and self.device_memory_gib <= 0:
            raise ValueError(f"plan.device_memory_gib: found {self.device_memory_gib}, expected more than 0")
        if not 0 <= self.headroom < 1:
            raise ValueError(f"plan.headroom: found {self.headroom}, expected 0 or more and less than 1")
        for key in ("prompt_tokens", "completion_tokens"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ValueError(f"plan.{key}: found {value}, expected 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Longest prompt and completion in tokens, and where the numbers are from."""

    prompt: int
    completion: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How work is divided.

    Attributes:
        world: ranks.
        num_prompts, num_generations, num_iterations, num_minibatches: of a rollout; 0 prompts where there is none.
        micro_batch_size: rows per forward pass.
        accumulation: micro-batches per rank in one optimizer step.
        step_rows: rows of one optimizer step over all ranks.
    """

    world: int
    num_prompts: int = 0
    num_generations: int = 1
    num_iterations: int = 1
    num_minibatches: int = 1
    micro_batch_size: int = 1
    accumulation: int = 1
    step_rows: int = 1

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps made from one rollout."""
        return self.num_iterations * self.num_minibatches


def num_ranks(config: Config, *, local_devices: int = 1) -> int:
    """Return devices x nodes of the trainer.

    Raises:
        PlanError: devices that are not a number of them.
    """
    devices, nodes = config["trainer"].get("devices", 1), config["trainer"].get("num_nodes", 1)
    if devices in ("auto", -1, "-1"):
        devices = local_devices
    if isinstance(devices, list):
        devices = len(devices)
    if not str(devices).isdigit() or int(devices) < 1 or int(nodes) < 1:
        raise PlanError(f"trainer.devices={devices!r}, trainer.num_nodes={nodes}: expected at least 1 of each")
    return int(devices) * int(nodes)


def count(config: Config, *, world: int) -> Counts:
    """Return how a run divides its work.

    Raises:
        PlanError: sizes that do not divide, with the nearest that do.
    """
    algorithm = config["algorithm"]
    name = algorithm.get("name", "grpo")
    if name in ROLLOUT_ALGORITHMS:
        return _count_rollout(config, world)
    size = algorithm["data"].get("batch_size", 64)
    micro, accumulation = size, config["trainer"].get("accumulate_grad_batches", 1)
    if name == "distill":
        micro = algorithm["data"].get("micro_batch_size") or size
        if size % micro:
            near = _nearest(micro, [d for d in range(1, size + 1) if size % d == 0])
            raise PlanError(
                f"algorithm.data.micro_batch_size={micro} does not divide algorithm.data.batch_size={size}; "
                f"nearest that does: {near}"
            )
        accumulation = size // micro
    examples = algorithm["data"].get("num_examples")
    if examples and examples < size * world:
        raise PlanError(
            f"algorithm.data.num_examples={examples} are fewer than one batch of algorithm.data.batch_size={size} x "
            f"{world} ranks; nearest that works: algorithm.data.batch_size={max(1, examples // world)}"
        )
    return Counts(
        world=world, micro_batch_size=micro, accumulation=accumulation, step_rows=micro * accumulation * world
    )


def _count_rollout(config: Config, world: int) -> Counts:
    plan = settings(RolloutPlan, config["algorithm"].get("plan"), "algorithm.plan")
    generations = config["rollout"]["sampling"]["num_generations"]
    try:
        parts = plan.num_parts(generations, world)
    except ValueError as error:
        raise PlanError(f"{error}. {_nearest_plan(plan, generations, world)}") from None
    step_rows = plan.num_prompts * generations // plan.num_minibatches
    return Counts(
        world=world,
        num_prompts=plan.num_prompts,
        num_generations=generations,
        num_iterations=plan.num_iterations,
        num_minibatches=plan.num_minibatches,
        micro_batch_size=step_rows // parts,
        accumulation=parts // world,
        step_rows=step_rows,
    )


def _nearest_plan(plan: RolloutPlan, generations: int, world: int) -> str:
    """Name the nearest number of prompts, or of ranks, with which the plan would divide."""

    def works(prompts: int, ranks: int) -> bool:
        rows = prompts * generations
        micro = plan.micro_batch_size or 1
        return rows % (plan.num_minibatches * ranks) == 0 and rows // (plan.num_minibatches * ranks) % micro == 0

    unit = plan.num_minibatches * world * (plan.micro_batch_size or 1)
    prompts = _nearest(plan.num_prompts, [p for p in range(1, plan.num_prompts + unit + 1) if works(p, world)])
    ranks = [r for r in range(1, world + 1) if works(plan.num_prompts, r)]
    hints = [f"algorithm.plan.num_prompts={prompts} on {world} rank{'s' * (world > 1)}"]
    if ranks:
        hints.append(f"{max(ranks)} rank{'s' * (max(ranks) > 1)} with the {plan.num_prompts} prompts there are")
    return f"Nearest that works: {', or '.join(hints)}"


def _nearest(wanted: int, choices: list[int]) -> int:
    return min(choices, key=lambda choice: (abs(choice - wanted), choice))


def strategy_name(config: Config) -> str:
    """Return the name of the strategy.

    Raises:
        PlanError: one whose memory is not known here.
    """
    node = config["strategy"]
    name = str(node.get("name", ""))
    if name == "deepspeed":  # the strategies of DeepSpeed are one, with options
        name += f"_zero{node.get('stage')}" + ("_offload" if node.get("offload") else "")
    if name not in STRATEGIES:
        raise PlanError(
            f"strategy.name={name!r} is not known here.{did_you_mean(name, STRATEGIES)} Known: {', '.join(STRATEGIES)}"
        )
    return name


def precision_name(config: Config) -> str:
    """Return the trainer's precision in its long form.

    Raises:
        PlanError: an unknown one.
    """
    found = str(config["trainer"].get("precision", "32-true"))
    name = _ALIASES.get(found, found)
    if name not in PRECISIONS:
        raise PlanError(
            f"trainer.precision={found!r} is not known here.{did_you_mean(found, PRECISIONS)} "
            f"Known: {', '.join(PRECISIONS)}"
        )
    return name


def check_lengths(shape: ModelShape, lengths: Lengths) -> None:
    """Raise PlanError when prompt and completion together are longer than the model's positions."""
    total = lengths.prompt + lengths.completion
    if shape.max_length is not None and total > shape.max_length:
        nearest = shape.max_length - lengths.prompt
        what = f"prompts of {lengths.prompt} and completions of {lengths.completion} tokens"
        hint = f"nearest that fits: rollout.sampling.max_tokens={nearest}" if nearest > 0 else "shorten the prompts"
        raise PlanError(
            f"{what} together are {total}, and {shape.name} has max_position_embeddings={shape.max_length}; {hint}"
        )


def memory_setup(
    config: Config, counts: Counts, lengths: Lengths, *, policy: ModelShape, teacher: ModelShape | None, on_cpu: bool
) -> MemorySetup:
    """Return what the memory of a run depends on.

    Raises:
        PlanError: unknown strategy or precision, or an engine that cannot run the model.
    """
    algorithm = config["algorithm"]
    name = algorithm.get("name", "grpo")
    rollouts = name in ROLLOUT_ALGORITHMS
    loss = "logps_entropy" if rollouts and algorithm.get("log_entropy", True) else "logps"
    if name == "reward_model":
        loss = "scores"
    if name == "minillm":
        loss = "reverse_kl"
    if name == "distill":
        loss = algorithm["objective"].get("divergence", "forward_kl")
        loss = loss if loss in DIVERGENCE_COPIES else "forward_kl"
    return MemorySetup(
        policy=policy,
        teacher=teacher,
        has_reference=rollouts and config["reference"].get("kind", "none") not in ("none", "adapter_disabled"),
        strategy=strategy_name(config),
        world=counts.world,
        precision=precision_name(config),
        rows=counts.micro_batch_size * (2 if name == "reward_model" else 1),
        prompt_length=lengths.prompt,
        completion_length=lengths.completion,
        loss=loss,
        chunk_size=algorithm.get("chunk_size"),
        on_cpu=on_cpu,
        sampling=_sampling(config, counts, lengths, policy),
    )


def _sampling(config: Config, counts: Counts, lengths: Lengths, policy: ModelShape) -> Sampling | None:
    """Return what samples in this process: the rollout or, where there is none, the evaluation or the student."""
    node, evaluation = config["rollout"], config["evaluation"]
    engine = node["name"]
    if engine not in IN_PROCESS_ENGINES:
        return None
    if engine == "local" and policy.not_decodable:
        raise PlanError(
            f"rollout.name=local cannot decode {policy.name}: {policy.not_decodable}; "
            "nearest that can: rollout=transformers"
        )
    generations = counts.num_generations if counts.num_prompts else 1
    rows = counts.num_prompts * generations
    if not rows and (config["algorithm"].get("on_policy") or {}).get("probability"):
        rows = counts.micro_batch_size * counts.accumulation * counts.world
    if not rows:
        generations = evaluation.get("num_samples", 1)
        rows = evaluation.get("num_problems", 0) * generations
    if not rows:
        return None
    sampling = node.get("sampling") or {}
    return Sampling(
        engine=engine,
        num_rows=min(node.get("max_batch_size", 256), -(-rows // counts.world)),
        num_generations=generations,
        length=lengths.prompt + max(lengths.completion, sampling.get("max_tokens", 0)),
        prompt_length=lengths.prompt,
        bytes=DTYPE_BYTES.get(node.get("dtype")),
        truncates=bool(sampling.get("top_k")) or sampling.get("top_p", 1.0) < 1,
    )


def with_overrides(config: Config, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a plain config with some dotted keys set."""
    changed = copy.deepcopy(dict(config))
    for key, value in changes.items():
        *path, last = key.split(".")
        node = changed
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return changed
