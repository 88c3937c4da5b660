"""What evaluation has to know of the flow-matching π0: it starts from noise, and writes no text.

Noise belongs to a step of an episode, not to a batch: a suite that goes on after a stop, or runs other episodes beside
it, gives the same actions.
"""

import hashlib
from collections.abc import Sequence
from typing import Any


FLOW = "pi0_flow"  # its `model_type`


def starting_noise(model: Any, steps: Sequence[str]) -> dict[str, Any]:
    """The argument `noise` of `predict_actions`, a row per name of a step; empty for other families."""
    if model.config.model_type != FLOW:
        return {}
    import torch  # here, so that simulator processes do not load it

    seeds = [int.from_bytes(hashlib.blake2b(step.encode(), digest_size=7).digest(), "little") for step in steps]
    return {"noise": torch.cat([model.draw_noise(1, torch.Generator().manual_seed(seed)) for seed in seeds])}


def check_answers(config: Any) -> None:
    """Raises `ValueError` for the configuration of a model that writes no text."""
    if config.model_type == FLOW:
        raise ValueError(
            "got a flow-matching π0, expected a model that answers questions: it has no output layer for words. Ask "
            "the vision-language model it comes from, or evaluate pi0-plus"
        )
