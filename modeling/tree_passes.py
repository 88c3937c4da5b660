"""The forward passes of tree decoding and the keys and values they keep.

Decides: where a row's keys and values lie, who may attend to whom, what is computed. Refuses to know: what is in a
tree, which tokens are accepted (`tree_decoding.py`), grammars.

Two ways, the same results:

    GrowingPasses   every pass as wide as its trees, caches as long as what they hold; nothing is wasted
    StaticPasses    prompts, widths and caches in steps of a fixed size, so that shapes repeat from pass to pass and
                    from call to call: on a GPU each pass is then one CUDA graph (`static_passes.py`)

A pass's tokens come packed: ids and positions int64 [B, W], `sight` bool [B, W, W], who sees whom among them. The
first pass also holds the prompt.
"""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Fed:
    """What one pass reads besides a prompt.

    Attributes:
        ids, positions: int64 [B, W].
        sight: bool [B, W, W], each token itself and its ancestors.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    sight: torch.Tensor


@dataclass(frozen=True)
class Prompt:
    """A left-padded batch of prompts.

    Attributes:
        ids, mask: int64 [B, L]; the mask is 0 on padding.
        pixel_values: float [pictures, C, H, W] or `None`.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    pixel_values: Any = None


class TreeCache:
    """Keys and values in buffers, of which a pass keeps the slots it accepted.

    Args:
        capacity: slots per row to begin with.

    It has what transformers' attention layers and models use of a cache when the mask and the positions are given.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Writes [B, heads, fed, width]; returns what may be attended to."""
        if layer_idx == len(self.keys):
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            # Zeros, since a masked slot still takes part in a product, and 0 times nothing sensible could be NaN.
            self.keys.append(keys.new_zeros(shape))
            self.values.append(values.new_zeros((*shape[:3], values.shape[3])))
        end = self.length + keys.shape[2]
        if end > self.keys[layer_idx].shape[2]:
            self.keys[layer_idx] = enlarged(self.keys[layer_idx], end)
            self.values[layer_idx] = enlarged(self.values[layer_idx], end)
        self.keys[layer_idx][:, :, self.length : end] = keys
        self.values[layer_idx][:, :, self.length : end] = values
        return self.keys[layer_idx][:, :, :end], self.values[layer_idx][:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots kept."""
        return self.length

    def keep(self, prompt: int, accepted: torch.Tensor) -> None:
        """Keeps, of what the last pass wrote, the first `prompt` slots and those named by `accepted` int64 [B, K]."""
        start = self.length + prompt
        for buffer in (*self.keys, *self.values):
            moved = buffer.gather(2, spread(self.length + accepted, buffer))
            buffer[:, :, start : start + accepted.shape[1]] = moved
        self.length = start + accepted.shape[1]


class GrowingPasses:
    """Passes of whatever width is asked for.

    Args:
        model: a model of the family.
        head: float [G, width], the rows of the output layer that are wanted.
        room: slots that accepted tokens and trees will take at most, if all goes well; more are made when needed.
    """

    def __init__(self, model: Any, head: torch.Tensor, prompt: Prompt, room: int):
        self.model, self.head, self.prompt = model, head, prompt
        self.seen = prompt.mask.bool().to(head.device)
        self.cache = TreeCache(prompt.ids.shape[1] + room)
        self.start = prompt.ids.shape[1]  # prompt tokens in the pass that is to come

    def encode_pictures(self) -> None:
        """Nothing: plain passes keep the CPU busy, so that there would be nothing to gain."""

    def width(self, widest: int) -> int:
        """How wide a pass is in which the widest row feeds so many tokens."""
        return widest

    @torch.no_grad()
    def run(self, fed: Fed) -> torch.Tensor:
        """Logits float32 [B, W, G]; in the first pass [B, 1 + W, G], behind the prompt's last token, too."""
        device = self.head.device
        ids, positions, sight = fed.ids.to(device), fed.positions.to(device), fed.sight.to(device)
        pixel_values = None
        if self.start:
            ids = torch.cat((self.prompt.ids.to(device), ids), dim=1)
            positions = torch.cat((prompt_positions(self.prompt).to(device), positions), dim=1)
            pixel_values = self.prompt.pixel_values
        hidden = self.model.model(
            input_ids=ids,
            pixel_values=pixel_values,
            attention_mask=additive(self._allowed(sight), self.head.dtype),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        return (hidden[:, max(self.start - 1, 0) :] @ self.head.T).float()

    def keep(self, paths: list[list[int]]) -> None:
        """Keeps the prompt of the first pass, and of what was fed the places each row names."""
        kept, real = padded(paths)
        self.cache.keep(self.start, (kept + self.start).to(self.head.device))
        self.seen = torch.cat((self.seen, real.to(self.head.device)), dim=1)
        self.start = 0

    def close(self) -> None:
        """Nothing is shared with other calls."""

    def _allowed(self, sight: torch.Tensor) -> torch.Tensor:
        """Who may see whom, bool [B, fed, cached + fed]."""
        if self.start:
            return with_prompt(self.seen, sight, self.model.prompt_is_bidirectional)
        cached = self.seen[:, None].expand(-1, sight.shape[1], -1)
        return torch.cat((cached, sight), dim=2)


def prompt_positions(prompt: Prompt) -> torch.Tensor:
    """Int64 [B, L], counted from the first token that is no padding."""
    return (prompt.mask.cumsum(dim=1) - 1).clamp(min=0)


def with_prompt(seen: torch.Tensor, sight: torch.Tensor, bidirectional: bool) -> torch.Tensor:
    """Who may see whom where a prompt is fed with a tree behind it, bool [B, L + W, L + W].

    Args:
        seen: bool [B, L], which of the prompt is no padding.
        sight: bool [B, W, W], among the tree.
        bidirectional: whether the tokens of the prompt see those after them.
    """
    length, width = seen.shape[1], sight.shape[1]
    prompt = seen[:, None].expand(-1, length, -1)
    if not bidirectional:
        prompt = prompt & torch.ones(length, length, dtype=torch.bool, device=seen.device).tril()
    nothing = torch.zeros(len(seen), length, width, dtype=torch.bool, device=seen.device)
    upper = torch.cat((prompt, nothing), dim=2)
    lower = torch.cat((seen[:, None].expand(-1, width, -1), sight), dim=2)
    return torch.cat((upper, lower), dim=1)


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What to add to attention scores, [B, 1, fed, slots]."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def padded(paths: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists as int64 [B, K], filled with 0, and which entries are real, bool [B, K]."""
    longest = max(len(path) for path in paths)
    kept = torch.zeros(len(paths), longest, dtype=torch.long)
    real = torch.zeros(len(paths), longest, dtype=torch.bool)
    for index, path in enumerate(paths):
        kept[index, : len(path)] = torch.tensor(path, dtype=torch.long)
        real[index, : len(path)] = True
    return kept, real


def spread(slots: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Slots int64 [B, K] as an index into dimension 2 of [B, heads, ..., width]."""
    return slots[:, None, :, None].expand(-1, like.shape[1], -1, like.shape[3])


def enlarged(buffer: torch.Tensor, needed: int) -> torch.Tensor:
    """A copy of [B, heads, slots, width] with at least `needed` slots."""
    more = max(needed, 2 * buffer.shape[2]) - buffer.shape[2]
    return torch.cat((buffer, buffer.new_zeros(*buffer.shape[:2], more, buffer.shape[3])), dim=2)
