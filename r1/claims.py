"""The claims report: what the comparisons of a recipe's evaluations say, as Markdown and JSON.

python -m r1.claims claims=r1_tiny +evaluations.think=runs/r1/eval_think/evaluation.json +evaluations.direct=...
python -m r1.claims claims=r1_tiny 'runs=[runs/r1,runs/r1_seed1,runs/r1_seed2]'       one pipeline run a seed
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from r1.entry import open_run, run_command_line
from r1.failure import guarded
from r1.recipe.claims import as_markdown, put_to_test
from r1.recipe.measure import read_evaluation
from r1.recipe.stages import write_json, write_text

COMMAND = "python -m r1.claims"


def claims(cfg: DictConfig) -> list[dict[str, Any]]:
    """Test the claims and write `claims.json` and `claims.md`; `output_dir` must be set."""
    config, folder = open_run(cfg)
    if bool(config["evaluations"]) == bool(config["runs"]):
        raise ValueError("expected either evaluations (label -> evaluation.json) or runs (folders of pipeline runs)")
    runs = [read_run(run) for run in config["runs"]] or [read_evaluations(config["evaluations"])]
    tested = put_to_test(config["claims"]["claims"], runs)
    command = config["claims"]["command"]
    if config["runs"]:
        chosen = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
        named = f" claims={chosen['claims']}" if "claims" in chosen else ""
        command = f"{COMMAND}{named} 'runs=[{','.join(config['runs'])}]'"
    write_json(folder / "claims.json", tested)
    report = as_markdown(tested, command, num_runs=len(runs))
    write_text(folder / "claims.md", report)
    print(report, flush=True)
    return tested


def read_evaluations(paths: Mapping[str, str]) -> dict[str, Any]:
    """Return label -> contents of its evaluation; one on benchmarks is <label>.<benchmark> for each of them.

    Raises:
        ValueError: a file is not there, or holds something else.
    """
    found = {}
    for label, path in paths.items():
        content = read_evaluation(path, key=f"evaluations.{label}")
        found |= {f"{label}.{name}": numbers for name, numbers in content.get("benchmarks", {}).items()} or {
            label: content
        }
    return found


def read_run(folder: str) -> dict[str, Any]:
    """Return label -> contents of its evaluation, of a run of `r1.pipeline` whose stages are called `eval_<label>`.

    The arms of a diagnosis (`r1.diagnose`) are evaluations too: <stage>_<arm>.

    Raises:
        ValueError: there is none.
    """
    found = {path.parent.name: str(path) for path in sorted(Path(folder).glob("eval_*/evaluation.json"))}
    if not found:
        raise ValueError(f"runs: no eval_*/evaluation.json in {folder!r}; expected the folder of a finished pipeline")
    found = {name.removeprefix("eval_"): path for name, path in found.items()}
    for diagnosis in sorted(Path(folder).glob("*/diagnosis.json")):
        stage = diagnosis.parent
        for arm in json.loads(diagnosis.read_text())["arm_names"]:
            found[f"{stage.name}_{arm}"] = str(stage / f"{arm}.json")
    return read_evaluations(found)


@hydra.main(version_base="1.3", config_path="pkg://r1.configs", config_name="claims")
def _main(cfg: DictConfig) -> None:
    cfg.output_dir = cfg.output_dir or HydraConfig.get().runtime.output_dir
    guarded(lambda: claims(cfg), Path(cfg.output_dir), COMMAND)


def main() -> None:
    """Run the command line."""
    run_command_line(_main, name="claims")


if __name__ == "__main__":
    main()
