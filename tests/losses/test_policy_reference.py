"""Policy surrogates on random shapes against the printed formulas, one token at a time."""

import math
import random

import pytest
import torch

from r1.losses import SURROGATES


def slow_row(name, logps, old, advantages, options):
    """One row without padding, one token at a time, by the printed formulas."""
    log_ratio = [n - o for n, o in zip(logps, old, strict=True)]
    clip_low, clip_high = options.get("clip_low", 0.2), options.get("clip_high", 0.2)

    def clip(r):
        return min(max(r, 1 - clip_low), 1 + clip_high)

    losses = []
    for t, a in enumerate(advantages):
        ratio = math.exp(log_ratio[t])
        if name == "cispo":
            losses.append(-min(ratio, options["cap"]) * a * logps[t])
            continue
        if name == "sapo":
            tau = options["tau_pos"] if a > 0 else options["tau_neg"]
            losses.append(-4 / tau / (1 + math.exp(-tau * (ratio - 1))) * a)
            continue
        if name in ("sequence", "sequence_token"):
            ratio = math.exp(sum(log_ratio) / len(log_ratio))
        elif name == "sequence_raw":
            ratio = math.exp(sum(log_ratio))
        outer = min(ratio, options["delta"]) if options.get("delta") else ratio
        objective = min(outer * a, clip(ratio) * a)
        if options.get("dual_clip") and a < 0:
            objective = max(objective, options["dual_clip"] * a)
        losses.append(-objective)
    return losses


@pytest.mark.parametrize("seed", range(50))
def test_random_shapes_match_the_slow_reference(seed):
    rng = random.Random(seed)
    num_rows, num_tokens = rng.randint(1, 6), rng.randint(1, 9)
    lengths = [rng.randint(0, num_tokens) for _ in range(num_rows)]
    table = [[rng.uniform(-4, 0) for _ in range(num_tokens)] for _ in range(num_rows)]
    moved = [[x + rng.gauss(0, 0.4) for x in row] for row in table]
    per_row = rng.random() < 0.5
    advantages = [[rng.gauss(0, 1)] * num_tokens for _ in range(num_rows)]
    if not per_row:
        advantages = [[rng.gauss(0, 1) for _ in range(num_tokens)] for _ in range(num_rows)]
    clip = {"clip_low": rng.choice([0.1, 0.2, 10.0]), "clip_high": rng.choice([0.1, 0.28, 10.0])}
    both = clip | {"delta": rng.choice([None, 12.0]), "dual_clip": rng.choice([None, 3.0])}
    settings = {
        "clipped": both,
        "sequence": clip,
        "sequence_token": clip,
        "sequence_raw": clip,
        "cispo": {"cap": rng.choice([1.28, 5.0])},
        "sapo": {"tau_pos": 1.0, "tau_neg": 1.05},
    }
    logps, old = torch.tensor(moved, dtype=torch.float64), torch.tensor(table, dtype=torch.float64)
    given = torch.tensor(advantages, dtype=torch.float64)
    mask = torch.arange(num_tokens) < torch.tensor(lengths).unsqueeze(1)
    for name, options in settings.items():
        actual = SURROGATES[name](logps, old, given[:, 0] if per_row else given, mask, **options)
        for i, n in enumerate(lengths):
            expected = slow_row(name, moved[i][:n], table[i][:n], advantages[i][:n], options)
            assert actual[i, :n].tolist() == pytest.approx(expected, rel=1e-10)
