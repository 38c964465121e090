"""The claims report: what the comparisons of a recipe's evaluations say, as Markdown and JSON.

python -m r1.claims evaluations.think=runs/r1/eval_think/evaluation.json evaluations.direct=... claims=r1_tiny
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from r1.entry import open_run, run_command_line
from r1.failure import guarded
from r1.recipe.claims import as_markdown, put_to_test
from r1.recipe.stages import write_json

COMMAND = "python -m r1.claims"


def claims(cfg: DictConfig) -> list[dict[str, Any]]:
    """Test the claims and write `claims.json` and `claims.md`; `output_dir` must be set."""
    config, folder = open_run(cfg)
    evaluations = {}
    for label, path in config["evaluations"].items():
        if not Path(path).is_file():
            raise ValueError(f"evaluations.{label}: no file {path!r}")
        evaluations[label] = json.loads(Path(path).read_text())
    tested = put_to_test(config["claims"]["claims"], evaluations)
    write_json(folder / "claims.json", tested)
    report = as_markdown(tested, config["claims"]["command"])
    (folder / "claims.md").write_text(report)
    print(report, flush=True)
    return tested


@hydra.main(version_base="1.3", config_path="pkg://r1.configs", config_name="claims")
def _main(cfg: DictConfig) -> None:
    cfg.output_dir = cfg.output_dir or HydraConfig.get().runtime.output_dir
    guarded(lambda: claims(cfg), Path(cfg.output_dir), COMMAND)


def main() -> None:
    """Run the command line."""
    run_command_line(_main, name="claims")


if __name__ == "__main__":
    main()
