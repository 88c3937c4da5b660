"""The decoder layers of a Llama or Gemma with fewer, larger GPU kernels.

The layers of transformers launch about 45 kernels each, most of them over a few thousand numbers. Here a layer is its
seven matrix products, called as modules so that adapters and quantised layers take part, and six operations between
them: in PyTorch here, as Triton kernels in `triton_operations.py`. Matrix products of the same input run in parallel.
"""

from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from .parallel_streams import in_parallel
from .verification_passes import TreeCache, additive_mask


FAMILIES = ("Llama", "Gemma")
CLASSES = ("DecoderLayer", "Attention", "MLP", "RMSNorm", "RMSNorm", "RMSNorm")  # of a layer, and the last norm


class TorchOperations:
    """What a layer does between its matrix products, rounded in the same order and precision as in transformers.

    B rows, T tokens, N the width of the model, H query heads and K key heads of width D, S slots.
    """

    def add_norm(self, hidden: torch.Tensor, more: torch.Tensor | None, norm: Any) -> torch.Tensor:
        """Adds `more` to `hidden` in place, both [B, T, N]; returns the RMS norm of the sum."""
        if more is not None:
            hidden += more
        return norm(hidden)

    def rotate_and_store(
        self, projected: list[torch.Tensor], cosines: torch.Tensor, sines: torch.Tensor, cache: TreeCache, layer: int
    ) -> torch.Tensor:
        """Applies rotary embeddings, [B, T, D], to queries [B, T, H D] and keys [B, T, K D]; writes keys and values
        into the cache, and returns queries [B, H, T, D].
        """
        width = cosines.shape[-1]
        query, key, value = (part.unflatten(-1, (-1, width)).transpose(1, 2) for part in projected)
        cosines, sines = cosines[:, None], sines[:, None]
        query, key = (part * cosines + rotate_half(part) * sines for part in (query, key))
        cache.update(key, value, layer)
        return query

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention, [B, T, H D], of queries [B, H, T, D] to keys and values [B, K, S, D] under an additive mask [B,
        1, T, S]. Heads that share keys are taken as more queries of one head, to repeat no keys.
        """
        rows, heads, tokens, width = query.shape
        group = heads // keys.shape[1]
        query = query.reshape(rows, keys.shape[1], group * tokens, width)
        mixed = scaled_dot_product_attention(query, keys, values, mask.repeat(1, 1, group, 1), scale=scale)
        return mixed.reshape(rows, heads, tokens, width).transpose(1, 2).reshape(rows, tokens, heads * width)

    def gated(self, gate: torch.Tensor, up: torch.Tensor, activation: Any) -> torch.Tensor:
        """The activation of `gate` times `up`, [B, T, M]."""
        return activation(gate) * up

    def move(self, cache: TreeCache, source: torch.Tensor, target: torch.Tensor) -> None:
        """As `TreeCache.move`."""
        cache.move(source, target)


def rotate_half(part: torch.Tensor) -> torch.Tensor:
    """The two halves [a, b] of the last axis as [-b, a]."""
    first, second = part.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def activation_name(function: Any) -> str | None:
    """ "silu" or "gelu_tanh" for a module that is one of these, else `None`."""
    name = type(function).__name__
    if name in ("SiLU", "SiLUActivation"):
        return "silu"
    return "gelu_tanh" if name in ("GELUTanh", "PytorchGELUTanh") else None


def supports_fused_layers(language_model: Any) -> bool:
    """Whether a language model is a known one, with nothing attached to its layers that would be left out."""
    layers = getattr(language_model, "layers", ())
    for layer in layers:
        names = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
        parts: list[Any] = [layer, *(getattr(layer, name, None) for name in names), language_model.norm]
        classes = [type(part).__name__ for part in parts]
        if classes not in [[family + suffix for suffix in CLASSES] for family in FAMILIES]:
            return False
        if any(part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__ for part in parts):
            return False
    return len(layers) > 0


def run_layers(
    language_model: Any,
    operations: TorchOperations,
    embeds: torch.Tensor,
    positions: torch.Tensor,
    allowed: torch.Tensor,
    cache: TreeCache,
) -> torch.Tensor:
    """Last hidden states [B, T, N], normalised, of `embeds`, scaled as the first layer expects, at positions [B, T].

    `allowed`, bool [B, T, S], is which visible slots of the cache each token attends to.
    """
    cosines, sines = language_model.rotary_emb(embeds, positions)
    mask, device = additive_mask(allowed, embeds.dtype), embeds.device
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
    """The factor of embeddings before the first layer: Gemma's, which transformers 5 has in the embedding layer."""
    gemma = type(language_model).__name__ == "GemmaModel"
    if gemma and not hasattr(language_model.get_input_embeddings(), "embed_scale"):
        return float(torch.tensor(language_model.config.hidden_size**0.5, dtype=dtype, device="cpu"))
    return 1.0
