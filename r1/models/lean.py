"""The hidden states of completion tokens by the fused loops of `r1.native`, over packed rows.

The parameters are those of the transformers model itself; its modules are passed by.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from r1.models.lora import is_peft_model
from r1.models.packing import pack
from r1.native import NativeUnavailable, load_library
from r1.native.gradients import embedding
from r1.native.ops import Layout, attention_block, feed_forward_block, rms_norm

MODEL_TYPES = ("llama", "qwen2", "qwen3")


def unsupported_model(model: nn.Module) -> str | None:
    """Say why a transformers model cannot run on the loops, or return None when it can."""
    config = model.config
    if is_peft_model(model) or config.model_type not in MODEL_TYPES:
        return f"architecture {config.model_type!r} is not one of {', '.join(MODEL_TYPES)}"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []):
        return "sliding-window attention"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") in ("dynamic", "longrope"):
        return f"rope type {rope['rope_type']!r} changes with the length"
    if config.hidden_act != "silu" or getattr(config, "mlp_bias", False) or getattr(config, "attention_dropout", 0):
        return "a feed-forward layer other than silu without biases, or dropout"
    if type(model.get_input_embeddings()) is not nn.Embedding:
        return "an embedding that is not a plain layer"
    if not all(type(m) is nn.Linear for n, m in model.named_modules() if n.endswith("_proj")):
        return "projections that are not plain linear layers (adapters, quantised weights)"
    try:
        lanes = load_library().lanes()
    except NativeUnavailable as error:
        return str(error)
    return f"heads of {_head_dim(config)}, not a multiple of {lanes}" if _head_dim(config) % lanes else None


def unsupported_now(model: nn.Module) -> str | None:
    """Say why the loops cannot be used for this pass, or return None: where the weights are, and who listens."""
    for parameter in model.parameters():
        # Weights that a strategy has split are no plain parameters, or empty.
        if type(parameter) is not nn.Parameter or parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            return "weights that are not whole float32 parameters on the CPU"
        if hasattr(parameter, "ds_id"):
            return "weights that DeepSpeed has split"
    if torch.is_autocast_enabled("cpu"):
        return "autocast"
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules()):
        return "hooks on modules, which would not be called"
    if model.training and any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        return "activation checkpointing"
    return None


def packed_hidden(model: Any, input_ids: Tensor, prompt_lengths: Tensor, mask: Tensor) -> Tensor:
    """Return the last hidden states (num_tokens, C) that predict the completion tokens, in row-major order of the mask.

    Args:
        model: a transformers causal language model for which both functions above give None.
        input_ids: (B, S) int64, prompt then completion, padded on the right.
        prompt_lengths: (B,) int64, at least 1.
        mask: (B, T) bool, true on completion tokens, of which there is at least one.
    """
    config, backbone = model.config, model.model
    packed = pack(input_ids, prompt_lengths, mask)
    hidden = embedding(packed.input_ids, backbone.embed_tokens.weight, backbone.padding_idx)
    length = int(packed.positions.max()) + 1
    with torch.no_grad():
        cos, sin = backbone.rotary_emb(hidden, position_ids=torch.arange(length)[None])
    half = _head_dim(config) // 2
    layout = Layout(
        positions=packed.positions,
        segments=packed.segments,
        cos=cos[0, :, :half].contiguous(),
        sin=sin[0, :, :half].contiguous(),
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=_head_dim(config),
        eps=config.rms_norm_eps,
    )
    for layer in backbone.layers:
        attention, mlp = layer.self_attn, layer.mlp
        linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        head_norms = tuple(getattr(getattr(attention, name, None), "weight", None) for name in ("q_norm", "k_norm"))
        hidden = attention_block(
            hidden,
            layer.input_layernorm.weight,
            tuple(linear.weight for linear in linears),
            tuple(linear.bias for linear in linears),
            head_norms,
            layout,
        )
        hidden = feed_forward_block(
            hidden,
            layer.post_attention_layernorm.weight,
            *(m.weight for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
            config.rms_norm_eps,
        )
    return rms_norm(hidden.index_select(0, packed.completion_index), backbone.norm.weight, config.rms_norm_eps)


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
