"""A step verifier on labelled chains: its numbers, and where it differs from the labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from r1.data.step_labels import LabelledChain, find_step_labels, read_step_labels
from r1.intervals import Interval
from r1.prompts import TEMPLATES
from r1.recipe import judge as _judge  # noqa: F401  (registers the judge)
from r1.recipe.chat import prompt_node
from r1.recipe.judge import engine_ask
from r1.recipe.parts import build, build_engine, build_sampling
from r1.recipe.source import load_source
from r1.registry import did_you_mean
from r1.steps import STEP_VERIFIERS, StepVerifier
from r1.steps.scores import UNKNOWN, localization_scores
from r1.types import Problem

HALVES = ("all", "even", "odd")
QUANTITIES = (
    ("accuracy_wrong", "wrong chains: exact step"),
    ("accuracy_right", "right chains: none flagged"),
    ("f1", "F1"),
    ("precision_any", "flags on wrong chains"),
    ("recall_any", "wrong chains flagged"),
    ("precision_exact", "flags at the exact step"),
)


def needs_model(node: Mapping[str, Any]) -> bool:
    """Whether a verifier asks a model."""
    return STEP_VERIFIERS.accepts(node.get("name", "text"), "ask")


@contextmanager
def open_verifier(config: Mapping[str, Any]) -> Iterator[StepVerifier]:
    """Build the verifier of `verifier`, with the model of the config behind it if it asks one; free it afterwards."""
    node = config["verifier"] or {"name": "text"}
    if not needs_model(node):
        yield build(STEP_VERIFIERS, node)
        return
    engine = build_engine(config)
    sampling = build_sampling(config, num_generations=config["num_samples"])
    source = load_source(config)
    template = build(TEMPLATES, prompt_node(config, source.policy.tokenizer))
    try:
        engine.load_weights(source.policy)
        ask = engine_ask(engine=engine, template=template, tokenizer=source.policy.tokenizer, sampling=sampling)
        yield build(STEP_VERIFIERS, node, ask=ask)
    finally:
        engine.close()


def run_benchmark(
    verifier: StepVerifier, *, benchmark: str, data_dir: str | Path | None, half: str = "all", limit: int | None = None
) -> dict[str, Any]:
    """Judge the chains of a benchmark and return its numbers by subset, with the verdict on every chain.

    Args:
        verifier: judges the chains.
        benchmark: files are `<benchmark>_<subset>.jsonl` in data_dir.
        data_dir: their folder.
        half: "even" or "odd" rows alone, so that a verifier made on one half can be tried on the other.
        limit: chains of each subset, or None for all.

    Raises:
        ValueError: a key that is wrong or missing, or a file that cannot be read.
    """
    if half not in HALVES:
        raise ValueError(f"half: found {half!r}.{did_you_mean(half, HALVES)} Expected one of {', '.join(HALVES)}")
    if data_dir is None:
        raise ValueError(f"data_dir: expected the folder with {benchmark}_*.jsonl, found nothing")
    subsets = {}
    for subset, path in find_step_labels(data_dir, benchmark).items():
        rows = read_step_labels(path)
        rows = rows if half == "all" else rows[HALVES.index(half) - 1 :: 2]
        rows = rows[:limit]
        subsets[subset] = judge_rows(verifier, rows)
    return {"benchmark": benchmark, "half": half, "subsets": subsets}


def judge_rows(verifier: StepVerifier, rows: Sequence[LabelledChain]) -> dict[str, Any]:
    """Return the numbers of one subset, and what was said of each chain."""
    problems = [Problem(prompt=row.problem, answer="", index=i) for i, row in enumerate(rows)]
    verdicts = verifier(problems, [row.steps for row in rows])
    found = [UNKNOWN if v is None else -1 if v.first is None else v.first for v in verdicts]
    scores = localization_scores([row.label for row in rows], found)
    kinds = Counter(v.kind for v in verdicts if v is not None and v.first is not None)
    chains = [
        {"id": row.id, "label": row.label, "found": place, "reasons": [f.reason for f in v.findings] if v else []}
        for row, place, v in zip(rows, found, verdicts, strict=True)
    ]
    return {**{k: _plain(v) for k, v in scores.items()}, "kinds": dict(kinds.most_common()), "chains": chains}


def benchmark_markdown(result: Mapping[str, Any], command: str) -> str:
    """Write the numbers as Markdown."""
    subsets = result["subsets"]
    rows = {"all": "all rows", "even": "rows 0, 2, 4, ...", "odd": "rows 1, 3, 5, ..."}[result["half"]]
    lines = [f"# {result['benchmark']}: first wrong steps", ""]
    lines += [f"Made by `{command}`; {rows}. Per cent, with 95 % intervals.", ""]
    lines += [f"| | {' | '.join(subsets)} |", f"| --- |{' --- |' * len(subsets)}"]
    for label, keys in (("chains with an error", "num_wrong"), ("chains without", "num_right")):
        lines.append(f"| {label} | {' | '.join(str(s[keys]) for s in subsets.values())} |")
    for key, label in QUANTITIES:
        lines.append(f"| {label} | {' | '.join(_cell(s[key]) for s in subsets.values())} |")
    lines.append(f"| not judged | {' | '.join(str(s['num_unknown']) for s in subsets.values())} |")
    lines.append(f"| kinds | {' | '.join(_counts(s['kinds']) for s in subsets.values())} |")
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    return {"mean": value.mean, "low": value.low, "high": value.high} if isinstance(value, Interval) else value


def _cell(node: Mapping[str, float] | None) -> str:
    if node is None:
        return "none"
    mean, low, high = (f"{100 * node[key]:.1f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} - {high})"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in counts.items()) or "none"
