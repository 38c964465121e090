"""TRL's best settings for a comparison, found by trying them in short runs, and what fits in memory."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from _side import Side, TooSlow
from _step import SHAPES, BenchSettings, take_side

MODES = ("dynamic", "static", "continuous")
MICRO_BATCHES = (1, 4, 16, 64, 256)
SLOWER = 3.0  # a setting that takes so many times the best one's seconds is given up
STARTUP = 30.0  # seconds more, so that a busy machine does not decide it
PROCESS_BYTES = 2**30  # of one side: libraries, interpreter
LOGITS_COPIES = 3  # of a micro-batch, float32, that TRL holds at once at most
PROMPT_TOKENS = {"chain": 20, "countdown": 140}


def step_bytes(settings: BenchSettings, num_parameters: int) -> float:
    """Return about how much memory the two sides need at once, in bytes: an upper bound for the one that needs more.

    Both hold weights, gradients and two moments all the time; on top of that comes the larger of TRL's key-value cache
    for all completions and its forward and backward pass of a micro-batch.
    """
    shape, length = SHAPES[settings.params], settings.max_tokens + PROMPT_TOKENS.get(settings.task, 140)
    layers, hidden, inner = shape["num_layers"], shape["hidden_size"], shape["intermediate_size"]
    cache = settings.num_completions * length * layers * 2 * 4 * hidden
    kept = layers * 4 * (10 * hidden + 4 * inner) + LOGITS_COPIES * 4 * settings.vocab_size
    weights = 2 * (16 + (4 if settings.beta else 0)) * num_parameters
    return 2 * PROCESS_BYTES + weights + max(cache, settings.micro_batch * length * kept)


def micro_batches(settings: BenchSettings, num_parameters: int, memory: float) -> list[int]:
    """Return the micro-batches that divide the completions and fit in so many bytes, smallest first."""
    sizes = sorted({*MICRO_BATCHES, settings.micro_batch, settings.num_completions})
    divide = [size for size in sizes if settings.num_completions % size == 0]
    return [s for s in divide if step_bytes(replace(settings, micro_batch=s), num_parameters) <= memory]


def fitting(settings: BenchSettings, num_parameters: int, memory: float) -> BenchSettings:
    """Return the settings with the largest micro-batch that is no larger than theirs and fits.

    Raises:
        MemoryError: none fits.
    """
    found = [s for s in micro_batches(settings, num_parameters, memory) if s <= settings.micro_batch]
    if not found:
        needed = step_bytes(replace(settings, micro_batch=1), num_parameters)
        raise MemoryError(f"needs about {needed / 2**30:.0f} GiB, has {memory / 2**30:.0f} (--memory)")
    return replace(settings, micro_batch=found[-1])


def fastest_trl(settings: BenchSettings, num_parameters: int, memory: float) -> tuple[BenchSettings, str]:
    """Return TRL's micro-batch and generation mode with the fewest CPU seconds per token, and print what was tried.

    The mode is tried at the full length with a quarter of the prompts, the micro-batch with all prompts at a quarter of
    the length (but at least 64 tokens): each where it matters.
    """
    prompts = max(1, settings.num_prompts // 4)
    few = replace(settings, num_prompts=prompts)
    few = replace(few, micro_batch=math.gcd(settings.micro_batch, few.num_completions))
    mode = _best([(few, mode) for mode in MODES])[1]
    tokens = min(settings.max_tokens, max(64, settings.max_tokens // 4))
    short = replace(settings, max_tokens=tokens, mean_length=settings.mean_length * tokens / settings.max_tokens)
    sizes = [s for s in micro_batches(settings, num_parameters, memory) if s >= 4 or s == settings.micro_batch]
    best = _best([(replace(short, micro_batch=size), mode) for size in sizes])[0] if len(sizes) > 1 else settings
    return replace(settings, micro_batch=best.micro_batch), mode


def _best(candidates: list[tuple[BenchSettings, str]]) -> tuple[BenchSettings, str]:
    found: dict[int, float] = {}
    fastest = None
    for number, (settings, mode) in enumerate(candidates):
        started = time.monotonic()
        limit = None if fastest is None else SLOWER * fastest + STARTUP
        found[number] = _try(settings, mode, seconds=limit)
        if found[number] == min(found.values()) < math.inf:
            fastest = time.monotonic() - started
    if min(found.values()) == math.inf:
        raise RuntimeError("none of TRL's settings runs")
    return candidates[min(found, key=found.__getitem__)]


def _try(settings: BenchSettings, mode: str, *, seconds: float | None) -> float:
    """Return the CPU seconds per completion token of one step after the first, infinity if it does not run."""
    label = (
        f"TRL, {mode} generation, micro-batches of {settings.micro_batch}, "
        f"{settings.num_completions} completions of at most {settings.max_tokens} tokens"
    )
    try:
        side = Side(take_side, "trl", settings, mode, seconds=seconds)
        cost = side.step()
        side.close()
    except TooSlow:
        print(f"{label}: given up, over {SLOWER:g} times as slow as the best", flush=True)
        return math.inf
    except RuntimeError as error:
        print(f"{label}: does not run ({str(error)[:160]})", flush=True)
        return math.inf
    print(f"{label}: {cost.tokens / cost.cpu['step']:,.0f} tokens per CPU second", flush=True)
    return cost.cpu["step"] / cost.tokens
