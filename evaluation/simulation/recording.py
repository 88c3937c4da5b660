"""Record tabletop demonstrations, and questions about tabletop scenes for co-training.

Decides: what an episode is recorded from, how scenes for questions are drawn, that answers are balanced. Refuses to
know: what is asked (`questions.py`), how rows are kept (`simulated_rows.py`), models, prompts, normalisation.

    gen-vla record tabletop demonstrations outputs/tabletop --episodes-per-task 200
    gen-vla record tabletop questions outputs/tabletop-questions --count 4000
    gen-vla record tabletop questions outputs/tabletop-held-out --count 400 --seed 1000000

    demonstrations  image, instruction, action float32 [7] (see `gen_vla.evaluation.simulation.environment`), task,
                    episode_index, frame_index, seed
    questions       image, question, answer (one word), kind, seed

An episode and a question depend on their own seed alone, so any number of workers records the same bytes. Pictures
have the ordinary looks: the variants are for evaluation. `recording.json` lists the digests of all layouts shown in
demonstrations, which `gen-vla evaluate tabletop --trained-on FOLDER` refuses to judge.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from gen_vla.evaluation.simulation.environment import TabletopEnv


# The camera chooses the graphics backend, so it comes before whatever loads mujoco.
# isort: split

import numpy as np

from gen_vla.evaluation.drawers.environment import DRAWER_TRAVEL
from gen_vla.evaluation.simulation.layouts import (
    COLOURS,
    EVALUATION_SEEDS,
    GOALS,
    MAX_STEPS,
    SHAPES,
    TASKS,
    TRAIN_SEEDS,
    Layout,
    Task,
    draw_layout,
    layout_digests,
)
from gen_vla.evaluation.simulation.looks import CAMERA
from gen_vla.evaluation.simulation.questions import KINDS, SceneFacts
from gen_vla.evaluation.simulation.scene import GRASP_HEIGHT
from gen_vla.evaluation.simulation.simulated_rows import (
    QuestionJob,
    Rows,
    Workers,
    check_seed,
    claim_folder,
    collect_episodes,
    demonstrate,
    demonstration_features,
    frames_of,
    png,
    record_scene_questions,
    save_rows,
)
from gen_vla.training.mixing.instruction_augmentation import paraphrases


HANDLE_REACH, HANDLE_HEIGHT = 0.17, 0.09  # metres from the drawer's place to its handle when shut
LEAST_SHARE = 0.0008  # of the picture: about ten pixels of an object or the handle at 112 px
MOST_MOVES = 10  # policy steps of an expert before a question's picture: the robot is anywhere in its work


@dataclass(frozen=True)
class EpisodeJob:
    """Everything one demonstration depends on."""

    task: Task
    seed: int
    image_size: int
    noise: bool
    paraphrase: bool


@lru_cache(maxsize=2)
def _environment(image_size: int) -> TabletopEnv:
    return TabletopEnv(image_size)


def record_episode(job: EpisodeJob) -> Rows | None:
    """One demonstration as rows, or None when the disturbed expert did not finish in time."""
    env = _environment(job.image_size)
    instruction = env.reset(job.task, job.seed)
    wordings = [instruction, *(paraphrases(instruction) if job.paraphrase else ())]
    rows = demonstrate(env, wordings, np.random.default_rng([job.seed, 3]), job.noise, MAX_STEPS[job.task])
    return rows and [{**row, "task": job.task, "seed": job.seed} for row in rows]


def record_demonstrations(
    output_dir: str | Path,
    episodes_per_task: int = 200,
    seed: int = 0,
    workers: int = 2,
    image_size: int = 112,
    noise: bool = True,
    *,
    paraphrase: bool = False,
    tasks: tuple[Task, ...] = TASKS,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Record `episodes_per_task` successful episodes of every task -> the metadata written beside them.

    Candidates are tried in the order of their seeds and the first that succeed are kept.
    """
    output = claim_folder(output_dir, overwrite)
    if episodes_per_task < 1:
        raise ValueError(f"got episodes_per_task {episodes_per_task}, expected at least 1")
    began = time.perf_counter()

    def make_job(task: str, number: int) -> EpisodeJob:
        check_seed(seed + number, TRAIN_SEEDS)
        return EpisodeJob(cast(Task, task), seed + number, image_size, noise, paraphrase)

    with Workers(workers) as pool:
        kept, tried = collect_episodes(pool, record_episode, make_job, tasks, episodes_per_task, progress)
    frames = frames_of(kept)
    seeds = sorted({row["seed"] for row in frames})
    metadata = {
        "content": "tabletop demonstrations",
        "frames": len(frames),
        "episodes": {task: len(kept[task]) for task in tasks},
        "candidates": tried,
        "seeds": [seeds[0], seeds[-1]],
        "first_job": asdict(EpisodeJob(tasks[0], seed, image_size, noise, paraphrase)),
        "layouts": sorted(layout_digests(seeds)),
    }
    return save_rows(output, frames, demonstration_features(), metadata, began)


def scene_facts(layout: Layout, rng: np.random.Generator) -> SceneFacts:
    """What the picture of a layout shows, worked out without simulating it."""
    front = layout.drawer[1] - HANDLE_REACH - DRAWER_TRAVEL * layout.opening
    handle = np.array([layout.drawer[0], front, HANDLE_HEIGHT])
    first, second = (np.array([thing.x, thing.y, GRASP_HEIGHT]) for thing in layout.objects)
    near = [float(np.hypot(*(spot - handle)[:2])) for spot in (first, second)]
    there = [thing.name for thing in layout.objects]
    absent = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES if f"{colour} {shape}" not in there]
    asked = str(rng.choice(there if rng.random() < 0.5 else absent))
    places = CAMERA.image_position(first), CAMERA.image_position(second)
    return SceneFacts(layout, places, CAMERA.image_position(handle), (near[0], near[1]), asked, int(rng.integers(2)))


def record_question(job: QuestionJob) -> dict[str, Any]:
    """One picture with one question whose answer the picture shows: scenes are drawn until kind and answer fit."""
    name = list(KINDS)[job.seed % len(KINDS)]
    kind = KINDS[name]
    wanted = kind.answers[job.seed // len(KINDS) % len(kind.answers)]
    env, rng = _environment(job.image_size), np.random.default_rng([job.seed, 7])
    while True:
        facts = scene_facts(_any_opening(draw_layout(rng), rng), rng)
        if kind.answer(facts) == wanted and _pose_and_see(env, facts.layout, rng):
            break
    question = str(rng.choice(kind.wordings)).format(**facts.names)
    image = {"bytes": png(env.render()), "path": None}
    return {"image": image, "question": question, "answer": wanted, "kind": name, "seed": job.seed}


def _any_opening(layout: Layout, rng: np.random.Generator) -> Layout:
    """Two drawers of five are shut, the others anywhere from half open on."""
    return replace(layout, opening=0.0 if rng.random() < 0.4 else float(rng.uniform(0.45, 1.0)))


def _pose_and_see(env: TabletopEnv, layout: Layout, rng: np.random.Generator) -> bool:
    """Sets the scene up with the robot on its way to one of the objects -> whether the picture still shows it all."""
    env.arrange(layout)
    env.goal = GOALS[rng.integers(2)]
    for _ in range(rng.integers(MOST_MOVES + 1)):
        env.step(env.expert_action())
    state = env.state()
    if (
        np.abs(state.objects - state.starts).max() > 0.01
    ):  # it has been taken or pushed: no longer what the layout says
        return False
    masks = env.segmentation(112)
    return all(masks[name].mean() >= LEAST_SHARE for name in ("object0", "object1", "handle"))


def record_questions(
    output_dir: str | Path,
    count: int = 4000,
    seed: int = 0,
    workers: int = 2,
    *,
    image_size: int = 112,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Record `count` pictures with a question each -> metadata with the majority baseline of every kind.

    Seeds `seed .. seed + count - 1` lie wholly in TRAIN_SEEDS or wholly in EVALUATION_SEEDS (the held-out split).
    """
    return record_scene_questions(
        output_dir,
        record_question,
        "tabletop questions",
        range(seed, seed + count),
        {"train": TRAIN_SEEDS, "evaluation": EVALUATION_SEEDS},
        workers=workers,
        image_size=image_size,
        overwrite=overwrite,
        progress=progress,
    )
