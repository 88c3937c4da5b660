"""A label for every image token of a recorded picture, to pretrain towers with.

Recorded questions say where each object's middle is (`storage/recordings.py`, column `objects`); a grid of patches of
any size is laid over that:

    . . . .      objects: a red can at u 0.30, v 0.55; a blue mug at u 0.80, v 0.95
    . . . .      grid 4 -> colours[0, 9] = 1 + red, shapes[0, 9] = 1 + can, offsets[0, 9] = (0.2, 0.2)
    . R . .                colours[0, 15] = 1 + blue, ..., all others 0: no object's middle lies there
    . . . B
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class TokenLabels(NamedTuple):
    """Per token, row by row from the top left: int64 [B, N] colour and shape, float32 [B, N, 2] offset (u, v).

    Colours and shapes are 0 for no object, else one more than their number in `recording.json`. An offset is 0..1
    within the patch from its left and top, 0 where there is no object.
    """

    colours: np.ndarray
    shapes: np.ndarray
    offsets: np.ndarray


def token_labels(objects: Sequence[Sequence[Mapping[str, float]]], grid: int) -> TokenLabels:
    """The labels of B pictures on a grid of grid x grid patches, N in all.

    Args:
        objects: of each picture, objects with `colour`, `shape`, `u`, `v`; of two in one patch the later one counts,
            which recordings have nearer to the camera.
    """
    if grid < 1:
        raise ValueError(f"got a grid of {grid} patches a side, expected at least 1")
    labels = TokenLabels(
        np.zeros((len(objects), grid**2), dtype=np.int64),
        np.zeros((len(objects), grid**2), dtype=np.int64),
        np.zeros((len(objects), grid**2, 2), dtype=np.float32),
    )
    found = [(row, o["colour"], o["shape"], o["u"], o["v"]) for row, those in enumerate(objects) for o in those]
    if not found:
        return labels
    rows, colours, shapes, *places = np.array(found).T
    places = grid * np.stack(places, axis=1)
    inside = ((places >= 0) & (places < grid)).all(axis=1)
    cells = np.floor(places).astype(np.int64)
    index = rows.astype(np.int64)[inside], (grid * cells[:, 1] + cells[:, 0])[inside]
    labels.colours[index], labels.shapes[index] = 1 + colours[inside], 1 + shapes[inside]
    labels.offsets[index] = (places - cells)[inside]
    return labels
