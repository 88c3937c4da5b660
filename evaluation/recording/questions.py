"""Record pictures of tabletop scenes with a question each, and where every object is in them.

    image, question, answer, kind, seed
    more_turns       further questions about the picture with answers, for training: a picture takes most of the time
                     of a row, so that ten turns cost little more than one; of one picture in four the last turn asks
                     for everything on the table, which teaches a small model to look. Behind it no question would be
                     one about the picture: its answer stands in the text
    objects          the objects from far to near: colour and shape (numbers of `recording.json`'s lists), u, v
    handle, opening  the drawer's: (u, v), and 0..1
    picture_width    metres across the picture where the named object is, for the error of a point

Positions (u, v) are 0..1 from the picture's left and top. `training/vision_language_data/token_labels.py` turns
`objects` into a label for every image token. Pictures have broad looks (`simulation/looks.py`), those of questions to
judge by may be of home or unseen ones. What is asked is in `recording/question_kinds.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from gen_vla.evaluation.recording import rows
from gen_vla.evaluation.recording.question_kinds import KINDS, SceneFacts, format_point, wanted_answer
from gen_vla.evaluation.recording.rows import QuestionJob, as_image
from gen_vla.evaluation.simulation.environment import ROBOT_POSES, TabletopEnv, is_closed
from gen_vla.evaluation.simulation.layouts import COLOURS, GRASP_HEIGHT, SHAPES
from gen_vla.evaluation.simulation.looks import Look, LookSet, look_of
from gen_vla.evaluation.simulation.offscreen_camera import CameraPose
from gen_vla.evaluation.simulation.still_scenes import MARGIN, StillScene, draw_still_scene
from gen_vla.training.recipes.data_schema import did_you_mean


LEAST_SHARE = 0.004  # of the picture: 37 pixels of 96 x 96 that show of each thing, a third of it
LEAST_HANDLE = 0.0008
HELD = 0.25  # share of pictures of these kinds with a thing between the fingers, where they are open
HELD_KINDS = ("shape", "colour", "object_order", "drawer_side", "count", "point", "gripper", "gripper_offset")
HELD_APART, BELOW_FINGERTIPS = 0.08, 0.01  # metres from every other thing; of its middle
MASK_SIZE = 64  # pixels a side: to tell whether a thing shows, fewer do
DESCRIBE = ("What is on the table?", "Which objects are there, and where?")
DESCRIBED = 4  # one picture in so many
OTHER_TURNS = 10  # at most, besides the description
SCENES = 5000  # that are tried for a question
PER_PROCESS = 100  # questions at least: fewer are recorded before another process has started


@lru_cache(maxsize=2)
def _environment(image_size: int) -> TabletopEnv:
    return TabletopEnv(image_size)


def scene_facts(scene: StillScene, camera: CameraPose, fingertips: np.ndarray, rng: np.random.Generator) -> SceneFacts:
    """What the picture of a scene with the fingertips at (x, y, z) shows, worked out without drawing it."""
    middles = np.array([thing.middle for thing in scene.things])
    there = [thing.name for thing in scene.things]
    absent = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES if f"{colour} {shape}" not in there]
    asked = str(rng.choice(there if rng.random() < 0.5 else absent))
    first, second = rng.permutation(len(scene.things))[:2].tolist()
    places = tuple((float(u), float(v)) for u, v, _ in camera.project(middles))
    to_handle = np.linalg.norm((middles - scene.handle)[:, :2], axis=1).tolist()
    handle, gripper = camera.image_position(scene.handle), camera.image_position(fingertips)
    return SceneFacts(scene, places, handle, gripper, tuple(to_handle), asked, first, second)


def record_question(job: QuestionJob) -> dict[str, Any]:
    """One picture with one question whose answer the picture shows.

    Raises:
        RuntimeError: if none of SCENES scenes has the wanted kind of question and answer.
    """
    kinds = {name: KINDS[name] for name in job.kinds or KINDS}
    name, wanted = wanted_answer(kinds, job.seed)
    env, rng, look = _environment(job.image_size), np.random.default_rng([job.seed, 7]), look_of(job.looks, job.seed)
    for _ in range(SCENES):
        scene, robot = draw_still_scene(rng, look.camera), int(rng.integers(ROBOT_POSES))
        if name in HELD_KINDS and rng.random() < HELD and not is_closed(robot):
            scene = _with_one_held(scene, env.fingertips(robot), look.camera)
        drawn = scene_facts(scene, look.camera, env.fingertips(robot), rng)
        each = ((facts, KINDS[name].answer(facts)) for facts in _about_each(drawn))
        facts, answer = next((found for found in each if found[1] == (wanted or found[1])), (drawn, None))
        if answer is None or not _shows_all(env, scene, look, robot):
            continue
        question = str(rng.choice(KINDS[name].wordings)).format(**facts.names)
        row = {"image": as_image(env.render()), "question": question, "answer": answer, "kind": name, "seed": job.seed}
        turn_rng = np.random.default_rng([job.seed, 8])
        further = list(job.kinds * len(facts.scene.things) or [other for other in KINDS if other != name])
        if any(thing.z > 0.0 for thing in facts.scene.things):  # which is held and stands nowhere
            further = [other for other in further if other in HELD_KINDS]
        asked = KINDS[name].wordings[0].format(**facts.names)
        redraw = partial(scene_facts, facts.scene, look.camera, env.fingertips(robot), turn_rng)
        turns = _turns(redraw, further, asked, turn_rng)
        if not job.kinds and turn_rng.integers(DESCRIBED) == 0:
            turns.append({"question": str(turn_rng.choice(DESCRIBE)), "answer": description(facts)})
        return {**row, "more_turns": turns, **labels(facts, look.camera)}
    raise RuntimeError(f"got no scene for {name} {wanted!r} of seed {job.seed} among {SCENES}; report it as a bug")


def _turns(
    redraw: Callable[[], SceneFacts], kinds: Sequence[str], asked: str, rng: np.random.Generator
) -> list[dict[str, str]]:
    """Further questions of these kinds, about things that `redraw` names anew, with their answers.

    None is the one asked, in its first wording, and none comes twice in two wordings: the answer would be in the text.
    """
    turns: dict[str, dict[str, str]] = {}
    for name in rng.permutation(list(kinds)):
        drawn = redraw()
        first, *_ = wordings = [wording.format(**drawn.names) for wording in KINDS[name].wordings]
        answer = KINDS[name].answer(drawn)
        if answer is not None and first != asked:
            turns[first] = {"question": str(rng.choice(wordings)), "answer": answer}
    return list(turns.values())[:OTHER_TURNS]


def description(facts: SceneFacts) -> str:
    """`blue mug [(0.20, 0.66)]; red can [(0.25, 0.57)]`: everything on the table, from left to right."""
    found = sorted(zip(facts.places, facts.scene.things), key=lambda each: each[0][0])
    return "; ".join(f"{thing.name} {format_point(place)}" for place, thing in found)


def _with_one_held(scene: StillScene, fingertips: np.ndarray, camera: CameraPose) -> StillScene:
    """The first thing is between the fingers, unless another one stands there or they are out of view."""
    thing, *others = scene.things
    x, y, height = (fingertips - (0.0, 0.0, BELOW_FINGERTIPS)).tolist()
    held = replace(thing, x=x, y=y, yaw=0.0, z=max(height - GRASP_HEIGHT * thing.size, 0.0))
    apart = [np.hypot(other.x - x, other.y - y) for other in others]
    place = camera.image_position(held.middle)
    fits = min(apart) >= HELD_APART and min(place) > MARGIN and max(place) < 1.0 - MARGIN
    return replace(scene, things=(held, *others)) if fits else scene


def _about_each(facts: SceneFacts) -> Iterator[SceneFacts]:
    """The same scene, each thing named first in turn."""
    count = len(facts.scene.things)
    for turn in range(count):
        yield replace(facts, first=(facts.first + turn) % count, second=(facts.second + turn) % count)


def labels(facts: SceneFacts, camera: CameraPose) -> dict[str, Any]:
    """The columns that say where everything is."""
    depths = camera.project(np.array([thing.middle for thing in facts.scene.things]))[:, 2]
    objects = []
    for index in np.argsort(-depths):
        thing, (u, v) = facts.scene.things[index], facts.places[index]
        objects.append(
            {"colour": list(COLOURS).index(thing.colour), "shape": SHAPES.index(thing.shape), "u": u, "v": v}
        )
    width = camera.view_width * float(depths[facts.first])
    return {"objects": objects, "handle": facts.handle, "opening": facts.scene.opening, "picture_width": width}


def _shows_all(env: TabletopEnv, scene: StillScene, look: Look, robot: int) -> bool:
    """Sets the scene up -> whether its picture shows every thing and the handle."""
    env.pose(scene, look, robot)
    masks = env.segmentation(MASK_SIZE)
    shares = [masks[f"object{index}"].mean() for index in range(len(scene.things))]
    return bool(min(shares) >= LEAST_SHARE and masks["handle"].mean() >= LEAST_HANDLE)


def record_questions(
    output_dir: str | Path,
    count: int = 4000,
    seed: int = 0,
    workers: int = 2,
    image_size: int = 96,
    looks: LookSet = "broad",
    kinds: Sequence[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`rows.record_questions` (`options` are passed on) about tabletop scenes.

    Args:
        kinds: names of `KINDS`: all questions are of these, asked again and again about the things of a picture, and
            no picture is described.
    """
    if unknown := [name for name in kinds or () if name not in KINDS]:
        raise ValueError(f"got the kinds {', '.join(unknown)}; {did_you_mean(unknown[0], KINDS)}")
    classes = {"colours": list(COLOURS), "shapes": list(SHAPES)}
    first = QuestionJob(seed, image_size, looks, tuple(kinds or ()))
    options |= {"workers": min(workers, 1 + count // PER_PROCESS), **classes}
    return rows.record_questions(output_dir, record_question, first, "tabletop questions", count, **options)
