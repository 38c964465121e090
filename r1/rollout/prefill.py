"""Prompts computed once for all completions of a group.

Legend: S prompt tokens, K key-value heads, D head size, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from r1.types import Prompt


@dataclass(slots=True)
class Prefilled:
    """One prompt, kept until its last row has been placed.

    Attributes:
        cache: keys and values (S, K, D) of each layer.
        logits: (V,) of the token after the prompt.
        rows_left: rows still to be placed.
    """

    cache: list[tuple[Tensor, Tensor]]
    logits: Tensor
    rows_left: int


class Prefills:
    """The prompts of a rollout, computed when their first row is placed and forgotten with the last.

    Equal prompts, such as one that is asked for a completion at a time, are computed once.

    Args:
        decoder: `r1.rollout.decoder.Decoder`, or what looks like one.
        prompts: all of them.
        num_rows: rows of each, however many are equal.
        device: of the decoder.
        tokens_at_once: most tokens, padding included, computed together.
    """

    def __init__(
        self,
        decoder: Any,
        prompts: list[Prompt],
        num_rows: int,
        *,
        device: torch.device | str = "cpu",
        tokens_at_once: int = 16384,
    ) -> None:
        self.decoder, self.prompts, self.num_rows, self.device = decoder, prompts, num_rows, device
        self.tokens_at_once = tokens_at_once
        self.kept: dict[int, Prefilled] = {}
        first: dict[tuple[int, ...], int] = {}
        self.firsts = [first.setdefault(prompt.token_ids, index) for index, prompt in enumerate(prompts)]
        self.counts = Counter(self.firsts)

    def __getitem__(self, index: int) -> Prefilled:
        return self.kept[index]

    def take(self, indices: list[int]) -> Iterator[tuple[int, list[int]]]:
        """Yield each prompt among `indices`, in order, and which of them it is; of equal ones the first stands for all.

        Args:
            indices: the prompt of each row that is to be placed.
        """
        numbers: dict[int, list[int]] = {}
        for number, index in enumerate(indices):
            numbers.setdefault(self.firsts[index], []).append(number)
        self._compute(sorted(numbers.keys() - self.kept.keys()))
        for index in sorted(numbers):
            yield index, numbers[index]
            self.kept[index].rows_left -= len(numbers[index])
            if self.kept[index].rows_left == 0:
                del self.kept[index]

    def _compute(self, indices: list[int]) -> None:
        while indices:
            longest = max(len(self.prompts[i].token_ids) for i in indices)
            size = max(1, self.tokens_at_once // longest)
            some, indices = indices[:size], indices[size:]
            ids = [self.prompts[i].token_ids for i in some]
            width = max(map(len, ids))
            padded = torch.tensor([list(x) + [0] * (width - len(x)) for x in ids], device=self.device)
            lengths = torch.tensor([len(x) for x in ids], device=self.device)
            logits, cache = self.decoder.prefill(padded, lengths)
            for i, index in enumerate(some):
                kept = [(k[i, : len(ids[i])], v[i, : len(ids[i])]) for k, v in cache]
                self.kept[index] = Prefilled(kept, logits[i], self.num_rows * self.counts[index])
