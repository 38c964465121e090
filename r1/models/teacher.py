"""The teacher: a frozen model of the student's tokenizer that grades what a student may write.

Legend: B rows, T completion tokens, N of them in all rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from r1.models.policy import Policy

_PROBE = "Solve 17 + 25 step by step.\n<think>\n\t17+25 = 42</think> <answer>42</answer> \u00e9\u4e2d\U0001f642"


class Teacher:
    """A model that only grades. It is no submodule of the module it teaches, so no checkpoint holds it.

    Args:
        policy: the model; it is frozen and put into evaluation mode.
        student: tokenizer of the student.

    Raises:
        ValueError: teacher and student do not share a tokenizer.
    """

    def __init__(self, policy: Policy, *, student: PreTrainedTokenizerBase) -> None:
        check_same_tokenizer(policy.tokenizer, student)
        self.policy = policy.requires_grad_(False).eval()

    def to(self, device: torch.device) -> Teacher:
        """Move the model to a device."""
        self.policy.to(device)
        return self

    @torch.no_grad()
    def targets(self, batch: Any) -> Callable[[slice], Tensor]:
        """Read a batch, and return what gives the logits (n, V) of some of its N completion tokens, by their slice."""
        hidden = self.policy.completion_hidden(batch.input_ids, batch.prompt_lengths, batch.mask)

        @torch.no_grad()
        def logits(rows: slice) -> Tensor:
            return self.policy.logits(hidden[rows])

        return logits

    @torch.no_grad()
    def logps(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the log-probability (B, T) of every completion token; arguments as in `Policy.forward`."""
        return self.policy(*args, **kwargs)[0]


def check_same_tokenizer(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Check that a token id means the same to both.

    Heads may be padded to different sizes; that concerns no token.

    Raises:
        ValueError: another vocabulary, other ids or another segmentation; it names the ways of distillation that work
            across tokenizers.
    """
    difference = _difference(teacher, student)
    if difference:
        raise ValueError(
            f"teacher and student do not share a tokenizer: {difference}. Log-probabilities of the teacher say nothing "
            "about the student's tokens. What still works: algorithm=sft on text that the teacher wrote (its traces in "
            "algorithm.data.path), or the teacher's chains as examples in the student's prompt (k-shot)"
        )


def _difference(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> str:
    theirs, ours = teacher.get_vocab(), student.get_vocab()
    if theirs != ours:
        if len(theirs) != len(ours):
            return f"the teacher's has {len(theirs)} tokens, the student's {len(ours)}"
        missing = min(theirs.keys() - ours.keys(), default=None)
        if missing is not None:
            return f"the student's has no token {missing!r}"
        token = next(token for token in sorted(ours) if theirs[token] != ours[token])
        return f"token {token!r} has id {theirs[token]} for the teacher and {ours[token]} for the student"
    if teacher.encode(_PROBE, add_special_tokens=False) != student.encode(_PROBE, add_special_tokens=False):
        return "the tokens are the same, but text is cut into them differently"
    return ""
