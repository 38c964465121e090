"""Between Hydra and the rest: composing, resolving, and saying what is wrong with an override."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

import hydra
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

import r1.schema  # noqa: F401  (registers the schema of the top level)
from r1.annotations import wrong_argument
from r1.recipe.overrides import quoted
from r1.registry import did_you_mean

# Config groups that merge into the top level, so that no key bears their name.
GROUPS_WITHOUT_KEY = ("experiment", "debug", "local", "benchmarks")
SHORTHANDS = {
    "sample": ("model",),
    "evaluate": ("model", "few_shot"),
    "diagnose": ("model",),
    "chat": ("model",),
    "export": ("model",),
}
TEXTS = {"chat": ("question",)}  # a user's own words, in which Hydra would find its grammar
ALIASES = {
    "export": {"format": "formats"},
    # `benchmark` is a key of other entry points, so the group of `r1.evaluate` has another name.
    "evaluate": {"k": "num_samples", "limit": "num_problems", "benchmark": "benchmarks"},
}


def job_name(otherwise: str) -> str:
    """Return what all ranks of this job call it: SLURM's job id or torchrun's run id, without either `otherwise`.

    Raises:
        ValueError: several ranks of a torchrun that was given no --rdzv-id, and so calls every job "none".
    """
    name = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if name != "none":
        return name
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("torchrun has no name for this job: add --rdzv-id=NAME to it, or hydra.run.dir=... to the run")
    return otherwise


OmegaConf.register_new_resolver("r1.job", job_name, replace=True)


def compose_config(overrides: Iterable[str], *, name: str = "train") -> DictConfig:
    """Compose a config as the command line would, inside a Hydra application or outside one."""
    overrides = expand_shorthands(overrides, name=name)
    if GlobalHydra.instance().is_initialized():
        return compose(config_name=name, overrides=list(overrides))
    with initialize_config_module("r1.configs", version_base="1.3"):
        return compose(config_name=name, overrides=list(overrides))


def compose_stage(source: Any, key: str, *more: str) -> DictConfig:
    """Compose the config of a stage {experiment, overrides}.

    Args:
        source: as the config has it.
        key: where, for messages.
        more: overrides that come before its own.

    Raises:
        ValueError: it is something else, or no such experiment or key exists.
    """
    if not isinstance(source, Mapping) or not isinstance(source.get("experiment"), str):
        raise ValueError(f"{key}: found {source!r}, expected a folder or {{experiment: name, overrides: [...]}}")
    try:
        return compose_config([f"experiment={source['experiment']}", *more, *(source.get("overrides") or [])])
    except HydraException as error:
        reason = str(error).partition("\nConfig search path")[0].strip()
        raise ValueError(f"{key} (experiment={source['experiment']}): {reason}") from error


def expand_shorthands(arguments: Iterable[str], *, name: str) -> list[str]:
    """Write out the keys that stand for a path: `model=runs/x` means `model.path=runs/x`.

    Hydra would look for runs/x in the config group `model`, and would not take `few_shot=x` beside `few_shot.k=4`.

    Args:
        arguments: of the command line.
        name: of the config they are for.
    """
    shorthands, texts, aliases = SHORTHANDS.get(name, ()), TEXTS.get(name, ()), ALIASES.get(name, {})
    expanded = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in (*shorthands, *texts):
            # In quotes or brackets, or null: already written as Hydra reads it.
            is_written = value == "null" or value[:1] + value[-1:] in ("''", '""', "[]")
            path = ".path" if key in shorthands else ""
            argument = f"{key}{path}={value if is_written else quoted(value)}"
        elif equals and key in aliases:
            argument = f"{aliases[key]}={value}"
        expanded.append(argument)
    return expanded


def plain(config: DictConfig) -> dict[str, Any]:
    """Return the config as resolved plain Python.

    Raises:
        ValueError: a value that had to be given was not; the message names its key.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{', '.join(missing)}: must be given, for example {missing[0]}=...")
    return OmegaConf.to_container(config, resolve=True)


def instantiate(node: Mapping[str, Any] | None) -> Any:
    """Build what a `_target_` node stands for; lists and dicts arrive as plain Python."""
    return hydra.utils.instantiate(node, _convert_="all")


def instantiate_all(nodes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Build each node of a dict of `_target_` nodes; a null entry is left out."""
    return {key: instantiate(node) for key, node in (nodes or {}).items() if node}


def check_target(node: Any, key: str) -> None:
    """Check a `_target_` node against the signature of what it stands for, without building it.

    Raises:
        ValueError: no such target, or an argument that it does not take or takes in another type; the message names
            the config key.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ValueError(f"{key}: found {node!r}, expected {{_target_: ..., ...}}")
    try:
        target = hydra.utils.get_object(node["_target_"])
    except Exception as error:  # whatever the import of a user's module raises
        raise ValueError(f"{key}._target_: {' '.join(str(error).split())}") from error
    arguments = {name: value for name, value in node.items() if not name.startswith("_")}
    # What is itself built from a node has a type of its own.
    given = {k: v for k, v in arguments.items() if not (isinstance(v, Mapping) and "_target_" in v)}
    parameters = inspect.signature(target).parameters
    for name in () if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) else arguments:
        if name not in parameters:
            raise ValueError(f"{key}.{name}: no such key.{did_you_mean(name, parameters)}")
    if wrong := wrong_argument(target, given):
        raise ValueError(f"{key}.{wrong[0]}: {wrong[1]}")


def explain_overrides(arguments: list[str] | None = None, *, name: str = "train") -> str:
    """Name the nearest keys to command-line overrides that no config has, or return "".

    Hydra says which key is unknown but not what was meant; this is asked only after it refused.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    # What begins with + or ~ adds a key or takes one away: Hydra's own words are about that.
    overrides = [a for a in arguments if "=" in a and not a.startswith(("-", "+", "~", "hydra"))]
    keys = [override.split("=")[0] for override in overrides]
    folder = resources.files("r1.configs")
    groups = [o for o, key in zip(overrides, keys, strict=True) if (folder / key).is_dir()]
    try:
        known = list(_flatten(OmegaConf.to_container(compose_config(groups, name=name), resolve=False)))
    except Exception:  # a choice is unknown, and Hydra has listed those there are
        return ""
    others = [key for key in keys if key not in (*known, *GROUPS_WITHOUT_KEY) and "/" not in key]
    return "\n".join(f"{key}: no such key.{near}" for key in others if (near := _nearest(key, known)))


def explain_choices(arguments: Iterable[str]) -> str:
    """Name the choices of config groups that overrides such as `reward=null` set to what is none, or return "".

    Hydra itself would end in a traceback.
    """
    folder, lines = resources.files("r1.configs"), []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not re.fullmatch(r"null|true|false|-?[0-9.]+|\{.*\}|", value, re.IGNORECASE | re.DOTALL):
            continue
        if re.fullmatch(r"[a-z_]+(?:/[a-z_]+)*", key) and (folder / key).is_dir():
            choices = sorted(f.name.removesuffix(".yaml") for f in (folder / key).iterdir() if f.name.endswith(".yaml"))
            empty = f"; {key}=none is without" if "none" in choices else ""
            lines.append(
                f"{key}: found {value or 'nothing'}, expected the name of a config: {', '.join(choices)}{empty}"
            )
    return "\n".join(lines)


def _nearest(key: str, known: list[str]) -> str:
    """Say which key was meant: of the same node or of the same name elsewhere, or any where there is no such node."""
    node, dot, last = key.rpartition(".")
    if dot and node not in known:
        return did_you_mean(key, known)
    # Not the nearest of all: loss.options.delta is a key that can be added, and like loss.options in every other way.
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == node]
    if near := did_you_mean(last, siblings):
        return near.replace("'", f"'{node}{dot}", 1)
    return did_you_mean(key, [k for k in known if k.rpartition(".")[2] == last])


def _flatten(node: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _flatten(value, f"{prefix}{key}.")
