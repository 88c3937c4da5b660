"""The forward passes that verify draft trees, and the keys and values they keep.

Of every row the cache has slots for the tree of the current pass, for the prompt, and for what was accepted:

    slots    0 ... S - 1          the tree
             S ... S + L - 1      the prompt, left-padded
             S + L ...            accepted tokens, as many as each row has

A pass writes its first slots, and begins by moving what the last one accepted behind the rest. The first pass
(prefill) feeds the prompt as well, in the order of the slots; the prompt's last token is the root of the tree. Masks,
positions and the places of tokens are computed here, so that a language model is called in one way for all families.

`Passes` decides what is fed, `Forward` computes it; that of `recorded_passes.py` has shapes that repeat.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from .transformers_version import CAPS_LOGITS, is_older


class PassInputs(NamedTuple):
    """What one pass feeds besides a prompt: the slots of a tree per row (`draft_trees.py`), padded on the right."""

    ids: np.ndarray  # int64 [B, W], as the next three
    positions: np.ndarray
    columns: np.ndarray  # among the G tokens of actions
    parents: np.ndarray
    allowed: np.ndarray  # bool [B, W, G], which tokens may follow each slot
    tree_mask: np.ndarray  # bool [B, W, W]; each slot attends to itself and its ancestors


@dataclass(frozen=True)
class Prompt:
    """A left-padded batch of prompts without their last tokens, which are the roots of trees.

    Attributes:
        ids, mask: int64 [B, L]; the mask is 0 on padding.
        pictures: what else the processor returned, such as `pixel_values`.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    pictures: dict[str, Any] = field(default_factory=dict)

    def padded(self, length: int, token: int) -> "Prompt":
        """On the CPU, padded on the left with a token to a length; pictures stay where they are."""
        ids, mask, more = self.ids.cpu(), self.mask.cpu(), length - self.ids.shape[1]
        if more:
            ids, mask = torch.nn.functional.pad(ids, (more, 0), value=token), torch.nn.functional.pad(mask, (more, 0))
        return Prompt(ids, mask, self.pictures)


class TreeCache:
    """Keys and values of all layers, with what attention layers and models of transformers use of a cache when the
    attention mask and the positions are given. A layer's buffer is made when it first writes, unless all are given.

    Args:
        scratch, slots: S above, and all slots.
        buffer: of all layers, [layers, 2, B, heads, slots, width]; zeros, as below.
    """

    def __init__(self, scratch: int, slots: int, buffer: Any = None):
        self.scratch, self.slots, self.buffer = scratch, slots, buffer
        self.parts: list[torch.Tensor] = [] if buffer is None else [buffer]  # [..., heads, slots, width]
        self.layers = [] if buffer is None else [each.unbind() for each in buffer]  # keys and values
        self.fed, self.visible = 0, slots  # how many slots a pass writes, and how many it attends to
        self.written: torch.Tensor | None = None  # int64 [fed], for kernels that take the slots

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Writes [B, heads, fed, width]; returns what may be attended to."""
        if layer_idx == len(self.layers):
            # Zeros, since a masked slot still takes part in a product, and 0 times an uninitialised number may be NaN.
            self.parts.append(keys.new_zeros((2, *keys.shape[:2], self.slots, keys.shape[3])))
            self.layers.append(self.parts[-1].unbind())
        for part, new in zip(self.layers[layer_idx], (keys, values)):
            part.narrow(2, 0, self.fed).copy_(new)
        return self.layer(layer_idx)

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values that may be attended to, [B, heads, visible, width] each, views of the buffer."""
        keys, values = self.layers[index]
        return keys.narrow(2, 0, self.visible), values.narrow(2, 0, self.visible)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Always 0: it differs from row to row, and positions and masks are always given."""
        return 0

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copies slots in all layers, `source` to `target` int64 [B, M]; only entries that are equal overlap."""
        for part in self.parts:
            here, there = source.to(part.device), target.to(part.device)
            if len(here) == 1:
                part.index_copy_(-2, there[0], part.index_select(-2, here[0]))
                continue
            shape = (*part.shape[:-2], here.shape[1], part.shape[-1])
            here, there = (slots[:, None, :, None].expand(shape) for slots in (here, there))
            part.scatter_(-2, there, part.gather(-2, here))


class Forward:
    """The functions of tensors a pass consists of, over a cache as long as the whole call needs.

    `token_ids` are the needed rows of the output layer, G of them; `head`, float [G, width], is read in each prefill.
    """

    fixed = False  # whether all passes have the same width and number of slots
    prompt_step = 1  # prompts are padded to a multiple of this

    def __init__(self, model: Any, token_ids: Sequence[int], cache: TreeCache):
        self.model_reference = weakref.ref(model)
        self.cache = cache
        weight = model.get_output_embeddings().weight
        self.head_rows = torch.tensor(token_ids, device=weight.device)
        self.head = weight.new_empty(len(token_ids), weight.shape[1], requires_grad=False)

    @property
    def model(self) -> Any:
        """The model; whoever makes passes holds it."""
        return self.model_reference()

    @torch.no_grad()
    def call(self, function: Callable[..., Any], *inputs: Any, layout: Any = None) -> Any:
        """What one of the functions below, or another one of tensors, returns for inputs on any device.

        Args:
            layout: what else than shapes the function depends on.
        """
        if self.head.device.type != "cpu":
            inputs = tuple(on_device(entry, self.head.device) for entry in inputs)
        return function(*inputs)

    def embed(self, ids: torch.Tensor, pictures: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        """Embeddings of ids [B, T] with the pictures in them, and what else the language model takes."""
        return self.model.embed_prompt(ids, **pictures)

    def feed_prompt(
        self, embeds: torch.Tensor, options: dict[str, Any], positions: torch.Tensor, allowed: list[torch.Tensor]
    ) -> torch.Tensor:
        """Feeds a tree of S tokens and a prompt of L, embedded by `embed`; as `feed_tree`."""
        torch.index_select(self.model.get_output_embeddings().weight, 0, self.head_rows, out=self.head)
        for part in self.cache.parts:  # an earlier call's NaN would be in every later product
            part[..., embeds.shape[1] :, :].zero_()
        return self.logits(embeds, options, positions, allowed)[:, : self.cache.scratch]

    def feed_tree(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        allowed: list[torch.Tensor],
        source: torch.Tensor,
        target: torch.Tensor,
    ) -> torch.Tensor:
        """Moves accepted tokens, then feeds a tree; logits float32 [B, W, G].

        Args:
            ids: int64 [B, W].
            positions: int64 [..., B, W], as the language model counts.
            allowed: bool [B, W, slots], what is attended to: by full attention and, where there is one, by sliding.
            source, target: int64 [B, M], slots to be moved, and where to.
        """
        self.move(source, target)
        return self.logits(self.model.get_input_embeddings()(ids), {}, positions, allowed)

    def logits(
        self, embeds: torch.Tensor, options: dict[str, Any], positions: torch.Tensor, allowed: list[torch.Tensor]
    ) -> torch.Tensor:
        """Logits float32 [B, T, G] behind each token fed."""
        self.cache.fed, self.cache.visible = embeds.shape[1], allowed[0].shape[2]
        hidden = self.layers(embeds, options, positions, allowed)
        return capped((hidden[:, : self.cache.scratch] @ self.head.T).float(), self.model.config.text_config)

    def layers(
        self, embeds: torch.Tensor, options: dict[str, Any], positions: torch.Tensor, allowed: list[torch.Tensor]
    ) -> torch.Tensor:
        """The last hidden states, [B, T, width]."""
        masks = [additive_mask(each, self.head.dtype) for each in allowed]
        named = dict(zip(("full_attention", "sliding_attention"), masks))
        return self.model.get_decoder()(
            inputs_embeds=embeds,
            attention_mask=masks[0] if len(masks) == 1 else named,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **options,
        ).last_hidden_state

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """As `TreeCache.move`."""
        self.cache.move(source, target)

    def release(self) -> None:
        """Ends the call; nothing is shared with others."""


class Passes:
    """The passes of one call, and where each row's tokens lie in the cache."""

    def __init__(self, model: Any, prompt: Prompt, forward: Forward):
        self.model, self.forward, cache = model, forward, forward.cache
        length = rounded_up(prompt.ids.shape[1], forward.prompt_step)
        token = int(model.config.image_token_id == 0)  # any but the image's
        self.prompt: Prompt | None = prompt.padded(length, token)  # until it has been fed
        rows, end = len(prompt.ids), cache.scratch + length
        self.seen = np.zeros((rows, cache.slots), dtype=bool)  # slots that hold a token of prompt or action
        self.seen[:, cache.scratch : end] = self.prompt.mask.bool().numpy()
        self.places = np.zeros((rows, cache.slots), dtype=np.int64)  # in their rows, of the tokens in all slots
        self.places[:, cache.scratch : end] = prompt_positions(self.prompt.mask).numpy()
        self.ends = np.full(rows, end)  # of each row's tokens
        self.moves = (torch.zeros(0), torch.zeros(0))  # of the next pass
        self.lead: tuple[int, ...] = ()  # axes of positions besides rows and tokens
        self.shift: torch.Tensor | int = 0  # what the language model adds to places
        text = model.config.text_config
        kinds = getattr(text, "layer_types", None)
        self.always_slides = kinds is None  # if at all: Mistral's window is that of all layers
        slides = kinds is None or "sliding_attention" in kinds
        self.window = getattr(text, "sliding_window", None) if slides else None

    def width(self, widest: int) -> int:
        """The width of a pass in which the widest row feeds so many tokens."""
        return self.forward.cache.scratch if self.forward.fixed or self.prompt is not None else widest

    def run(self, fed: PassInputs) -> torch.Tensor:
        """Logits float32 [B, W, G]."""
        rows, width = fed.ids.shape
        scratch = self.forward.cache.scratch
        self.places[:, :width] = fed.positions
        if self.prompt is not None:
            return self._run_prompt(self.prompt, fed)
        slots = self.forward.cache.slots if self.forward.fixed else self.ends.max()
        allowed = np.zeros((rows, width, slots), dtype=bool)
        allowed[:, :, :width] = fed.tree_mask
        allowed[:, :, scratch:] = self.seen[:, None, scratch:slots]
        inputs = torch.from_numpy(fed.ids), self._positions(fed), self._allowed(allowed), *self.moves
        return self.forward.call(self.forward.feed_tree, *inputs)

    def _run_prompt(self, prompt: Prompt, fed: PassInputs) -> torch.Tensor:
        (rows, scratch), length = fed.ids.shape, prompt.ids.shape[1]
        ids = torch.from_numpy(fed.ids)
        positions, self.shift = self.model.prompt_positions(prompt.ids, prompt.mask.bool(), **prompt.pictures)
        self.lead = positions.shape[:-2]
        positions = torch.cat((self._positions(fed), positions), dim=-1)
        slots = scratch + length
        allowed = np.zeros((rows, slots, slots), dtype=bool)
        allowed[:, :scratch, :scratch] = fed.tree_mask
        allowed[:, :scratch, scratch:] = True
        allowed[:, scratch:, scratch:] = np.tri(length, dtype=bool)
        blocks = None
        found = self.model.prompt_blocks(torch.cat((prompt.ids, ids[:, :1]), dim=1))
        if found is not None:  # between the prompt and its last token, which is in slot 0
            places = np.concatenate(([0], np.arange(scratch, slots)))
            blocks = np.zeros_like(allowed)
            blocks[:, places[:, None], places] = np.roll(found.numpy(), 1, axis=(1, 2))
            allowed |= blocks
        allowed[:, :, scratch:] &= self.seen[:, None, scratch:slots]
        masks = self._allowed(allowed, None if self.model.windows_bound_blocks else blocks)
        ids = torch.cat((ids, prompt.ids), dim=1)
        layout = tuple((ids == self.model.config.image_token_id).sum(dim=1).tolist())
        embeds, options = self.forward.call(self.forward.embed, ids, prompt.pictures, layout=layout)
        return self.forward.call(self.forward.feed_prompt, embeds, options, positions, masks)

    def _positions(self, fed: PassInputs) -> torch.Tensor:
        """Of a tree, as the language model counts."""
        positions = torch.from_numpy(fed.positions) + self.shift
        return positions.expand(*self.lead, -1, -1) if self.lead else positions

    def _allowed(self, allowed: np.ndarray, unbound: np.ndarray | None = None) -> list[torch.Tensor]:
        """What is attended to, bool [B, T, slots], by full attention and, where there is one, by sliding attention, of
        which `unbound` is whatever the window; by sliding attention alone where no layer has another.
        """
        if self.window is None:
            return [torch.from_numpy(allowed)]
        queries, keys = self.places[:, : allowed.shape[1], None], self.places[:, None, : allowed.shape[2]]
        near = queries - keys < self.window
        if unbound is not None:
            near |= unbound
        sliding = torch.from_numpy(allowed & near)
        return [sliding] if self.always_slides else [torch.from_numpy(allowed), sliding]

    def keep(self, paths: list[list[int]]) -> None:
        """Keeps, of the fed slots, those that each row accepted; the next pass moves them."""
        self.prompt = None
        most = self.forward.cache.scratch if self.forward.fixed else max(map(len, paths))
        source, target = np.zeros((2, len(paths), most), dtype=np.int64)  # the same slot twice is no move
        for row, path in enumerate(paths):
            begin, end = self.ends[row], self.ends[row] + len(path)
            source[row, : len(path)], target[row, : len(path)] = path, range(begin, end)
            self.seen[row, begin:end] = True
            self.places[row, begin:end] = self.places[row, path]
            self.ends[row] = end
        self.moves = torch.from_numpy(source), torch.from_numpy(target)


def on_device(entry: Any, device: torch.device) -> Any:
    """A tensor, or each of a list of them, on a device; anything else as it is."""
    if isinstance(entry, list):
        return [each.to(device) for each in entry]
    return entry.to(device) if isinstance(entry, torch.Tensor) else entry


def rounded_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is no less than `number`."""
    return -(-number // step) * step


def capped(logits: torch.Tensor, text_config: Any) -> torch.Tensor:
    """Logits as the stock model changes them behind its output layer."""
    cap = None if is_older(CAPS_LOGITS) else getattr(text_config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def prompt_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions int64 [B, L] of tokens, counted from the first one that is no padding."""
    return (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)


def additive_mask(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What to add to attention scores, [B, 1, queries, keys], for bool [B, queries, keys]. The least number, not minus
    infinity: a row of padding attends to nothing."""
    mask = torch.full(allowed.shape, torch.finfo(dtype).min, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(allowed, 0.0)[:, None]
