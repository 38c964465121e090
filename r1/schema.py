"""The keys a run may have: a misspelled key is an error in a YAML file as well as on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore

from r1.registry import did_you_mean

Settings = TypeVar("Settings")


@dataclass
class TrainConfig:
    """Top level of a training config. Groups are free mappings here; what they build checks their keys.

    Attributes:
        seed: of everything: initial weights, problems, completions, shuffles.
        output_dir: run directory; the Hydra run directory when null.
        cache_dir: where stages that a run starts from are kept and reused.
        num_threads: threads of a process on the CPU (null: torch decides); results depend on it in the last bits.
        resume: continue from the last checkpoint in the run directory, if there is one.
        ckpt_path: continue from this checkpoint.
        init_from: directory of a saved model to start from, or {experiment: name, overrides: [...]} of a stage that
            makes it (trained when it is not in the cache yet); null builds a fresh `model`.
        teacher: for distillation, {name: pretrained, path: ...}, or {experiment: name, overrides: [...]} of a stage
            that makes it, like init_from.
        save_model: write the final policy as a transformers directory `model/`.
        data_path: a data file, for experiments that read one.
        compare: what the closing table compares, or null.
    """

    seed: int = 0
    output_dir: str | None = None
    cache_dir: str = "runs/cache"
    num_threads: int | None = None
    resume: bool = False
    ckpt_path: str | None = None
    init_from: Any = None
    save_model: bool = True
    data_path: str | None = None
    algorithm: Any = field(default_factory=dict)
    loss: Any = field(default_factory=dict)
    model: Any = field(default_factory=dict)
    reference: Any = field(default_factory=dict)
    teacher: Any = field(default_factory=dict)
    task: Any = field(default_factory=dict)
    reward: Any = field(default_factory=dict)
    prompt: Any = field(default_factory=dict)
    rollout: Any = field(default_factory=dict)
    evaluation: Any = field(default_factory=dict)
    trainer: Any = field(default_factory=dict)
    strategy: Any = field(default_factory=dict)
    callbacks: Any = field(default_factory=dict)
    logger: Any = field(default_factory=dict)
    compare: Any = None


ConfigStore.instance().store(name="train_schema", node=TrainConfig, provider="r1")


def settings(kind: type[Settings], values: Mapping[str, Any] | None, key: str) -> Settings:
    """Build a settings dataclass from a config node.

    Args:
        kind: the dataclass.
        values: the node.
        key: where the node stands in the config, for messages.

    Raises:
        ValueError: an unknown key, a missing one, or a value of another type; the message names the key.
    """
    values = dict(values or {})
    known = {f.name: f for f in fields(kind)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(
                f"{key}.{name}: no such key.{did_you_mean(name, known)} {key} takes: {', '.join(sorted(known))}"
            )
        expected = str(known[name].type)
        if not _fits(value, expected):
            raise ValueError(f"{key}.{name}: found {value!r}, expected {expected}")
    missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in values]
    if missing:
        raise ValueError(f"{key}: missing {', '.join(missing)}")
    return kind(**values)


def _fits(value: Any, annotation: str) -> bool:
    if value is None:
        return "None" in annotation
    kinds = {"int": int, "float": (int, float), "bool": bool, "str": str}
    alternatives = [kinds[part.strip()] for part in annotation.split("|") if part.strip() in kinds]
    if not alternatives:
        return True
    if isinstance(value, bool):
        return bool in alternatives
    return any(isinstance(value, kind) for kind in alternatives if kind is not bool)
