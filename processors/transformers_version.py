"""Raises an understandable `ImportError` under a transformers that is too old.

OpenVLA's own requirements pin transformers 4.40.1, where a repository of this family would fail deep inside with
`KeyError: 'dinov2_with_registers'` or a missing file. Imported by the files that transformers opens first.
"""

import re

import transformers


OLDEST = (4, 57)
OLDEST_WITH_PI0 = (5, 17)  # the oldest that the flow-matching family was tested with
OLDEST_WITH_VLM = (5, 5)  # before it, stock vision-language models return features or count positions otherwise
OLDEST_WITH_CAPPED_VLM = (5, 23)  # before it, those over Gemma 2 leave its cap on logits out


def check_version(version: str, oldest: tuple[int, int], what: str, advice: str) -> None:
    """Raises `ImportError` for a version older than `oldest`, which `what` needs; `advice` ends its message."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < oldest:
        wanted = ".".join(map(str, oldest))
        raise ImportError(
            f"got transformers {version}, expected {wanted} or newer for {what}: "
            f"pip install 'transformers>={wanted}'. {advice}"
        )


def check_transformers(version: str) -> None:
    """Raises `ImportError` for a version older than `OLDEST`."""
    advice = "OpenVLA's own code needs an older one, and this model does not need it: use a new environment"
    check_version(version, OLDEST, "this model", advice)


def check_pi0(version: str) -> None:
    """Raises `ImportError` for a version older than `OLDEST_WITH_PI0`."""
    advice = "That version brings its architecture; the other model families run with older ones"
    check_version(version, OLDEST_WITH_PI0, "the flow-matching π0", advice)


def check_vlm(version: str) -> None:
    """Raises `ImportError` for a version older than `OLDEST_WITH_VLM`."""
    check_version(version, OLDEST_WITH_VLM, "a stock VLM", "The other model families run with older ones")


def check_capped_vlm(version: str) -> None:
    """Raises `ImportError` for a version older than `OLDEST_WITH_CAPPED_VLM`."""
    check_version(version, OLDEST_WITH_CAPPED_VLM, "PaliGemma 2", "The other families run with older ones")


check_transformers(transformers.__version__)
