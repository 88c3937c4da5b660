"""Record tabletop demonstrations, by default all in the home look, in one wording per task.

`recording.json` lists the digests of all layouts shown, which `gen-vla evaluate tabletop --trained-on FOLDER` refuses
to judge. How rows are written is in `recording/rows.py`.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from gen_vla.evaluation.recording import rows
from gen_vla.evaluation.recording.rows import DemonstrationJob, Rows, as_image, demonstrate
from gen_vla.evaluation.simulation import layouts
from gen_vla.evaluation.simulation.actions import HERTZ, UNITS
from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.layouts import TASKS, Task
from gen_vla.evaluation.simulation.looks import LookSet, look_of
from gen_vla.training.mixing.instruction_augmentation import paraphrases
from gen_vla.training.recipes.data_schema import did_you_mean


PER_PROCESS = 8  # episodes at least: fewer are recorded before another process has started


@lru_cache(maxsize=2)
def _environment(image_size: int) -> TabletopEnv:
    return TabletopEnv(image_size)


def record_episode(job: DemonstrationJob) -> Rows | None:
    """One demonstration as rows, or None: the disturbed expert did not finish in time, or the job is `familiar` and
    the layout has a thing of NEW_WORDS."""
    if job.familiar and layouts.sample_layout(job.seed).words & layouts.NEW_WORDS:
        return None
    env, task = _environment(job.image_size), cast(Task, job.task)
    instruction = env.reset(task, job.seed, look_of(job.looks, job.seed))
    wordings = [instruction, *(paraphrases(instruction) if job.paraphrase else ())]
    random = np.random.default_rng([job.seed, 3])

    def observe() -> dict[str, Any]:
        return {"image": as_image(env.render()), "state": env.robot_state()}

    return demonstrate(env, observe, wordings, random, job.noise, layouts.MAX_STEPS[task])


def record_demonstrations(
    output_dir: str | Path,
    episodes_per_task: int = 200,
    seed: int = 0,
    workers: int = 2,
    image_size: int = 96,
    noise: bool = True,
    *,
    paraphrase: bool = False,
    looks: LookSet = "home",
    familiar: bool = False,
    tasks: Sequence[Task] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`rows.record_demonstrations` (`options` are passed on) of the tabletop; without `tasks`, of all four.

    With `familiar`, layouts with a thing of NEW_WORDS are skipped, which the mode `new_objects` judges.

    Raises:
        ValueError: for a task that it does not have.
    """
    tasks = tasks or TASKS
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(f"got the tasks {', '.join(unknown)}; {did_you_mean(unknown[0], TASKS)}")
    return rows.record_demonstrations(
        output_dir,
        record_episode,
        DemonstrationJob(tasks[0], seed, image_size, noise, paraphrase, looks, familiar),
        "tabletop demonstrations",
        tasks,
        episodes_per_task,
        HERTZ,
        UNITS,
        workers=min(workers, 1 + episodes_per_task * len(tasks) // PER_PROCESS),
        **options,
        describe=describe_layouts,
    )


def describe_layouts(seeds: list[int]) -> dict[str, Any]:
    """What must not be judged: the digests of layouts, and the colours and shapes of what stands in them."""
    words = set().union(*(layouts.sample_layout(seed).words for seed in seeds))
    return {"layouts": sorted(layouts.layout_digests(seeds)), "objects": sorted(words)}
