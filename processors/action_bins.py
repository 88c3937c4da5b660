"""Robot actions as bin numbers, OpenVLA's representation and the baseline to action strings.

256 edges from -1 to 1 enclose 255 bins; a bin stands for its centre. Bin 255 holds the value 1 alone and stands for
the same centre as bin 254:

    value    -1.0 .. -0.9922   ...   -0.0039 .. 0.0039   ...   0.9922 .. 0.9999    1.0
    bin      0                       127                       254                 255
    centre   -0.9961                 0.0                       0.9961              0.9961

The text of an action, which results and logs show, is its bin numbers, `"127 254 0"`, one line per step of a chunk;
the model writes one token per bin instead.
"""

import re
from typing import Any

import numpy as np

from .action_strings import (
    ActionStringError,
    ActionStringProcessor,
    by_representation,
    check_sizes,
    checked_chunk,
    read_keys,
)


class ActionBins:
    """Encodes normalised actions as bins and decodes them; the counterpart of `ActionStringProcessor`.

    Args:
        action_dim: D, the number of action dimensions.
        horizon: T, the number of steps in one action.
        bins: number of bins, which is also the number of edges.

    `clipped` counts, per dimension, the values `encode` had to clip to [-1, 1] since construction.
    """

    lead_in = " "  # as in OpenVLA's training; a token of its own in Llama's vocabulary (29871)

    def __init__(self, action_dim: int = 7, horizon: int = 1, bins: int = 256):
        check_sizes(action_dim=action_dim, horizon=horizon)
        check_sizes(3, bins=bins)
        self.action_dim = action_dim
        self.horizon = horizon
        self.bins = bins
        self.clipped = np.zeros(action_dim, dtype=np.int64)
        self.edges = np.linspace(-1.0, 1.0, bins)
        self.centres = (self.edges[:-1] + self.edges[1:]) / 2.0

    @classmethod
    def from_action_config(cls, action_config: dict[str, Any]) -> "ActionBins":
        """Builds the codec a saved `action_config` describes."""
        return cls(**read_keys(action_config, "action_dim", "horizon", "bins"))

    def encode(self, actions: Any) -> str:
        """The text of one action or chunk, float [D] (horizon 1) or [T, D], normalised to [-1, 1]."""
        return "\n".join(" ".join(map(str, step)) for step in self.to_bins(actions).tolist())

    def decode(self, text: str) -> np.ndarray:
        """Float32 [T, D] of a text that `encode` wrote; raises `ActionStringError` on any other."""
        return self.to_values(self.read(text))

    def to_bins(self, actions: Any) -> np.ndarray:
        """Bins int64 [T, D] of actions float [D] or [T, D]; refuses and clips as `ActionStringProcessor.encode`."""
        chunk = checked_chunk(actions, self.horizon, self.action_dim)
        self.clipped += (np.abs(chunk) > 1.0).sum(axis=0)
        return np.digitize(np.clip(chunk, -1.0, 1.0), self.edges) - 1

    def to_values(self, bins: Any) -> np.ndarray:
        """The centres, float32 [T, D], of bins int [T, D]."""
        return self.centres[np.clip(np.asarray(bins), 0, len(self.centres) - 1)].astype(np.float32)

    def read(self, text: str) -> np.ndarray:
        """Bins int64 [T, D] of a text; raises `ActionStringError` unless it has the form `encode` gives it."""
        number = r"(?:0|[1-9]\d*)"
        step = " ".join([number] * self.action_dim)
        if not isinstance(text, str) or not re.fullmatch("\n".join([step] * self.horizon), text, re.ASCII):
            raise ActionStringError(
                f"got {text!r}, expected {self.horizon} lines of {self.action_dim} bin numbers separated by spaces"
            )
        bins = np.array(text.split(), dtype=np.int64).reshape(self.horizon, self.action_dim)
        if bins.max() >= self.bins:
            raise ActionStringError(f"got bin {bins.max()}, expected 0 to {self.bins - 1}")
        return bins


def codec_from_action_config(action_config: dict[str, Any]) -> ActionStringProcessor | ActionBins:
    """The codec of a saved `action_config`."""
    return by_representation(action_config, string=ActionStringProcessor, bins=ActionBins)
