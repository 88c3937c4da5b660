"""A model as a policy of SimplerEnv.

A predicted action becomes what the two simulated robots are sent as their published policies do it:

    predicted   x y z (metres)  roll pitch yaw (radians)  gripper (1 = open, 0 = closed)
    sent        x y z           axis times angle          google_robot: change, +1 closes, -1 opens, held for 15 steps
                                                          widowx:       +1 open, -1 closed

An action that cannot be sent (wrong shape, NaN, infinity) raises `MalformedActionError`; nothing is made up for it.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from gen_vla.evaluation.policies.cameras import check_one_camera
from gen_vla.evaluation.policies.flow import starting_noise
from gen_vla.evaluation.policies.malformed_actions import wrote_no_action
from gen_vla.evaluation.policies.states import check_no_state


Robot = Literal["google_robot", "widowx"]
Predict = Callable[[np.ndarray], np.ndarray]  # uint8 [H, W, 3] to float [T, 7], in units, T steps beginning now

UNNORM_KEYS: dict[str, str] = {"google_robot": "fractal20220817_data", "widowx": "bridge_orig"}
STICKY_STEPS = 15  # how often a large change of the google_robot's gripper is sent


class MalformedActionError(ValueError):
    """The policy wrote no action that could be sent to the robot."""


class SimplerPolicy:
    """What one episode's pictures become: actions as the simulator takes them. `action_ensemble` averages what the
    last T predictions say about the present step, instead of taking the newest."""

    def __init__(self, predict: Predict, robot: Robot, action_ensemble: bool = False):
        self.predict, self.robot, self.action_ensemble = predict, robot, action_ensemble
        self.predictions: list[np.ndarray] = []
        self.opening: np.ndarray | None = None
        self.held, self.held_steps = np.zeros(1), 0

    def step(self, image: np.ndarray) -> np.ndarray:
        """Uint8 [H, W, 3] to float64 [7]; raises `MalformedActionError` if the prediction is no action."""
        values = self._current(checked_chunk(self.predict(image)))
        opening = values[6:]
        gripper = self._change(opening) if self.robot == "google_robot" else 2.0 * (opening > 0.5) - 1.0
        return np.concatenate([values[:3], axis_angle(*values[3:6]), gripper])

    def _current(self, chunk: np.ndarray) -> np.ndarray:
        """The action for now, float64 [7]: the newest prediction's first, or the mean over those that reach so far."""
        if not self.action_ensemble:
            return chunk[0]
        self.predictions = [chunk, *self.predictions][: len(chunk)]
        return np.mean([past[age] for age, past in enumerate(self.predictions)][::-1], axis=0)

    def _change(self, opening: np.ndarray) -> np.ndarray:
        """Opening [1] (1 = open) to the google_robot's change [1], +1 to close: a large one is repeated until the
        fingers have arrived."""
        change = np.zeros(1) if self.opening is None else self.opening - opening
        self.opening = opening
        if not self.held_steps and abs(change[0]) > 0.5:
            self.held, self.held_steps = change, STICKY_STEPS
        if not self.held_steps:
            return change
        self.held_steps -= 1
        return self.held


def checked_chunk(chunk: Any) -> np.ndarray:
    """Float64 [T, 7], or `MalformedActionError` saying what was there instead."""
    values = np.asarray(chunk, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] != 7:
        raise MalformedActionError(f"got an action of shape {values.shape}, expected (steps, 7)")
    if not np.isfinite(values).all():
        raise MalformedActionError(f"got the action {values[0].tolist()}, expected finite numbers")
    return values


def axis_angle(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Rotations about the fixed axes x, then y, then z (radians) as one rotation: axis times angle, float64 [3]."""
    return Rotation.from_euler("xyz", [roll, pitch, yaw]).as_rotvec()


class ModelPrediction:
    """A model and its processor; actions are in the units of `unnorm_key`, by default the robot's real twin's. Raises
    `ValueError` if the model has no statistics of that data set, several cameras, takes the robot's state, or has
    actions of other than 7 dimensions."""

    def __init__(self, model: Any, processor: Any, robot: Robot, unnorm_key: str | None = None):
        check_one_camera(processor, "SimplerEnv")
        check_no_state(processor, "SimplerEnv")
        self.unnorm_key = unnorm_key or UNNORM_KEYS[robot]
        known = model.config.norm_stats or {}
        if self.unnorm_key not in known:
            raise ValueError(
                f"got a model without statistics of {self.unnorm_key!r}, expected them for {robot}; it has "
                f"{', '.join(known) or 'none'}: name one of them with --unnorm-key if its units are metres and radians"
            )
        if model.get_action_dim(self.unnorm_key) != 7:
            raise ValueError(f"got actions of {model.get_action_dim(self.unnorm_key)} dimensions, expected 7")
        self.model, self.processor = model, processor

    def begin(self, trial: Any, instruction: str, simulator: Any) -> Predict:
        return lambda image: self(image, instruction)

    def __call__(self, image: np.ndarray, instruction: str) -> np.ndarray:
        """Uint8 [H, W, 3] to float32 [T, 7]; text that is no action is malformed. What begins with noise
        (`policies/flow.py`) begins with the same for the same picture and words."""
        inputs = self.processor.action_inputs(Image.fromarray(image), instruction).to(self.model.device)
        try:
            begin = starting_noise(self.model, [f"{instruction} {image.tobytes().hex()}"])
            return self.model.predict_actions(**inputs, unnorm_key=self.unnorm_key, **begin).actions[0]
        except ValueError as error:
            if wrote_no_action(error):
                raise MalformedActionError(str(error)) from error
            raise
