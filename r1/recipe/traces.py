"""Sampled completions as a trace file, with a manifest that says where they come from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from r1.data.manifest import ManifestError, manifest_path, read_manifest, verify_manifest
from r1.recipe.provenance import package_version
from r1.recipe.stages import write_json
from r1.turns import split_turn
from r1.types import Rollout, RolloutGroup

__all__ = ["ManifestError", "TraceWriter", "manifest_path", "read_manifest", "trace_row", "verify_manifest"]


def trace_row(group: RolloutGroup, rollout: Rollout, *, source: str, refused_by: str | None = None) -> dict[str, Any]:
    """Return one completion as a row of a trace file.

    Returns:
        messages (question and whole turn), think, answer (null where the turn has none), rewards (by name, null where
        unscored), reward, problem (id, index, task, prompt, answer, metadata), source, sample (seed, finish_reason,
        num_tokens or null where unknown), and refused_by where a filter refused it.
    """
    problem, completion = group.prompt.problem, rollout.completion
    turn = split_turn(completion.turn, answer_tags="<answer>" in completion.turn)
    row = {
        "messages": [
            {"role": "user", "content": problem.prompt},
            {"role": "assistant", "content": completion.turn},
        ],
        "think": turn.think,
        "answer": turn.answer,
        "rewards": dict(rollout.rewards),
        "reward": rollout.reward,
        "problem": {
            "id": problem.id,
            "index": problem.index,
            "task": problem.task,
            "prompt": problem.prompt,
            "answer": problem.answer,
            "metadata": dict(problem.metadata),
        },
        "source": source,
        "sample": {
            "seed": completion.seed,
            "finish_reason": completion.finish_reason,
            "num_tokens": len(completion.token_ids) or len(completion.logps) or None,
        },
    }
    return row | ({"refused_by": refused_by} if refused_by else {})


class TraceWriter:
    """Writes a trace file and its manifest so that neither is ever half there, nor one without its match.

        with TraceWriter(path) as writer:
            writer.write(row)
            writer.manifest = {...}

    Rows go to a file beside `path`. At the end the old manifest goes, the file takes its place, and the new manifest is
    written; after an exception (a full disk among them) what was there before is as it was.

    Args:
        path: ends in .jsonl; folders are made.

    Attributes:
        manifest: what the manifest says, besides data (file, sha256, num_rows, num_bytes), version and time.
        num_rows: rows written so far.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix != ".jsonl":
            raise ValueError(f"out: expected a file name that ends in .jsonl, found {str(path)!r}")
        self.manifest: Mapping[str, Any] = {}
        self.num_rows = 0
        self._is_discarded = False
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        self._digest = hashlib.sha256()

    def __enter__(self) -> TraceWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("wb")
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        line = (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode()
        self._file.write(line)
        self._digest.update(line)
        self.num_rows += 1

    def discard(self) -> None:
        """Leave what was there before as it is: nothing of what was written counts."""
        self._is_discarded = True

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            self._file.close()
            if kind is None and not self._is_discarded:
                self._finish()
        finally:
            self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        data = {
            "file": self.path.name,
            "sha256": self._digest.hexdigest(),
            "num_rows": self.num_rows,
            "num_bytes": self._partial.stat().st_size,
        }
        stamp = {"version": package_version(), "time": datetime.now(UTC).isoformat(timespec="seconds")}
        manifest_path(self.path).unlink(missing_ok=True)
        os.replace(self._partial, self.path)
        write_json(manifest_path(self.path), {"data": data, **self.manifest, **stamp})
