"""What a config means, before it runs: work, parameters, memory of one device; and what cannot work.

python -m r1.plan experiment=r1_zero_qwen2_5_7b strategy=deepspeed_zero3 trainer.devices=8 trainer.num_nodes=4
python -m r1.plan experiment=... plan.device_memory_gib=80          also: does it fit? (exit status 2 where it does not)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from r1.config import compose_config, compose_stage, explain_overrides, plain
from r1.preflight import preflight
from r1.recipe.fit import device_memory, judge
from r1.recipe.lengths import run_lengths
from r1.recipe.memory import memory_parts, peak_bytes
from r1.recipe.memory_setup import MemorySetup
from r1.recipe.plan import PlanError, PlanSettings, check_lengths, count, memory_setup, num_ranks
from r1.recipe.plan_report import memory_lines, model_lines, work_lines
from r1.recipe.shapes import ModelShape, model_shape
from r1.settings import settings


def plan(config: Mapping[str, Any], options: PlanSettings) -> tuple[list[str], str | None]:
    """Return the lines of a plan and, where a device has too little memory, the refusal.

    Args:
        config: the resolved training config as plain Python.
        options: of the plan itself.

    Raises:
        ValueError: the config cannot work; the message names the nearest that does.
    """
    preflight(config, runs=False)
    policy_node = starting_node(config)
    teacher = teacher_shape(config)
    shape = model_shape(policy_node, config=options.model_config)
    here = max(1, torch.cuda.device_count())
    counts = count(config, world=num_ranks(config, local_devices=here))
    lengths = run_lengths(config, options, policy=policy_node)
    check_lengths(shape, lengths)
    accelerator = config["trainer"]["accelerator"]
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())

    def setup_of(changed: Mapping[str, Any]) -> MemorySetup:
        checkpointing = shape.gradient_checkpointing or bool(changed["model"].get("gradient_checkpointing"))
        return memory_setup(
            changed,
            count(changed, world=num_ranks(changed, local_devices=here)),
            lengths,
            policy=replace(shape, gradient_checkpointing=checkpointing),
            teacher=teacher,
            on_cpu=on_cpu,
        )

    setup = setup_of(config)
    lines = [
        *model_lines(shape, teacher),
        *work_lines(config, counts, lengths),
        *memory_lines(setup, config["rollout"]),
    ]
    local_ranks = counts.world // config["trainer"].get("num_nodes", 1)
    verdict = judge(
        config,
        counts,
        lambda changed: peak_bytes(memory_parts(setup_of(changed))),
        memory=device_memory(options.device_memory_gib, on_cpu=on_cpu, local_ranks=local_ranks),
        headroom=options.headroom,
    )
    return ([*lines, f"fits        {verdict.text}"], None) if verdict.fits else (lines, verdict.text)


def starting_node(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node of the model that training starts from, that of the stage before included."""
    source, model = config["init_from"], config["model"]
    kept = {key: model[key] for key in ("lora", "gradient_checkpointing") if model.get(key)}
    if source is None:
        return dict(model)
    if isinstance(source, str):
        return {"name": "pretrained", "path": source, "dtype": model.get("dtype", "float32")} | kept
    return starting_node(plain(compose_stage(source, "init_from"))) | kept


def teacher_shape(config: Mapping[str, Any]) -> ModelShape | None:
    """Return the shape of the teacher, where the algorithm has one."""
    if config["algorithm"].get("name") not in ("distill", "on_policy", "minillm"):
        return None
    node = dict(config.get("teacher") or {})
    if node.get("name") == "none":
        raise PlanError("algorithm: distillation needs a teacher: teacher=pretrained teacher.path=...")
    return model_shape(node if "name" in node else starting_node(plain(compose_stage(node, "teacher"))))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(arguments):
        print(f"{__doc__}\nSettings of the plan: {PlanSettings.__doc__}")
        return
    own = [argument for argument in arguments if argument.startswith("plan.")]
    overrides = [argument for argument in arguments if not argument.startswith("plan.")]
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(own)).get("plan")
        lines, refusal = plan(plain(compose_config(overrides)), settings(PlanSettings, values, "plan"))
    except (ValueError, ImportError, HydraException, OmegaConfBaseException) as error:
        hint = explain_overrides(overrides)
        print(f"error: {error}" + (f"\n{hint}" if hint else ""), file=sys.stderr)
        raise SystemExit(2) from None
    print("\n".join(lines))
    if refusal:
        print(f"error: {refusal}", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main()
