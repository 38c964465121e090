"""Losses as pure functions on tensors; see each module for its paper and formula."""

from r1.losses.aggregation import AGGREGATIONS, aggregate, row_weights
from r1.losses.clipping import clip_stats
from r1.losses.distill import (
    DIVERGENCES,
    chunked_per_token,
    forward_kl,
    generalized_jsd,
    hinton,
    reverse_kl,
    token_nll,
)
from r1.losses.kl import KL_KINDS, kl_estimate, kl_reward_penalty
from r1.losses.mismatch import MISMATCH_MODES, mismatch_weights
from r1.losses.on_policy import minillm_long, reverse_kl_advantages
from r1.losses.policy import (
    SURROGATES,
    cispo,
    clipped,
    off_policy_sequence_mask,
    sapo,
    sequence_clipped,
    sequence_raw_clipped,
    sequence_token_clipped,
)

__all__ = [
    "AGGREGATIONS",
    "DIVERGENCES",
    "KL_KINDS",
    "MISMATCH_MODES",
    "SURROGATES",
    "aggregate",
    "chunked_per_token",
    "cispo",
    "clip_stats",
    "clipped",
    "forward_kl",
    "generalized_jsd",
    "hinton",
    "kl_estimate",
    "kl_reward_penalty",
    "minillm_long",
    "mismatch_weights",
    "off_policy_sequence_mask",
    "reverse_kl",
    "reverse_kl_advantages",
    "row_weights",
    "sapo",
    "sequence_clipped",
    "sequence_raw_clipped",
    "sequence_token_clipped",
    "token_nll",
]
