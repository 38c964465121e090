"""Numbers of an evaluation as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1.intervals import Interval


def read_evaluation(path: str | Path, *, key: str) -> dict[str, Any]:
    """Return what an `evaluation.json` holds.

    Args:
        path: of the file.
        key: of the config that named it.

    Raises:
        ValueError: no such file, or one that holds no JSON object; the message names key and file.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{key}: {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{key}: {path}: expected a JSON object, found a {type(found).__name__}")
    return found


def as_json(metrics: Mapping[str, Interval]) -> dict[str, Any]:
    """Return the numbers by name: mean and the bounds of the interval."""
    return {name: {"mean": i.mean, "low": i.low, "high": i.high} for name, i in metrics.items()}
