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
    check_version(
        version,
        OLDEST,
        "this model",
        "OpenVLA's own code needs an older one, and this model does not need it: use a new environment",
    )


def check_version(version: str, oldest: tuple[int, int], what: str, advice: str) -> None:
    """Raises `ImportError` for a version older than `oldest`, which `what` needs; `advice` ends its message."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < oldest:
        wanted = ".".join(map(str, oldest))
        raise ImportError(
            f"got transformers {version}, expected {wanted} or newer for {what}: "
            f"pip install 'transformers>={wanted}'. {advice}"
        )


check_transformers(transformers.__version__)
