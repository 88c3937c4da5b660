"""Stops an import under a transformers that lacks π0's architecture, in words.

Decides: the oldest version the flow-matching family runs with, which is the oldest it was tested with. Refuses to
know: everything else. The other families run with older ones (`transformers_version.py`).
"""

import transformers

from .transformers_version import check_version


OLDEST_WITH_PI0 = (5, 17)


def check_pi0(version: str) -> None:
    """Raises `ImportError` for a version older than `OLDEST_WITH_PI0`."""
    check_version(
        version,
        OLDEST_WITH_PI0,
        "the flow-matching π0",
        "That version brings its architecture; the other model families run with older ones",
    )


check_pi0(transformers.__version__)

from transformers import PI0Config, PI0ForConditionalGeneration  # noqa: E402


__all__ = ["PI0Config", "PI0ForConditionalGeneration"]
