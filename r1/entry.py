"""What the entry points around a saved model begin and end with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers.utils import logging as transformers_logging

from r1.config import expand_shorthands, explain_choices, explain_overrides, plain
from r1.failure import Reported


def open_run(cfg: DictConfig) -> tuple[dict[str, Any], Path]:
    """Make the run directory, write `config.yaml` into it, set the threads; return the plain config and the folder."""
    config = plain(cfg)
    if config["num_threads"]:
        torch.set_num_threads(config["num_threads"])
    folder = Path(config["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return config, folder


def run_command_line(application: Callable[[], Any], *, name: str) -> None:
    """Run a Hydra application whose config is `name`, with its shorthands and with hints at misspelled keys."""
    transformers_logging.disable_progress_bar()
    sys.argv[1:] = expand_shorthands(sys.argv[1:], name=name)
    if mistake := explain_choices(sys.argv[1:]):
        print(f"\nerror: {mistake}", file=sys.stderr)
        raise SystemExit(1)
    try:
        application()
    except Reported:
        raise
    except SystemExit as stop:  # Hydra refused the command line and has said why
        if stop.code and (hint := explain_overrides(name=name)):
            print(hint, file=sys.stderr)
        raise
    except (OSError, OmegaConfBaseException) as error:  # from Hydra, which names and makes the run directory first
        print(f"\nerror: {str(error).splitlines()[0]}", file=sys.stderr)
        raise SystemExit(1) from None
