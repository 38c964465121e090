"""Memory of one device in a training run, part by part, in bytes: arithmetic on sizes, nothing is built.

A run passes through three phases that follow each other, so its peak is what is always there plus the largest of them:
`sampling`, `update` (forward and backward pass of a micro-batch), `step` (the optimizer). Tensors of a few
numbers a token are left out, and so are what libraries and allocators keep for themselves.

Legend: n tokens of a micro-batch, N completion tokens of them, C hidden, I feed-forward, V vocabulary, P parameters,
Q and K elements of a token's query and key, R ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from r1.logps import ACCELERATOR_CHUNK_ELEMENTS, CPU_CHUNK_ELEMENTS
from r1.recipe.memory_setup import MemorySetup, Sampling
from r1.recipe.shapes import ModelShape

GIB = 2**30
PREFILL_TOKENS = 16384  # of `r1.rollout.local`: prompt tokens that are read at once
LIVE_PARAMETERS = 10**9  # of DeepSpeed's stage 3: gathered parameters kept at most (stage3_max_live_parameters)
BUCKET = 2 * 10**8  # of Lightning's DeepSpeedStrategy: elements of a communication bucket
# Matrices (chunk, V) of float32 that a loss on whole distributions holds at once, the two models' logits included,
# and those of the chunk before that are still there.
DIVERGENCE_COPIES = {"forward_kl": 5, "reverse_kl": 5, "hinton": 5, "jsd": 8}
STALE_COPIES = 3
Phase = Literal["always", "sampling", "update", "step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One use of memory.

    Attributes:
        name: what it is.
        num_bytes: on one device.
        phase: when it is there.
    """

    name: str
    num_bytes: float
    phase: Phase = "always"


def memory_parts(setup: MemorySetup) -> list[Part]:
    """Return the parts of a device's memory; parts of nothing are left out."""
    parts = [*_state(setup), *_update(setup)]
    if setup.sampling is not None:
        parts += _sampling(setup, setup.sampling)
    return [part for part in parts if part.num_bytes]


def peak_bytes(parts: Iterable[Part]) -> float:
    """Return what is always there plus the largest phase."""
    totals = dict.fromkeys(("always", "sampling", "update", "step"), 0.0)
    for part in parts:
        totals[part.phase] += part.num_bytes
    return totals.pop("always") + max(totals.values())


def size(num_bytes: float) -> str:
    """Write bytes as MiB or GiB."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB / 2 else f"{num_bytes / 2**20:.2f} MiB"


def host_bytes(setup: MemorySetup) -> float:
    """Return the bytes in the host's memory, per rank, of a strategy that offloads: master copy, moments, gradients."""
    return 16.0 * setup.policy.num_trainable / setup.world if setup.sharding.offload else 0.0


def checkpoint_bytes(setup: MemorySetup) -> float:
    """Return the size of one whole checkpoint: weights, reference, moments (and DeepSpeed's master copy)."""
    policy, width = setup.policy, setup.weight_bytes
    state = 12.0 if setup.sharding.deepspeed else 2.0 * width
    return policy.num_parameters * width * (2 if setup.has_reference else 1) + policy.num_trainable * state


def _state(setup: MemorySetup) -> list[Part]:
    """Weights, gradients, optimizer, reference and teacher: there from the first step to the last."""
    sharding, policy, width, world = setup.sharding, setup.policy, setup.weight_bytes, setup.world
    share = world if sharding.weights else 1
    weights = 0 if sharding.offload else policy.num_parameters * width / share
    gradients = policy.num_trainable * width
    moments = policy.num_trainable * (12 if sharding.deepspeed else 2 * width)
    parts = [
        Part(name="weights", num_bytes=weights),
        Part(name="gradients", num_bytes=gradients / (world if sharding.gradients else 1)),
        Part(
            name="optimizer",
            num_bytes=0 if sharding.offload else moments / (world if sharding.optimizer else 1),
        ),
        Part(name="reference", num_bytes=weights if setup.has_reference else 0),
    ]
    if setup.strategy in ("auto", "ddp") and world > 1:
        parts.append(Part(name="gradient buckets of ddp", num_bytes=gradients))
    if setup.teacher is not None:
        # In its own precision, and whole under DeepSpeed, which knows nothing of it.
        teacher = setup.teacher.num_parameters * setup.teacher.weight_bytes
        parts.append(Part(name="teacher", num_bytes=teacher / (1 if sharding.deepspeed else share)))
    return parts


def _update(setup: MemorySetup) -> list[Part]:
    """Forward and backward pass of one micro-batch, and the optimizer step after it."""
    policy, sharding, width = setup.policy, setup.sharding, setup.weight_bytes
    tokens = setup.rows * (setup.prompt_length + setup.completion_length)
    sizes = {"weight_bytes": width, "compute_bytes": setup.compute_bytes}
    kept = tokens * kept_bytes(policy, **sizes)
    # While a layer runs backward, gradients of its widest tensors stand beside what was kept of it.
    backward = tokens * (2 * policy.intermediate_size + policy.hidden_size) * setup.compute_bytes
    if policy.gradient_checkpointing:
        backward += tokens * (layer_bytes(policy, **sizes) - width * policy.hidden_size)
    # The last norm is done with before a layer runs backward.
    logits = logits_bytes(setup) + tokens * (_norm_bytes(width) + width) * policy.hidden_size
    parts = [
        Part(name="activations", num_bytes=kept, phase="update"),
        Part(name="last norm and logits chunk", num_bytes=logits, phase="update"),
        Part(name="backward pass of a layer, beyond that", num_bytes=max(0, backward - logits), phase="update"),
    ]
    if setup.autocasts:
        embeddings = policy.vocab_size * policy.hidden_size * (1 if policy.tied else 2)
        cast = (policy.num_parameters - embeddings) * setup.compute_bytes
        parts.append(Part(name="weights in half precision", num_bytes=cast, phase="update"))
    if sharding.weights and setup.world > 1:
        parts.append(Part(name="gathered weights", num_bytes=_gathered(setup), phase="update"))
    if sharding.deepspeed and setup.world > 1:
        bucket = 2 * min(BUCKET, policy.num_trainable) * width
        parts.append(Part(name="communication buckets", num_bytes=bucket, phase="update"))
    if (sharding.weights or sharding.deepspeed) and not sharding.offload:
        # Not the fused optimizer: it takes a float32 copy of what it updates.
        share = policy.num_trainable * 4 / (setup.world if sharding.optimizer else 1)
        parts.append(Part(name="optimizer step", num_bytes=share, phase="step"))
    return parts


def _gathered(setup: MemorySetup) -> float:
    """Return the bytes of split weights that are whole at a time: embeddings and two layers, or DeepSpeed's limit."""
    policy = setup.policy
    if setup.sharding.deepspeed:
        return min(policy.num_parameters, LIVE_PARAMETERS) * setup.weight_bytes
    embeddings = policy.vocab_size * policy.hidden_size * (1 if policy.tied else 2)
    return setup.weight_bytes * (embeddings + 2 * (policy.num_parameters - embeddings) / policy.num_layers)


def layer_bytes(shape: ModelShape, *, weight_bytes: int, compute_bytes: int) -> int:
    """Return what autograd keeps of one decoder layer, for a token.

    Two norms, each with its input in float32, its normalised value and its output; query, key, value and the output of
    attention; gate, its activation, up and their product. With w bytes of a weight and c of a product:

        w = c = 4         24 C + 4 (2 Q + 2 K) + 16 I
        w = 4, c = 2      26 C + 2 (2 Q + 2 K) +  8 I     (each projection keeps its own half-precision copy)
        w = c = 2         16 C + 2 (2 Q + 2 K) +  8 I
    """
    query, key, hidden = shape.query_size, shape.kv_size, shape.hidden_size
    norms = _norm_bytes(weight_bytes) * 2 * hidden
    inputs = 5 * compute_bytes if compute_bytes < weight_bytes else 2 * compute_bytes
    attention = compute_bytes * (2 * query + 2 * key)
    if shape.normalises_query:
        attention += (4 + compute_bytes) * (query + key)
    return norms + inputs * hidden + attention + 4 * compute_bytes * shape.intermediate_size


def _norm_bytes(weight_bytes: int) -> int:
    # Input and normalised value: float32 both, unless the weights are narrower.
    return 4 + weight_bytes if weight_bytes < 4 else 2 * weight_bytes


def kept_bytes(shape: ModelShape, *, weight_bytes: int, compute_bytes: int) -> int:
    """Return what autograd keeps of all layers, for a token: `layer_bytes`, or its input under checkpointing."""
    if shape.gradient_checkpointing:
        return shape.num_layers * weight_bytes * shape.hidden_size
    return shape.num_layers * layer_bytes(shape, weight_bytes=weight_bytes, compute_bytes=compute_bytes)


def logits_bytes(setup: MemorySetup) -> float:
    """Return what the output projection of a micro-batch needs at its peak, a chunk of tokens at a time.

    Log-probabilities (`r1.logps`): two matrices (chunk, V) of float32 in the forward pass, three with entropy; in the
    backward pass one, and the gradient (V, C) of the projection. Divergences (`r1.losses.chunked`): DIVERGENCE_COPIES
    matrices and that gradient at once. In both a half-precision copy of the projection where products are narrower.
    """
    if setup.loss == "scores":
        return 0.0
    vocab, hidden, product = setup.policy.vocab_size, setup.policy.hidden_size, setup.compute_bytes
    completion = setup.rows * setup.completion_length
    target = CPU_CHUNK_ELEMENTS if setup.on_cpu else ACCELERATOR_CHUNK_ELEMENTS
    at_once = min(completion, setup.chunk_size or max(1, target // vocab))
    several = completion > at_once  # then the chunk before stays until the next has replaced it
    chunk = 4.0 * vocab * at_once
    projection = vocab * hidden * (product if product < setup.weight_bytes else 0)
    gradient = 4.0 * vocab * hidden + (vocab * hidden * setup.weight_bytes if setup.weight_bytes < 4 else 0)
    states = 4.0 * completion * hidden
    if setup.loss in DIVERGENCE_COPIES:
        teacher = 4.0 * completion * setup.teacher.hidden_size if setup.teacher else 0.0
        copies = DIVERGENCE_COPIES[setup.loss] + (STALE_COPIES if several else 0)
        return copies * chunk + gradient + projection + 2 * states + teacher
    forward = (3 if setup.loss == "logps_entropy" else 2) * chunk
    backward = chunk * (1 if product == 4 else 1.5) + gradient + states
    return states + projection + max(forward, backward)


def _sampling(setup: MemorySetup, sampling: Sampling) -> list[Part]:
    """Key-value cache, the engine's own copy of weights, and what reading prompts and drawing tokens needs."""
    policy, sharding = setup.policy, setup.sharding
    width = sampling.bytes or setup.weight_bytes
    embedding = policy.vocab_size * policy.hidden_size
    per_token = 2 * policy.num_layers * policy.kv_size * width
    num_prompts = math.ceil(sampling.num_rows / sampling.num_generations)
    prompt_tokens = num_prompts * sampling.prompt_length
    copies = 0.0
    if sampling.engine == "local":  # joined projections, or everything where the dtype differs
        everything = policy.num_parameters + (embedding if policy.tied else 0)
        copies = width * (policy.num_decoder_matrix if width == setup.weight_bytes else everything)
    reading = min(prompt_tokens, PREFILL_TOKENS) * (4 * policy.intermediate_size + 3 * policy.hidden_size) * width
    drawing = 4.0 * (8 if sampling.truncates else 4) * sampling.num_rows * policy.vocab_size
    parts = [
        Part(name="key-value cache", num_bytes=sampling.num_rows * sampling.length * per_token, phase="sampling"),
        Part(name="engine's copy of weights", num_bytes=copies, phase="sampling"),
        Part(
            name="reading prompts, drawing tokens",
            num_bytes=max(prompt_tokens * per_token + reading, drawing),
            phase="sampling",
        ),
    ]
    if sharding.weights and setup.world > 1:
        whole = policy.num_parameters * setup.weight_bytes
        parts.append(Part(name="gathered weights", num_bytes=whole, phase="sampling"))
    return parts
