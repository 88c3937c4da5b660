"""What towers are pretrained on: at every image token, whose middle lies there and where in the patch.

    dino     colour and shape of an object apart, as a detector's heads
    siglip   its name, "red can", one of all, since SigLIP is the tower that saw words
    both     the middle's place within the patch, and how far the drawer is open where its handle is

The heads are thrown away. Labels come from `vision_language_data/token_labels.py`.
"""

from typing import NamedTuple

import torch
from torch import nn


NOTHING_WEIGHT = 0.1  # of the tokens where nothing is, of which there are ten times as many or more
PLACE_WEIGHT = 2.0


class TokenTargets(NamedTuple):
    """Per image token: int64 [B, N] colour and shape, 0 for nothing; float32 [B, N, 2] place; float32 [B] opening.

    The last colour and shape are the drawer handle's.
    """

    colours: torch.Tensor
    shapes: torch.Tensor
    places: torch.Tensor
    openings: torch.Tensor


class TokenHead(nn.Module):
    """One tower's head.

    Args:
        colours, shapes: how many there are, nothing and the handle included.
        named: whether an object is one of colours x shapes names, not a colour and a shape.
    """

    def __init__(self, width: int, colours: int, shapes: int, named: bool):
        super().__init__()
        self.sizes = (colours * shapes,) if named else (colours, shapes)
        self.shapes, self.named = shapes, named
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, sum(self.sizes) + 3)

    def forward(self, features: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Features [B, N, width] -> logits per question [B, N, classes]; place and opening [B, N, 3]."""
        *logits, numbers = self.out(self.norm(features)).split([*self.sizes, 3], dim=-1)
        return logits, numbers

    def loss(self, features: torch.Tensor, targets: TokenTargets) -> torch.Tensor:
        logits, numbers = self(features)
        there = targets.colours > 0
        handle = targets.shapes == self.shapes - 1
        wanted = (targets.colours * self.shapes + targets.shapes,) if self.named else (targets.colours, targets.shapes)
        weights = torch.where(there, 1.0, NOTHING_WEIGHT)
        total = (
            sum(
                (nn.functional.cross_entropy(found.transpose(1, 2), right, reduction="none") * weights).sum()
                for found, right in zip(logits, wanted)
            )
            / weights.sum()
        )
        total = total + PLACE_WEIGHT * _distance(numbers[..., :2][there], targets.places[there])
        opening = targets.openings[:, None].expand_as(there)
        return total + _distance(numbers[..., 2][handle], opening[handle])

    @torch.no_grad()
    def right(self, features: torch.Tensor, targets: TokenTargets) -> dict[str, torch.Tensor]:
        """At the tokens of objects: bool whether colour and shape are right, float distance in patches."""
        logits, numbers = self(features)
        there = (targets.colours > 0) & (targets.shapes < self.shapes - 1)
        if self.named:
            name = logits[0].argmax(-1)
            colours, shapes = name // self.shapes, name % self.shapes
        else:
            colours, shapes = (found.argmax(-1) for found in logits)
        return {
            "colour": (colours == targets.colours)[there],
            "shape": (shapes == targets.shapes)[there],
            "place": (numbers[..., :2] - targets.places)[there].norm(dim=-1),
        }


def _distance(found: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if not found.numel():
        return found.sum()
    return nn.functional.smooth_l1_loss(found, right, beta=0.1)
