"""What decides whether a stage has to be run again: hashes of what lies in files, and of configs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

RECORD = "provenance.json"
# Rewritten by every save without any change of meaning, or only about speed.
_UNHASHED = {RECORD, "README.md"}

# Keys that change where a run writes or what it shows, never what it computes.
_IRRELEVANT = ("output_dir", "cache_dir", "resume", "ckpt_path", "logger", "compare", "save_model")
_WATCHING = ("progress", "checkpoint", "rollouts", "throughput", "baselines", "watchdog")


def hash_artefact(path: str | Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of all files below a folder.

    Raises:
        ValueError: nothing is there.
    """
    path = Path(path)
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
    if not path.is_dir():
        raise ValueError(f"{path}: expected a file or folder, found nothing")
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name not in _UNHASHED):
        digest.update(f"{file.relative_to(path)} {hash_artefact(file)}\n".encode())
    return digest.hexdigest()


def stage_hash(config: Mapping[str, Any]) -> str:
    """Return 12 hex digits that are equal for two resolved configs exactly when they compute the same."""
    relevant = computed(config, without=_IRRELEVANT)
    return hashlib.sha256(json.dumps(relevant, sort_keys=True, default=str).encode()).hexdigest()[:12]


def computed(config: Mapping[str, Any], *, without: Collection[str]) -> dict[str, Any]:
    """Return the part of a stage's config that decides what it computes.

    A file or model that a value names stands for its contents: it may change while its name stays. Other folders, such
    as a `data_dir`, are taken by name.

    Args:
        config: of the stage.
        without: keys at the top that change where it writes or what it shows.
    """
    kept = {key: value for key, value in config.items() if key not in without}
    if "trainer" in kept and not kept.get("decontaminate"):  # without files it is as if there were no such key
        kept.pop("decontaminate", None)
    if kept.get("callbacks"):
        kept["callbacks"] = {name: node for name, node in kept["callbacks"].items() if name not in _WATCHING}
    return _with_contents(kept)


def _with_contents(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_contents(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_contents(item) for item in value]
    if not isinstance(value, str) or "/" not in value or len(value) > 1000:
        return value
    for path in (Path(value), Path(value) / "model"):
        if path.is_file() or (path / "config.json").is_file():
            return {"sha256": hash_artefact(path)}
    return value
