"""From a plain config to the objects of a run: the one place where names in a config become things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningDataModule

from r1.data.mixed import MixedTraces
from r1.data.trace_loader import TraceDataModule
from r1.data.traces import FileTraces, TaskTraces, TraceDataset
from r1.losses.aggregation import AGGREGATIONS, row_weights
from r1.losses.objective import PolicyObjective
from r1.models import MODELS
from r1.models.reference import build_reference
from r1.modules.base import PolicyModule
from r1.modules.grpo import GRPOModule
from r1.modules.sft import SFTModule
from r1.prompts import TEMPLATES
from r1.recipe.decontamination import decontaminate_task
from r1.recipe.parts import (
    Config,
    build,
    build_engine,
    build_evaluator,
    build_optimizer,
    build_sampling,
    build_task,
)
from r1.registry import Registry, check_choice, check_options, keys_below
from r1.rewards import build_rewards
from r1.rollout.advantage import AdvantageEstimator
from r1.rollout.base import RolloutEngine
from r1.rollout.evaluate import Evaluator
from r1.rollout.grading import TeacherGrading
from r1.rollout.loader import RolloutLoader
from r1.rollout.plan import RolloutPlan
from r1.rollout.source import GroupSource
from r1.settings import check_keys, check_lows, settings
from r1.tasks import TASKS
from r1.tasks.mixture import positive_share

ALGORITHMS = Registry("algorithm")
SFT_KEYS = {
    "name": "str",
    "data": "Mapping",
    "optimizer": "Mapping | None",
    "aggregation": "str",
    "max_length": "int | None",
}
DATA_KEYS = {
    "style": "str | None",
    "split": "str",
    "path": "str | None",
    "mix": "Mapping | None",
    "shape": "str | None",
    "broken_lines": "str | None",
    "batch_size": "int",
    "num_examples": "int | None",
    "bucket_batches": "int",
}
_SOURCE_KEYS = ("share", "path", "task", "style", "split")
SFT_AGGREGATIONS = tuple(mode for mode in AGGREGATIONS if mode != "group_token_mean")  # there are no groups
POLICY_KEYS = {
    "name": "str",
    "plan": "Mapping",
    "optimizer": "Mapping | None",
    "log_entropy": "bool",
    "split": "str",
}


@dataclass(slots=True, kw_only=True)
class Parts:
    """What every algorithm is built from."""

    task: Any
    template: Any
    policy: Any
    engine: RolloutEngine
    evaluator: Evaluator | None


def assemble(config: Config, *, model: Config) -> tuple[PolicyModule, LightningDataModule | None]:
    """Build the module of a run, and its data module where the module does not make its own data.

    Args:
        config: the resolved training config as plain Python.
        model: what to build the policy from; differs from `config["model"]` when a run starts from a saved model.

    Raises:
        ValueError: an unknown name or key, or a value that does not fit; the message names the config key.
    """
    task = build_task(config)
    if config.get("decontaminate"):
        decontaminate_task(task, config["decontaminate"])
    template = build(TEMPLATES, config["prompt"])
    engine = build_engine(config)
    parts = Parts(
        task=task,
        template=template,
        policy=build(MODELS, model),
        engine=engine,
        evaluator=build_evaluator(config, config["evaluation"], task=task, template=template, engine=engine),
    )
    name = config["algorithm"].get("name", "grpo")
    if "plan" in config["algorithm"] and name in ("sft", "distill", "reward_model"):
        raise ValueError(
            f"algorithm.plan: algorithm={name} makes no rollouts, but the experiment plans them (experiment=demo_grpo "
            f"unless another is named). Take one that is made for it: experiment=demo_{name}"
        )
    return ALGORITHMS.get(name)(config, parts)


@ALGORITHMS.register("grpo")
def grpo(config: Config, parts: Parts) -> tuple[GRPOModule, None]:
    """Group-relative policy optimisation: the module makes its own data."""
    algorithm = check_keys(config["algorithm"], POLICY_KEYS, "algorithm")
    return GRPOModule(**policy_parts(config, parts, algorithm)), None


def policy_parts(
    config: Config, parts: Parts, algorithm: Config, *, grading: TeacherGrading | None = None
) -> dict[str, Any]:
    """Build the keyword arguments of `GRPOModule`: what algorithms that learn from rollouts have in common."""
    loss = dict(config["loss"])
    advantage = loss.pop("advantage", {"name": "group"})
    if not isinstance(advantage, Mapping) or "name" not in advantage:
        raise ValueError(f"loss.advantage: found {advantage!r}, expected {{name: ..., ...}}")
    plan = settings(RolloutPlan, algorithm.get("plan"), "algorithm.plan")
    if plan.old_logps != "sampler":  # they would hold the correction already
        loss.setdefault("mismatch", getattr(parts.engine, "mismatch", None))
    objective = settings(PolicyObjective, loss, "loss")
    if plan.max_staleness and not hasattr(parts.engine, "submit"):
        raise ValueError("algorithm.plan.max_staleness=1 needs an engine beside the update: rollout=vllm")
    if plan.max_staleness and objective.mismatch is None and plan.old_logps != "sampler":
        raise ValueError(
            "algorithm.plan.max_staleness=1 with loss.mismatch=null leaves the age of the rollouts uncorrected; choose "
            "++loss.mismatch=token_truncate"
        )
    rewards = build_rewards(config["reward"], task=parts.task)
    reference = None
    node = check_keys(config["reference"], ("kind", "every", "alpha"), "reference")
    check_options(build_reference, {k: v for k, v in node.items() if k != "kind"}, "reference")
    if node.get("kind", "none") != "none":
        _check_moves(node["kind"], config.get("callbacks") or {})
        reference = build_reference(policy=parts.policy, **node)
    elif objective.kl_coef or plan.kl_in_reward:
        raise ValueError(
            f"a KL term needs a reference policy: loss.kl_coef={objective.kl_coef}, "
            f"algorithm.plan.kl_in_reward={plan.kl_in_reward}, but reference.kind=none. "
            "Choose reference=frozen, reference=moving, or set the coefficient to 0"
        )
    sampling = build_sampling(config)
    if sampling.temperature == 0:
        raise ValueError(
            "rollout.sampling.temperature: found 0, expected more than 0: greedy decoding has no log-probabilities to "
            "train on"
        )
    if sampling.num_generations < 2:
        raise ValueError(
            f"rollout.sampling.num_generations: found {sampling.num_generations}, expected at least 2: an advantage "
            "relative to the group needs other completions of the same prompt"
        )
    source = GroupSource(
        stream=parts.task.problems(algorithm.get("split", "train"), seed=config["seed"]),
        template=parts.template,
        engine=parts.engine,
        rewards=rewards,
        policy=parts.policy,
        sampling=sampling,
        plan=plan,
    )
    loader = RolloutLoader(
        source=source,
        advantage=AdvantageEstimator(weights=rewards.weights, **advantage),
        aggregation=objective.aggregation,
        reference=reference,
        keep_rollout_logps=objective.mismatch is not None,
        grading=grading,
    )
    return {
        "policy": parts.policy,
        "loader": loader,
        "objective": objective,
        "reference": reference,
        "log_entropy": algorithm.get("log_entropy", True),
        "optimizer": build_optimizer(algorithm),
        "evaluator": parts.evaluator,
    }


def _check_moves(kind: str, callbacks: Config) -> None:
    targets = [(node or {}).get("_target_", "") for node in callbacks.values()]
    if kind in ("moving", "mixed") and not any(target.endswith("ReferenceUpdate") for target in targets):
        raise ValueError(
            f"reference.kind={kind} needs callbacks.reference, which moves it; found none. Choose reference=frozen, or "
            "keep that callback"
        )


@ALGORITHMS.register("sft")
def sft(config: Config, parts: Parts) -> tuple[SFTModule, TraceDataModule]:
    """Supervised fine-tuning on traces of a file, or on those the task writes itself."""
    algorithm = check_keys(config["algorithm"], SFT_KEYS, "algorithm")
    data = check_keys(algorithm["data"], DATA_KEYS, "algorithm.data")
    check_lows(data, "algorithm.data", batch_size=1, bucket_batches=1, num_examples=1)
    aggregation = algorithm.get("aggregation", "token_mean")
    check_choice(aggregation, SFT_AGGREGATIONS, "algorithm.aggregation")
    with keys_below("algorithm."):
        row_weights(torch.ones(1), aggregation, max_length=algorithm.get("max_length"))
    module = SFTModule(
        policy=parts.policy,
        aggregation=aggregation,
        max_length=algorithm.get("max_length"),
        optimizer=build_optimizer(algorithm),
        evaluator=parts.evaluator,
    )
    return module, TraceDataModule(
        build_traces(config, parts, data),
        batch_size=data.get("batch_size", 64),
        seed=config["seed"],
        bucket_batches=data.get("bucket_batches", 1),
    )


def build_traces(config: Config, parts: Parts, data: Config) -> TraceDataset:
    """Build the demonstrations of `algorithm.data`: of a file, those a task writes itself, or a mixture of such."""
    if data.get("mix"):
        return _mixed_traces(config, parts, data)
    if data.get("path"):
        options = {key: data[key] for key in ("shape", "broken_lines") if data.get(key)}
        return FileTraces(parts.policy.tokenizer, path=data["path"], template=parts.template, **options)
    return TaskTraces(
        parts.policy.tokenizer,
        template=parts.template,
        task=build(TASKS, data["task"]) if data.get("task") else parts.task,
        style=data.get("style", "clean"),
        split=data.get("split", "train"),
        num_examples=data.get("num_examples") or 1 << 20,
        seed=config["seed"],
    )


def _mixed_traces(config: Config, parts: Parts, data: Config) -> MixedTraces:
    """Build the sources of `algorithm.data.mix`, label -> {share, path} or {share, task, style, split}."""
    if data.get("path"):
        raise ValueError("algorithm.data: path and mix exclude each other; name the file in mix: {x: {path, share}}")
    shares, sources = {}, {}
    for label, node in data["mix"].items():
        key = f"algorithm.data.mix.{label}"
        node = check_keys(node or {}, _SOURCE_KEYS, key)
        shares[label] = positive_share(node.pop("share", None), f"{key}.share")
        if node.get("path") and len(node) > 1:
            raise ValueError(f"{key}: a file's demonstrations are as they are, beside path there can be share alone")
        sources[label] = build_traces(config, parts, node)
    files = tuple(label for label, source in sources.items() if isinstance(source, FileTraces))
    return MixedTraces(sources, shares, num_examples=data.get("num_examples"), finite=files)


# Registers the algorithms of distillation and the reward model, which are built from the functions above.
from r1.recipe import distill as _distill  # noqa: E402, F401
from r1.recipe import reward_model as _reward_model  # noqa: E402, F401
