"""Position embeddings of an encoder's patches that begin as sines and cosines of row and column."""

from typing import Any

import torch


@torch.no_grad()
def start_with_sines(encoder: Any) -> None:
    """Overwrites the patches' position embeddings of a DINOv2 or a SigLIP encoder of transformers."""
    embeddings = encoder.embeddings
    if hasattr(embeddings, "position_embedding"):
        places = embeddings.position_embedding.weight
    else:
        places = embeddings.position_embeddings[0, 1:]  # the first one is CLS's
    places.copy_(sine_positions(round(len(places) ** 0.5), places.shape[1]))


def sine_positions(grid: int, width: int) -> torch.Tensor:
    """float32 [grid x grid, width]: half of the channels for the row, half for the column, as in MAE."""
    if width % 4:
        raise ValueError(f"got encoders of width {width}, expected a multiple of 4 for positions of sines and cosines")
    angles = torch.arange(grid)[:, None] / 100.0 ** (torch.arange(width // 4) / (width // 4))
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line.repeat_interleave(grid, dim=0), line.repeat(grid, 1)
    return torch.cat([rows, columns], dim=1)
