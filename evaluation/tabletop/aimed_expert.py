"""How exactly must a policy see? The scripted expert, told that objects are some centimetres from where they are, or
where a vision-language model points.

What it then achieves bounds a policy with the model's eyes: better training of the actions cannot make up for places
that are wrong. The places are off by as much at every step of an episode.
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
    """Where a model points in the first picture of each episode, from where both objects are: float [2, 2] in metres;
    `None` if an answer is no point."""
    found: list[np.ndarray | None] = []
    for first in tqdm(range(0, len(jobs), BATCH), unit="batch", desc="pointing"):
        images, questions, scenes = [], [], []
        for job in jobs[first : first + BATCH]:
            env.reset(*job.start)
            assert isinstance(env.layout, Layout)
            places = np.array([[thing.x, thing.y] for thing in env.layout.objects])
            scenes.append((env.look.camera, places))
            images += [Image.fromarray(env.render())] * 2
            questions += [f"Point to the {thing.name}." for thing in env.layout.objects]
        points = [point_in(answer) for answer in answer_questions(model, processor, images, questions)]
        for index, (camera, places) in enumerate(scenes):
            both = [camera.on_plane(point, GRASP_HEIGHT) for point in points[2 * index :][:2] if point is not None]
            found.append(np.stack(both) - places if len(both) == 2 else None)
    return found


def evaluate_aim(
    jobs: Sequence[TabletopJob], offs: Sequence[np.ndarray | None], env: TabletopEnv, name: str
) -> dict[str, Any]:
    """Plays every episode; without places it fails -> `{"scores": by mode, "off_cm": by mode, how far the object that
    is to be taken was off: median and 90th percentile, `None` where that is no point; answers that were none}`."""
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
    model: Any, processor: Any, name: str, modes: Sequence[Mode], tasks: Sequence[Task], episodes: int
) -> dict[str, Any]:
    """`evaluate_aim` of where a model points, with so many episodes per task, and per variant a twelfth."""
    jobs = [
        job
        for mode in modes
        for job in plan_jobs((mode,), tasks, max(episodes // 12, 1) if mode in LOOKS else episodes)
    ]
    env = TabletopEnv(processor.image_processor.image_size)
    return evaluate_aim(jobs, pointed_off(model, processor, env, jobs), env, name)


def finite(value: np.floating) -> float | None:
    return round(float(value), 2) if np.isfinite(value) else None
