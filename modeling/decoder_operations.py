"""What a decoder layer does between its matrix products, in PyTorch; `triton_operations.py` has the same for a GPU.

Decides: in which order and precision numbers are rounded: as transformers does. Refuses to know: layers, weights.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from .slot_cache import SlotCache


class PlainOperations:
    """B rows, T tokens, N the width of the model, H query heads and K key heads of width D."""

    def add_norm(self, hidden: torch.Tensor, more: torch.Tensor | None, norm: Any) -> torch.Tensor:
        """Adds `more` to `hidden` in place, both [B, T, N], and returns the sum normalised.

        Args:
            norm: a Llama's or Gemma's root mean square norm.
        """
        if more is not None:
            hidden += more
        return norm(hidden)

    def rotate_and_store(
        self, projected: list[torch.Tensor], cosines: torch.Tensor, sines: torch.Tensor, cache: SlotCache, layer: int
    ) -> torch.Tensor:
        """Writes keys and values into the cache; returns queries [B, H, T, D]; queries and keys rotated.

        Args:
            projected: queries [B, T, H D], keys and values [B, T, K D].
            cosines, sines: [B, T, D].
        """
        width = cosines.shape[-1]
        query, key, value = (part.unflatten(-1, (-1, width)).transpose(1, 2) for part in projected)
        cosines, sines = cosines[:, None], sines[:, None]
        query, key = (part * cosines + turned(part) * sines for part in (query, key))
        cache.update(key, value, layer)
        return query

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention, [B, T, H D].

        Heads that share keys are taken as more queries of one head, so that keys are not repeated.

        Args:
            query: [B, H, T, D].
            keys, values: [B, K, S, D].
            mask: to add, [B, 1, T, S].
        """
        rows, heads, tokens, width = query.shape
        group = heads // keys.shape[1]
        query = query.reshape(rows, keys.shape[1], group * tokens, width)
        mixed = scaled_dot_product_attention(query, keys, values, mask.repeat(1, 1, group, 1), scale=scale)
        return mixed.reshape(rows, heads, tokens, width).transpose(1, 2).reshape(rows, tokens, heads * width)

    def gated(self, gate: torch.Tensor, up: torch.Tensor, activation: Any) -> torch.Tensor:
        """The activation of `gate` times `up`, [B, T, M]."""
        return activation(gate) * up

    def move(self, cache: SlotCache, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copies slots in all layers; an entry whose source is its target does nothing.

        Args:
            source, target: int64 [B, M]; no slot is both, but in such an entry.
        """
        buffer = cache.buffer
        shape = (*buffer.shape[:2], len(source), buffer.shape[3], source.shape[1], buffer.shape[5])
        source, target = (slots[None, None, :, None, :, None].expand(shape) for slots in (source, target))
        buffer.scatter_(4, target, buffer.gather(4, source))


def turned(part: torch.Tensor) -> torch.Tensor:
    """The two halves [a, b] of the last axis as [-b, a]."""
    first, second = part.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def activation_name(function: Any) -> str | None:
    """ "silu" or "gelu_tanh" for a module that is one of these, else `None`."""
    name = type(function).__name__
    if name in ("SiLU", "SiLUActivation"):
        return "silu"
    return "gelu_tanh" if name in ("GELUTanh", "PytorchGELUTanh") else None
