"""From the config group `benchmark` to problems with a verifier and prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from r1.data.formats import read_traces
from r1.data.manifest import file_sha256
from r1.evaluation.scoring import Scorer
from r1.prompts import TEMPLATES, FewShot
from r1.recipe.chat import prompt_node
from r1.recipe.parts import build
from r1.rewards import SandboxError
from r1.settings import check_keys, settings
from r1.tasks import TASKS, BenchmarkTask
from r1.types import Problem, Prompt

_GENERATED = 200  # problems of a task that generates them, unless num_problems says otherwise
_EXAMPLES = 4  # in the prompt, unless few_shot.k says otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSettings:
    """Keys of `benchmark.<name>`.

    Attributes:
        task: {name: a registered task, **its arguments}.
        num_samples: k where the command line gives none.
        instruction: below each question, after a blank line; not beside examples (`few_shot`).
        reward: what judges a sample: {name: accuracy or code or another reward, **its arguments}.
        timeout: seconds for judging one sample.
        paper: what paper.csv calls it; its own name when null.
    """

    task: Mapping[str, Any]
    num_samples: int = 4
    instruction: str = ""
    reward: Mapping[str, Any] = field(default_factory=lambda: {"name": "accuracy"})
    timeout: float = 0.0
    paper: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A benchmark, ready to be asked.

    Attributes:
        name: of the table's rows.
        settings: its config.
        task: its task.
        problems: asked, in order; `Problem.index` tells them apart.
        scorer: judges a sample.
        num_samples: k.
        origin: where the problems come from.
        is_task: named by `task` instead of `benchmark`: its samples draw from the streams of training's evaluation.
    """

    name: str
    settings: BenchmarkSettings
    task: Any
    problems: list[Problem]
    scorer: Scorer
    num_samples: int
    origin: str
    is_task: bool = False

    @property
    def timeout(self) -> float:
        """Seconds for judging one sample; programs have a deadline of their own within it."""
        return self.settings.timeout or 15.0 + 2 * float(self.settings.reward.get("seconds", 0.0))

    def identity(self) -> dict[str, Any]:
        """Return what decides which problems are asked and how they are judged."""
        problems = [(p.index, p.prompt, p.answer, p.metadata) for p in self.problems]  # tests stand in the metadata
        digest = hashlib.sha256(json.dumps(problems, default=str, sort_keys=True).encode()).hexdigest()
        # Where the file lies does not matter: its rows are known by their hash.
        settings = json.loads(json.dumps(asdict(self.settings), default=dict))
        settings["task"] = {key: value for key, value in settings["task"].items() if key != "data_dir"}
        return {"benchmark": settings, "problems": digest, "num_problems": len(self.problems)}


def build_benchmarks(config: Mapping[str, Any]) -> list[Benchmark]:
    """Build the benchmarks of a config, or, where it names none, the one that its `task` is.

    Raises:
        ValueError: an unknown key, no such file, or a file with other columns; the message names the benchmark.
        SandboxError: a benchmark of programs where no sandbox can be set up.
    """
    if not config["benchmark"]:
        return [_build_one(config, "", BenchmarkSettings(task=config["task"], reward=_accuracy(config)))]
    nodes = {n: settings(BenchmarkSettings, node, f"benchmark.{n}") for n, node in config["benchmark"].items()}
    return [_build_one(config, name, given) for name, given in nodes.items()]


def _accuracy(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reward that judges, with what the config says of it: samples are judged as training would."""
    node = {"name": "accuracy", **((config["reward"] or {}).get("accuracy") or {})}
    return {key: value for key, value in node.items() if key != "weight"}


def _build_one(config: Mapping[str, Any], name: str, given: BenchmarkSettings) -> Benchmark:
    limit = config["num_problems"]
    num_samples = given.num_samples if config["num_samples"] is None else config["num_samples"]
    for key, value in (("num_problems", limit), ("num_samples", num_samples)):
        if value is not None and value < 1:
            raise ValueError(f"{key} must be at least 1, found {value}")
    arguments = dict(given.task)
    if arguments.get("name") == "benchmark":
        arguments = {"label": name, "data_dir": config["data_dir"], **arguments}
    task = build(TASKS, arguments)
    if isinstance(task, BenchmarkTask):
        problems, origin = task.rows()[:limit], task.origin
    else:
        size = task.num_problems(config["split"])
        wanted = size if limit is None else limit if size is None else min(limit, size)
        stream = task.problems(config["split"], seed=config["seed"])
        problems, origin = stream.take_unique(wanted or _GENERATED), f"task {task.name}"
    reward = {key: value for key, value in given.reward.items() if key != "weight"}
    if name and reward.get("name", "accuracy") == "accuracy":
        reward = {**_accuracy(config), **reward}
    is_task, name = not name, name or task.name.replace("/", "_") or "task"
    return Benchmark(
        name=name,
        is_task=is_task,
        settings=replace(given, reward=reward),
        task=task,
        problems=problems,
        scorer=build_scorer(name, task, reward),
        num_samples=num_samples,
        origin=origin,
    )


def build_scorer(name: str, task: Any, reward: Mapping[str, Any]) -> Scorer:
    """Build what judges the samples of a benchmark.

    Raises:
        SandboxError: programs cannot be run safely here; the message says how to allow it.
    """
    try:
        return Scorer(task=task, reward=reward)
    except SandboxError as error:
        raise SandboxError(
            f"benchmark {name}: {error} (on the command line: benchmark.{name}.reward.isolation=limits)"
        ) from error


class Instructed:
    """A template with an instruction below each question; the problem stays as it is.

    Args:
        template: writes the prompt.
        instruction: what stands below the question, or "".
    """

    def __init__(self, template: Any, instruction: str) -> None:
        self.template, self.instruction = template, instruction

    def render(self, problem: Problem, tokenizer: Any) -> Prompt:
        asked = problem
        if self.instruction:
            asked = replace(problem, prompt=f"{problem.prompt}\n\n{self.instruction}")
        return replace(self.template.render(asked, tokenizer), problem=problem)


def build_template(config: Mapping[str, Any], tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return the template, and what a result says of it: prompt, or few_shot with the hash of its file."""
    few_shot = check_keys(config["few_shot"], ("path", "k", "question", "answer", "prefill"), "few_shot")
    if few_shot["path"]:
        few_shot["k"] = _EXAMPLES if few_shot["k"] is None else few_shot["k"]
        return few_shot_template(few_shot), {"few_shot": few_shot | {"sha256": file_sha256(few_shot["path"])}}
    if few_shot["k"] is not None:
        raise ValueError(f"few_shot.k={few_shot['k']}: examples come from a trace file. Set few_shot=<file>")
    node = prompt_node(config, tokenizer)
    return build(TEMPLATES, node), {"prompt": node}


def few_shot_template(node: Mapping[str, Any]) -> FewShot:
    """Build the template that shows the first k traces of a file before each question."""
    labels = {key: value for key, value in node.items() if key not in ("path", "k")}
    return FewShot(traces=read_traces(node["path"], broken_lines=None), k=node["k"], **labels)


def few_shot_stops(few_shot: Mapping[str, Any], stop: Sequence[str]) -> list[str]:
    """Return the stop strings beside examples: a model that goes on after its answer would write the next question."""
    label = few_shot["question"].strip()
    return [*stop, "</answer>", *([f"\n\n{label}"] if label else [])]
