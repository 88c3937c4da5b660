"""Are objects seen exactly enough to act? The scripted expert, told that objects are centimetres from their place, or
that they are where a vision-language model points.

The expert knows its own hand exactly, and objects stay off by as much during an episode: a policy that looks at every
step has to see its hand, too, and can correct itself.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from gen_vla.evaluation.simulation.actions import from_simulator_action
from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.experts import expert_move
from gen_vla.evaluation.simulation.layouts import GRASP_HEIGHT, Layout, Task
from gen_vla.evaluation.simulation.rollouts import Ending
from gen_vla.evaluation.tabletop.episodes import LOOKS, EpisodeLog, Mode, TabletopJob, plan_jobs
from gen_vla.evaluation.tabletop.scores import summarise
from gen_vla.evaluation.vqa.scene_questions import answer_questions, point_in


BATCH = 25  # scenes whose questions are asked at once


def play(env: TabletopEnv, job: TabletopJob, off: np.ndarray) -> Ending:
    """An episode of an expert that takes objects to be `off`, float [2, 2] (x, y) in metres, from where they are."""
    env.reset(*job.start)
    for step in range(1, job.max_steps + 1):
        view = env.view()
        believed = replace(view, objects=view.objects + np.pad(off, ((0, 0), (0, 1))))
        if env.step(from_simulator_action(expert_move(env.goal, believed))):
            return Ending("success", step, 1)
    return Ending("failure", job.max_steps, 1)


def aim_off(seed: int, metres: float) -> np.ndarray:
    """So far from both objects of a layout, float [2, 2] in metres, each in a direction of its own."""
    angles = np.random.default_rng([seed, 8]).uniform(0, 2 * np.pi, 2)
    return metres * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def pointed_off(model: Any, processor: Any, env: TabletopEnv, jobs: Sequence[TabletopJob]) -> list[np.ndarray | None]:
    """How far from the objects a model points in the first picture of each episode, float [2, 2] in metres. `None` if
    it does not point into the picture; it is asked for both objects only where both are needed.
    """
    found: list[np.ndarray | None] = []
    for first in tqdm(range(0, len(jobs), BATCH), unit="batch", desc="pointing"):
        images, questions, asked = [], [], []
        for episode, job in enumerate(jobs[first : first + BATCH]):
            env.reset(*job.start)
            assert isinstance(env.layout, Layout)
            picture = Image.fromarray(env.render())
            for index in (0, 1) if job.task == "move_near" else (env.goal.source,):
                thing = env.layout.objects[index]
                images.append(picture)
                questions.append(f"Point to the {thing.name}.")
                asked.append((episode, index, thing, env.look.camera))
        offs = np.zeros((len(jobs[first : first + BATCH]), 2, 2))
        answers = answer_questions(model, processor, images, questions)
        for (episode, index, thing, camera), answer in zip(asked, answers, strict=True):
            point = point_in(answer)
            inside = point is not None and ((point >= 0) & (point <= 1)).all()
            place = camera.on_plane(point, GRASP_HEIGHT) if inside else np.nan
            offs[episode, index] = place - np.array([thing.x, thing.y])
        found += [None if np.isnan(off).any() else off for off in offs]
    return found


def evaluate_aim(
    jobs: Sequence[TabletopJob], offs: Sequence[np.ndarray | None], env: TabletopEnv, name: str
) -> dict[str, Any]:
    """Plays every episode; one without places is a failure.

    Returns:
        `scores` by mode, as of the suite `tabletop`; `off_cm` by mode: how far the object to be taken was off, its
        `median` and 90th percentile `p90` (`None` where there was no point), and episodes with `no_point`.
    """
    log, by_mode = EpisodeLog(None, {}), {}
    for job, off in tqdm(list(zip(jobs, offs, strict=True)), unit="episode", desc=name):
        log.finish(job, Ending("failure", 0, 1, "no point") if off is None else play(env, job, off))
        if off is None:
            by_mode.setdefault(job.mode, []).append(np.inf)
        else:
            by_mode.setdefault(job.mode, []).append(100 * float(np.linalg.norm(off[env.goal.source])))
    figures = {
        mode: {
            "median": finite(np.quantile(cm, 0.5, method="higher")),
            "p90": finite(np.quantile(cm, 0.9, method="higher")),
            "no_point": int(np.isinf(cm).sum()),
        }
        for mode, cm in by_mode.items()
    }
    return {"scores": summarise(log.of(jobs)), "off_cm": figures}


def evaluate_points(
    model: Any, processor: Any, modes: Sequence[Mode], tasks: Sequence[Task], episodes: int, image_size: int
) -> dict[str, Any]:
    """`evaluate_aim` of where a model points, with so many episodes per task, and per variant a twelfth."""
    jobs = [
        job
        for mode in modes
        for job in plan_jobs((mode,), tasks, max(episodes // 12, 1) if mode in LOOKS else episodes)
    ]
    env = TabletopEnv(image_size)
    return evaluate_aim(jobs, pointed_off(model, processor, env, jobs), env, "where the model points")


def finite(value: np.floating) -> float | None:
    return round(float(value), 2) if np.isfinite(value) else None
