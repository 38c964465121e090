"""One table of an evaluation: terminal, Markdown and TensorBoard, the paper's rows below one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from r1.evaluation.paper import paper_rows

HEADER = ("benchmark", "model", "source", "k", "pass@1", "pass@k", "cons@k", "problems", "left out", "truncated")


def benchmarks_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return name -> numbers of an `evaluation.json`, those of a task from its top; {} where it is something else."""
    if "benchmarks" in result or "task" not in result:
        return result.get("benchmarks", {})
    return {result.get("benchmark", result["task"]["name"]): result}


def table_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the table of an `evaluation.json`: for each benchmark the model's row, then the paper's."""
    rows = []
    for name, found in benchmarks_of(result).items():
        num_samples = sum(found["verdicts"].values())
        rows.append(
            {
                "benchmark": name,
                "model": result["source"]["model"],
                "source": "measured",
                "k": found["num_samples"],
                "metrics": found["metrics"],
                "num_problems": found["num_problems"],
                "num_left_out": len(found["left_out"]),
                "truncated": found["num_truncated"] / num_samples if num_samples else None,
            }
        )
        rows += [{"benchmark": name, **row} for row in paper_rows(found.get("paper", ""))]
    return rows


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return a row of the table as text, in per cent with 95 % intervals."""
    k, metrics = row["k"], row["metrics"]
    is_ours = row["source"] == "measured"
    return [
        row["benchmark"],
        row["model"],
        "" if is_ours else row["source"],
        "" if k is None else str(k),
        per_cent(metrics.get("pass@1")),
        per_cent(metrics.get(f"pass@{k}")) if k != 1 else "",
        per_cent(metrics.get(f"cons@{k}")),
        str(row["num_problems"]) if is_ours else "",
        str(row["num_left_out"]) if is_ours else "",
        f"{100 * row['truncated']:.0f}" if is_ours and row["truncated"] is not None else "",
    ]


def per_cent(value: Mapping[str, float] | None) -> str:
    """Return "12.5 (8.1-17.0)", without bounds where there are none, or ""."""
    if value is None:
        return ""
    if value.get("low") is None or value["low"] != value["low"]:
        return f"{100 * value['mean']:.1f}"
    return f"{100 * value['mean']:.1f} ({100 * value['low']:.1f}-{100 * value['high']:.1f})"


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return what the table does not show: problems left out and why, verdicts that ran out of time, the baseline."""
    lines = []
    for name, found in benchmarks_of(result).items():
        for left in found["left_out"]:
            gold = f" (gold answer {left['answer']!r})" if left["answer"] else ""
            lines.append(f"{name}, problem {left['index']} ({left['problem_id']}) is left out: {left['reason']}{gold}")
        late = {v: found["verdicts"][v] for v in ("timeout", "crash", "prompt too long") if v in found["verdicts"]}
        lines += [f"{name}: {count} samples count as wrong: {verdict}" for verdict, count in late.items()]
        if found.get("num_vote_timeouts"):
            lines.append(f"{name}: {found['num_vote_timeouts']} votes compared wrong answers as text: out of time")
        if difference := found.get("difference"):
            lines.append(
                f"{name}: pass@1 minus that of {result['baseline']}: {per_cent(difference)} on "
                f"{difference['num_problems']} problems"
            )
    return lines


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the table and its notes in Markdown."""
    body = [cells(row) for row in table_rows(result)]
    lines = [f"| {' | '.join(line)} |" for line in (HEADER, ["---"] * len(HEADER), *body)]
    sampling = result["sampling"]
    how = (
        f"Per cent, 95 % intervals over problems; temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}"
    )
    return "\n".join([f"{how}, at most {sampling['max_tokens']} tokens.", "", *lines, "", *notes(result)]) + "\n"


def show(result: Mapping[str, Any]) -> None:
    """Print the table and its notes."""
    table = Table(title="per cent, 95 % intervals over problems", title_justify="left")
    for name in HEADER:
        table.add_column(name, justify="left" if name in ("benchmark", "model", "source") else "right")
    previous = None
    for row in table_rows(result):
        if previous not in (None, row["benchmark"]):
            table.add_section()
        previous = row["benchmark"]
        table.add_row(*cells(row), style=None if row["source"] == "measured" else "dim")
    console = Console()
    # A pipe has no width: there the table is as wide as it needs to be.
    width = console.width if console.is_terminal else max(console.width, 160)
    Console(width=width).print(table)
    for line in notes(result):
        print(line)


def write_tensorboard(folder: str | Path, result: Mapping[str, Any]) -> None:
    """Write `eval/<benchmark>/<metric>` with bounds, `paper/<benchmark>/<metric>/<model>`, and the table as text."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for row in table_rows(result):
            for name, value in row["metrics"].items():
                if row["source"] == "measured":
                    for suffix, key in (("", "mean"), ("_low", "low"), ("_high", "high")):
                        writer.add_scalar(f"eval/{row['benchmark']}/{name}{suffix}", value[key], 0)
                else:
                    model = row["model"].replace(" ", "_")
                    writer.add_scalar(f"paper/{row['benchmark']}/{name}/{model}", value["mean"], 0)
        writer.add_text("evaluation", as_markdown(result), 0)


def scalars(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics as `summary.json` names them."""
    found: dict[str, float] = {}
    for name, benchmark in benchmarks_of(result).items():
        prefix = f"eval/{name}" if "benchmarks" in result else "eval"
        found |= {f"{prefix}/{metric}": value["mean"] for metric, value in benchmark["metrics"].items()}
    return found


def changes(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the samples whose reward or verdict is another: benchmark, index, sample, answer, old and new verdict."""
    before = {(row["index"], row["sample"]): row for row in old}
    found = []
    for row in new:
        was = before[row["index"], row["sample"]]
        if (was["verdict"], was["reward"]) != (row["verdict"], row["reward"]):
            keys = ("benchmark", "index", "problem_id", "sample", "answer", "verdict", "reward")
            entry = {key: row[key] for key in keys}
            found.append(entry | {"old_verdict": was["verdict"], "old_reward": was["reward"]})
    return found
