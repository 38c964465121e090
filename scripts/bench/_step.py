"""What both sides of `vs_trl.py` share: settings, weights, problems, reward, and the clock around one step."""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import _clone  # noqa: F401
import torch

from r1.losses.objective import PolicyObjective
from r1.models.policy import Policy
from r1.models.tiny import tiny_llama
from r1.models.tokenizer import byte_tokenizer
from r1.tasks import TASKS
from r1.types import Problem

AGGREGATIONS = {"grpo": "sequence_mean", "dapo": "token_mean"}
SHAPES = {
    "1m": {"hidden_size": 128, "num_layers": 5, "num_heads": 4, "intermediate_size": 384},
    "15m": {"hidden_size": 384, "num_layers": 8, "num_heads": 6, "intermediate_size": 1024},
    "100m": {"hidden_size": 768, "num_layers": 14, "num_heads": 12, "intermediate_size": 2048},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """One comparison; see the options of `vs_trl.py`."""

    params: str
    vocab_size: int
    task: str
    num_prompts: int
    num_generations: int
    micro_batch: int
    max_tokens: int
    mean_length: float
    loss: str
    beta: float
    lr: float
    threads: int
    seed: int
    num_steps: int

    @property
    def num_completions(self) -> int:
        return self.num_prompts * self.num_generations

    @property
    def num_micro_batches(self) -> int:
        return self.num_completions // self.micro_batch

    def describe(self, num_parameters: int) -> str:
        """Return the comparison in words."""
        return (
            f"{self.params}: {num_parameters:,} parameters, vocabulary {self.vocab_size:,}, "
            f"{self.num_prompts} x {self.num_generations} completions of at most {self.max_tokens} tokens "
            f"(mean {self.mean_length:g}), task {self.task}, loss {self.loss}, beta {self.beta:g}, "
            f"float32, {self.threads} thread{'s' * (self.threads > 1)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """What one optimizer step cost, rollout included.

    Attributes:
        tokens: completion tokens drawn, end-of-sequence included.
        wall, cpu: seconds of each part; cpu counts every thread of the process. "rollout" lasts until the batch for the
            loss is ready (sampling, rewards, advantages), less "logps", the log-probabilities of reference and policy
            computed before it; "update" is the rest.
        peak: most resident memory during the step, bytes.
        extra: by how much that is more than before the step.
        flops: what the step needs at least, by part (ours alone).
    """

    tokens: int
    wall: dict[str, float]
    cpu: dict[str, float]
    peak: int
    extra: int
    flops: dict[str, float]


class StepGate:
    """Holds a trainer between two optimizer steps until the other side has had its turn, and times each step.

    A step runs from the end of the one before to its own end, so whatever the trainer does in between counts.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.started: tuple[float, float] | None = None
        self.rolled = (0.0, 0.0)
        self.logps = [0.0, 0.0]
        self.resident = 0

    def rollout_ends(self) -> None:
        self.rolled = _clocks()

    @contextmanager
    def computing_logps(self) -> Iterator[None]:
        """Count what happens within as "logps"."""
        before = _clocks()
        yield
        self.logps = [sum + now - then for sum, now, then in zip(self.logps, _clocks(), before, strict=True)]

    def step_ends(self, tokens: int, flops: Callable[[], dict[str, float]] = dict) -> bool:
        """Report the step, wait for the next turn, and return whether there is one."""
        ended = _clocks()
        if self.started is None:
            ctypes.CDLL(None).malloc_trim(0)  # what building the model and comparing the losses has left behind
            self.connection.send("ready")
        else:
            clocks = []
            for start, rolled, logps, end in zip(self.started, self.rolled, self.logps, ended, strict=True):
                parts = {"step": end - start, "rollout": rolled - start - logps, "logps": logps, "update": end - rolled}
                clocks.append(parts)
            peak = _memory("VmHWM")
            self.connection.send(
                StepCost(
                    tokens=tokens,
                    wall=clocks[0],
                    cpu=clocks[1],
                    peak=peak,
                    extra=peak - self.resident,
                    flops=flops(),
                )
            )
        go_on = self.connection.recv()
        self.logps = [0.0, 0.0]
        self.resident = _memory("VmRSS")
        # From here on the kernel keeps the peak anew.
        Path("/proc/self/clear_refs").write_text("5")
        self.started = _clocks()
        return go_on


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _memory(name: str) -> int:
    """Return a line of this process's status (Linux), in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a comparison."""
    add = parser.add_argument
    add("--params", nargs="+", choices=SHAPES, default=["1m"], help="sizes of the model")
    add("--vocab", type=int, nargs="+", default=[264], help="vocabularies; the bytes and 8 added tokens come first")
    add("--task", default="chain", help="whose problems to ask (chain: about 15 prompt tokens, countdown: 130)")
    add("--prompts", type=int, nargs="+", default=[8], help="prompts per rollout")
    add("--generations", type=int, default=8, help="completions per prompt")
    add("--micro-batch", type=int, default=16, help="completions per forward pass of the update; 0 takes all at once")
    add("--max-tokens", type=int, nargs="+", default=[128], help="longest completion")
    add("--mean-length", type=float, default=0.0, help="mean completion length; 0 takes 0.4 of --max-tokens")
    add("--loss", choices=("grpo", "dapo"), default="dapo", help="aggregation of the loss")
    add("--beta", type=float, default=0.0, help="weight of the KL term; above 0 there is a reference policy")
    add("--lr", type=float, default=1e-6, help="learning rate of AdamW")
    add("--threads", type=int, default=1, help="threads of each side")
    add("--seed", type=int, default=0)


def read_settings(arguments: argparse.Namespace, *, num_steps: int) -> list[BenchSettings]:
    """Read the options of `add_settings`: one comparison for each combination of those that may be given several times.

    Raises:
        ValueError: sizes that do not fit each other.
    """
    found = []
    combinations = product(arguments.params, arguments.prompts, arguments.max_tokens, arguments.vocab)
    for params, num_prompts, max_tokens, vocab_size in combinations:
        rows = num_prompts * arguments.generations
        if arguments.micro_batch and rows % arguments.micro_batch:
            raise ValueError(f"--micro-batch {arguments.micro_batch} does not divide the {rows} completions of a step")
        mean_length = arguments.mean_length or 0.4 * max_tokens
        if not 1 < mean_length < max_tokens:
            raise ValueError(f"--mean-length must lie between 1 and --max-tokens, found {mean_length:g}")
        found.append(
            BenchSettings(
                params=params,
                vocab_size=vocab_size,
                task=arguments.task,
                num_prompts=num_prompts,
                num_generations=arguments.generations,
                micro_batch=arguments.micro_batch or rows,
                max_tokens=max_tokens,
                mean_length=mean_length,
                loss=arguments.loss,
                beta=arguments.beta,
                lr=arguments.lr,
                threads=arguments.threads,
                seed=arguments.seed,
                num_steps=num_steps,
            )
        )
    return found


def build_policy(settings: BenchSettings) -> Policy:
    """Build a Llama whose completions have geometric lengths, cut at max_tokens, with the mean asked for."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(settings.vocab_size - len(tokenizer))])
    policy = tiny_llama(
        **SHAPES[settings.params],
        tie_word_embeddings=False,
        tokenizer=tokenizer,
        max_position_embeddings=settings.max_tokens + 256,
        seed=settings.seed,
    )
    model = policy.model
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    _set_stop_probability(model, tokenizer.eos_token_id, stop_probability(settings.mean_length, settings.max_tokens))
    return Policy(model, tokenizer)


def stop_probability(mean_length: float, max_tokens: int) -> float:
    """Return p with E[min(Geometric(p), max_tokens)] = (1 - (1 - p)^max_tokens) / p = mean_length."""
    return _bisect(lambda p: mean_length - (1 - (1 - p) ** max_tokens) / p, 1e-9, 1.0)


@torch.no_grad()
def _set_stop_probability(model: Any, eos: int, probability: float) -> None:
    # Channel 0 is made the same for every token, so that the head's weight on it acts as a bias of the logits.
    model.get_input_embeddings().weight[:, 0] = 0.3
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    head = model.get_output_embeddings().weight
    head[:, 0] = 0.0
    generator = torch.Generator().manual_seed(0)
    hidden = model.model(torch.randint(256, (16, 160), generator=generator), use_cache=False)[0]
    logits = hidden @ head.T
    others = logits.index_fill(-1, torch.tensor([eos]), -torch.inf).logsumexp(-1)

    def excess(weight: float) -> float:
        return float(torch.sigmoid(logits[..., eos] + weight * hidden[..., 0] - others).mean()) - probability

    head[eos, 0] = _bisect(excess, -10.0, 10.0)


def _bisect(increasing: Any, low: float, high: float) -> float:
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if increasing(middle) > 0 else (middle, high)
    return (low + high) / 2


def build_objective(settings: BenchSettings) -> PolicyObjective:
    return PolicyObjective(
        surrogate="clipped",
        options={"clip_low": 0.2, "clip_high": 0.2},
        aggregation=AGGREGATIONS[settings.loss],
        kl_coef=settings.beta,
    )


def problem_stream(settings: BenchSettings) -> Any:
    return TASKS.build(settings.task).problems("train", seed=settings.seed)


def problems(settings: BenchSettings) -> list[Problem]:
    """Return the problems of all steps, in the order in which both sides take them."""
    return problem_stream(settings).take(settings.num_prompts * settings.num_steps)


def letter_share(completions: list[str], **columns: Any) -> list[float]:
    """Reward of both sides, in TRL's form: the share of characters that are letters."""
    return [sum(map(str.isalpha, text)) / max(len(text), 1) for text in completions]


# It cannot hang: ours may run it in process, as TRL does with every reward.
letter_share.isolated = False


def take_side(connection: Connection, name: str, settings: BenchSettings, mode: str) -> None:
    """Be one side of `vs_trl.py`: "ours", or "trl" with a mode of its generation."""
    if name == "ours":
        from _ours import run

        run(settings, StepGate(connection))
    else:
        from _trl import run

        run(settings, StepGate(connection), mode)
