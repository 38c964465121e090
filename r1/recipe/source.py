"""The model that a run samples from: a saved one, a run's, or one behind an endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from r1.models import MODELS
from r1.models.tokenizer import load_tokenizer
from r1.recipe.parts import VLLM_ENGINES
from r1.recipe.provenance import read_record
from r1.rollout.remote import RemoteModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model to sample from.

    Attributes:
        policy: the policy, or a RemoteModel.
        name: path or name, as given.
        record: what a manifest says of it: model, path or url, fingerprint (null for an endpoint, whose weights cannot
            be seen), and the provenance of the stage that made it.
    """

    policy: Any
    name: str
    record: dict[str, Any]

    @property
    def label(self) -> str:
        """The name with the first digits of the weights' hash."""
        fingerprint = self.record["fingerprint"]
        return f"{self.name}@{fingerprint[:12]}" if fingerprint else self.name


def model_directory(path: str) -> str:
    """Return the transformers directory of a model or of a run; anything that is no folder is passed on as a name.

    Raises:
        ValueError: a folder that holds no model.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return str(candidate)
    inside = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
    raise ValueError(
        f"model: {path} is neither a saved model (config.json) nor a run directory with model/. It holds {inside}"
    )


def load_source(config: Mapping[str, Any]) -> Source:
    """Load what `model` names, for the engine of `rollout`.

    Args:
        config: has model, device, tokenizer and rollout.

    Raises:
        ValueError: no such model, or an unknown device.
    """
    model = dict(config["model"])
    name = model.get("path")
    if not isinstance(name, str) or not name:
        raise ValueError(f"model: expected a folder or a name, found {name!r}")
    if config["rollout"].get("name") == "remote":
        path = config["tokenizer"]
        policy = RemoteModel(name, None if path is None else load_tokenizer(model_directory(path)))
        record = {"model": name, "url": config["rollout"]["url"], "fingerprint": None}
        return Source(policy=policy, name=name, record=record)
    path = model_directory(name)
    policy = MODELS.build(model.pop("name"), **{**model, "path": path}).eval()
    record = {"model": name, "path": path, "fingerprint": policy.fingerprint()}
    if Path(path).is_dir() and (made_by := read_record(path)):
        record["provenance"] = made_by
    # What vLLM serves is read once: on its GPU it would take the memory that vLLM is about to claim.
    device = config["device"] or ("cpu" if config["rollout"].get("name") in VLLM_ENGINES else None)
    return Source(policy=policy.to(_device(device)), name=name, record=record)


def _device(name: str | None) -> torch.device:
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device: found {name!r}, expected cpu, cuda or cuda:0") from error
