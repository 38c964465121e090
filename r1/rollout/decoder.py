"""A lean incremental forward pass of Llama-like models over a preallocated key-value cache.

Works on the weights of transformers' own modules (Llama, Qwen2, Qwen3), so what decodes is what trains.
Legend: N rows, L cache length, H query heads, K key-value heads, D head size, C hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SUPPORTED_MODEL_TYPES = ("llama", "qwen2", "qwen3")


def unsupported_reason(model: nn.Module) -> str | None:
    """Say why a model cannot be decoded here, or return None when it can."""
    config = model.config
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        return f"architecture {config.model_type!r} is not one of {', '.join(SUPPORTED_MODEL_TYPES)}"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []):
        return "sliding-window attention"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        return f"rope type {rope['rope_type']!r} changes with the length"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act!r} is not silu"
    if type(model.get_output_embeddings()) is not nn.Linear or type(model.get_input_embeddings()) is not nn.Embedding:
        return "embeddings that are not plain layers (adapters, quantised weights)"
    if not all(type(m) is nn.Linear for n, m in model.named_modules() if n.endswith("_proj")):
        return "projections that are not plain linear layers (adapters, quantised weights)"
    return None


@dataclass(slots=True)
class _Layer:
    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


def _joined(*linears: nn.Linear) -> tuple[Tensor, Tensor | None]:
    weight = torch.cat([linear.weight for linear in linears])
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    return weight, bias


def _read_layer(block: Any, dtype: torch.dtype) -> _Layer:
    attention, mlp = block.self_attn, block.mlp
    qkv, qkv_bias = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
    gate_up, gate_up_bias = _joined(mlp.gate_proj, mlp.up_proj)
    tensors = {
        "input_norm": block.input_layernorm.weight,
        "qkv": qkv,
        "qkv_bias": qkv_bias,
        "q_norm": attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        "k_norm": attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        "o": attention.o_proj.weight,
        "o_bias": attention.o_proj.bias,
        "post_norm": block.post_attention_layernorm.weight,
        "gate_up": gate_up,
        "gate_up_bias": gate_up_bias,
        "down": mlp.down_proj.weight,
        "down_bias": mlp.down_proj.bias,
    }
    return _Layer(**{name: None if t is None else t.to(dtype) for name, t in tensors.items()})


class Decoder:
    """The model's weights arranged for decoding: one matrix for q, k and v, one for gate and up.

    Reads the weights once; build a new one after an update. Everything runs without gradients.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, max_length: int, *, dtype: torch.dtype | None = None) -> None:
        """
        Args:
            model: a transformers causal LM for which `unsupported_reason` is None.
            max_length: L, longest prompt + completion that will be decoded.
            dtype: to decode in; by default that of the weights.
        """
        config, backbone = model.config, model.model
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.num_heads
        self.eps = config.rms_norm_eps
        self.max_length = max_length
        dtype = dtype or backbone.embed_tokens.weight.dtype
        self.embedding = backbone.embed_tokens.weight.to(dtype)
        self.layers = [_read_layer(block, dtype) for block in backbone.layers]
        self.norm = backbone.norm.weight.to(dtype)
        self.head = model.get_output_embeddings().weight.to(dtype)
        positions = torch.arange(max_length, device=self.embedding.device)[None]
        cos, sin = backbone.rotary_emb(self.embedding, position_ids=positions)
        # Both halves of transformers' tables are equal; the rotation below needs one.
        half = self.head_dim // 2
        self.cos, self.sin = cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()

    def allocate_cache(self, num_rows: int) -> list[tuple[Tensor, Tensor]]:
        """Return, for each layer, keys and values of shape (N, L, K, D)."""
        shape = (num_rows, self.max_length, self.num_kv_heads, self.head_dim)
        return [(self.embedding.new_zeros(shape), self.embedding.new_zeros(shape)) for _ in self.layers]

    @torch.no_grad()
    def prefill(self, input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Run whole prompts.

        Args:
            input_ids: (N, S) int64, padded on the right; causal attention keeps the padding out of earlier tokens.
            lengths: (N,) int64 real lengths.

        Returns:
            logits (N, V) after the last real token, and the keys and values (N, S, K, D) of each layer.
        """
        num_rows, length = input_ids.shape
        cos, sin = self.cos[None, :length], self.sin[None, :length]
        hidden, kept = F.embedding(input_ids, self.embedding), []
        for layer in self.layers:
            query, key, value = self._project(layer, hidden, cos, sin)
            kept.append((key, value))
            mixed = F.scaled_dot_product_attention(
                query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=True, enable_gqa=True
            )
            hidden = self._finish(layer, hidden, mixed.transpose(1, 2).reshape(num_rows, length, -1))
        last = hidden[torch.arange(num_rows, device=hidden.device), lengths - 1]
        return self._logits(last), kept

    @torch.no_grad()
    def step(self, input_ids: Tensor, positions: Tensor, length: int, cache: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Append one token a row and return the next logits.

        Args:
            input_ids: (N,) int64, the token to append to each row.
            positions: (N,) int64, how many tokens the row already holds in the cache.
            length: cache positions to look at, at least max(positions) + 1.
            cache: from `allocate_cache`, with at least N rows; rows 0..N-1 are used.

        Returns:
            logits (N, V).
        """
        num_rows = input_ids.shape[0]
        cos, sin = self.cos[positions], self.sin[positions]
        visible = (torch.arange(length, device=positions.device) <= positions[:, None])[:, None, None, :]
        slots = torch.arange(num_rows, device=positions.device) * self.max_length + positions
        hidden = F.embedding(input_ids, self.embedding)
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            query, key, value = self._project(layer, hidden, cos, sin)
            keys.view(-1, self.num_kv_heads, self.head_dim).index_copy_(0, slots, key)
            values.view(-1, self.num_kv_heads, self.head_dim).index_copy_(0, slots, value)
            mixed = F.scaled_dot_product_attention(
                query.unsqueeze(2),
                keys[:num_rows, :length].transpose(1, 2),
                values[:num_rows, :length].transpose(1, 2),
                attn_mask=visible,
                enable_gqa=True,
            )
            hidden = self._finish(layer, hidden, mixed.reshape(num_rows, -1))
        return self._logits(hidden)

    def _project(self, layer: _Layer, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., C) -> query (..., H, D), key and value (..., K, D), rotated to their positions."""
        normed = F.rms_norm(hidden, (hidden.shape[-1],), layer.input_norm, self.eps)
        heads = F.linear(normed, layer.qkv, layer.qkv_bias)
        heads = heads.view(*heads.shape[:-1], self.num_heads + 2 * self.num_kv_heads, self.head_dim)
        rotating, value = heads.split([self.num_heads + self.num_kv_heads, self.num_kv_heads], dim=-2)
        if layer.q_norm is not None:
            query, key = rotating.split([self.num_heads, self.num_kv_heads], dim=-2)
            query = F.rms_norm(query, (self.head_dim,), layer.q_norm, self.eps)
            key = F.rms_norm(key, (self.head_dim,), layer.k_norm, self.eps)
            rotating = torch.cat([query, key], dim=-2)
        first, second = rotating.chunk(2, dim=-1)
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        query, key = rotated.split([self.num_heads, self.num_kv_heads], dim=-2)
        return query, key, value

    def _finish(self, layer: _Layer, hidden: Tensor, mixed: Tensor) -> Tensor:
        hidden = hidden + F.linear(mixed, layer.o, layer.o_bias)
        normed = F.rms_norm(hidden, (hidden.shape[-1],), layer.post_norm, self.eps)
        gate, up = F.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
        return hidden + F.linear(F.silu(gate) * up, layer.down, layer.down_bias)

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(F.rms_norm(hidden, (hidden.shape[-1],), self.norm, self.eps), self.head)
