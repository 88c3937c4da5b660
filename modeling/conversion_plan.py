"""Plans of weight conversions: where each tensor of the result comes from. It never ships to the Hub."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch


Shapes = dict[str, tuple[int, ...]]  # of tensors by name


class ConversionError(ValueError):
    """A checkpoint that cannot be converted; says what was found and what was expected."""


@dataclass(frozen=True)
class Piece:
    """Where a tensor of the result comes from."""

    source: str | None  # the tensor read, or `None` for one that the checkpoint does not have, which is zeros
    part: int = 0  # of so many parts, the share of its rows
    parts: int = 1
    change: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor  # what is done to it then


def count_blocks(names: Iterable[str], stem: str) -> int:
    """The number of blocks, from the highest number in a tensor's name; gaps are found as missing tensors."""
    numbers = re.compile(re.escape(stem) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for name in names if (match := numbers.match(name))), default=-1)


def require_tensors(shapes: Shapes, names: Iterable[str], owner: str) -> None:
    """Raises `ConversionError` if a tensor that sizes are read from is missing."""
    missing = [name for name in names if name not in shapes]
    if missing:
        raise ConversionError(
            f"got a checkpoint without {', '.join(missing)}, expected {owner}'s tensors; the download may be "
            "incomplete, or the architecture another"
        )


def check_tensors(missing: Iterable[str], unexpected: Iterable[str], owner: str) -> None:
    """Raises `ConversionError` with every missing and every unexpected tensor, if any."""
    missing, unexpected = sorted(missing), sorted(unexpected)
    if missing or unexpected:
        raise ConversionError(
            f"got a checkpoint with {len(missing)} missing and {len(unexpected)} unexpected tensors\n"
            + "".join(f"  missing:    {name}\n" for name in missing)
            + "".join(f"  unexpected: {name}\n" for name in unexpected)
            + f"expected {owner}'s tensors, each once; the download may be incomplete, or the architecture another"
        )


def language_model_sizes(shapes: Shapes, stem: str, heads: int) -> dict[str, int]:
    """Sizes of a Llama or Gemma as its configuration names them; raises `ConversionError` for impossible ones."""
    vocab_size, hidden_size = shapes[f"{stem}.embed_tokens.weight"]
    queries, keys = (shapes[f"{stem}.layers.0.self_attn.{name}_proj.weight"][0] for name in ("q", "k"))
    if queries % heads or keys % (queries // heads):
        raise ConversionError(f"got {queries} query and {keys} key rows, expected whole heads of {heads}")
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": shapes[f"{stem}.layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": count_blocks(shapes, f"{stem}.layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys // (queries // heads),
        "head_dim": queries // heads,
    }
