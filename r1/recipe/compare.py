"""The closing table of a run: the same problems put to several models."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from r1.data.trace_loader import TraceDataModule
from r1.models import MODELS
from r1.prompts import TEMPLATES
from r1.recipe.parts import build, build_engine, build_evaluator, build_task
from r1.recipe.stages import write_json
from r1.rollout.evaluate import Evaluation
from r1.settings import check_keys

COLUMNS = ("model", "accuracy (95 %)", "greedy", "format", "length", "re-check", "training")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the comparison.

    Attributes:
        label: what it is.
        model: directory of the saved model.
        prompt: prompt config it is asked with.
        seconds: wall-clock seconds its own training took, or None for a model that was there before.
    """

    label: str
    model: str
    prompt: Mapping[str, Any]
    seconds: float | None = None


def check_compare(node: Mapping[str, Any] | None) -> None:
    """Raise ValueError, before anything is trained, for a key of `compare` that is missing or that nothing reads."""
    if node is None:
        return
    check_keys(node, ("num_problems", "rows"), "compare")
    for key in ("num_problems", "rows"):
        if not node.get(key):
            raise ValueError(f"compare: missing {key}")
    for label, row in node["rows"].items():
        check_keys(
            row, ("start", "final", "experiment", "overrides", "equal_compute", "prompt"), f"compare.rows.{label}"
        )


def compare(config: Mapping[str, Any], rows: list[Row], *, num_problems: int, folder: str | Path) -> dict[str, Any]:
    """Evaluate every row on the same fresh held-out problems, print the table, and keep it in the run directory.

    Problems come from the held-out split with a seed of their own, so none was trained on and none was looked at
    during training. Each row is sampled at temperature 1 and greedily.

    Returns:
        label -> its numbers, as written to `comparison.json`; `comparison.md` holds the table.
    """
    task, engine = build_task(config), build_engine(config)
    results: dict[str, Any] = {}
    with closing(engine):
        for row in rows:
            policy = build(MODELS, {"name": "pretrained", "path": row.model, "dtype": "float32"}).eval()
            template = build(TEMPLATES, row.prompt)
            node = {"num_problems": num_problems, "split": "test", "seed": 2 * config["seed"] + 900_001}
            evaluators = [
                build_evaluator(config, node | {"temperature": t}, task=task, template=template, engine=engine)
                for t in (1.0, 0.0)
            ]
            sampled, greedy = (evaluator.evaluate(policy) for evaluator in evaluators)
            for evaluator in evaluators:
                evaluator.rewards.close()
            results[row.label] = _numbers(sampled, greedy) | {"model": row.model, "training_seconds": row.seconds}
    write_json(Path(folder) / "comparison.json", results)
    (Path(folder) / "comparison.md").write_text(_markdown(results))
    _print(results, num_problems)
    return results


def steps_for_compute(flops: float, data: TraceDataModule, num_parameters: int, *, num_batches: int = 20) -> int:
    """Return how many supervised steps cost `flops` operations, at 6 x parameters a token.

    Args:
        flops: the budget.
        data: whose batches would be trained on.
        num_parameters: of the model.
        num_batches: batches over which the tokens of a step are averaged.
    """
    loader = data.train_dataloader()
    batches = [loader.batch_at(i) for i in range(num_batches)]
    tokens = sum(int(b.mask.sum() + b.prompt_lengths.sum()) for b in batches) / num_batches
    return max(1, round(flops / (6 * num_parameters * tokens)))


def _numbers(sampled: Evaluation, greedy: Evaluation) -> dict[str, Any]:
    return {
        "accuracy": sampled.accuracy,
        "interval": list(sampled.interval),
        "greedy": greedy.accuracy,
        "greedy_interval": list(greedy.interval),
        "format": sampled.statistics["rollout/well_formed"],
        "length": sampled.statistics["rollout/length"],
        "recheck": sampled.statistics["rollout/reflection"],
        "num_problems": sampled.num_problems,
    }


def _cells(label: str, numbers: Mapping[str, Any]) -> list[str]:
    low, high = numbers["interval"]
    seconds = numbers["training_seconds"]
    return [
        label,
        f"{100 * numbers['accuracy']:.1f} ({100 * low:.1f}-{100 * high:.1f})",
        f"{100 * numbers['greedy']:.1f}",
        f"{100 * numbers['format']:.0f}",
        f"{numbers['length']:.1f}",
        f"{100 * numbers['recheck']:.0f}",
        "-" if seconds is None else f"{seconds:.0f} s",
    ]


def _markdown(results: Mapping[str, Any]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(_cells(label, numbers) for label, numbers in results.items())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _print(results: Mapping[str, Any], num_problems: int) -> None:
    title = f"{num_problems} fresh held-out problems, temperature 1 (per cent; length in tokens)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        is_label = column == COLUMNS[0]
        table.add_column(column, overflow="fold", justify="left" if is_label else "right", no_wrap=not is_label)
    for label, numbers in results.items():
        table.add_row(*_cells(label, numbers))
    Console().print(table)
