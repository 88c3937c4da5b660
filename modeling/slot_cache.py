"""Keys and values in buffers whose shapes never change.

Decides: how large they are, where a row's keys and values lie. Refuses to know: what is in a tree, what is recorded
(`static_plan.py`).

    slots    0 ... W - 1          the tree of the pass under way, in every row alike
             W ... W + L - 1      the prompt, left-padded
             W + L ...            what was accepted, row by row as much as there is

A pass writes where the last one did, so its slots are the same in every row and known beforehand. What it accepted
is moved behind the rest at the beginning of the next pass.
"""

from typing import Any

import torch


class SlotCache:
    """Buffers for all layers.

    Args:
        shape: layers, rows, heads of keys, slots, width of a head.
        scratch: W above.

    It has what transformers' attention layers and models use of a cache when the mask and the positions are given.

    Attributes:
        buffer: [layers, 2, rows, heads, slots, width], keys and values.
        written: int64 [T], the slots the next T keys go to.
        visible: attention gets the slots before this one.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], scratch: int, dtype: torch.dtype, device: torch.device):
        layers, *rest = shape
        # Zeros, since a masked slot still takes part in a product, and 0 times nothing sensible could be NaN.
        self.buffer = torch.zeros((layers, 2, *rest), dtype=dtype, device=device)
        self.scratch, self.slots = scratch, shape[3]
        self.written = torch.arange(scratch, device=device)
        self.visible = self.slots

    def feed_prompt(self, length: int) -> None:
        """The next pass writes a prompt of `length` tokens and a tree behind it, and sees no more than these.

        What an earlier call left behind them is cleared: were it NaN, it would be so in every later product.
        """
        slots = torch.arange(self.scratch + length, device=self.buffer.device)
        self.written = slots.roll(-self.scratch)
        self.visible = self.scratch + length
        self.buffer[:, :, :, :, self.visible :].zero_()

    def feed_tree(self) -> None:
        """The next pass writes a tree and sees all slots."""
        self.written = torch.arange(self.scratch, device=self.buffer.device)
        self.visible = self.slots

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values that may be attended to, [rows, heads, visible slots, width] each, views of the buffer."""
        keys, values = self.buffer[index, :, :, :, : self.visible]
        return keys, values

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Writes [rows, heads, T, width]; returns `layer(layer_idx)`."""
        for buffer, new in zip(self.buffer[layer_idx], (keys, values)):
            buffer.index_copy_(2, self.written, new)
        return self.layer(layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Not what is kept, which differs from row to row: positions and masks are always given."""
        return 0

    def allowed(self, sight: torch.Tensor, starts: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Whom the tokens of a tree see, bool [rows, W, slots].

        Args:
            sight: bool [rows, W, W], among themselves.
            starts: int64 [rows, 1], where each row's kept slots end.
            real: bool [rows, slots], false where the prompt is padded.
        """
        kept = (torch.arange(self.slots, device=starts.device) < starts) & real
        kept = kept[:, None, self.scratch :].expand(-1, sight.shape[1], -1)
        return torch.cat((sight, kept), dim=2)


def cache_shape(text_config: Any, batch: int, capacity: int) -> tuple[int, int, int, int, int]:
    """Layers, rows, heads of keys, slots, width of a head."""
    width = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return text_config.num_hidden_layers, batch, text_config.num_key_value_heads, capacity, width
