"""The teacher's most likely tokens, kept on disk: distillation without the teacher in memory.

A folder holds `manifest.json` and shards `shard_00000.safetensors`, with the columns

    keys     (R,)    int64     hash of each row's prompt and completion tokens
    ends     (R,)    int64     where the row's completion tokens end in the columns below
    indices  (N, k)  int32     token ids
    logps    (N, k)  float32   their log-probabilities, nats, at the manifest's temperature
    tail     (N,)    float32   log of the probability of all other tokens

The shards appear one by one, each whole; the manifest comes last, so a folder without one is unfinished, and making it
again goes on after the last shard.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from r1.losses.top_k import TopK, top_k_of

MANIFEST = "manifest.json"
_COLUMNS = ("keys", "ends", "indices", "logps", "tail")


def row_key(input_ids: Tensor, prompt_length: int, length: int) -> int:
    """Hash the tokens of one row (S,), of which `prompt_length` are the prompt and `length` the completion."""
    ids = input_ids[: prompt_length + length].to("cpu", torch.int64).contiguous()
    digest = hashlib.blake2b(f"{prompt_length},".encode() + ids.numpy().tobytes(), digest_size=8)
    return int.from_bytes(digest.digest(), "big", signed=True)


def write_teacher_logits(
    folder: str | Path,
    batches: Iterable[Any],
    targets: Callable[[Any], Callable[[slice], Tensor]],
    *,
    k: int,
    temperature: float = 1.0,
    provenance: dict[str, Any] | None = None,
    chunk_size: int = 512,
) -> Path:
    """Write the teacher's k most likely tokens at every completion token of some batches, one shard each.

    Args:
        folder: where; a finished one with the same settings is left as it is, an unfinished one is continued.
        batches: of traces (`r1.data.collate.TraceBatch`), in an order that does not change.
        targets: reads a batch and gives logits (n, V) of its completion tokens (`r1.models.Teacher.targets`).
        k: tokens kept.
        temperature: divides the logits before their softmax.
        provenance: what else the manifest should say: teacher, data.
        chunk_size: tokens whose logits are held at once.

    Returns:
        The folder.

    Raises:
        ValueError: the folder was made, or begun, with other settings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"k": k, "temperature": temperature, "provenance": provenance or {}}
    _check_settings(folder, settings)
    if (folder / MANIFEST).is_file():
        return folder
    _write_json(folder / "settings.json", settings)
    shards = []
    for number, batch in enumerate(batches):
        path = folder / f"shard_{number:05d}.safetensors"
        if not path.is_file():
            columns = _shard(batch, targets(batch), k=k, temperature=temperature, chunk_size=chunk_size)
            partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
            save_file(columns, partial)
            os.replace(partial, path)
        shards.append({"file": path.name, "num_rows": len(batch.prompt_lengths), "bytes": path.stat().st_size})
    _write_json(folder / MANIFEST, settings | {"num_rows": sum(s["num_rows"] for s in shards), "shards": shards})
    return folder


class TeacherLogits:
    """Reads a folder of teacher logits; rows are found by their tokens, in whatever order they come.

    Args:
        folder: as `write_teacher_logits` left it.
        temperature: of the loss, which must be the folder's: the tail at another cannot be computed from it.

    Raises:
        ValueError: no such folder, an unfinished one, another temperature, or a shard that is missing or cut.
    """

    def __init__(self, folder: str | Path, *, temperature: float = 1.0) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            state = "is unfinished (no manifest.json); make it again to go on" if self.folder.is_dir() else "is missing"
            raise ValueError(f"algorithm.teacher_logits.path: {str(folder)!r} {state}")
        self.manifest = json.loads(path.read_text())
        if self.manifest["temperature"] != temperature:
            raise ValueError(
                f"algorithm.objective.temperature={temperature}, but the teacher logits in {str(folder)!r} were kept "
                f"at temperature {self.manifest['temperature']}; make them again or use that temperature"
            )
        self._files = []
        self._rows: dict[int, tuple[int, int, int]] = {}
        for number, shard in enumerate(self.manifest["shards"]):
            self._files.append(self._open(shard))
            keys, ends = (self._files[-1].get_tensor(name).tolist() for name in ("keys", "ends"))
            for key, start, end in zip(keys, [0, *ends], ends, strict=False):
                self._rows[key] = (number, start, end)

    def to(self, device: torch.device) -> TeacherLogits:
        """Stay on disk: batches are read to the device of their tokens."""
        return self

    def targets(self, batch: Any) -> Callable[[slice], TopK]:
        """Return what gives the kept distributions of some of a batch's completion tokens, by their slice.

        Raises:
            ValueError: a row that the file does not have.
        """
        parts = [self._row(*row) for row in zip(batch.input_ids, batch.prompt_lengths, batch.mask.sum(1), strict=True)]
        device = batch.input_ids.device
        indices, logps, tail = (torch.cat([part[name] for part in parts]).to(device) for name in _COLUMNS[2:])
        whole = TopK(indices=indices.long(), logps=logps, tail=tail, temperature=self.manifest["temperature"])
        return whole.__getitem__

    def _row(self, input_ids: Tensor, prompt_length: Tensor, length: Tensor) -> dict[str, Tensor]:
        found = self._rows.get(row_key(input_ids, int(prompt_length), int(length)))
        if found is None:
            raise ValueError(
                f"the teacher logits in {str(self.folder)!r} do not hold one of the traces: its tokens are not among "
                f"their {len(self._rows)} rows. They were made from other traces, another template or another "
                "tokenizer; make them again from this run's data"
            )
        number, start, end = found
        return {name: self._files[number].get_slice(name)[start:end] for name in _COLUMNS[2:]}

    def _open(self, shard: dict[str, Any]) -> Any:
        path = self.folder / shard["file"]
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            found = f"{path.stat().st_size} bytes" if path.is_file() else "no file"
            raise ValueError(
                f"{path}: found {found}, the manifest says {shard['bytes']} bytes; delete the folder and make it again"
            )
        return safe_open(path, framework="pt")


def _shard(
    batch: Any, logits: Callable[[slice], Tensor], *, k: int, temperature: float, chunk_size: int
) -> dict[str, Tensor]:
    lengths = batch.mask.sum(1)
    num_tokens = int(lengths.sum())
    chunks = [slice(i, min(i + chunk_size, num_tokens)) for i in range(0, num_tokens, chunk_size)]
    kept = [top_k_of(logits(rows), k, temperature=temperature) for rows in chunks]
    rows = zip(batch.input_ids, batch.prompt_lengths, lengths, strict=True)
    return {
        "keys": torch.tensor([row_key(ids, int(start), int(length)) for ids, start, length in rows]),
        "ends": lengths.cumsum(0).cpu(),
        "indices": torch.cat([part.indices for part in kept]).to("cpu", torch.int32),
        "logps": torch.cat([part.logps for part in kept]).float().cpu(),
        "tail": torch.cat([part.tail for part in kept]).float().cpu(),
    }


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / "settings.json"
    if not path.is_file():
        return
    found = json.loads(path.read_text())
    for key, value in settings.items():
        if found.get(key) != value:
            raise ValueError(
                f"{folder} holds teacher logits made with {key}={found.get(key)!r}, not {value!r}; "
                "give another algorithm.teacher_logits.path or delete the folder"
            )


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)
