"""One step of logit distillation of ours against TRL's trainers, in one run: python scripts/bench/vs_trl_distill.py

Student, teacher, traces, loss (generalised JSD, token mean), optimizer and clipping are the same on every side, each in
a process of its own through its own trainer; the losses they report must agree step by step. After warm-up they take
turns, one optimizer step a turn, in an order that changes from round to round. The sides:

    ours           r1.modules.distill.DistillModule under Lightning
    gkd            trl.experimental.gkd.GKDTrainer on the same traces (lmbda 0)
    distillation   trl.DistillationTrainer, whose loss is chunked; it samples its completions, here it is given the
                   traces instead, so this is its update alone

A ratio above 1 says that ours needs less; given are the median over the rounds, the lowest and the highest. CPU seconds
are the steadier figure on a machine that does other work as well. Memory is the most that was resident during a step
beyond what was resident before the training: gradients, optimizer state, activations, logits.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from _distill_step import DistillCost, DistillSettings, build_models, take_side
from _side import Side

OPPONENTS = ("gkd", "distillation")


def take_turns(sides: dict[str, Side], *, warmup: int, repeats: int) -> list[dict[str, DistillCost]]:
    """Return the costs of every side in each round, whose order rotates."""
    for _ in range(warmup):
        for side in sides.values():
            side.step()
    names = list(sides)
    rounds = []
    for number in range(repeats):
        shift = number % len(names)
        order = names[shift:] + names[:shift]
        rounds.append({name: sides[name].step() for name in order})
    return rounds


def check_losses(rounds: list[dict[str, DistillCost]]) -> float:
    """Return the largest relative difference between the losses of ours and of another side in a round.

    Raises:
        RuntimeError: it is more than training in float32 explains.
    """
    largest = max(abs(c.loss / r["ours"].loss - 1) for r in rounds for c in r.values())
    if largest > 1e-3:
        raise RuntimeError(f"the sides do not do the same work: their losses differ by {largest:.1e}")
    return largest


def summarise(rounds: list[dict[str, DistillCost]], opponent: str) -> list[dict[str, Any]]:
    """Compute the lines of the table against one opponent."""
    figures = []
    for figure, value in (
        ("CPU s", lambda cost: cost.cpu),
        ("wall s", lambda cost: cost.wall),
        ("memory MiB", lambda cost: cost.peak - cost.rest),
    ):
        pairs = [(value(r["ours"]), value(r[opponent])) for r in rounds]
        ratios = [theirs / ours for ours, theirs in pairs]
        figures.append(
            {
                "opponent": opponent,
                "figure": figure,
                "ours": median(ours for ours, _ in pairs),
                "theirs": median(theirs for _, theirs in pairs),
                "ratio": median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
        )
    return figures


def compare(settings: DistillSettings, *, opponents: list[str], warmup: int, repeats: int) -> dict[str, Any]:
    """Run one comparison, print its table and return everything that was measured."""
    student, teacher = build_models(settings)
    print(
        f"\nstudent {student.num_parameters:,} and teacher {teacher.num_parameters:,} parameters, vocabulary "
        f"{settings.vocab_size:,}, beta {settings.beta:g}, {settings.num_rows} rows of {settings.prompt_length} + "
        f"{settings.completion_length} tokens in {settings.num_micro_batches} micro-batch(es), float32, "
        f"{settings.threads} thread{'s' * (settings.threads > 1)}",
        flush=True,
    )
    sides = {name: Side(take_side, name, settings) for name in ("ours", *opponents)}
    rounds = take_turns(sides, warmup=warmup, repeats=repeats)
    for side in sides.values():
        side.close()
    print(f"largest relative difference between the losses of {repeats} steps: {check_losses(rounds):.1e}")
    figures = [figure for opponent in opponents for figure in summarise(rounds, opponent)]
    print(f"{'against':<14}{'figure':<12}{'ours':>9}{'TRL':>9}{'ratio':>8}   lowest-highest")
    for f in figures:
        line = f"{f['opponent']:<14}{f['figure']:<12}{f['ours']:>9.3f}{f['theirs']:>9.3f}{f['ratio']:>8.2f}"
        print(f"{line}   {f['lowest']:.2f}-{f['highest']:.2f}", flush=True)
    return {
        "settings": asdict(settings),
        "figures": figures,
        "rounds": [{name: asdict(cost) for name, cost in r.items()} for r in rounds],
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--vocab", type=int, nargs="+", default=[264, 8192], help="vocabularies; the bytes come first")
    add("--beta", type=float, nargs="+", default=[0.0], help="0 forward KL, 1 reverse KL, between them JSD")
    add("--rows", type=int, default=8, help="traces of an optimizer step")
    add("--micro-batch", type=int, default=0, help="traces per forward pass; 0 takes all at once")
    add("--prompt-length", type=int, default=64)
    add("--completion-length", type=int, default=128, help="mean; lengths lie between half and one and a half of it")
    add("--against", nargs="+", choices=OPPONENTS, default=list(OPPONENTS))
    add("--lr", type=float, default=1e-4, help="learning rate of AdamW")
    add("--threads", type=int, default=1, help="threads of each side")
    add("--warmup", type=int, default=2, help="steps of each side before the measurement")
    add("--repeats", type=int, default=10, help="measured rounds")
    add("--seed", type=int, default=0)
    add("--out", type=Path, help="JSON file for the results")
    return parser.parse_args()


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
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    packages = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "lightning")}
    print(f"r1 against TRL {version} ({', '.join(f'{k} {v}' for k, v in packages.items())})")
    results = []
    for vocab_size in arguments.vocab:
        for beta in arguments.beta:
            settings = DistillSettings(
                vocab_size=vocab_size,
                beta=beta,
                num_rows=arguments.rows,
                micro_batch=arguments.micro_batch or arguments.rows,
                prompt_length=arguments.prompt_length,
                completion_length=arguments.completion_length,
                lr=arguments.lr,
                threads=arguments.threads,
                seed=arguments.seed,
                # One more is made before the first turn.
                num_steps=arguments.warmup + arguments.repeats + 4,
            )
            results.append(
                compare(settings, opponents=arguments.against, warmup=arguments.warmup, repeats=arguments.repeats)
            )
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"trl": version, **packages, "results": results}, indent=1))


if __name__ == "__main__":
    main()
