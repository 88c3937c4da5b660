"""What a conversion of weights is made of: for every tensor of the result, where it comes from.

Decides: the form of such a plan, and that a checkpoint fits it exactly or is refused with the list of what does not
fit. Refuses to know: any architecture (`convert_*_weights.py`), files. Nothing that ships imports this file.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch


class ConversionError(ValueError):
    """A checkpoint that cannot be converted; says what was found and what was expected."""


@dataclass(frozen=True)
class Piece:
    """Where a tensor of the result comes from.

    Attributes:
        source: the tensor read, or `None` for one that the checkpoint does not have.
        part, parts: the share of its rows.
        change: what is done to it then.
        made: gives a tensor without a source; by default it is zeros.
    """

    source: str | None
    part: int = 0
    parts: int = 1
    change: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor
    made: Callable[[], torch.Tensor] | None = None


def depth(names: Iterable[str], stem: str) -> int:
    """The number of blocks, from the highest number in a tensor's name; gaps are found as missing tensors."""
    numbers = re.compile(re.escape(stem) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for name in names if (match := numbers.match(name))), default=-1)


def require(shapes: dict[str, tuple[int, ...]], names: Iterable[str], owner: str) -> None:
    """Raises `ConversionError` if a tensor that tells a size is missing."""
    missing = [name for name in names if name not in shapes]
    if missing:
        raise ConversionError(
            f"got a checkpoint without {', '.join(missing)}, expected {owner}'s tensors; the download may be "
            "incomplete, or the architecture another"
        )


def refuse(missing: Iterable[str], unexpected: Iterable[str], owner: str) -> None:
    """Raises `ConversionError` with every tensor that is missing and every one that nobody expects, if any."""
    missing, unexpected = sorted(missing), sorted(unexpected)
    if missing or unexpected:
        raise ConversionError(
            f"got a checkpoint with {len(missing)} missing and {len(unexpected)} unexpected tensors\n"
            + "".join(f"  missing:    {name}\n" for name in missing)
            + "".join(f"  unexpected: {name}\n" for name in unexpected)
            + f"expected {owner}'s tensors, each once; the download may be incomplete, or the architecture another"
        )
