"""Who acts on the tabletop: a model, or one of the controls it is compared with.

expert   the script that reads the simulator's state: the ceiling
zero     stays where it is
random   a random move per policy step
blind    the expert that does not know where along x anything is: skill without sight
deaf     the expert that does one of the six things a scene offers, whatever it is told: skill without words
"""

import hashlib
from typing import Any

import numpy as np

from gen_vla.evaluation.policies.malformed_actions import wrote_no_action
from gen_vla.evaluation.policies.rollout import (
    Moment,
    VLAPolicy,
    blind_expert_policy,
    expert_policy,
    random_policy,
    zero_policy,
)
from gen_vla.evaluation.simulation.rollouts import Actions, SimulationPolicy


def deaf_expert_policy(images: list[np.ndarray], instructions: list[str], moments: list[Moment]) -> np.ndarray:
    """The expert that guesses what to do: float32 [B, 7]."""
    return np.stack([moment.deaf_expert for moment in moments if moment.deaf_expert is not None])


CONTROLS: dict[str, SimulationPolicy] = {
    "expert": expert_policy,
    "random": random_policy,
    "zero": zero_policy,
    "blind": blind_expert_policy,
    "deaf": deaf_expert_policy,
}


class ModelPolicy:
    """A model whose text may fail to be an action: then that observation, and no other, gets None."""

    def __init__(self, model: Any, processor: Any, unnorm_key: str):
        self._policy = VLAPolicy(model, processor, unnorm_key)

    def __call__(self, images: list[np.ndarray], instructions: list[str], moments: list[Moment]) -> Actions:
        try:
            return self._policy(images, instructions, moments)
        except ValueError as error:
            if not wrote_no_action(error):
                raise
        if len(images) == 1:
            return [None]
        single = [self([i], [t], [m]) for i, t, m in zip(images, instructions, moments, strict=True)]
        return [actions[0] for actions in single]


def choose_unnorm_key(model: Any, unnorm_key: str | None) -> str:
    """The statistics whose units the model's actions get: the key asked for, or the only one.

    Raises:
        ValueError: if the key is unknown, or none was given and there are several.
    """
    keys = list(model.config.norm_stats)
    if unnorm_key is None and len(keys) == 1:
        return keys[0]
    if unnorm_key is None or unnorm_key not in keys:
        raise ValueError(f"got unnorm_key {unnorm_key!r}, expected one of {', '.join(keys)}")
    return unnorm_key


def fingerprint(model: Any) -> str:
    """Differs for models with other weights, so that a retrained model does not continue its predecessor's results."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        some = weight.detach().reshape(-1)[:256].float().cpu().numpy()
        digest.update(name.encode() + str(tuple(weight.shape)).encode() + some.tobytes())
    return digest.hexdigest()[:16]
