"""A stage's config checked and put into words, without its models, its data or the network.

What a config names is built as the stage would build it, with stand-ins for what lies elsewhere: a model of a few
thousand weights for the real one, generated problems for a data set, a few lines for a file of traces.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from r1.models import MODELS
from r1.prompts import TEMPLATES
from r1.recipe.assemble import assemble
from r1.recipe.claims import QUANTITIES, Comparison
from r1.recipe.parts import (
    MODEL_OPTIONS,
    build,
    build_engine,
    build_evaluator,
    build_sampling,
    build_task,
    named,
    saved_model,
)
from r1.recipe.plan import ROLLOUT_ALGORITHMS
from r1.recipe.rejection import RejectionSettings
from r1.registry import did_you_mean
from r1.rewards import REWARDS, build_rewards
from r1.rollout.plan import RolloutPlan
from r1.settings import check_keys, settings
from r1.tasks import TASKS

Config = Mapping[str, Any]

STAND_IN_MODEL = {"name": "tiny_llama", "hidden_size": 16, "num_heads": 2, "num_layers": 1, "intermediate_size": 16}
_TRACE = '{"prompt": "1A+1:", "completion": "<think>1A+1=2</think><answer>2</answer>"}\n'
_ELSEWHERE = ("hub", "jsonl", "gym")  # tasks whose problems are not generated here


def check(run: str, config: Config) -> None:
    """Check the resolved config of a stage.

    Args:
        run: kind of the stage: train, sample, evaluate, diagnose or claims.
        config: as plain Python; its inputs may be paths where nothing is yet.

    Raises:
        ValueError: whatever the stage itself would refuse before its first step; the message names the config key.
    """
    _CHECKS[run](config)


def describe(run: str, config: Config) -> str:
    """Return the hyper-parameters that one looks for first, in a line."""
    return _WORDS[run](config)


# -------------------------------------------------------------------------------------------------------- stand-ins


def _check_named(registry: Any, node: Config, key: str = "") -> None:
    named(registry.check, registry, node, key)


def _stand_in_task(node: Config) -> dict[str, Any]:
    """Return a task of the same label whose problems are at hand."""
    if node.get("name") == "mixture":
        tasks = {}
        for label, part in node["tasks"].items():
            arguments = {key: value for key, value in part.items() if key != "share"}
            tasks[label] = {"share": part.get("share"), **_stand_in_task({"name": label} | arguments)}
        return {**node, "tasks": tasks}
    _check_named(TASKS, node)
    return {"name": "chain"} if node["name"] in _ELSEWHERE else dict(node)


def _stand_in_rewards(nodes: Config) -> dict[str, Any]:
    found = {}
    for label, node in (nodes or {}).items():
        if isinstance(node, Mapping) and "path" in node:  # a model scores
            options = {k: v for k, v in node.items() if k not in ("name", "weight", "tasks")}
            REWARDS.check(node.get("name", label), **options)
            node = {"name": "format"} | {key: node[key] for key in ("weight", "tasks") if key in node}
        found[label] = node
    return found


def _stand_in(config: Config, traces: str) -> dict[str, Any]:
    model = config["model"]
    if config["init_from"] is not None:  # the weights are of another model, for which this one's options hold
        _check_named(MODELS, saved_model("elsewhere", model), "model")
        model = {key: value for key, value in model.items() if key not in MODEL_OPTIONS}
    _check_named(MODELS, model)
    if model["name"].startswith("tiny_"):
        with torch.device("meta"):
            build(MODELS, model)
    changes: dict[str, Any] = {"task": _stand_in_task(config["task"]), "model": STAND_IN_MODEL, "decontaminate": []}
    changes["reward"] = _stand_in_rewards(config["reward"])
    # A teacher that is a stage of its own has no name until it is made.
    teacher = {k: v for k, v in (config.get("teacher") or {}).items() if k not in ("experiment", "overrides")}
    if teacher.get("name", "stage") not in ("none", "stage"):
        _check_named(MODELS, teacher, "teacher")
    if teacher.get("name") != "none" or (config["algorithm"].get("teacher_logits") or {}).get("path"):
        changes["teacher"] = STAND_IN_MODEL
    if (config.get("reference") or {}).get("kind") == "adapter_disabled":
        changes["reference"] = {"kind": "frozen"}
    if (config.get("evaluation") or {}).get("num_problems"):
        changes["evaluation"] = {**config["evaluation"], "num_problems": 1}
    algorithm = dict(config.get("algorithm") or {})
    if data := dict(algorithm.get("data") or {}):
        data["path"] = traces if data.get("path") and algorithm.get("name") != "reward_model" else data.get("path")
        if data.get("mix"):
            data["mix"] = {k: {**v, "path": traces} if v.get("path") else v for k, v in data["mix"].items()}
        algorithm["data"] = data
    if algorithm.get("teacher_logits"):
        check_keys(algorithm["teacher_logits"], {"k": "int | None", "path": "str | None"}, "algorithm.teacher_logits")
        algorithm["teacher_logits"] = {"k": 0, "path": None}
    return {**config, **changes, "algorithm": algorithm}


# ----------------------------------------------------------------------------------------------------------- checks


def check_training(config: Config) -> None:
    """Check a training stage in all but how its work divides; raises as `check`."""
    with tempfile.TemporaryDirectory() as folder:
        traces = Path(folder) / "traces.jsonl"
        if data := config["algorithm"].get("data"):
            traces.write_text(_TRACE * max(4096, int(data.get("batch_size", 64))))
        module, _ = assemble(_stand_in(config, str(traces)), model=STAND_IN_MODEL)
    if module.evaluator is not None:
        module.evaluator.rewards.close()
    if hasattr(module, "loader"):
        module.loader.source.rewards.close()


def check_division(config: Config) -> None:
    """Raise ValueError unless the completions of a rollout divide into optimizer steps, ranks and micro-batches."""
    if (config["algorithm"].get("name", "grpo")) in ROLLOUT_ALGORITHMS:
        plan = settings(RolloutPlan, config["algorithm"].get("plan"), "algorithm.plan")
        plan.num_parts(build_sampling(config).num_generations, _world(config))


def _check_train(config: Config) -> None:
    check_training(config)
    check_division(config)


def _check_sampling(config: Config) -> None:
    """Check what sample, evaluate and diagnose have in common."""
    _check_named(MODELS, config["model"])
    task = build_task({"task": _stand_in_task(config["task"])})
    build_rewards(_stand_in_rewards(config["reward"]), task=task).close()
    build(TEMPLATES, config["prompt"])
    build_engine(config).close()
    build_sampling(config)
    task.problems(config["split"])
    if config["num_problems"] is not None and config["num_problems"] < 1:
        raise ValueError(f"num_problems must be at least 1, found {config['num_problems']}")


def _check_sample(config: Config) -> None:
    _check_sampling(config)
    settings(RejectionSettings, {**config["filters"], "keep_per_problem": config["keep_per_problem"]}, "filters")


def _check_evaluate(config: Config) -> None:
    if config["benchmark"]:  # its files may be elsewhere: what needs none of them is checked
        _check_named(MODELS, config["model"])
        build(TEMPLATES, config["prompt"])
        build_engine(config).close()
        build_sampling(config, num_generations=config["num_samples"] or 1)
        for name, node in config["benchmark"].items():
            if "task" not in node:
                raise ValueError(f"benchmark.{name}: missing task")
            label = {"label": name} if node["task"].get("name") == "benchmark" else {}
            _check_named(TASKS, label | dict(node["task"]))
        return
    _check_sampling(config)
    check_keys(config["few_shot"], ("path", "k", "question", "answer", "prefill"), "few_shot")
    node = {key: config[key] for key in ("temperature", "top_p", "split", "seed")}
    stand_in = {**config, "task": _stand_in_task(config["task"])}
    task, engine = build_task(stand_in), build_engine(config)
    node |= {"num_problems": 1, "num_samples": 1 if config["num_samples"] is None else config["num_samples"]}
    build_evaluator(config, node, task=task, template=None, engine=engine).rewards.close()


def _check_diagnose(config: Config) -> None:
    _check_sampling(config)
    if config["task"]["name"] not in _ELSEWHERE:
        build_task(config)


def _check_claims(config: Config) -> None:
    labels = config["evaluations"]
    for label, claim in config["claims"]["claims"].items():
        check_keys(claim, ("claim", "comparisons", "note"), f"claims.{label}")
        for node in claim.get("comparisons", []):
            check_keys(node, tuple(Comparison.__dataclass_fields__), f"claims.{label}.comparisons")
            comparison = Comparison(**node)
            for side in (comparison.a, comparison.b):
                if side.partition(".")[0] not in labels:  # <label>.<benchmark>
                    raise ValueError(f"claims.{label}: no evaluation {side!r}.{did_you_mean(side, labels)}")
            if comparison.quantity not in QUANTITIES:
                hint = did_you_mean(comparison.quantity, QUANTITIES)
                raise ValueError(f"claims.{label}: no quantity {comparison.quantity!r}.{hint}")


# ------------------------------------------------------------------------------------------------------------ words


def _world(config: Config) -> int:
    trainer = config["trainer"]
    devices = trainer.get("devices", 1)
    return (devices if isinstance(devices, int) and devices > 0 else 1) * int(trainer.get("num_nodes", 1))


def _train_words(config: Config) -> str:
    algorithm, trainer, sampling = config["algorithm"], config["trainer"], config["rollout"]["sampling"]
    name, optimizer = algorithm.get("name", "grpo"), algorithm.get("optimizer") or {}
    words = [name, f"{trainer['max_steps']} steps"]
    if plan := algorithm.get("plan"):
        rows = plan["num_prompts"] * sampling["num_generations"]
        minibatches = plan["num_minibatches"] * plan["num_iterations"]
        words.append(f"a rollout {plan['num_prompts']} x {sampling['num_generations']}")
        words.append(f"{minibatches} steps of {rows // plan['num_minibatches']}, {sampling['max_tokens']} tokens")
        words.append(f"T {sampling['temperature']:g}")
    else:
        parts = _world(config) * (trainer.get("accumulate_grad_batches") or 1)
        words.append(f"batch {(algorithm.get('data') or {}).get('batch_size', 64) * parts}")
    words.append(f"lr {optimizer.get('lr', 0):g} {optimizer.get('schedule', 'constant')}")
    if "plan" in algorithm:
        loss, reference = config["loss"], config["reference"]
        words.append(f"KL {loss.get('kl_coef', 0):g} {reference.get('kind', 'none')}")
        words.append("reward " + " + ".join(f"{v.get('weight', 1):g} {k}" for k, v in config["reward"].items()))
    if (world := _world(config)) > 1:
        words.append(f"{world} ranks")
    return ", ".join(words)


def _task_words(config: Config) -> str:
    task = config["task"]
    return str(task.get("path") or task["name"])


def _drawn_words(config: Config, num: str) -> str:
    sampling = f"{config['max_tokens']} tokens, T {config['temperature']:g}"
    top_p = f", top-p {config['top_p']:g}" if config["top_p"] < 1 else ""
    return f"{config['num_problems'] or 'all'} x {config[num]} of {_task_words(config)}, {sampling}{top_p}"


def _sample_words(config: Config) -> str:
    kept = config["keep_per_problem"]
    return _drawn_words(config, "k") + (f", keeps {kept} a problem" if kept else "")


def _evaluate_words(config: Config) -> str:
    if names := list(config["benchmark"]):
        size, k = config["num_problems"] or "all", config["num_samples"] or "the paper's k"
        how = f"{config['max_tokens']} tokens, T {config['temperature']:g}, top-p {config['top_p']:g}"
        return f"{size} x {k} of {', '.join(names)}, {how}"
    shots = f", {config['few_shot']['k'] or 'with'} examples" if config["few_shot"]["path"] else ""
    prefill = config["prompt"].get("prefill")
    return _drawn_words(config, "num_samples") + shots + (f", begins {prefill}" if prefill else "")


_CHECKS: dict[str, Callable[[Config], None]] = {
    "train": _check_train,
    "sample": _check_sample,
    "evaluate": _check_evaluate,
    "diagnose": _check_diagnose,
    "claims": _check_claims,
}
_WORDS: dict[str, Callable[[Config], str]] = {
    "train": _train_words,
    "sample": _sample_words,
    "evaluate": _evaluate_words,
    "diagnose": lambda config: f"{_drawn_words(config, 'num_samples')}, {config['num_tries']} tries an arm",
    "claims": lambda config: f"{len(config['claims']['claims'])} claims of {len(config['evaluations'])} evaluations",
}
