"""Record LIBERO demonstrations of the scripted expert, in layouts that LIBERO draws by a seed and no trial has.

Columns are those of the tabletop's demonstrations; the picture is of the camera that looks at the table. Actions are
robosuite's.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gen_vla.evaluation.libero.environment import HERTZ, HORIZONS, UNITS, LiberoEnvironment, Observation
from gen_vla.evaluation.libero.expert import LiberoExpert
from gen_vla.evaluation.recording import rows
from gen_vla.evaluation.recording.rows import DemonstrationJob, Rows, as_image, demonstrate


class DemonstratedLayout:
    """An episode as `rows.demonstrate` plays it."""

    def __init__(self, environment: LiberoEnvironment, seen: Observation):
        self.environment, self.seen = environment, seen
        self.expert = LiberoExpert(environment.simulation)

    def expert_action(self) -> np.ndarray:
        """Float32 [7]."""
        return self.expert.act().astype(np.float32)

    def step(self, action: np.ndarray) -> bool:
        """Whether the task is done."""
        self.seen, done = self.environment.step(np.clip(action, -1.0, 1.0))
        return done

    def observe(self) -> dict[str, Any]:
        """What is seen, by column."""
        return {"image": as_image(self.seen.pictures["agentview"]), "state": self.seen.state.astype(np.float32)}


@lru_cache(maxsize=1)
def _environment(image_size: int) -> LiberoEnvironment:
    return LiberoEnvironment(image_size)


def record_episode(job: DemonstrationJob) -> Rows | None:
    """One demonstration as rows, or None when the disturbed expert did not finish in time.

    Raises:
        UnknownTaskError: for a task that the expert does not know.
    """
    environment = _environment(job.image_size)
    suite, _, number = job.task.partition("/")
    seen, instruction = environment.begin_layout(suite, int(number), job.seed)
    episode = DemonstratedLayout(environment, seen)
    random = np.random.default_rng([job.seed, 3])
    return demonstrate(episode, episode.observe, [instruction], random, job.noise, HORIZONS[suite], max_move=1.0)


def record_libero(
    output_dir: str | Path,
    tasks: Sequence[str] = ("spatial/0", "spatial/1"),
    episodes_per_task: int = 20,
    seed: int = 0,
    workers: int = 2,
    image_size: int = 96,
    noise: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """`rows.record_demonstrations` (`options` are passed on) of LIBERO.

    Args:
        tasks: each a suite and a number in it, such as `spatial/0`.
    """
    for task in tasks:
        suite, _, number = task.partition("/")
        if suite not in HORIZONS or not number.isdigit():
            known = ", ".join(HORIZONS)
            raise ValueError(f"got the task {task!r}, expected one of {known} and a number in it, such as spatial/0")
    first = DemonstrationJob(tasks[0], seed, image_size, noise, paraphrase=False)
    return rows.record_demonstrations(
        output_dir,
        record_episode,
        first,
        "LIBERO demonstrations",
        tasks,
        episodes_per_task,
        HERTZ,
        UNITS,
        workers=workers,
        **options,
    )
