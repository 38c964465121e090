"""The checkpoint that a run goes on from, and whether it fits."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from r1.recipe.stages import latest_checkpoint
from r1.registry import did_you_mean


def checkpoint_to_resume(config: Mapping[str, Any], module: nn.Module) -> str | None:
    """Return the checkpoint to go on from, or None to start anew.

    Raises:
        ValueError: `ckpt_path` does not exist, cannot be read, or is of another model or algorithm.
    """
    path = config["ckpt_path"]
    if path is None:
        path = latest_checkpoint(config["output_dir"]) if config["resume"] else None
    elif not Path(path).exists():
        folder = Path(path).parent
        near = did_you_mean(Path(path).name, [p.name for p in folder.glob("*")])
        raise ValueError(f"ckpt_path: no checkpoint {str(path)!r}.{near}")
    if path is None:
        return None
    if Path(path).is_file():  # a sharded one is a folder, which the strategy checks while it loads
        check_checkpoint(Path(path), module)
    return str(path)


def check_checkpoint(path: Path, module: nn.Module) -> None:
    """Compare a checkpoint with the module that would be restored from it.

    Raises:
        ValueError: it is damaged, or of another model or algorithm; the message names the first difference.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        theirs, loops = checkpoint["state_dict"], checkpoint["loops"]
    except (RuntimeError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"checkpoint {path} cannot be read as one of this project: {reason}") from error
    difference = _difference({name: tuple(t.shape) for name, t in theirs.items()}, module)
    if difference:
        raise ValueError(
            f"checkpoint {path} is of another model: {difference}. Use the model, lora and reference settings that it "
            "was made with, or start anew without resume and ckpt_path"
        )
    loaders = loops["fit_loop"]["state_dict"].get("combined_loader", [])
    has_rollouts = any("schedule" in state for state in loaders)
    if has_rollouts != hasattr(module, "loader"):
        raise ValueError(
            f"checkpoint {path} is of {'GRPO' if has_rollouts else 'another algorithm than GRPO'}. To start this stage "
            "from its weights, give the folder of the saved model: init_from=.../model"
        )


def _difference(theirs: Mapping[str, tuple[int, ...]], module: nn.Module) -> str:
    mine = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name, shape in mine.items():
        if name not in theirs:
            return f"it has no {name}"
        if theirs[name] != shape:
            return f"{name} has shape {theirs[name]} there and {shape} here"
    return next((f"it also has {name}" for name in theirs if name not in mine), "")
