"""The vocabulary of r1: what flows from a problem to a loss.

    Problem -> Prompt -> Completion -> Rollout -> RolloutGroup -> Experience        (reinforcement)
    Problem -> Trace                                                               (imitation)

Legend: P prompts, G completions per prompt, B rows, S tokens of prompt + completion, T completion tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # reward workers read these types and start in a tenth of the time without torch
    import torch
    from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One verifiable question.

    Attributes:
        prompt: the question alone, without any template.
        answer: the gold answer. Reaches the verifier and nothing else.
        index: position in its task's stream; with the run seed it fixes the seeds of its completions.
        task: name of the task that made it.
        metadata: whatever the task's verifier or step checker needs, and data-set columns.
    """

    prompt: str
    answer: str
    index: int = 0
    task: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """First 16 hex digits of the SHA-256 of the prompt: the same question has the same id in every run."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A problem after its template: what the policy reads.

    Attributes:
        problem: the question behind it.
        text: the whole prompt as text.
        token_ids: the prompt as the policy sees it. Completions are appended to these ids, never to the text.
        prefill: the end of `text` that already belongs to the assistant's turn (for example `<think>`), or "".
        first_sample: number of its first completion, above 0 where those before it are drawn elsewhere.
    """

    problem: Problem
    text: str
    token_ids: tuple[int, ...]
    prefill: str = ""
    first_sample: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How completions are drawn.

    Attributes:
        num_generations: G, completions per prompt.
        max_tokens: most new tokens per completion, the end-of-sequence token included.
        temperature: divides the logits; 0 means greedy.
        top_p: nucleus mass in (0, 1]. Log-probabilities are always those of the full distribution.
        top_k: keep the k most likely tokens; 0 keeps all.
        stop: strings that end a completion; they stay in its text.
        seed: run seed mixed with the rollout number. Completion g of problem i draws from stream (seed, i, g),
            whatever rank or batch it lands in.
    """

    num_generations: int = 1
    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an engine drew for one prompt.

    Attributes:
        text: the new text, without the end-of-sequence token.
        token_ids: the new tokens, end-of-sequence included when there is one.
        logps: the sampler's own log-probability (nats, at the sampling temperature) of each token.
        finish_reason: "stop" (end-of-sequence or stop string) or "length" (cut at max_tokens).
        prefill: what the prompt already wrote of the assistant's turn; `prefill + text` is the whole turn.
        seed: seed of this completion's own random stream.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logps: tuple[float, ...] = ()
    finish_reason: FinishReason = "stop"
    prefill: str = ""
    seed: int = 0

    @property
    def turn(self) -> str:
        """The assistant's whole turn: what the template pre-filled and what the policy wrote."""
        return self.prefill + self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A completion with what it earned.

    Attributes:
        completion: the completion.
        rewards: unweighted score of each reward function by name; None = could not be scored.
        reward: weighted sum of the scored ones, or None when none could be scored.
        advantage: filled in once the whole batch is known.
    """

    completion: Completion
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    reward: float | None = None
    advantage: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The G rollouts of one prompt."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]


@dataclass(slots=True, kw_only=True)
class Experience:
    """One micro-batch for the policy loss. All tensors share a device.

    Attributes:
        input_ids: (B, S) int64, prompt then completion, padded on the right.
        prompt_lengths: (B,) int64, tokens before the first completion token.
        mask: (B, T) bool, true on completion tokens up to and including end-of-sequence.
        old_logps: (B, T) float32, policy log-probabilities when the rollout was made.
        advantages: (B, T) float32, constant in the graph.
        weights: (B,) float32, weight of one token of the row in the loss of the whole optimizer step;
            see `r1.losses.aggregation.row_weights`.
        num_parts: micro-batches x ranks over which the trainer averages gradients; the module multiplies by it,
            so the weights stay exact however the step is split.
        ref_logps: (B, T) float32 of the reference policy, or None.
        rollout_logps: (B, T) float32 of the sampling engine where it differs from the policy, or None.
    """

    input_ids: Tensor
    prompt_lengths: Tensor
    mask: Tensor
    old_logps: Tensor
    advantages: Tensor
    weights: Tensor
    num_parts: int = 1
    ref_logps: Tensor | None = None
    rollout_logps: Tensor | None = None

    def to(self, device: torch.device | str, **kwargs: Any) -> Experience:
        """Copy to a device (the hook by which Lightning moves batches)."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, **kwargs) if hasattr(v, "to") else v for k, v in moved.items()}
        return Experience(**moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A demonstration to imitate.

    Attributes:
        prompt: the prompt as text, template included.
        completion: the assistant's turn, think block and answer included, without end-of-sequence.
        problem: the question behind it, where it is known.
        source: who wrote it: a task's own demonstration style, a checkpoint, a data set.
        rewards: reward breakdown, where it was verified.
    """

    prompt: str
    completion: str
    problem: Problem | None = None
    source: str = ""
    rewards: Mapping[str, float | None] = field(default_factory=dict)
