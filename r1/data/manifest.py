"""The manifest beside a trace file: what it came from, and the hash by which a changed file is noticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SUFFIX = ".manifest.json"


class ManifestError(ValueError):
    """A manifest that is missing, unreadable, or does not match its file."""


def manifest_path(path: str | Path) -> Path:
    """Return where the manifest of a data file is: traces.jsonl -> traces.manifest.json."""
    path = Path(path)
    return path if path.name.endswith(SUFFIX) else path.with_name(path.stem + SUFFIX)


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Return the manifest of a data file, given the path of either.

    Raises:
        ManifestError: there is none, or it is not a manifest.
    """
    where = manifest_path(path)
    try:
        manifest = json.loads(where.read_text())
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: no manifest {where.name} beside it") from error
    except (OSError, ValueError) as error:
        raise ManifestError(f"{where} is not a readable manifest: {error}") from error
    data = manifest.get("data") if isinstance(manifest, dict) else None
    if not isinstance(data, dict) or not all(isinstance(data.get(key), str) for key in ("file", "sha256")):
        raise ManifestError(f"{where} is not a manifest: expected data.file and data.sha256")
    return manifest


def verify_manifest(path: str | Path) -> dict[str, Any]:
    """Check a data file against its manifest and return the manifest.

    Args:
        path: of the data file or of its manifest.

    Raises:
        ManifestError: no manifest, no data file, or a file that was changed after the manifest was written.
    """
    manifest, where = read_manifest(path), manifest_path(path)
    data = manifest["data"]
    file = where.with_name(data["file"])
    if not file.is_file():
        raise ManifestError(f"{where} describes {data['file']!r}, which is not there")
    found = file_sha256(file)
    if found != data["sha256"]:
        raise ManifestError(
            f"{file} does not match {where.name}: its SHA-256 is {found[:12]}..., the manifest says "
            f"{data['sha256'][:12]}... The file was changed or damaged after it was written: make it again, or delete "
            "the manifest if the change is meant"
        )
    return manifest
