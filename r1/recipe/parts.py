"""The parts of a config, each built from its node: task, engine, sampling, optimizer, evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from r1.modules.optimizer import OptimizerSettings
from r1.registry import Registry, RegistryError
from r1.rewards import build_rewards
from r1.rollout import ENGINES
from r1.rollout.base import RolloutEngine
from r1.rollout.evaluate import Evaluator
from r1.settings import check_lows, settings
from r1.tasks import TASKS
from r1.types import SamplingParams

Config = Mapping[str, Any]

# Of the model node: what holds for weights from elsewhere too.
MODEL_OPTIONS = (
    "dtype",
    "lora",
    "gradient_checkpointing",
    "kernels",
    "packing",
    "attn_implementation",
    "trust_remote_code",
    "chat_template",
)
VLLM_ENGINES = ("vllm", "vllm_colocated")


def saved_model(path: str, model: Config) -> dict[str, Any]:
    """Return the model node for weights saved at `path`, with the options of the node of a config."""
    return {"name": "pretrained", "path": path, "dtype": "float32"} | {
        key: value for key, value in model.items() if key in MODEL_OPTIONS
    }


def build(registry: Registry, node: Config, key: str = "", /, **extra: Any) -> Any:
    """Build what a node of the form {name: ..., **arguments} stands for; `key` is where it stands in the config."""
    return named(registry.build, registry, node, key, **extra)


def named(call: Callable[..., Any], registry: Registry, node: Config, key: str = "", /, **extra: Any) -> Any:
    """Call the registry's `build` or `check` for a node, with the config key in the message of what is wrong."""
    key = key or registry.kind.split()[0]
    if not isinstance(node, Mapping):
        raise ValueError(f"{key}: found {node!r}, expected {{name: ..., ...}}")
    arguments = dict(node)
    if "name" not in arguments:
        raise ValueError(f"{key}: missing 'name'. Registered: {', '.join(registry.names())}")
    try:
        return call(arguments.pop("name"), **arguments, **extra)
    except RegistryError as error:
        raise error.at(key) from error


def build_task(config: Config) -> Any:
    return build(TASKS, config["task"])


def build_engine(config: Config) -> RolloutEngine:
    # Experiments limit the batch of an engine in this process; vLLM takes as many rows as its cache has room for.
    left_out = ("sampling", "max_batch_size") if config["rollout"].get("name") in VLLM_ENGINES else ("sampling",)
    return build(ENGINES, {k: v for k, v in config["rollout"].items() if k not in left_out})


def build_sampling(config: Config, **changes: Any) -> SamplingParams:
    """Build the sampling parameters of `rollout.sampling`, some of them changed."""
    values = {"seed": config["seed"]} | dict(config["rollout"].get("sampling") or {}) | changes
    stop = values.get("stop") or ()
    stop = [stop] if isinstance(stop, str) else stop
    values["stop"] = tuple(stop) if isinstance(stop, list) else stop
    params = settings(SamplingParams, values, "rollout.sampling")
    check_lows(asdict(params), "rollout.sampling", num_generations=1, max_tokens=1, temperature=0, top_k=0)
    if not 0 < params.top_p <= 1:
        raise ValueError(f"rollout.sampling.top_p must be in (0, 1], found {params.top_p}")
    return params


def build_optimizer(algorithm: Config) -> dict[str, Any]:
    """Return the keyword arguments of `OptimizerSettings` that `algorithm.optimizer` gives, checked."""
    return asdict(settings(OptimizerSettings, algorithm.get("optimizer"), "algorithm.optimizer"))


def build_evaluator(
    config: Config, node: Config, *, task: Any, template: Any, engine: RolloutEngine
) -> Evaluator | None:
    """Build the held-out evaluation that a node {num_problems, num_samples, temperature, split, seed} describes."""
    node = settings(EvaluationSettings, node, "evaluation")
    check_lows(asdict(node), "evaluation", num_problems=0)
    if node.num_problems == 0:
        return None
    return Evaluator(
        problems=task.problems(node.split, seed=node.seed).take_unique(node.num_problems),
        template=template,
        engine=engine,
        rewards=build_rewards({"accuracy": _accuracy(config)}, task=task),
        sampling=build_sampling(
            config, num_generations=node.num_samples, temperature=node.temperature, top_p=node.top_p, seed=node.seed
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """Keys of the config group `evaluation`; see configs/evaluation/default.yaml."""

    num_problems: int = 0
    num_samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    split: str = "test"
    seed: int = 1234


def _accuracy(config: Config) -> dict[str, Any]:
    # Held-out answers are judged as the reward judges them, where the config has an accuracy reward.
    node = dict((config.get("reward") or {}).get("accuracy") or {})
    return {**node, "weight": 1.0}
