"""One stage of the recipe: SFT, GRPO or distillation.

python -m r1.train                                        the demo
python -m r1.train experiment=NAME key=value ...          any recipe of configs/experiment, changed as you like
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig, OmegaConf
from transformers.utils import logging as transformers_logging

from r1.config import compose_config, explain_overrides, instantiate, instantiate_all, plain
from r1.failure import Reported, guarded
from r1.models import MODELS
from r1.recipe.assemble import assemble
from r1.recipe.compare import Row, check_compare, compare, steps_for_compute
from r1.recipe.resume import checkpoint_to_resume
from r1.recipe.stages import is_finished, read_summary, stage_folder, write_json

COMMAND = "python -m r1.train"


def train(cfg: DictConfig, *, stage: str = "train") -> dict[str, Any]:
    """Run one stage and return its summary.

    Args:
        cfg: a composed config; `output_dir` must be set.
        stage: name for the summary.

    Returns:
        What `summary.json` holds: stage, status, steps, seconds, tokens, flops, metrics, and the model's folder.
    """
    started = time.perf_counter()
    config = plain(cfg)
    if config["num_threads"]:
        torch.set_num_threads(config["num_threads"])
    check_compare(config["compare"])
    folder = Path(config["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    start = starting_model(config)
    L.seed_everything(config["seed"], verbose=False)
    module, data = assemble(config | {"teacher": teacher_model(config)}, model=start or fresh_model(config))
    trainer = build_trainer(config, module)
    checkpoint = checkpoint_to_resume(config, module)
    fit_started = time.perf_counter()
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    summary = summarise(config, stage, trainer) | {"seconds": time.perf_counter() - fit_started}
    if trainer.is_global_zero:
        if config["save_model"]:
            summary["model"] = str(module.policy.save(folder / "model"))
        write_json(folder / "summary.json", summary)
        print(f"{stage}: {summary['steps']} steps in {summary['seconds']:.0f} s; run directory {folder}", flush=True)
        if config["compare"]:
            summary["comparison"] = run_comparison(config, summary, start)
            summary["total_seconds"] = time.perf_counter() - started
            print(f"{summary['total_seconds']:.0f} s in all")
            write_json(folder / "summary.json", summary)
    return summary


def starting_model(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what to load the first weights from, making the stage they come from if need be."""
    source = config["init_from"]
    if source is None:
        return None
    path = source if isinstance(source, str) else run_stage(config, source)["model"]
    return {"name": "pretrained", "path": path, "dtype": "float32"} | (
        {k: v for k, v in config["model"].items() if k in ("dtype", "lora", "gradient_checkpointing")}
    )


def teacher_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `teacher` node, with the model of a stage {experiment, overrides} that was made if need be."""
    node = dict(config.get("teacher") or {})
    source = {key: node.pop(key, None) for key in ("experiment", "overrides")}
    # An experiment names its teacher's stage; whoever chooses teacher=pretrained over it, names another model.
    if "name" in node or not source["experiment"]:
        return node
    made = run_stage(config, {"experiment": source["experiment"], "overrides": source["overrides"] or []})
    return {"name": "pretrained", "dtype": "float32"} | node | {"path": made["model"]}


def fresh_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `model` node, with the run's seed where its initial weights are drawn."""
    model = dict(config["model"])
    return {"seed": config["seed"]} | model if MODELS.accepts(model.get("name", ""), "seed") else model


def run_stage(config: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the summary of a stage {experiment, overrides}, from the cache or by running it now."""
    name = source["experiment"]
    overrides = [f"experiment={name}", f"seed={config['seed']}", *source.get("overrides", [])]
    cfg = compose_config([*overrides, f"cache_dir={config['cache_dir']}"])
    folder = stage_folder(config["cache_dir"], name, OmegaConf.to_container(cfg, resolve=True))
    if is_finished(folder):
        return read_summary(folder) | {"cached": True}
    print(f"{name}: making {folder}", flush=True)
    cfg.output_dir, cfg.save_model, cfg.compare, cfg.resume = str(folder), True, None, True
    return train(cfg, stage=name)


def build_trainer(config: Mapping[str, Any], module: Any) -> L.Trainer:
    """Build the Lightning trainer with its callbacks, loggers and strategy."""
    node = dict(config["trainer"]) | {"default_root_dir": config["output_dir"]}
    if node.get("profiler"):
        node["profiler"] = instantiate(node["profiler"])
    logger = list(instantiate_all(config["logger"]).values())
    strategy = config["strategy"]
    callbacks = list(instantiate_all(config["callbacks"]).values())
    trainer = instantiate(
        node
        | {
            "callbacks": callbacks,
            "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
            "logger": logger or False,
            "strategy": instantiate(strategy) if "_target_" in strategy else strategy["name"],
        }
    )
    if hasattr(module, "loader"):
        plan, sampling = module.loader.plan, module.loader.sampling
        parts = plan.num_parts(sampling.num_generations, trainer.world_size)
        trainer.accumulate_grad_batches = parts // trainer.world_size
    elif hasattr(module, "accumulation"):
        trainer.accumulate_grad_batches = module.accumulation
    return trainer


def summarise(config: Mapping[str, Any], stage: str, trainer: L.Trainer) -> dict[str, Any]:
    """Collect what a finished fit has to say."""
    throughput = config["callbacks"].get("throughput") and next(
        (c for c in trainer.callbacks if type(c).__name__ == "Throughput"), None
    )
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if torch.is_tensor(value)}
    return {
        "stage": stage,
        "status": "finished",
        "seed": config["seed"],
        "steps": trainer.global_step,
        "tokens": throughput.tokens_sampled + throughput.tokens_trained if throughput else None,
        "flops": throughput.flops if throughput else None,
        "metrics": metrics,
    }


def run_comparison(
    config: Mapping[str, Any], summary: Mapping[str, Any], start: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Evaluate the rows of the closing table, making the stages that are missing."""
    node = config["compare"]
    rows = []
    for label, row in node["rows"].items():
        if row.get("experiment"):
            overrides = list(row.get("overrides", []))
            if row.get("equal_compute"):
                overrides.append(f"trainer.max_steps={equal_steps(config, row, summary, start)}")
            made = run_stage(config, {"experiment": row["experiment"], "overrides": overrides})
        elif row.get("start"):
            made = {"model": start["path"]}
        else:
            made = summary
        prompt = row.get("prompt") or config["prompt"]
        rows.append(Row(label=label, model=made["model"], prompt=prompt, seconds=made.get("seconds")))
    folder = config["output_dir"]
    results = compare(config, rows, num_problems=node["num_problems"], folder=folder)
    print(f"More: tensorboard --logdir {folder}   rollouts: {folder}/rollouts   table: {folder}/comparison.md")
    return results


def equal_steps(
    config: Mapping[str, Any], row: Mapping[str, Any], summary: Mapping[str, Any], start: Mapping[str, Any]
) -> int:
    """Return the supervised steps that cost as much as this run did."""
    cfg = plain(compose_config([f"experiment={row['experiment']}", f"seed={config['seed']}"]))
    module, data = assemble(cfg | {"evaluation": {"num_problems": 0}}, model=start)
    return steps_for_compute(summary["flops"], data, module.policy.num_parameters)


def hush() -> None:
    """Keep libraries from talking over the run: their hints are about choices that r1 made on purpose."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    for message in (".*have no `val_dataloader`.*", ".*You have overridden `transfer_batch_to_device`.*"):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*does not have many workers.*")


@hydra.main(version_base="1.3", config_path="pkg://r1.configs", config_name="train")
def _main(cfg: DictConfig) -> float | None:
    cfg.output_dir = cfg.output_dir or HydraConfig.get().runtime.output_dir
    summary = guarded(lambda: train(cfg), Path(cfg.output_dir), COMMAND)
    return summary["metrics"].get("eval/pass@1")


def main() -> None:
    """Run the command line."""
    hush()
    try:
        _main()
    except Reported:
        raise
    except SystemExit as stop:  # Hydra refused the command line and has said why
        if stop.code and (hint := explain_overrides()):
            print(hint, file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
