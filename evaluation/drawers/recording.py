"""Record Meta-World drawer demonstrations, and questions about the same scenes for co-training.

    demonstrations  image, instruction, action float32 [7] (`simulation/actions.py`), task, episode_index, frame_index,
                    seed
    questions       image, question, answer (one word), kind, seed

What it shares with other simulators is in `simulation/simulated_rows.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from gen_vla.evaluation.drawers.environment import (
    COLOURS,
    LAYOUT_HIGH,
    LAYOUT_LOW,
    MAX_POLICY_STEPS,
    TASKS,
    Appearance,
    DrawerEnv,
    Scene,
    Start,
    Task,
    Variation,
    anticipate,
    sample_appearance,
)
from gen_vla.evaluation.recording import rows as simulated_rows
from gen_vla.evaluation.recording.question_kinds import QuestionKind, side_of, wanted_answer
from gen_vla.evaluation.recording.rows import DemonstrationJob, QuestionJob, Rows, as_image, demonstrate
from gen_vla.training.mixing.instruction_augmentation import paraphrases


@dataclass(frozen=True)
class DrawerJob(DemonstrationJob):
    """Everything one demonstration depends on."""

    variation: Variation
    start: Start


@lru_cache(maxsize=4)
def _environment(task: Task, image_size: int, variation: Variation, start: Start) -> DrawerEnv:
    return DrawerEnv(task, image_size, variation, start)


def record_episode(job: DrawerJob) -> Rows | None:
    """One demonstration as rows, or None when the disturbed expert did not finish in MAX_POLICY_STEPS."""
    env = _environment(cast(Task, job.task), job.image_size, job.variation, job.start)
    env.reset(job.seed)
    wordings = [env.instruction, *(paraphrases(env.instruction) if job.paraphrase else ())]
    return demonstrate(env, wordings, np.random.default_rng([job.seed, 3]), job.noise, MAX_POLICY_STEPS)


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
    **options: Any,
) -> dict[str, Any]:
    """`simulated_rows.record_demonstrations` (`options` are passed on) of the drawers."""
    return simulated_rows.record_demonstrations(
        output_dir,
        record_episode,
        DrawerJob(tasks[0], seed, image_size, noise, paraphrase, variation, start),
        "demonstrations",
        tasks,
        episodes_per_task,
        workers=workers,
        **options,
    )


# What is asked. Each answer function gets `DrawerEnv.scene_state()` and the block colours the question names.
@dataclass(frozen=True)
class DrawerQuestionKind(QuestionKind):
    """`named` blocks fill the wordings' {0} and {1}; `seen` masks must be in the picture besides every block."""

    named: int = 0
    seen: tuple[str, ...] = ()


def _two_way(value: float, low: float, high: float, names: tuple[str, str]) -> str | None:
    if low < value < high:
        return None
    return names[0] if value <= low else names[1]


def _nearest_block(state: dict[str, Any]) -> str | None:
    """Nearest to the handle both on the table and in the picture, each by a clear margin."""
    blocks, handle = state["blocks"], np.array(state["handle_image"])
    if len(blocks) < 2:
        return None
    on_table = sorted((b["to_handle"], colour) for colour, b in blocks.items())
    in_picture = sorted((float(np.linalg.norm(np.array(b["image"]) - handle)), c) for c, b in blocks.items())
    clear = all(ranked[1][0] > 1.3 * ranked[0][0] for ranked in (on_table, in_picture))
    return on_table[0][1] if clear and on_table[0][1] == in_picture[0][1] else None


NUMBERS = ("zero", "one", "two", "three")
KINDS: dict[str, DrawerQuestionKind] = {
    "drawer_state": DrawerQuestionKind(
        ("open", "closed"),
        ("Is the drawer open or closed?", "Is the drawer closed or open?"),
        lambda s, _: _two_way(s["drawer_opening"], 0.03, 0.35, ("closed", "open")),
        seen=("cabinet", "handle"),
    ),
    "cabinet_colour": DrawerQuestionKind(
        tuple(COLOURS),
        ("What colour is the cabinet?", "Which colour does the drawer cabinet have?"),
        lambda s, _: s["cabinet_colour"],
        seen=("cabinet",),
    ),
    "block_colour": DrawerQuestionKind(
        tuple(COLOURS),
        ("What colour is the block?", "Which colour does the block on the table have?"),
        lambda s, _: next(iter(s["blocks"])) if len(s["blocks"]) == 1 else None,
    ),
    "block_count": DrawerQuestionKind(
        NUMBERS,
        ("How many blocks are on the table?", "How many blocks are there?"),
        lambda s, _: NUMBERS[len(s["blocks"])],
    ),
    "block_order": DrawerQuestionKind(
        ("left", "right"),
        ("Is the {0} block left or right of the {1} block?", "On which side of the {1} block is the {0} block?"),
        lambda s, names: side_of(s["blocks"][names[0]]["image"], s["blocks"][names[1]]["image"]),
        named=2,
    ),
    "block_side": DrawerQuestionKind(
        ("left", "right"),
        ("Is the {0} block left or right of the drawer handle?", "On which side of the handle is the {0} block?"),
        lambda s, names: side_of(s["blocks"][names[0]]["image"], s["handle_image"]),
        named=1,
        seen=("handle",),
    ),
    "hand_side": DrawerQuestionKind(
        ("left", "right"),
        ("Is the robot hand left or right of the drawer handle?", "On which side of the handle is the robot hand?"),
        lambda s, _: side_of(s["hand_image"], s["handle_image"]),
        seen=("handle", "hand"),
    ),
    "hand_distance": DrawerQuestionKind(
        ("near", "far"),
        ("Is the robot hand near the drawer handle or far from it?", "Is the hand near or far from the handle?"),
        lambda s, _: _two_way(s["hand_to_handle"], 0.13, 0.26, ("near", "far")),
        seen=("handle", "hand"),
    ),
    "gripper": DrawerQuestionKind(
        ("open", "closed"),
        ("Is the gripper open or closed?", "Is the robot gripper closed or open?"),
        lambda s, _: _two_way(s["gripper_opening"], 0.15, 0.85, ("closed", "open")),
        seen=("hand",),
    ),
    "nearest_block": DrawerQuestionKind(
        tuple(COLOURS),
        ("Which block is nearest to the drawer handle?", "What colour is the block nearest to the handle?"),
        lambda s, _: _nearest_block(s),
        seen=("handle",),
    ),
}
# Share of the picture that has to show: about two thirds of the smallest block, a third of the handle or the hand.
LEAST_SHARE = {"cabinet": 0.03, "handle": 0.0015, "hand": 0.004, "block": 0.005}


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
    name, wanted = wanted_answer(KINDS, job.seed)
    kind, rng = KINDS[name], np.random.default_rng([job.seed, 4])
    env = _environment("drawer-close", job.image_size, "full", "stock")
    while True:
        scene = sample_scene(rng)
        named = _choose_blocks(scene.appearance, kind.named, rng)
        if named is None or kind.answer(anticipate(scene), named) != wanted:
            continue
        env.arrange(scene)
        if kind.answer(env.scene_state(), named) == wanted and _in_the_picture(env, kind.seen):
            break
    question = str(rng.choice(kind.wordings)).format(*named)
    return {"image": as_image(env.render()), "question": question, "answer": wanted, "kind": name, "seed": job.seed}


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
    output_dir: str | Path, count: int = 4000, seed: int = 0, workers: int = 2, image_size: int = 96, **options: Any
) -> dict[str, Any]:
    """`simulated_rows.record_questions` (`options` are passed on) about drawer scenes."""
    drawn = (count, seed, workers, image_size)
    return simulated_rows.record_questions(output_dir, record_question, "questions", *drawn, **options)
