"""Who acts in LIBERO: a model of one camera or two, and the controls beside it."""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from gen_vla.evaluation.libero.environment import WAIT, LiberoTrial, Observation
from gen_vla.evaluation.libero.expert import LiberoExpert
from gen_vla.evaluation.libero.grippers import robosuite_actions
from gen_vla.evaluation.policies.cameras import camera_names
from gen_vla.evaluation.policies.flow import starting_noise
from gen_vla.evaluation.policies.malformed_actions import wrote_no_action
from gen_vla.evaluation.policies.states import state_arguments
from gen_vla.evaluation.simpler.policy import MalformedActionError, checked_chunk


# One episode of a policy: what is seen -> the next action, float [7], as the environment takes it.
Act = Callable[[Observation], np.ndarray]
WRIST = ("wrist", "hand", "image2")  # parts of what copies of LIBERO call the camera on the wrist


class LiberoModel:
    """A model and its processor.

    Args:
        unnorm_key: the data set whose units actions have; by default that of the suite, as in OpenVLA's evaluation,
            or the only one.
        steps: of a chunk that are carried out before the model is asked again; by default all.

    Raises:
        ValueError: for more than two cameras, or ones that cannot be told apart.
    """

    def __init__(self, model: Any, processor: Any, unnorm_key: str | None = None, steps: int | None = None):
        self.model, self.processor, self.unnorm_key = model, processor, unnorm_key
        self.cameras = libero_cameras(camera_names(processor))
        self.several = camera_names(processor) is not None
        horizon = model.config.action_config["horizon"]
        self.steps = steps or horizon
        if not 1 <= self.steps <= horizon:
            raise ValueError(f"got {self.steps} steps of a chunk, expected 1 to {horizon}, the model's horizon")

    def begin(self, trial: LiberoTrial, instruction: str, simulation: Any) -> Act:
        """An episode."""
        statistics = self.model.get_action_stats(self.key_of(trial.task))
        waiting: list[np.ndarray] = []
        asked = 0

        def act(seen: Observation) -> np.ndarray:
            nonlocal waiting, asked
            if not waiting:
                name = f"{trial.name} {asked}"
                waiting = list(
                    robosuite_actions(self._predict(seen, instruction, trial, name), statistics)[: self.steps]
                )
            asked += 1
            return waiting.pop(0)

        return act

    def key_of(self, suite: str) -> str | None:
        """The data set whose units a suite's actions have."""
        known = list(self.model.config.norm_stats or {})
        names = [f"libero_{suite}", f"libero_{suite}_no_noops"]
        return self.unnorm_key or next((name for name in names if name in known), None)

    def _predict(self, seen: Observation, instruction: str, trial: LiberoTrial, name: str) -> np.ndarray:
        pictures = [Image.fromarray(seen.pictures[camera]) for camera in self.cameras]
        shown = [pictures] if self.several else pictures
        key = self.key_of(trial.task)
        state = state_arguments(self.processor, [seen.state], key)
        inputs = self.processor.action_inputs(shown, [instruction], **state).to(self.model.device)
        noise = starting_noise(self.model, [name])
        try:
            found = self.model.predict_actions(**inputs, unnorm_key=key, **noise)
        except ValueError as error:
            if wrote_no_action(error):
                raise MalformedActionError(str(error)) from error
            raise
        return checked_chunk(found.actions[0])


def libero_cameras(names: list[str] | None) -> list[str]:
    """Which of LIBERO's two pictures each of a model's cameras is shown; raises `ValueError` where it is not clear."""
    if names is None:
        return ["agentview"]
    found = ["wrist" if any(part in name.lower() for part in WRIST) else "agentview" for name in names]
    if len(set(found)) < len(found):
        raise ValueError(
            f"got a model of the cameras {', '.join(names)}, expected at most one that looks at the table and one on "
            f"the wrist, whose name has one of {', '.join(WRIST)} in it"
        )
    return found


def zero(trial: LiberoTrial, instruction: str, simulation: Any) -> Act:
    """Stays where it is, the gripper open."""
    return lambda seen: np.array(WAIT)


def random(trial: LiberoTrial, instruction: str, simulation: Any) -> Act:
    """A random move and turn per step, open or closed; the same for the same trial."""
    generator = np.random.default_rng(zlib.crc32(trial.name.encode()))
    return lambda seen: np.append(generator.uniform(-1, 1, 6), generator.choice([-1.0, 1.0]))


def expert(trial: LiberoTrial, instruction: str, simulation: Any) -> Act:
    """The script that reads the simulator's state; raises `UnknownTaskError` for tasks it cannot do."""
    script = LiberoExpert(simulation)
    return lambda seen: script.act()


CONTROLS = {"expert": expert, "random": random, "zero": zero}
