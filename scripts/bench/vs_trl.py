"""One GRPO step of ours against TRL's GRPOTrainer, paired in one run: python scripts/bench/vs_trl.py

Both sides hold the same weights, take the same problems in the same order and draw as many completions under the same
sampling, reward, loss and optimizer, each in a process of its own through its own trainer. After warm-up they take
turns (ours, TRL, TRL, ours, ...), one optimizer step a turn, rollout included. Their random streams differ, hence their
lengths, so speeds are in completion tokens. A ratio above 1 says that ours is faster; given are the median over the
pairs, the lowest and the highest. CPU seconds are the steadier figure on a machine that does other work as well.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import math
import multiprocessing
import os
import sys
import warnings
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean, median
from typing import Any

from _step import SHAPES, BenchSettings, StepCost, StepGate, build_policy

MODES = ("dynamic", "static", "continuous")
PARTS = ("step", "rollout", "update")


class Side:
    """One trainer in a process of its own, which makes a step when told to.

    Attributes:
        check: what the process reported before its first turn (TRL's side: the comparison of the two losses).
    """

    def __init__(self, name: str, settings: BenchSettings, mode: str = "") -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, remote = context.Pipe()
        self.process = context.Process(target=_serve, args=(remote, name, settings, mode), daemon=True)
        self.process.start()
        remote.close()
        self.check: Any = None
        while (message := self._receive()) != "ready":
            self.check = message

    def step(self) -> StepCost:
        self.connection.send(True)
        return self._receive()

    def close(self) -> None:
        self.connection.send(False)
        self.process.join(timeout=60)

    def _receive(self) -> Any:
        try:
            message = self.connection.recv()
        except EOFError:
            raise RuntimeError("the process of one side ended before its turn") from None
        if isinstance(message, Exception):
            raise message
        return message


def _serve(connection: Connection, name: str, settings: BenchSettings, mode: str) -> None:
    import torch

    torch.set_num_threads(settings.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    try:
        if name == "ours":
            from _ours import run

            run(settings, StepGate(connection))
        else:
            from _trl import run

            run(settings, StepGate(connection), mode)
    except (EOFError, BrokenPipeError):
        return  # the other end gave up, and says why
    except Exception as error:
        connection.send(RuntimeError(f"{name}: {type(error).__name__}: {error}"))


def fastest_trl(settings: BenchSettings) -> tuple[BenchSettings, str]:
    """Return TRL's micro-batch and generation mode with the fewest CPU seconds per token, by trying them."""
    whole = replace(settings, micro_batch=settings.num_completions)
    found = {}
    for mode in MODES:
        found[mode, settings.micro_batch] = _try_trl(settings, mode)
    mode, _ = min(found, key=found.__getitem__)
    if whole != settings:
        found[mode, whole.micro_batch] = _try_trl(whole, mode)
    mode, micro_batch = min(found, key=found.__getitem__)
    return replace(settings, micro_batch=micro_batch), mode


def _try_trl(settings: BenchSettings, mode: str) -> float:
    label = f"TRL, {mode} generation, micro-batches of {settings.micro_batch}"
    try:
        side = Side("trl", settings, mode)
        side.step()
        costs = [side.step() for _ in range(3)]
        side.close()
    except RuntimeError as error:
        print(f"{label}: does not run ({str(error)[:160]})", flush=True)
        return math.inf
    cost = median(c.cpu / c.tokens for c in costs)
    print(f"{label}: {1 / cost:,.0f} tokens per CPU second", flush=True)
    return cost


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
    return pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A line of the table: medians over the pairs, speeds in completion tokens per second."""

    clock: str
    part: str
    ours_seconds: float
    trl_seconds: float
    ours_speed: float
    trl_speed: float
    ratio: float
    lowest: float
    highest: float


def summarise(pairs: list[tuple[StepCost, StepCost]]) -> list[Figure]:
    """Compute the lines of the table."""
    figures = []
    for clock in ("cpu", "wall"):
        for part in PARTS:
            ours = [(c.seconds(clock, part), c.tokens) for c, _ in pairs]
            trl = [(c.seconds(clock, part), c.tokens) for _, c in pairs]
            speeds = [(a[1] / a[0], b[1] / b[0]) for a, b in zip(ours, trl, strict=True)]
            ratios = [a / b for a, b in speeds]
            figures.append(
                Figure(
                    clock=clock,
                    part=part,
                    ours_seconds=median(seconds for seconds, _ in ours),
                    trl_seconds=median(seconds for seconds, _ in trl),
                    ours_speed=median(a for a, _ in speeds),
                    trl_speed=median(b for _, b in speeds),
                    ratio=median(ratios),
                    lowest=min(ratios),
                    highest=max(ratios),
                )
            )
    return figures


def print_table(figures: list[Figure], pairs: list[tuple[StepCost, StepCost]]) -> None:
    names = {"cpu": "CPU", "wall": "wall"}
    print(f"\n{'':<14}{'ours s':>9}{'TRL s':>9}{'ours tok/s':>12}{'TRL tok/s':>11}{'ratio':>8}   lowest-highest")
    for f in figures:
        line = f"{names[f.clock] + ' ' + f.part:<14}{f.ours_seconds:>9.3f}{f.trl_seconds:>9.3f}"
        line += f"{f.ours_speed:>12,.0f}{f.trl_speed:>11,.0f}{f.ratio:>8.2f}   {f.lowest:.2f}-{f.highest:.2f}"
        print(line)
    ours, trl = (mean(pair[side].tokens for pair in pairs) for side in (0, 1))
    print(f"completion tokens a step, mean: ours {ours:,.0f}, TRL {trl:,.0f}")


def compare(settings: BenchSettings, *, mode: str, warmup: int, repeats: int) -> dict[str, Any]:
    """Run one comparison, print its table and return everything that was measured."""
    policy = build_policy(settings)
    print(
        f"\n{settings.params}: {policy.num_parameters:,} parameters, vocabulary {settings.vocab_size:,}, "
        f"{settings.num_prompts} x {settings.num_generations} completions of at most {settings.max_tokens} tokens "
        f"(mean {settings.mean_length:g}), task {settings.task}, loss {settings.loss}, beta {settings.beta:g}, "
        f"float32, {settings.threads} thread{'s' * (settings.threads > 1)}",
        flush=True,
    )
    trl_settings, mode = fastest_trl(settings) if mode == "auto" else (settings, mode)
    ours, trl = Side("ours", settings), Side("trl", trl_settings, mode)
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
    print_table(figures, pairs)
    return {
        "settings": asdict(settings),
        "num_parameters": policy.num_parameters,
        "trl_generation": mode,
        "trl_micro_batch": trl_settings.micro_batch,
        "loss_check": trl.check,
        "figures": [asdict(figure) for figure in figures],
        "pairs": [{"ours": asdict(a), "trl": asdict(b)} for a, b in pairs],
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--params", nargs="+", choices=SHAPES, default=["1m"], help="sizes of the model")
    add("--vocab", type=int, default=264, help="vocabulary; the bytes and 8 added tokens come first")
    add("--task", default="chain", help="whose problems to ask (chain: about 15 prompt tokens, countdown: 130)")
    add("--prompts", type=int, default=8, help="prompts per rollout")
    add("--generations", type=int, default=8, help="completions per prompt")
    add("--micro-batch", type=int, default=16, help="completions per forward pass of the update; 0 takes all at once")
    add("--max-tokens", type=int, default=128, help="longest completion")
    add("--mean-length", type=float, default=50.0, help="mean completion length")
    add("--loss", choices=("grpo", "dapo"), default="dapo", help="aggregation of the loss")
    add("--beta", type=float, default=0.0, help="weight of the KL term; above 0 there is a reference policy")
    add("--lr", type=float, default=1e-6, help="learning rate of AdamW")
    add("--threads", type=int, default=1, help="threads of each side")
    add(
        "--trl-generation",
        choices=("auto", *MODES),
        default="auto",
        help="auto takes the fastest, also of micro-batches",
    )
    add("--warmup", type=int, default=2, help="steps of each side before the measurement")
    add("--repeats", type=int, default=10, help="measured pairs")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    rows = arguments.prompts * arguments.generations
    if arguments.micro_batch and rows % arguments.micro_batch:
        parser.error(f"--micro-batch {arguments.micro_batch} does not divide the {rows} completions of a step")
    if not 1 < arguments.mean_length < arguments.max_tokens:
        parser.error(f"--mean-length must lie between 1 and --max-tokens, found {arguments.mean_length:g}")
    return arguments


def main() -> None:
    """Run the comparisons that were asked for."""
    arguments = parse_arguments()
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
    for params in arguments.params:
        settings = BenchSettings(
            params=params,
            vocab_size=arguments.vocab,
            task=arguments.task,
            num_prompts=arguments.prompts,
            num_generations=arguments.generations,
            micro_batch=arguments.micro_batch or arguments.prompts * arguments.generations,
            max_tokens=arguments.max_tokens,
            mean_length=arguments.mean_length,
            loss=arguments.loss,
            beta=arguments.beta,
            lr=arguments.lr,
            threads=arguments.threads,
            seed=arguments.seed,
            # One more is made before the first turn.
            num_steps=arguments.warmup + arguments.repeats + 8,
        )
        results.append(
            compare(settings, mode=arguments.trl_generation, warmup=arguments.warmup, repeats=arguments.repeats)
        )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"trl": version, **packages, "results": results}, indent=1))


if __name__ == "__main__":
    main()
