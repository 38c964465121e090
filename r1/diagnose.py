"""Where wrong chains of thought go wrong, and whether the mistake is repeated from the last right step on.

python -m r1.diagnose model=<saved model or run directory> task=chain num_problems=200
python -m r1.diagnose rollouts=<run directory>/rollouts
python -m r1.diagnose benchmark=processbench data_dir=<folder with processbench_*.jsonl>
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from r1.entry import open_run, run_command_line
from r1.failure import guarded
from r1.prompts import TEMPLATES, Chat
from r1.recipe.chat import prompt_node
from r1.recipe.diagnosis import Scores, arm_scores, as_markdown, diagnosis, injected_errors
from r1.recipe.parts import build, build_engine, build_sampling, build_task
from r1.recipe.reprompt import ARMS, CHAT_ARMS, Mistake, arm_prompt, locate_all
from r1.recipe.rollout_diagnosis import diagnose_rollouts, rollouts_markdown
from r1.recipe.source import load_source
from r1.recipe.stages import write_json
from r1.recipe.step_benchmark import benchmark_markdown, needs_model, open_verifier, run_benchmark
from r1.rewards import build_rewards
from r1.rollout.base import mix_seed
from r1.steps import STEP_VERIFIERS
from r1.steps.task_steps import has_step_checker, with_steps

COMMAND = "python -m r1.diagnose"


def diagnose(cfg: DictConfig, *, command: str = f"{COMMAND} (arguments: config.yaml)") -> dict[str, Any]:
    """Diagnose a model, saved rollouts or a benchmark, and return what `diagnosis.json` holds.

    Args:
        cfg: a composed config of `diagnose.yaml`; `output_dir` must be set.
        command: by which the report says it was made.

    Raises:
        ValueError: what was asked does not go together, or cannot be read.
    """
    started = time.perf_counter()
    asks = needs_model(cfg.verifier or {"name": "text"})
    if (cfg.rollouts or cfg.benchmark) and not asks and OmegaConf.is_missing(cfg.model, "path"):
        cfg.model = {}
    config, folder = open_run(cfg)
    if config["rollouts"] and config["benchmark"]:
        raise ValueError("rollouts and benchmark: diagnose one at a time")
    if config["rollouts"]:
        with open_verifier(config) as verifier:
            result = diagnose_rollouts(config["rollouts"], verifier=verifier)
        text, metrics = rollouts_markdown(result, command), {"diagnose/located": _mean(result["total"]["located"])}
    elif config["benchmark"]:
        keys = {key: config[key] for key in ("benchmark", "data_dir", "half", "limit")}
        with open_verifier(config) as verifier:
            result = run_benchmark(verifier, **keys) | {"verifier": config["verifier"]}
        text = benchmark_markdown(result, command)
        metrics = {f"diagnose/{name}/f1": _mean(subset["f1"]) for name, subset in result["subsets"].items()}
    else:
        result = diagnose_model(config, folder)
        text = as_markdown(result, command)
        metrics = {f"diagnose/{arm}": numbers["accuracy"]["mean"] for arm, numbers in result["arms"].items()}
    write_json(folder / "diagnosis.json", result)
    (folder / "diagnosis.md").write_text(text)
    print(text, flush=True)
    summary = {"stage": "diagnose", "status": "finished", "seconds": time.perf_counter() - started}
    write_json(folder / "summary.json", {**summary, "metrics": metrics})
    return result


def _mean(interval: Mapping[str, float] | None) -> float | None:
    return None if interval is None else interval["mean"]


def diagnose_model(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Sample from a model, locate its mistakes and try again; each arm also leaves an evaluation, `<arm>.json`.

    Raises:
        ValueError: a verifier that asks another model, or a budget that no try fits.
    """
    verifier = config["verifier"] or {"name": "text"}
    task, engine = build_task(config), build_engine(config)
    if not has_step_checker(task) and needs_model(verifier):
        raise ValueError(
            f"verifier={verifier['name']} asks the model of this command, which is the one to diagnose. Sample first, "
            "and judge what was saved: rollouts=..."
        )
    judged = task if has_step_checker(task) else with_steps(task, build(STEP_VERIFIERS, verifier))
    sampling = build_sampling(config, num_generations=config["num_samples"])
    budget = sampling.max_tokens if config["budget"] is None else config["budget"]
    if budget < sampling.max_tokens or config["num_tries"] < 1:
        raise ValueError(
            f"budget={budget}, num_tries={config['num_tries']}: expected at least one try of "
            f"max_tokens={sampling.max_tokens} tokens"
        )
    problems = task.problems(config["split"], seed=config["seed"]).take_unique(config["num_problems"])
    source = load_source(config)
    prompt = prompt_node(config, source.policy.tokenizer)
    template = build(TEMPLATES, prompt)
    accuracy = {**((config["reward"] or {}).get("accuracy") or {}), "weight": 1.0}
    rewards = build_rewards({"accuracy": accuracy}, task=task)
    try:
        engine.load_weights(source.policy)
        prompts = [template.render(problem, source.policy.tokenizer) for problem in problems]
        groups = rewards.score_groups(engine.generate(prompts, sampling))
        mistakes, reasons = locate_all(judged, groups)
        arms: dict[str, Scores] = {}
        for number, arm in enumerate((*ARMS, *CHAT_ARMS) if isinstance(template, Chat) else ARMS, start=1):
            # The arms draw from streams of their own: no arm is given the completion that was wrong.
            params = replace(sampling, num_generations=config["num_tries"], seed=mix_seed(sampling.seed, number))
            tried = engine.generate(_prompts(arm, mistakes, config, template, source.policy.tokenizer), params)
            arms[arm] = arm_scores(judged, mistakes, rewards.score_groups(tried), budget=budget)
            print(f"{arm}: {len(mistakes)} wrong completions tried again", flush=True)
    finally:
        rewards.close()
        engine.close()
    settings = {key: config[key] for key in ("task", "split", "seed", "num_problems", "num_samples")}
    settings |= {
        "prompt": prompt,
        "source": source.record,
        "sampling": config["rollout"]["sampling"],
        "num_tries": config["num_tries"],
    }
    found = diagnosis(groups, mistakes, reasons, arms) | {"injected": injected_errors(task, problems)}
    for arm, scores in arms.items():
        write_json(folder / f"{arm}.json", {**settings, "arm": arm, "budget": budget, "problems": scores})
    return {**settings, "budget": budget, "arm_names": list(arms), **found}


def _prompts(arm: str, mistakes: list[Mistake], config: Mapping[str, Any], template: Any, tokenizer: Any) -> list[Any]:
    texts = {"retry": config["retry"], "hint": config["hint"]}
    return [
        arm_prompt(arm, mistake, number=number, template=template, tokenizer=tokenizer, **texts)
        for number, mistake in enumerate(mistakes)
    ]


@hydra.main(version_base="1.3", config_path="pkg://r1.configs", config_name="diagnose")
def _main(cfg: DictConfig) -> None:
    cfg.output_dir = cfg.output_dir or HydraConfig.get().runtime.output_dir
    command = f"{COMMAND} {shlex.join(sys.argv[1:])}"
    guarded(lambda: diagnose(cfg, command=command), Path(cfg.output_dir), COMMAND)


def main() -> None:
    """Run the command line."""
    run_command_line(_main, name="diagnose")


if __name__ == "__main__":
    main()
