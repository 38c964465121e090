"""The whole distillation loss of one token: divergence from the teacher, temperature, and hard labels mixed in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from r1.losses.aggregation import AGGREGATIONS, row_weights
from r1.losses.distill import DIVERGENCES
from r1.losses.divergence import fused_divergence
from r1.losses.top_k import TopK, bucket_log_probs
from r1.registry import did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillObjective:
    """What to minimise (config node `algorithm.objective`).

    Attributes:
        divergence: forward_kl, reverse_kl, jsd (GKD), or hinton: alpha tau^2 KL(P_tau || Q_tau) + (1 - alpha) NLL.
        beta: of jsd; 0 is forward and 1 reverse KL.
        alpha: of hinton, weight of the teacher against the labels.
        temperature: tau, divides the logits of teacher and student (of hinton: in the soft term alone).
        aggregation: weight of a token in the loss of an optimizer step, a mode of
            `r1.losses.aggregation.row_weights`.
        max_length: the constant of aggregation `constant`, in tokens.
    """

    divergence: str = "forward_kl"
    beta: float = 0.5
    alpha: float = 0.5
    temperature: float = 1.0
    aggregation: str = "token_mean"
    max_length: int | None = None

    def __post_init__(self) -> None:
        modes = tuple(mode for mode in AGGREGATIONS if mode != "group_token_mean")
        for key, known in (("divergence", tuple(DIVERGENCES)), ("aggregation", modes)):
            value = getattr(self, key)
            if value not in known:
                raise ValueError(
                    f"algorithm.objective.{key}: found {value!r}.{did_you_mean(value, known)} "
                    f"Expected one of {', '.join(known)}"
                )
        for key in ("alpha", "beta"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"algorithm.objective.{key}: found {getattr(self, key)}, expected a number in [0, 1]")
        if self.temperature <= 0:
            raise ValueError(f"algorithm.objective.temperature: found {self.temperature}, expected more than 0")
        self.weights(torch.ones(1, dtype=torch.int64))

    def weights(self, lengths: Tensor) -> Tensor:
        """Return the weight (B,) of one token of each row of an optimizer step with these completion lengths."""
        return row_weights(lengths, self.aggregation, max_length=self.max_length, dtype=torch.float64)

    def __call__(self, logits: Tensor, target: Tensor | TopK, labels: Tensor) -> Tensor:
        """Compute the loss of each token.

        Args:
            logits: (N, V) of the student; columns beyond the teacher's are padding of the head and left out.
            target: logits (N, V') of the teacher, or what was kept of its distributions.
            labels: (N,) int64, the tokens that follow.

        Returns:
            (N,).
        """
        soft = self._top_k(logits, target) if isinstance(target, TopK) else self._whole(logits, target)
        if self.divergence != "hinton":
            return soft
        nll = torch.nn.functional.cross_entropy(logits.to(soft.dtype), labels, reduction="none")
        return self.alpha * self.temperature**2 * soft + (1 - self.alpha) * nll

    @property
    def _name(self) -> str:
        return "forward_kl" if self.divergence == "hinton" else self.divergence

    def _whole(self, logits: Tensor, target: Tensor) -> Tensor:
        num_tokens = min(logits.shape[-1], target.shape[-1])
        return fused_divergence(
            logits[:, :num_tokens],
            target[:, :num_tokens],
            name=self._name,
            beta=self.beta,
            temperature=self.temperature,
        )

    def _top_k(self, logits: Tensor, target: TopK) -> Tensor:
        student = bucket_log_probs(logits, target.indices, temperature=self.temperature)
        teacher = target.buckets()[:, : student.shape[-1]]
        # Log-probabilities are logits whose softmax at temperature 1 gives them back.
        return fused_divergence(student, teacher, name=self._name, beta=self.beta)
