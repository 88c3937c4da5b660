"""Random numbers of a row: the same for the same seed, purpose and row, in whichever process and order it is read."""

import hashlib

import numpy as np


def row_generator(seed: int, purpose: str, row: int | str) -> np.random.Generator:
    """A generator of a row's own.

    Args:
        seed: of the run.
        purpose: keeps what is drawn for one thing apart from what is drawn for another.
        row: the row's place in the run. Its identity does as well, but then every epoch draws the same.
    """
    key = hashlib.blake2b(f"{seed}\0{purpose}\0{row}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(key, "little"))
