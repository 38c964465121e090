"""The two things rollouts need from torch.distributed; both work without it."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

Item = TypeVar("Item")


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_strided(mine: list[Item], total: int) -> list[Item]:
    """Put lists together in which rank r of R holds items r, r + R, r + 2R, ... of `total` items.

    Every rank gets the whole list in order. Items travel pickled, so they should live on the CPU.
    """
    _, world = rank_and_world()
    if world == 1:
        return mine
    shares: list[list[Item]] = [[] for _ in range(world)]
    dist.all_gather_object(shares, mine)
    return [shares[i % world][i // world] for i in range(total)]
