"""Batches of token ids in the layout of `Experience`: prompt then completion, padded on the right.

Legend: B rows, S tokens of prompt + completion, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from r1.types import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceExample:
    """A demonstration as token ids.

    Attributes:
        prompt_ids: what the policy reads.
        completion_ids: what it should write, end-of-sequence included unless cut.
        trace: the text behind it.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    trace: Trace


@dataclass(slots=True, kw_only=True)
class TraceBatch:
    """One micro-batch of demonstrations.

    Attributes:
        input_ids: (B, S) int64, prompt then completion, padded on the right.
        prompt_lengths: (B,) int64, tokens before the first completion token.
        mask: (B, T) bool, true on completion tokens up to and including end-of-sequence.
    """

    input_ids: Tensor
    prompt_lengths: Tensor
    mask: Tensor

    def to(self, device: torch.device | str, **kwargs: Any) -> TraceBatch:
        """Copy to a device (the hook by which Lightning moves batches)."""
        return TraceBatch(
            input_ids=self.input_ids.to(device, **kwargs),
            prompt_lengths=self.prompt_lengths.to(device, **kwargs),
            mask=self.mask.to(device, **kwargs),
        )


def collate_traces(examples: Sequence[TraceExample], pad_id: int) -> TraceBatch:
    """Stack examples of different lengths, in their order.

    Raises:
        ValueError: no examples, or one without a prompt or without a completion.
    """
    if not examples:
        raise ValueError("expected at least one example, found none")
    for example in examples:
        if not example.prompt_ids or not example.completion_ids:
            part = "completion" if example.prompt_ids else "prompt"
            raise ValueError(f"a trace needs at least one {part} token, found none: {example.trace}")
    rows = [example.prompt_ids + example.completion_ids for example in examples]
    width = max(map(len, rows))
    num_completion = torch.tensor([len(example.completion_ids) for example in examples])
    return TraceBatch(
        input_ids=torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows]),
        prompt_lengths=torch.tensor([len(example.prompt_ids) for example in examples]),
        mask=torch.arange(int(num_completion.max())) < num_completion[:, None],
    )
