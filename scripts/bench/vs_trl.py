"""One GRPO step of ours against TRL's GRPOTrainer, paired in one run: python scripts/bench/vs_trl.py

Both sides hold the same weights, take the same problems in the same order and draw as many completions under the same
sampling, reward, loss and optimizer, each in a process of its own through its own trainer. After warm-up they take
turns (ours, TRL, TRL, ours, ...), one optimizer step a turn, rollout included. Their random streams differ, hence their
lengths, so speeds are in completion tokens. A ratio above 1 says that ours is faster; given are that of all tokens over
all seconds, and of the pairs the median, the lowest and the highest. CPU seconds are the steadier figure on a machine
that does other work as well.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from _cells import PRESETS, read_cells
from _search import MODES, fastest_trl, fitting
from _side import Side
from _step import BenchSettings, StepCost, add_settings, build_policy, read_settings, take_side

PARTS = ("step", "rollout", "logps", "update")


def take_turns(ours: Side, trl: Side, *, warmup: int, repeats: int) -> list[tuple[StepCost, StepCost]]:
    """Return the costs of (ours, TRL) in each pair, the order within a pair alternating."""
    for _ in range(warmup):
        ours.step(), trl.step()
    pairs = []
    for number in range(repeats):
        if number % 2 == 0:
            pair = ours.step(), trl.step()
        else:
            pair = (trl.step(), ours.step())[::-1]
        pairs.append(pair)
        sides = zip(("ours", "TRL"), pair, strict=True)
        parts = (f"{name} {cost.cpu['step']:.2f} s for {cost.tokens:,} tokens" for name, cost in sides)
        print(f"pair {number + 1}, CPU: {', '.join(parts)}", flush=True)
    return pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A line of the table: speeds in completion tokens per second over all pairs, ratios of the pairs."""

    clock: str
    part: str
    ours_seconds: float
    trl_seconds: float
    ours_speed: float
    trl_speed: float
    ratio: float
    median: float
    lowest: float
    highest: float


def summarise(pairs: list[tuple[StepCost, StepCost]]) -> list[Figure]:
    """Compute the lines of the table."""
    figures = []
    for clock in ("cpu", "wall"):
        for part in PARTS:
            sides = [[(getattr(pair[i], clock)[part], pair[i].tokens) for pair in pairs] for i in (0, 1)]
            if not all(seconds > 0.001 for side in sides for seconds, _ in side):
                continue  # no reference policy
            ratios = [(a[1] / a[0]) / (b[1] / b[0]) for a, b in zip(*sides, strict=True)]
            ours, trl = (sum(n for _, n in side) / sum(seconds for seconds, _ in side) for side in sides)
            figures.append(
                Figure(
                    clock=clock,
                    part=part,
                    ours_seconds=mean(seconds for seconds, _ in sides[0]),
                    trl_seconds=mean(seconds for seconds, _ in sides[1]),
                    ours_speed=ours,
                    trl_speed=trl,
                    ratio=ours / trl,
                    median=median(ratios),
                    lowest=min(ratios),
                    highest=max(ratios),
                )
            )
    return figures


def print_table(figures: list[Figure], pairs: list[tuple[StepCost, StepCost]], rate: tuple[float, str]) -> None:
    names = {"cpu": "CPU", "wall": "wall"}
    print(f"\n{'':<14}{'ours s':>9}{'TRL s':>9}{'ours tok/s':>12}{'TRL tok/s':>11}{'ratio':>8}   median (of pairs)")
    for f in figures:
        line = f"{names[f.clock] + ' ' + f.part:<14}{f.ours_seconds:>9.3f}{f.trl_seconds:>9.3f}"
        line += f"{f.ours_speed:>12,.0f}{f.trl_speed:>11,.0f}{f.ratio:>8.2f}"
        print(f"{line}   {f.median:.2f} ({f.lowest:.2f}-{f.highest:.2f})")
    ours, trl = (mean(pair[side].tokens for pair in pairs) for side in (0, 1))
    print(f"completion tokens a step, mean: ours {ours:,.0f}, TRL {trl:,.0f}")
    parts = [(part, mean(o.flops[part] for o, _ in pairs) / rate[0]) for part in ("rollout", "update")]
    spent = {f.part: f.ours_seconds for f in figures if f.clock == "cpu"}
    shares = ", ".join(f"{part} {floor:.3f} s ({floor / spent[part]:.0%} of ours)" for part, floor in parts)
    print(f"floor by floating-point operations at {rate[0] / 1e9:.0f} GFLOP/s, the faster of {rate[1]}: {shares}")
    peaks = [
        [median(getattr(pair[side], name) for pair in pairs) / 2**20 for side in (0, 1)] for name in ("peak", "extra")
    ]
    print(
        "peak memory of a step, MiB: ours {:,.0f}, TRL {:,.0f}, ratio {:.2f}".format(
            *peaks[0], peaks[0][1] / peaks[0][0]
        )
        + "; of that more than before the step: ours {:,.0f}, TRL {:,.0f}".format(*peaks[1])
    )


def compare(settings: BenchSettings, *, mode: str, warmup: int, repeats: int, memory: float) -> dict[str, Any]:
    """Run one comparison, print its table and return everything that was measured.

    Raises:
        MemoryError: it needs more than `memory` bytes.
    """
    num_parameters = build_policy(settings).num_parameters
    print(f"\n{settings.describe(num_parameters)}\n$ {command(settings, warmup, repeats)}", flush=True)
    settings = fitting(settings, num_parameters, memory)
    trl_settings, mode = fastest_trl(settings, num_parameters, memory) if mode == "auto" else (settings, mode)
    ours, trl = Side(take_side, "ours", settings), Side(take_side, "trl", trl_settings, mode)
    print(
        f"taken for TRL: {mode} generation, micro-batches of {trl_settings.micro_batch}; "
        f"ours: micro-batches of {settings.micro_batch}"
    )
    check = "loss on the same rollout: ours {ours:.9f}, TRL {trl:.9f}; relative distance of gradients {gradients:.1e}"
    print(check.format_map(trl.check), flush=True)
    pairs = take_turns(ours, trl, warmup=warmup, repeats=repeats)
    ours.close()
    trl.close()
    figures = summarise(pairs)
    print_table(figures, pairs, ours.check)
    return {
        "settings": asdict(settings),
        "num_parameters": num_parameters,
        "trl_generation": mode,
        "trl_micro_batch": trl_settings.micro_batch,
        "loss_check": trl.check,
        "matmul_rate": ours.check,
        "figures": [asdict(figure) for figure in figures],
        "pairs": [{"ours": asdict(a), "trl": asdict(b)} for a, b in pairs],
    }


def command(settings: BenchSettings, warmup: int, repeats: int) -> str:
    """Return the command line of one comparison."""
    options = {
        "params": settings.params, "vocab": settings.vocab_size, "task": settings.task,
        "prompts": settings.num_prompts, "generations": settings.num_generations, "micro-batch": settings.micro_batch,
        "max-tokens": settings.max_tokens, "mean-length": f"{settings.mean_length:g}", "loss": settings.loss,
        "beta": f"{settings.beta:g}", "lr": f"{settings.lr:g}", "threads": settings.threads, "seed": settings.seed,
        "warmup": warmup, "repeats": repeats,
    }  # fmt: skip
    words = (f"--{name} {shlex.quote(str(value))}" for name, value in options.items())
    return " ".join(["python scripts/bench/vs_trl.py", *words])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_settings(parser)
    add = parser.add_argument
    add(
        "--trl-generation",
        choices=("auto", *MODES),
        default="auto",
        help="auto takes the fastest, also of micro-batches",
    )
    add("--warmup", type=int, help="steps of each side before the measurement, after a first one; 2, with --cells 0")
    add("--repeats", type=int, help="measured pairs; 10, with --cells what the cell says, or 2")
    add(
        "--memory",
        type=float,
        default=24.0,
        help="GiB that both sides may take together: micro-batches are made to fit",
    )
    add(
        "--cells",
        nargs="+",
        metavar="CELL",
        help="cells of the grid one after another, such as 1m-64-512, 1m-16-128-150000:2 (size, completions, tokens, "
        "vocabulary, pairs), or a list of them: " + "; ".join(f"{k} ({v})" for k, v in PRESETS.items()),
    )
    add("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    if arguments.warmup is None:
        arguments.warmup = 0 if arguments.cells else 2
    repeats = arguments.repeats or (2 if arguments.cells else 10)
    try:
        if arguments.cells:  # one more step is made before the first turn
            found = read_cells(arguments, num_steps=arguments.warmup + 64)
            arguments.comparisons = [(settings, arguments.repeats or pairs or repeats) for settings, pairs in found]
        else:
            found = read_settings(arguments, num_steps=arguments.warmup + repeats + 8)
            arguments.comparisons = [(settings, repeats) for settings in found]
    except ValueError as error:
        parser.error(str(error))
    return arguments


def main() -> None:
    """Run the comparisons that were asked for."""
    arguments = parse_arguments()
    sys.stdout.reconfigure(line_buffering=True)  # into a file too
    try:
        version = importlib.metadata.version("trl")
        importlib.metadata.version("datasets")
    except importlib.metadata.PackageNotFoundError as error:
        sys.exit(f"{error.name} is not installed; this comparison needs it: pip install 'r1[bench]'")
    # Read by the libraries of the child processes when they are imported.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    packages = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "lightning")}
    print(f"r1 against TRL {version} ({', '.join(f'{k} {v}' for k, v in packages.items())})")
    results = []
    options = {"mode": arguments.trl_generation, "warmup": arguments.warmup, "memory": arguments.memory * 2**30}
    for settings, repeats in arguments.comparisons:
        try:
            results.append(compare(settings, repeats=repeats, **options))
        except (MemoryError, RuntimeError) as error:
            if len(arguments.comparisons) == 1:
                raise
            print(f"left out: {error}", flush=True)
        if arguments.out:  # after each, so that a run cut short keeps the others
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps({"trl": version, **packages, "results": results}, indent=1))


if __name__ == "__main__":
    main()
