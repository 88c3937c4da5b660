"""Who else acts in SimplerEnv: the controls a model is compared with, and that say whether SimplerEnv works.

Decides: which controls there are and which tasks each can do. Refuses to know: how the expert does them
(`simpler/expert.py`), how trials are run, scores.

    expert   the script that reads the simulator's state: simulator, controller and axes are as a policy is told
    random   a random move, turn and opening per step, the same for the same trial
    zero     stays where it is; the widowx closes its fingers

Each predicts what a model does (metres, radians, 1 for open), and goes through the same adapter.
"""

import zlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from gen_vla.evaluation.simpler.expert import KNOWN_TASKS, PACES, Script, plan
from gen_vla.evaluation.simpler.policy import Robot
from gen_vla.evaluation.simpler.runs import Make
from gen_vla.evaluation.simpler.scene import read_hand, read_things
from gen_vla.evaluation.simpler.trials import TASKS, Trial


RANDOM_MOVE, RANDOM_TURN = 0.02, 0.1  # metres and radians per step at most, in each direction


class Control(Protocol):
    """Predicts as a model does, and is told which trial begins."""

    def begin(self, environment: Any, trial: Trial) -> None:
        """A trial in an environment that is not yet reset."""
        ...

    def __call__(self, image: np.ndarray, instruction: str) -> np.ndarray:
        """Float64 [1, 7]."""
        ...


class ExpertControl:
    """Plans when it is first asked: then everything stands where it stands."""

    def __init__(self, robot: Robot):
        self.pace = PACES[robot]

    def begin(self, environment: Any, trial: Trial) -> None:
        self.simulator, self.trial = environment.unwrapped, trial
        self.script: Script | None = None

    def __call__(self, image: np.ndarray, instruction: str) -> np.ndarray:
        hand = read_hand(self.simulator)
        if self.script is None:
            things = read_things(self.simulator, self.trial)
            self.script = Script(plan(self.trial.task, hand, things, self.pace.fingers), self.pace)
        return self.script.step(hand)[None]


class RandomControl:
    """Uniform moves and turns, open or closed fingers."""

    def __init__(self, robot: Robot):
        self.most = np.repeat([RANDOM_MOVE, RANDOM_TURN], 3)

    def begin(self, environment: Any, trial: Trial) -> None:
        self.random = np.random.default_rng(zlib.crc32(trial.name.encode()))

    def __call__(self, image: np.ndarray, instruction: str) -> np.ndarray:
        return np.append(self.random.uniform(-self.most, self.most), self.random.integers(2))[None].astype(float)


class ZeroControl:
    """All seven numbers are 0."""

    def __init__(self, robot: Robot):
        pass

    def begin(self, environment: Any, trial: Trial) -> None:
        pass

    def __call__(self, image: np.ndarray, instruction: str) -> np.ndarray:
        return np.zeros((1, 7))


CONTROLS: dict[str, Callable[[Robot], Control]] = {
    "expert": ExpertControl,
    "random": RandomControl,
    "zero": ZeroControl,
}


def unknown_tasks(control: str, robot: Robot) -> list[str]:
    """The tasks of a robot that a control cannot do."""
    return [task for task in TASKS[robot] if control == "expert" and task not in KNOWN_TASKS]


def announced(make: Make, control: Control) -> Make:
    """`make`, that tells the control about every environment it makes."""

    def make_and_tell(trial: Trial) -> Any:
        environment = make(trial)
        control.begin(environment, trial)
        return environment

    return make_and_tell
