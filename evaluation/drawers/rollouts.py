"""Judges a policy on the Meta-World drawers: success per task with Wilson's intervals, refused actions counted.

The episodes themselves are run by `simulation/rollouts.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from gen_vla.evaluation.drawers.environment import (
    INSTRUCTIONS,
    MAX_POLICY_STEPS,
    TASKS,
    DrawerEnv,
    Start,
    Task,
    Variation,
)
from gen_vla.evaluation.policies.rollout import Moment, Policy
from gen_vla.evaluation.simulation.actions import ACTION_REPEAT
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS
from gen_vla.evaluation.simulation.rollouts import Ending, EpisodeJob, run_episodes
from gen_vla.evaluation.simulation.simulators import Simulators
from gen_vla.evaluation.statistics.intervals import wilson_interval


class BothDrawerTasks:
    """The environments of both tasks as one that is told the task when it is reset."""

    def __init__(self, image_size: int, variation: Variation, start: Start):
        self._setting = image_size, variation, start
        self._environments: dict[Task, DrawerEnv] = {}

    def reset(self, task: Task, seed: int) -> None:
        if task not in self._environments:
            self._environments[task] = DrawerEnv(task, *self._setting)
        self._current = self._environments[task]
        self._current.reset(seed)

    def step(self, action: np.ndarray) -> bool:
        return self._current.step(action)

    def render(self, size: int | None = None) -> np.ndarray:
        return self._current.render(size)

    def expert_actions(self) -> tuple[np.ndarray, np.ndarray]:
        return self._current.expert_actions()


@dataclass(frozen=True)
class DrawerEpisode:
    """One judged episode; `steps` are policy steps taken, `refusal` why the last action could not be carried out."""

    task: str
    seed: int
    success: bool
    steps: int
    refusal: str | None = None


@dataclass(frozen=True)
class DrawerScore:
    """Successes of n episodes with Wilson's 95 % interval; `median_steps` of the successes."""

    successes: int
    n: int
    interval: tuple[float, float]
    refused: int
    median_steps: float | None


@dataclass
class DrawerReport:
    """What `evaluate_policy` found: scores by task, every episode, and under which settings."""

    policy: str
    scores: dict[str, DrawerScore]
    episodes: list[DrawerEpisode]
    settings: dict[str, Any]
    seconds: float
    policy_seconds: float
    policy_steps: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def drawer_job(task: Task, seed: int, max_steps: int = MAX_POLICY_STEPS) -> EpisodeJob:
    """An episode in `BothDrawerTasks`."""
    return EpisodeJob(task, seed, INSTRUCTIONS[task], max_steps, (task, seed))


def evaluate_policy(
    policy: Policy,
    tasks: Sequence[Task] = TASKS,
    seeds: Sequence[int] = EVALUATION_SEEDS[:50],
    *,
    name: str = "policy",
    batch_size: int = 16,
    workers: int = 2,
    image_size: int = 96,
    variation: Variation = "modest",
    start: Start = "stock",
    max_steps: int = MAX_POLICY_STEPS,
    progress: bool = True,
) -> DrawerReport:
    """Every task on every seed, `batch_size` episodes at a time.

    Raises:
        ValueError: for seeds that are not for evaluation, or actions of a wrong shape.
        RuntimeError: if the simulator crashes twice in an episode.
    """
    others = [seed for seed in seeds if seed not in EVALUATION_SEEDS]
    if others or not len(seeds):
        raise ValueError(f"got seeds {others[:5]}, expected at least one and all in {EVALUATION_SEEDS}")
    jobs = [drawer_job(task, int(seed), max_steps) for task in tasks for seed in seeds]
    found: dict[EpisodeJob, DrawerEpisode] = {}

    def finish(job: EpisodeJob, ending: Ending) -> None:
        if ending.outcome == "crashed":
            raise RuntimeError(f"the simulator crashed: {ending.detail}; try workers=1 to see why")
        found[job] = DrawerEpisode(job.task, job.seed, ending.outcome == "success", ending.steps, ending.detail)

    def checked(images: list[np.ndarray], instructions: list[str], moments: list[Moment]) -> np.ndarray:
        actions = np.asarray(policy(images, instructions, moments))
        if actions.shape != (len(images), 7):
            raise ValueError(f"got actions of shape {actions.shape} from the policy, expected {(len(images), 7)}")
        return actions.astype(np.float32)

    with Simulators(workers, partial(BothDrawerTasks, image_size, variation, start)) as simulators:
        pace = run_episodes(checked, jobs, simulators, finish, batch_size=batch_size, name=None, progress=progress)
    episodes = [found[job] for job in jobs]
    settings = {"image_size": image_size, "variation": variation, "start": start, "seeds": [int(s) for s in seeds]}
    settings |= {"max_steps": max_steps, "action_repeat": ACTION_REPEAT, "batch_size": batch_size, "workers": workers}
    scores: dict[str, DrawerScore] = {task: _score([e for e in episodes if e.task == task]) for task in tasks}
    return DrawerReport(
        name, scores, episodes, settings, round(pace.seconds, 2), round(pace.policy_seconds, 2), pace.steps
    )


def _score(episodes: list[DrawerEpisode]) -> DrawerScore:
    steps = [e.steps for e in episodes if e.success]
    low, high = wilson_interval(len(steps), len(episodes))
    refused = sum(e.refusal is not None for e in episodes)
    median = float(np.median(steps)) if steps else None
    return DrawerScore(len(steps), len(episodes), (round(low, 4), round(high, 4)), refused, median)
