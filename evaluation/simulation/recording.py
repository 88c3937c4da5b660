"""Record tabletop demonstrations, and questions about tabletop scenes for co-training.

Pictures have the ordinary looks: the variants are for evaluation. `recording.json` lists the digests of all layouts
shown in demonstrations, which `gen-vla evaluate tabletop --trained-on FOLDER` refuses to judge. What is asked is in
`simulation/questions.py`, how rows are written in `simulation/simulated_rows.py`.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from gen_vla.evaluation.simulation import layouts, simulated_rows
from gen_vla.evaluation.simulation.actions import DRAWER_TRAVEL
from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.layouts import COLOURS, GOALS, SHAPES, TASKS, Layout, Task
from gen_vla.evaluation.simulation.looks import HOME
from gen_vla.evaluation.simulation.questions import KINDS, SceneFacts, wanted_answer
from gen_vla.evaluation.simulation.scene import GRASP_HEIGHT
from gen_vla.evaluation.simulation.simulated_rows import DemonstrationJob, QuestionJob, Rows, as_image, demonstrate
from gen_vla.training.mixing.instruction_augmentation import paraphrases


HANDLE_REACH, HANDLE_HEIGHT = 0.17, 0.09  # metres from the drawer's place to its handle when shut
LEAST_SHARE = 0.0008  # of the picture: about ten pixels of an object or the handle at 112 px
MOST_MOVES = 10  # policy steps of an expert before a question's picture: the robot is anywhere in its work


@lru_cache(maxsize=2)
def _environment(image_size: int) -> TabletopEnv:
    return TabletopEnv(image_size)


def record_episode(job: DemonstrationJob) -> Rows | None:
    """One demonstration as rows, or None when the disturbed expert did not finish in time."""
    env, task = _environment(job.image_size), cast(Task, job.task)
    instruction = env.reset(task, job.seed)
    wordings = [instruction, *(paraphrases(instruction) if job.paraphrase else ())]
    return demonstrate(env, wordings, np.random.default_rng([job.seed, 3]), job.noise, layouts.MAX_STEPS[task])


def record_demonstrations(
    output_dir: str | Path,
    episodes_per_task: int = 200,
    seed: int = 0,
    workers: int = 2,
    image_size: int = 96,
    noise: bool = True,
    *,
    paraphrase: bool = False,
    tasks: tuple[Task, ...] = TASKS,
    **options: Any,
) -> dict[str, Any]:
    """`simulated_rows.record_demonstrations` (`options` are passed on) of the tabletop."""
    return simulated_rows.record_demonstrations(
        output_dir,
        record_episode,
        DemonstrationJob(tasks[0], seed, image_size, noise, paraphrase),
        "tabletop demonstrations",
        tasks,
        episodes_per_task,
        workers=workers,
        **options,
        describe=lambda seeds: {"layouts": sorted(layouts.layout_digests(seeds))},
    )


def scene_facts(layout: Layout, rng: np.random.Generator) -> SceneFacts:
    """What the picture of a layout shows, worked out without simulating it."""
    front = layout.drawer[1] - HANDLE_REACH - DRAWER_TRAVEL * layout.opening
    handle = np.array([layout.drawer[0], front, HANDLE_HEIGHT])
    first, second = (np.array([thing.x, thing.y, GRASP_HEIGHT]) for thing in layout.objects)
    near = [float(np.hypot(*(spot - handle)[:2])) for spot in (first, second)]
    there = [thing.name for thing in layout.objects]
    absent = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES if f"{colour} {shape}" not in there]
    asked = str(rng.choice(there if rng.random() < 0.5 else absent))
    places = HOME.camera.image_position(first), HOME.camera.image_position(second)
    return SceneFacts(
        layout, places, HOME.camera.image_position(handle), (near[0], near[1]), asked, int(rng.integers(2))
    )


def record_question(job: QuestionJob) -> dict[str, Any]:
    """One picture with one question whose answer the picture shows: scenes are drawn until kind and answer fit."""
    name, wanted = wanted_answer(KINDS, job.seed)
    env, rng = _environment(job.image_size), np.random.default_rng([job.seed, 7])
    while True:
        layout = layouts.draw_layout(rng)
        # Two drawers of five are shut, the others anywhere from half open on.
        opening = 0.0 if rng.random() < 0.4 else float(rng.uniform(0.45, 1.0))
        facts = scene_facts(replace(layout, opening=opening), rng)
        if KINDS[name].answer(facts) == wanted and _pose_and_see(env, facts.layout, rng):
            break
    question = str(rng.choice(KINDS[name].wordings)).format(**facts.names)
    return {"image": as_image(env.render()), "question": question, "answer": wanted, "kind": name, "seed": job.seed}


def _pose_and_see(env: TabletopEnv, layout: Layout, rng: np.random.Generator) -> bool:
    """Sets the scene up with the robot on its way to one of the objects -> whether the picture still shows it all."""
    env.arrange(layout)
    env.goal = GOALS[rng.integers(2)]
    for _ in range(rng.integers(MOST_MOVES + 1)):
        env.step(env.expert_action())
    state = env.state()
    if np.abs(state.objects - state.starts).max() > 0.01:  # taken or pushed: no longer what the layout says
        return False
    masks = env.segmentation(112)
    return all(masks[name].mean() >= LEAST_SHARE for name in ("object0", "object1", "handle"))


def record_questions(
    output_dir: str | Path, count: int = 4000, seed: int = 0, workers: int = 2, image_size: int = 96, **options: Any
) -> dict[str, Any]:
    """`simulated_rows.record_questions` (`options` are passed on) about tabletop scenes."""
    drawn = (count, seed, workers, image_size)
    return simulated_rows.record_questions(output_dir, record_question, "tabletop questions", *drawn, **options)
