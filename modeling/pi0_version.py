"""Stops an import under a transformers that lacks π0's architecture, in words.

Decides: what the flow-matching family needs, and how its absence is told. Refuses to know: everything else. The other
families run with less (`transformers_version.py`).
"""

import transformers


try:
    from transformers import PI0Config, PI0ForConditionalGeneration
except ImportError as error:
    raise ImportError(
        f"got transformers {transformers.__version__}, expected 5.17 or newer for the flow-matching π0, whose "
        "architecture it brings: pip install 'transformers>=5.17'; the other model families run with older ones"
    ) from error

__all__ = ["PI0Config", "PI0ForConditionalGeneration"]
