"""The forward passes that verify draft trees, and the keys and values they keep.

    DynamicPasses   every pass as wide as its trees, caches as long as their content; nothing is wasted
    StaticPasses    prompts, widths and caches in steps of a fixed size, so that shapes repeat from pass to pass and
                    from call to call: on a GPU each pass is then one CUDA graph (`static_passes.py`)

Both give the same results. The first pass (prefill) also feeds the prompt, the last token of which begins the tree.
"""

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class PassInputs:
    """What one pass feeds besides a prompt: the slots of a tree per row (`draft_trees.py`), padded on the right.

    Attributes:
        ids, positions: int64 [B, W].
        columns, parents: int64 [B, W]; `columns` among the G tokens of actions.
        allowed: bool [B, W, G], which tokens may follow each slot.
        tree_mask: bool [B, W, W]; each slot attends to itself and its ancestors.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    columns: torch.Tensor
    parents: torch.Tensor
    allowed: torch.Tensor
    tree_mask: torch.Tensor


@dataclass(frozen=True)
class Prompt:
    """A left-padded batch of prompts without their last tokens, which are the first slots of trees.

    Attributes:
        ids, mask: int64 [B, L]; the mask is 0 on padding.
        pictures: what else the processor returned, such as `pixel_values`.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    pictures: dict[str, Any] = field(default_factory=dict)


class DynamicTreeCache:
    """Keys and values in buffers, of which a pass keeps the accepted slots; with what attention layers and models of
    transformers use of a cache when the attention mask and the positions are given.

    Args:
        capacity: slots per row to begin with.
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
            # Zeros, since a masked slot still takes part in a product, and 0 times an uninitialised number may be NaN.
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
            slots = (self.length + accepted)[:, None, :, None].expand(-1, buffer.shape[1], -1, buffer.shape[3])
            buffer[:, :, start : start + accepted.shape[1]] = buffer.gather(2, slots)
        self.length = start + accepted.shape[1]


class DynamicPasses:
    """Passes of whatever width is asked for.

    Args:
        head: float [G, width], the needed rows of the output layer.
        room: slots that accepted tokens and trees will usually take; more are made when needed.
    """

    def __init__(self, model: Any, head: torch.Tensor, prompt: Prompt, room: int):
        self.model, self.head = model, head
        self.prompt: Prompt | None = prompt  # until it has been fed
        self.seen = prompt.mask.bool().to(head.device)
        self.places = prompt_positions(self.seen)  # of cached tokens in their rows, int64 [B, cached]
        self.shift: torch.Tensor | int = 0  # what the language model adds to them
        self.cache = DynamicTreeCache(prompt.ids.shape[1] + room)

    def width(self, widest: int) -> int:
        """The width of a pass in which the widest row feeds so many tokens."""
        return widest

    @torch.no_grad()
    def run(self, fed: PassInputs) -> torch.Tensor:
        """Logits float32 [B, W, G]."""
        device, model = self.head.device, self.model
        ids, self.fed_places, tree_mask = (each.to(device) for each in (fed.ids, fed.positions, fed.tree_mask))
        if self.prompt is None:
            embeds, options, places, same_block = model.get_input_embeddings()(ids), {}, self.fed_places, None
            allowed = torch.cat((self.seen[:, None].expand(-1, ids.shape[1], -1), tree_mask), dim=2)
            keys = torch.cat((self.places, places), dim=1)
            positions = places + self.shift
        else:
            prompt = torch.cat((self.prompt.ids.to(device), ids), dim=1)
            embeds, options = model.embed_prompt(prompt, **self.prompt.pictures)
            keys = places = torch.cat((self.places, self.fed_places), dim=1)
            positions, self.shift = model.prompt_positions(
                self.prompt.ids.to(device), self.seen, **self.prompt.pictures
            )
            positions = torch.cat(
                (positions, (self.fed_places + self.shift).expand(*positions.shape[:-1], -1)), dim=-1
            )
            same_block = model.prompt_blocks(prompt[:, : self.seen.shape[1] + 1])
            allowed = prompt_and_tree_mask(self.seen, tree_mask, same_block)
        hidden = model.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=self._masks(allowed, places, keys, same_block),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **options,
        ).last_hidden_state
        return capped((hidden[:, -ids.shape[1] :] @ self.head.T).float(), model.config.text_config)

    def keep(self, paths: list[list[int]]) -> None:
        """Keeps the prompt of the prefill, and of the fed slots those that each row accepted."""
        kept, accepted = (each.to(self.head.device) for each in padded(paths))
        start = 0 if self.prompt is None else self.seen.shape[1]
        self.cache.keep(start, kept + start)
        self.seen = torch.cat((self.seen, accepted), dim=1)
        self.places = torch.cat((self.places, self.fed_places.gather(1, kept)), dim=1)
        self.prompt = None

    def close(self) -> None:
        """Nothing is shared with other calls."""

    def _masks(self, allowed: torch.Tensor, places: torch.Tensor, keys: torch.Tensor, same_block: Any) -> Any:
        """What the language model takes as its mask: one for all layers, or one for each type of layer.

        Args:
            allowed: bool [B, fed, keys]
            places, keys: int64 [B, fed] and [B, keys], in their rows.
        """
        text, mask = self.model.config.text_config, additive_mask(allowed, self.head.dtype)
        if "sliding_attention" not in (getattr(text, "layer_types", None) or ()):
            return mask
        near = places[:, :, None] - keys[:, None] < text.sliding_window
        if same_block is not None and not self.model.windows_bound_blocks:
            near[:, : same_block.shape[1], : same_block.shape[2]] |= same_block
        return {"full_attention": mask, "sliding_attention": additive_mask(allowed & near, self.head.dtype)}


def capped(logits: torch.Tensor, text_config: Any) -> torch.Tensor:
    """Logits as the language model changes them behind its output layer."""
    cap = getattr(text_config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def prompt_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions int64 [B, L] of tokens, counted from the first one that is no padding."""
    return (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)


def prompt_and_tree_mask(seen: torch.Tensor, tree_mask: torch.Tensor, same_block: torch.Tensor | None) -> torch.Tensor:
    """The attention mask of a prompt with a tree behind it, bool [B, L + W, L + W].

    Args:
        seen: bool [B, L], false on padding.
        tree_mask: bool [B, W, W].
        same_block: bool [B, L + 1, L + 1], which tokens of the prompt, its last one included, attend to one another in
            both directions; `None` for none.
    """
    length, width = seen.shape[1], tree_mask.shape[1]
    allowed = torch.ones(length + width, length + width, dtype=torch.bool, device=seen.device).tril()
    allowed = allowed.repeat(len(seen), 1, 1)
    allowed[:, length:, length:] = tree_mask
    if same_block is not None:
        allowed[:, : length + 1, : length + 1] |= same_block
    allowed[:, :, :length] &= seen[:, None]
    return allowed


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What to add to attention scores, [B, 1, queries, keys], for bool [B, queries, keys]. The least number, not minus
    infinity: a row of padding attends to nothing."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def padded(paths: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists as int64 [B, K], filled with 0, and which entries are no filling, bool [B, K]."""
    longest = max(len(path) for path in paths)
    kept = torch.zeros(len(paths), longest, dtype=torch.long)
    given = torch.zeros(len(paths), longest, dtype=torch.bool)
    for index, path in enumerate(paths):
        kept[index, : len(path)] = torch.tensor(path, dtype=torch.long)
        given[index, : len(path)] = True
    return kept, given


def enlarged(buffer: torch.Tensor, needed: int) -> torch.Tensor:
    """A copy of [B, heads, slots, width] with at least `needed` slots."""
    more = max(needed, 2 * buffer.shape[2]) - buffer.shape[2]
    return torch.cat((buffer, buffer.new_zeros(*buffer.shape[:2], more, buffer.shape[3])), dim=2)
