"""Record Meta-World drawer demonstrations, and questions about the same scenes for co-training.

Decides: what an episode is recorded from, how scenes for questions are drawn, that answers are balanced. Refuses to
know: what is asked (`drawers/questions.py`), how rows are kept (`simulated_rows.py`), models, prompts, normalisation.

    gen-vla record drawers demonstrations outputs/drawers --episodes-per-task 160
    gen-vla record drawers questions outputs/drawer-questions --count 4000
    gen-vla record drawers questions outputs/held-out --count 400 --seed 1000000

    demonstrations  image, instruction, action float32 [7] (metres per policy step, open fraction: see
                    `gen_vla.evaluation.drawers.environment`), task, episode_index, frame_index, seed
    questions       image, question, answer (one word), kind, seed

An episode and a question depend on their own seed alone, so any number of workers records the same bytes.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from gen_vla.evaluation.drawers.environment import (
    EVALUATION_SEEDS,
    INSTRUCTIONS,
    LAYOUT_HIGH,
    LAYOUT_LOW,
    MAX_POLICY_STEPS,
    TASKS,
    TRAIN_SEEDS,
    Appearance,
    DrawerEnv,
    Scene,
    Start,
    Task,
    Variation,
    anticipate,
    sample_appearance,
)
from gen_vla.evaluation.drawers.questions import KINDS, LEAST_SHARE
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


@dataclass(frozen=True)
class EpisodeJob:
    """Everything one demonstration depends on."""

    task: Task
    seed: int
    image_size: int
    noise: bool
    paraphrase: bool
    variation: Variation
    start: Start


@lru_cache(maxsize=4)
def _environment(task: Task, image_size: int, variation: Variation, start: Start) -> DrawerEnv:
    return DrawerEnv(task, image_size, variation, start)


def record_episode(job: EpisodeJob) -> Rows | None:
    """One demonstration as rows, or None when the disturbed expert did not finish in MAX_POLICY_STEPS."""
    env = _environment(job.task, job.image_size, job.variation, job.start)
    env.reset(job.seed)
    wordings = [INSTRUCTIONS[job.task], *(paraphrases(INSTRUCTIONS[job.task]) if job.paraphrase else ())]
    rows = demonstrate(env, wordings, np.random.default_rng([job.seed, 3]), job.noise, MAX_POLICY_STEPS)
    return rows and [{**row, "task": job.task, "seed": job.seed} for row in rows]


def record_demonstrations(
    output_dir: str | Path,
    episodes_per_task: int = 160,
    seed: int = 0,
    workers: int = 2,
    image_size: int = 96,
    noise: bool = True,
    *,
    paraphrase: bool = False,
    variation: Variation = "modest",
    start: Start = "stock",
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
        return EpisodeJob(cast(Task, task), seed + number, image_size, noise, paraphrase, variation, start)

    with Workers(workers) as pool:
        kept, tried = collect_episodes(pool, record_episode, make_job, tasks, episodes_per_task, progress)
    frames = frames_of(kept)
    metadata = {
        "content": "demonstrations",
        "frames": len(frames),
        "episodes": {task: len(kept[task]) for task in tasks},
        "candidates": tried,
        "seeds": [min(row["seed"] for row in frames), max(row["seed"] for row in frames)],
        "first_job": asdict(EpisodeJob(tasks[0], seed, image_size, noise, paraphrase, variation, start)),
    }
    return save_rows(output, frames, demonstration_features(), metadata, began)


def sample_scene(rng: np.random.Generator) -> Scene:
    """Any drawer, opening, gripper and looks; in two scenes of five the hand is at the handle, as when it works."""
    x, y, _ = rng.uniform(LAYOUT_LOW, LAYOUT_HIGH)
    opening = 0.0 if rng.random() < 0.4 else float(rng.uniform(0.35, 1.0))
    if rng.random() < 0.4:
        near = np.array([x, y - 0.17 - 0.16 * opening, 0.135]) + rng.normal(0.0, (0.04, 0.03, 0.0))
        hand = near + np.array([0.0, -0.03, abs(rng.normal(0.0, 0.04))])
    else:
        hand = rng.uniform((-0.3, 0.5, 0.12), (0.35, 0.75, 0.32))
        if abs(hand[0] - x) < 0.17 and hand[1] > y - 0.45:
            hand[2] = max(hand[2], 0.25)  # above the drawer, not through it
    gripper = float(rng.random() < 0.5)
    looks = sample_appearance(rng, "full", (float(x), float(y)))
    return Scene((float(x), float(y)), opening, (float(hand[0]), float(hand[1]), float(hand[2])), gripper, looks)


def record_question(job: QuestionJob) -> dict[str, Any]:
    """One picture with one question whose answer the picture shows: scenes are drawn until kind and answer fit."""
    name = list(KINDS)[job.seed % len(KINDS)]
    kind = KINDS[name]
    wanted = kind.answers[job.seed // len(KINDS) % len(kind.answers)]
    env = _environment("drawer-close", job.image_size, "full", "stock")
    rng = np.random.default_rng([job.seed, 4])
    while True:
        scene = sample_scene(rng)
        named = _choose_blocks(scene.appearance, kind.named, rng)
        if named is None or kind.answer(anticipate(scene), named) != wanted:
            continue
        env.arrange(scene)
        if kind.answer(env.scene_state(), named) == wanted and _in_the_picture(env, kind.seen):
            break
    question = str(rng.choice(kind.wordings)).format(*named)
    image = {"bytes": png(env.render()), "path": None}
    return {"image": image, "question": question, "answer": wanted, "kind": name, "seed": job.seed}


def _choose_blocks(looks: Appearance, count: int, rng: np.random.Generator) -> list[str] | None:
    if len(looks.blocks) < count:
        return None
    return [str(colour) for colour in rng.permutation([b.colour for b in looks.blocks])[:count]]


def _in_the_picture(env: DrawerEnv, needed: tuple[str, ...]) -> bool:
    """No block may hide, whatever is asked: a hidden one would falsify a count or the nearest."""
    shares = {name: float(mask.mean()) for name, mask in env.segmentation(64).items()}
    blocks_seen = all(share >= LEAST_SHARE["block"] for name, share in shares.items() if name.endswith("block"))
    return blocks_seen and all(shares[name] >= LEAST_SHARE[name] for name in needed)


def record_questions(
    output_dir: str | Path,
    count: int = 4000,
    seed: int = 0,
    workers: int = 2,
    *,
    image_size: int = 96,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Record `count` pictures with a question each -> metadata with the majority baseline of every kind.

    Seeds `seed .. seed + count - 1` lie wholly in TRAIN_SEEDS or wholly in EVALUATION_SEEDS (the held-out split).
    """
    return record_scene_questions(
        output_dir,
        record_question,
        "questions",
        range(seed, seed + count),
        {"train": TRAIN_SEEDS, "evaluation": EVALUATION_SEEDS},
        workers=workers,
        image_size=image_size,
        overwrite=overwrite,
        progress=progress,
    )
