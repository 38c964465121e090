"""pass@1, pass@k and cons@k of a model, on benchmarks beside the paper's rows or on a task's held-out problems.

python -m r1.evaluate model=<saved model or run directory> benchmark=[gsm8k,math500,aime24] data_dir=data k=4 limit=50
python -m r1.evaluate rescore=<run directory>
python -m r1.evaluate contamination=traces.jsonl benchmark=[gsm8k,math500] data_dir=data
python -m r1.evaluate model=<saved model or run directory> task=chain num_problems=200 num_samples=8
python -m r1.evaluate model=<student> task=chain few_shot=traces.jsonl few_shot.k=4
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from r1.config import plain
from r1.entry import open_run, run_command_line
from r1.evaluation.contamination import check_contamination
from r1.evaluation.rescore import rescore
from r1.evaluation.run import evaluate_benchmarks
from r1.failure import guarded

COMMAND = "python -m r1.evaluate"


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Do what the config asks: score kept samples again, look for contamination, or evaluate a model.

    Args:
        cfg: a composed config of `evaluate.yaml`; `output_dir` must be set.

    Returns:
        What `evaluation.json` or `contamination.json` holds.
    """
    if cfg.rescore:
        return rescore(cfg.rescore)
    if cfg.contamination:
        keys = ("contamination", "benchmark", "data_dir", "ngram_size", "output_dir")
        return check_contamination(OmegaConf.to_container(OmegaConf.masked_copy(cfg, keys), resolve=True))
    return evaluate_benchmarks(plain(cfg), Path(cfg.output_dir), begin=lambda: open_run(cfg))


@hydra.main(version_base="1.3", config_path="pkg://r1.configs", config_name="evaluate")
def _main(cfg: DictConfig) -> None:
    cfg.output_dir = cfg.output_dir or HydraConfig.get().runtime.output_dir
    guarded(lambda: evaluate(cfg), Path(cfg.output_dir), COMMAND)


def main() -> None:
    """Run the command line."""
    run_command_line(_main, name="evaluate")


if __name__ == "__main__":
    main()
