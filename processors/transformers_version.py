"""Stops an import under a transformers that is too old, in words.

Decides: the oldest version this code runs with. Refuses to know: everything else.

OpenVLA's own requirements pin transformers 4.40.1, where a repository of this family would fail deep inside with
`KeyError: 'dinov2_with_registers'` or a file that is not found. Imported by what transformers opens first.
"""

import re

import transformers


OLDEST = (4, 57)


def check_transformers(version: str) -> None:
    """Raises `ImportError` for a version older than `OLDEST`."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(
            f"got transformers {version}, expected {oldest} or newer: pip install 'transformers>={oldest}'. OpenVLA's "
            "own code needs an older one, and this model does not need that code: use a new environment"
        )


check_transformers(transformers.__version__)
