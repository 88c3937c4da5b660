"""Policies that act in the simulator: a model as one, and controls to compare it with. A policy is any function

    policy(images: B x uint8 [H, W, 3], instructions: B strings, moments: B Moments) -> B x float32 [7]

or None in place of an action that it failed to give, with actions as in `gen_vla.evaluation.simulation.actions`. Of a
`Moment` a model may use the robot's state; the rest is for controls.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gen_vla.evaluation.policies.cameras import check_one_camera
from gen_vla.evaluation.policies.flow import starting_noise
from gen_vla.evaluation.policies.malformed_actions import actions_or_none
from gen_vla.evaluation.policies.states import check_state, state_arguments
from gen_vla.evaluation.simulation.actions import MAX_MOVE
from gen_vla.evaluation.simulation.layouts import other_instruction


NONSENSE = "colourless ideas sleep furiously"
STATE_WIDTH = 4  # of `Moment.state`


class Moment(NamedTuple):
    """Where an episode stands. `state` is the robot's, float32 [4]: the hand (m) and how far the fingers are apart (0
    to 1). The experts' actions, float32 [7], are for the controls of the same names."""

    task: str
    seed: int
    step: int
    state: np.ndarray
    expert: np.ndarray
    blind_expert: np.ndarray
    deaf_expert: np.ndarray


Actions = Sequence[np.ndarray | None] | np.ndarray
Policy = Callable[[list[np.ndarray], list[str], list[Moment]], Actions]


def random_policy(images: list[np.ndarray], instructions: list[str], moments: list[Moment]) -> np.ndarray:
    """Uniform moves, each held for one policy step; the same for the same seed and step, whatever the batch."""
    actions = np.zeros((len(moments), 7), dtype=np.float32)
    for action, moment in zip(actions, moments, strict=True):
        rng = np.random.default_rng([moment.seed, moment.step, 5])
        action[:3], action[6] = rng.uniform(-MAX_MOVE, MAX_MOVE, 3), rng.integers(2)
    return actions


CONTROLS: dict[str, Policy] = {
    "expert": lambda images, instructions, moments: [m.expert for m in moments],
    "random": random_policy,
    "zero": lambda images, instructions, moments: np.zeros((len(moments), 7), dtype=np.float32),
    "blind": lambda images, instructions, moments: [m.blind_expert for m in moments],
    "deaf": lambda images, instructions, moments: [m.deaf_expert for m in moments],
}


def with_expert(policy: Policy, dims: list[int]) -> Policy:
    """The policy, with the values `dims` of each action from the expert: what is left for the model to do?"""

    def act(images: list[np.ndarray], instructions: list[str], moments: list[Moment]) -> Actions:
        actions = [None if action is None else action.copy() for action in policy(images, instructions, moments)]
        for action, moment in zip(actions, moments, strict=True):
            if action is not None:
                action[dims] = moment.expert[dims]
        return actions

    return act


# The model itself: shown a grey picture, told the opposite, told nothing that means anything; helped by the expert.
ALTERED: dict[str, Callable[[Policy], Policy]] = {
    "blank": lambda policy: lambda images, *rest: policy([np.full_like(image, 128) for image in images], *rest),
    "swapped": lambda policy: (
        lambda images, _, moments: policy(images, [other_instruction(m.task, m.seed) for m in moments], moments)
    ),
    "nonsense": lambda policy: lambda images, _, moments: policy(images, [NONSENSE] * len(images), moments),
    "expert_xy": partial(with_expert, dims=[0, 1]),
    "expert_z": partial(with_expert, dims=[2]),
    "expert_gripper": partial(with_expert, dims=[6]),
}


class VLAPolicy:
    """A model and its processor as a policy; of a predicted chunk the first action is carried out. Raises `ValueError`
    for a model of several cameras, or one that takes another robot's state."""

    def __init__(self, model: Any, processor: Any, unnorm_key: str):
        check_one_camera(processor, "the simulation")
        check_state(processor, unnorm_key, STATE_WIDTH, "the simulation")
        self.model, self.processor, self.unnorm_key = model, processor, unnorm_key

    def __call__(self, images: list[np.ndarray], instructions: list[str], moments: list[Moment]) -> Actions:
        return actions_or_none(self._predict, list(zip(images, instructions, moments, strict=True)))

    def _predict(self, rows: Sequence[tuple[np.ndarray, str, Moment]]) -> np.ndarray:
        """Float32 [B, 7]."""
        import torch  # here, so that simulator processes do not load it

        images, instructions, moments = (list(column) for column in zip(*rows, strict=True))
        state = state_arguments(self.processor, [moment.state for moment in moments], self.unnorm_key)
        inputs = self.processor.action_inputs([Image.fromarray(image) for image in images], instructions, **state)
        noise = starting_noise(self.model, [f"{moment.task} {moment.seed} {moment.step}" for moment in moments])
        predicted = self.model.predict_actions(**inputs.to(self.model.device), unnorm_key=self.unnorm_key, **noise)
        actions = predicted.actions[:, 0]
        return torch.as_tensor(actions).float().cpu().numpy()
