"""Peak memory of the log-probability step, chunked against plain: python scripts/bench/logps_memory.py

One step is forward and backward from hidden states to token log-probabilities through the output embedding: in the
fused loops of CPUs, in chunks on torch's own operations, and the plain way, with float32 logits of every token. Each
measurement runs in a process of its own; memory is its peak resident size over the size just before the step, gradients
of hidden states and output embedding included.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import _clone  # noqa: F401

MIB = 2**20
WAYS = ("fused", "chunked", "plain")


def step(way: str, num_tokens: int, hidden_size: int, vocab_size: int) -> tuple[float, float]:
    """Run one step in this process and return its peak memory in MiB and its time in seconds."""
    import torch

    from r1.logps import token_logps

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, hidden_size, generator=generator).requires_grad_()
    weight = torch.randn(vocab_size, hidden_size, generator=generator).mul_(0.02).requires_grad_()
    targets = torch.randint(vocab_size, (num_tokens,), generator=generator)
    # Kernels and thread pools are set up by a first small step, outside of the measurement.
    small = [x.detach().clone().requires_grad_() for x in (hidden[:1], weight[:8])]
    token_logps(*small, targets[:1] % 8, native=way == "fused")[0].sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if way != "plain":
        logps, _ = token_logps(hidden, weight, targets, native=way == "fused")
    else:
        logps = torch.log_softmax(hidden @ weight.T, -1).gather(-1, targets[:, None]).squeeze(-1)
    logps.mean().backward()
    seconds = time.perf_counter() - start
    # ru_maxrss counts KiB on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / MIB, seconds


def measure(way: str, num_tokens: int, hidden_size: int, vocab_size: int) -> str:
    """Run one step in a child process and return a table cell."""
    sizes = [str(n) for n in (num_tokens, hidden_size, vocab_size)]
    child = subprocess.run(
        [sys.executable, __file__, "--child", way, *sizes], capture_output=True, text=True, check=False
    )
    if child.returncode:
        return "out of memory" if child.returncode < 0 else child.stderr.strip().split("\n")[-1]
    memory, seconds = child.stdout.split()
    return f"{float(memory):,.0f} MiB {float(seconds):.1f} s"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=150_000)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        way, *sizes = arguments.child
        print(*step(way, *map(int, sizes)))
        return
    print(f"vocabulary {arguments.vocab:,}, hidden size {arguments.hidden}, float32, forward and backward\n")
    print(f"{'tokens':>7} {'all logits':>12} {'fused loops':>20} {'chunked':>20} {'plain':>20}")
    for num_tokens in arguments.tokens:
        logits = f"{num_tokens * arguments.vocab * 4 / MIB:,.0f} MiB"
        cells = [measure(way, num_tokens, arguments.hidden, arguments.vocab) for way in WAYS]
        print(f"{num_tokens:>7} {logits:>12}", *(f"{cell:>20}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
