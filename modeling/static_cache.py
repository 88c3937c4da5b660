"""Keys and values of tree decoding in buffers whose shapes never change (`static_plan.py`).

    slots    0 ... W - 1          the draft tree of the current pass, in every row alike
             W ... W + L - 1      the prompt, left-padded
             W + L ...            accepted tokens, as many as each row has

A pass writes where the last one did, so its slots are the same in every row and known beforehand. Accepted tokens are
moved behind the rest at the beginning of the next pass.
"""

from typing import Any

import torch


class StaticTreeCache:
    """Buffers of all layers, with what attention layers and models of transformers use of a cache when the attention
    mask and the positions are given.

    Args:
        shape: layers, rows, heads of keys, slots, width of a head.
        scratch: W above.

    Attributes:
        buffer: [layers, 2, rows, heads, slots, width], keys and values.
        written: int64 [T], the slots the next T keys go to.
        visible: attention gets the slots before this one.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], scratch: int, dtype: torch.dtype, device: torch.device):
        layers, *rest = shape
        # Zeros, since a masked slot still takes part in a product, and 0 times an uninitialised number could be NaN.
        self.buffer = torch.zeros((layers, 2, *rest), dtype=dtype, device=device)
        self.scratch, self.slots = scratch, shape[3]
        self.written = torch.arange(scratch, device=device)
        self.visible = self.slots

    def feed_prompt(self, length: int) -> None:
        """Prepares a pass that writes a prompt of `length` tokens and a tree behind it, and sees no more than these.

        What an earlier call left behind them is cleared: a NaN there would be in every later product.
        """
        slots = torch.arange(self.scratch + length, device=self.buffer.device)
        self.written = slots.roll(-self.scratch)
        self.visible = self.scratch + length
        self.buffer[:, :, :, :, self.visible :].zero_()

    def feed_tree(self) -> None:
        """Prepares a pass that writes a tree and sees all slots."""
        self.written = torch.arange(self.scratch, device=self.buffer.device)
        self.visible = self.slots

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Visible keys and values, [rows, heads, visible slots, width] each, views of the buffer."""
        keys, values = self.buffer[index, :, :, :, : self.visible]
        return keys, values

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Writes [rows, heads, T, width]; returns `layer(layer_idx)`."""
        for buffer, new in zip(self.buffer[layer_idx], (keys, values)):
            buffer.index_copy_(2, self.written, new)
        return self.layer(layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Always 0: the true length differs from row to row, and positions and masks are always given."""
        return 0

    def allowed(self, tree_mask: torch.Tensor, starts: torch.Tensor, not_padding: torch.Tensor) -> torch.Tensor:
        """Which slots the tokens of a tree attend to, bool [rows, W, slots].

        Args:
            tree_mask: bool [rows, W, W], among themselves.
            starts: int64 [rows, 1], where each row's accepted tokens end.
            not_padding: bool [rows, slots], false where the prompt is padded.
        """
        kept = (torch.arange(self.slots, device=starts.device) < starts) & not_padding
        kept = kept[:, None, self.scratch :].expand(-1, tree_mask.shape[1], -1)
        return torch.cat((tree_mask, kept), dim=2)


def cache_shape(text_config: Any, batch: int, capacity: int) -> tuple[int, int, int, int, int]:
    """Layers, rows, heads of keys, slots, width of a head."""
    width = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return text_config.num_hidden_layers, batch, text_config.num_key_value_heads, capacity, width
