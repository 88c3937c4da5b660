"""The decoder layers of a language model with fewer, larger GPU kernels.

Decides: which models can be run so, and in which order their parts are. Refuses to know: how each operation is
computed (`decoder_operations.py`, `triton_operations.py`), where keys and values lie, what is recorded.

transformers' layers launch about 45 kernels each, most of them over a few thousand numbers. Here a layer is its seven
matrix products, called as the modules they are so that adapters and quantised layers take part, and six kernels
between them. Matrix products of the same input run side by side.
"""

from functools import partial
from typing import Any

import torch

from .decoder_operations import PlainOperations
from .parallel_streams import in_parallel
from .slot_cache import SlotCache
from .tree_passes import additive


FAMILIES = ("Llama", "Gemma")  # whose layers are known
KINDS = ("DecoderLayer", "Attention", "MLP", "RMSNorm", "RMSNorm", "RMSNorm")  # of a layer, and the last norm


def can_be_lean(language_model: Any) -> bool:
    """Whether a language model is one of those known, with nothing attached to its layers that would be left out."""
    layers = getattr(language_model, "layers", ())
    for layer in layers:
        names = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
        parts: list[Any] = [layer, *(getattr(layer, name, None) for name in names), language_model.norm]
        kinds = [type(part).__name__ for part in parts]
        if kinds not in [[family + kind for kind in KINDS] for family in FAMILIES]:
            return False
        if any(part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__ for part in parts):
            return False
    return len(layers) > 0


def run_layers(
    language_model: Any,
    operations: PlainOperations,
    embeds: torch.Tensor,
    positions: torch.Tensor,
    allowed: torch.Tensor,
    cache: SlotCache,
) -> torch.Tensor:
    """Last hidden states [B, T, N], normalised.

    Args:
        embeds: [B, T, N], scaled as the language model's first layer expects.
        positions: int64 [B, T].
        allowed: bool [B, T, S], which of the slots the cache shows each token sees.
    """
    cosines, sines = language_model.rotary_emb(embeds, positions)
    mask, device = additive(allowed, embeds.dtype), embeds.device
    hidden, more = embeds.clone(memory_format=torch.contiguous_format), None
    for index, layer in enumerate(language_model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        normed = operations.add_norm(hidden, more, layer.input_layernorm)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        projected = in_parallel(device, *(partial(projection, normed) for projection in projections))
        query = operations.rotate_and_store(projected, cosines, sines, cache, index)
        mixed = operations.attend(query, *cache.layer(index), mask, attention.scaling)
        normed = operations.add_norm(hidden, attention.o_proj(mixed), layer.post_attention_layernorm)
        gate, up = in_parallel(device, partial(mlp.gate_proj, normed), partial(mlp.up_proj, normed))
        more = mlp.down_proj(operations.gated(gate, up, mlp.act_fn))
    return operations.add_norm(hidden, more, language_model.norm)


def input_scale(language_model: Any, dtype: torch.dtype) -> float:
    """What embeddings are multiplied by before the first layer: Gemma's in transformers 4; 5 does it in the layer that
    looks words up."""
    gemma = type(language_model).__name__ == "GemmaModel"
    if gemma and not hasattr(language_model.get_input_embeddings(), "embed_scale"):
        return float(torch.tensor(language_model.config.hidden_size**0.5, dtype=dtype, device="cpu"))
    return 1.0
