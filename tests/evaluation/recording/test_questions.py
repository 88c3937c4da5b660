"""Recorded questions about still scenes of the tabletop, and where things are in their pictures."""

import io
import json
import re
from dataclasses import replace
from typing import Any

import needs_simulator  # noqa: F401  # skips this file without one
import numpy as np
import pytest
from datasets import load_from_disk
from PIL import Image

from gen_vla.evaluation.recording import questions
from gen_vla.evaluation.recording.question_kinds import KINDS, side_of
from gen_vla.evaluation.recording.questions import (
    DESCRIBE,
    OTHER_TURNS,
    QuestionJob,
    record_question,
    record_questions,
    scene_facts,
)
from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.layouts import (
    COLOURS,
    EVALUATION_SEEDS,
    SHAPES,
    TASKS,
    TableObject,
    goal_of,
    sample_layout,
)
from gen_vla.evaluation.simulation.looks import HOME, LookSet, broad_look, unseen_look
from gen_vla.evaluation.simulation.still_scenes import StillScene, draw_still_scene
from gen_vla.training.mixing.instruction_augmentation import held_out_paraphrases


def could_be(question: str, kind: str) -> bool:
    """Whether a wording of this kind makes the question."""
    name = f"({'|'.join(COLOURS)})? ?({'|'.join(SHAPES)})?"
    return any(re.fullmatch(re.sub(r"{\w+}", name, wording[:-1]), question[:-1]) for wording in KINDS[kind].wordings)


def load(folder) -> Any:
    return load_from_disk(str(folder))


def test_questions_are_balanced_and_described(tmp_path):
    count = 10 * len(KINDS)
    metadata = record_questions(tmp_path / "q", count, workers=1, image_size=48, progress=False)
    rows = list(load(tmp_path / "q"))
    assert set(rows[0]) == {
        "image", "question", "answer", "kind", "seed", "more_turns", "objects", "handle", "opening", "picture_width"
    }  # fmt: skip
    assert {row["kind"] for row in rows} == set(KINDS)
    assert all(row["answer"] in (KINDS[row["kind"]].answers or [row["answer"]]) for row in rows)
    described_rows = 0
    for row in rows:
        turns = row["more_turns"]
        asked = [row["question"], *(turn["question"] for turn in turns)]
        assert len(set(asked)) == len(asked)
        assert 1 <= len(turns) <= OTHER_TURNS + 1
        assert not set(asked[:-1]) & set(DESCRIBE), "behind a description, answers would be in the text"
        if asked[-1] not in DESCRIBE:
            assert all(any(could_be(question, kind) for kind in KINDS) for question in asked)
            continue
        described, described_rows = turns[-1], described_rows + 1
        things = re.fullmatch(r"(\w+ \w+ \[\(0\.\d\d, 0\.\d\d\)\](; )?)+", described["answer"])
        assert things, described["answer"]
        named = re.findall(r"(\w+) (\w+) \[\((0\.\d\d)", described["answer"])
        there = sorted(row["objects"], key=lambda thing: thing["u"])
        assert [(list(COLOURS)[t["colour"]], SHAPES[t["shape"]], f"{t['u']:.2f}") for t in there] == named
    assert 0.1 < described_rows / count < 0.4
    assert metadata["majority_baseline"]["presence"] == metadata["majority_baseline"]["object_order"] == 0.5
    assert metadata["majority_baseline"]["colour"] == 0.2
    assert metadata["majority_baseline"]["point"] < 0.3
    assert (metadata["split"], metadata["looks"], metadata["colours"]) == ("train", "broad", list(COLOURS))
    written = json.loads((tmp_path / "q" / "recording.json").read_text())
    assert written["shapes"] == list(SHAPES)
    assert written["provenance"]["versions"]["metaworld"]


def test_questions_of_chosen_kinds(tmp_path):
    chosen: Any = {"kinds": ["shape", "presence"], "workers": 1, "image_size": 48, "progress": False}
    metadata = record_questions(tmp_path / "q", 8, **chosen)
    assert metadata["kinds"] == chosen["kinds"]
    answers = {*SHAPES, "yes", "no"}
    for row in load(tmp_path / "q"):
        asked = [row["question"], *(turn["question"] for turn in row["more_turns"])]
        assert all(could_be(question, "shape") or could_be(question, "presence") for question in asked)
        assert {row["answer"], *(turn["answer"] for turn in row["more_turns"])} <= answers
        named = [
            re.sub("What is the|Which kind of object is|object|Is there|Do you see|on the table|[?]", "", each)
            for each in asked
        ]
        assert len(set(named)) == len(named), "nothing is asked twice in other words"
    with pytest.raises(ValueError, match="got the kinds colours; did you mean 'colour'"):
        record_questions(tmp_path / "other", 1, kinds=["colours"])


@pytest.mark.parametrize("looks", ["home", "broad", "unseen"])
def test_held_out_questions_have_the_looks_asked_for(looks: LookSet):
    seed = EVALUATION_SEEDS[5]
    row, again = (record_question(QuestionJob(seed, 48, looks)) for _ in range(2))
    assert row == again
    others: list[LookSet] = [which for which in ("home", "broad", "unseen") if which != looks]
    assert all(record_question(QuestionJob(seed, 48, which))["image"] != row["image"] for which in others)


def test_any_number_of_workers_records_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "PER_PROCESS", 4)
    for workers in (1, 2):
        record_questions(tmp_path / str(workers), 12, 40, workers, image_size=32, progress=False)
    assert list(load(tmp_path / "1")) == list(load(tmp_path / "2"))


def numbers(answer: str) -> np.ndarray:
    return np.array(answer.strip("[()]").split(","), dtype=float)


def answer_from(row: dict[str, Any], env: TabletopEnv) -> str:
    """The answer from the segmented picture and the question's words alone."""
    masks, things, kind = env.segmentation(192), env.distractors, row["kind"]
    middles = {}
    for index, thing in enumerate(things):
        down, across = np.nonzero(masks[f"object{index}"])
        middles[thing.name] = across.mean() / 192, down.mean() / 192
    named = [name for name in sorted(middles, key=row["question"].find) if name in row["question"]]
    if kind in ("shape", "colour"):
        word = next(word for word in (*COLOURS, *SHAPES) if word in row["question"].rstrip("?").split())
        (thing,) = [thing for thing in things if word in (thing.colour, thing.shape)]
        return thing.shape if kind == "shape" else thing.colour
    if kind == "presence":
        return "yes" if named else "no"
    if kind == "count":
        return str(sum(bool(masks[f"object{index}"].any()) for index in range(len(things))))
    handle = np.nonzero(masks["handle"])[1].mean() / 192
    if kind == "drawer_side":
        return "left" if middles[named[0]][0] < handle else "right"
    if kind == "object_order":
        first, second = named if row["question"].startswith("Is") else named[::-1]
        return "left" if middles[first][0] < middles[second][0] else "right"
    if kind == "drawer_state":
        return "open" if env.data.qpos[env._slide] < -0.05 else "closed"
    if kind == "nearest":
        spot = env.data.body("drawer_link").xpos[:2] - np.array([0.0, 0.16])
        return min(things, key=lambda thing: float(np.hypot(*(spot - (thing.x, thing.y))))).colour
    pointed, gripper = numbers(row["answer"]), env.look.camera.image_position(env._fingertips())
    if kind == "gripper":
        return row["answer"] if pointed == pytest.approx(gripper, abs=0.006) else str(gripper)
    pointed += gripper if kind == "gripper_offset" else 0.0
    near = min(middles, key=lambda name: float(np.linalg.norm(pointed - middles[name])))
    return row["answer"] if near == named[0] else near


def test_every_answer_is_what_the_picture_shows():
    for seed in range(200, 200 + 10 * len(KINDS)):
        row = record_question(QuestionJob(seed, 64, "broad"))
        env = questions._environment(64)  # still holds the scene asked about
        assert answer_from(row, env) == row["answer"], (seed, row["question"])


def test_labels_lie_on_the_objects_they_name():
    for seed in range(300, 340):
        row = record_question(QuestionJob(seed, 96, "broad"))
        env = questions._environment(96)
        masks = env.segmentation(96)
        assert len(row["objects"]) == len(env.distractors)
        for label in row["objects"]:
            (index,) = [
                i
                for i, thing in enumerate(env.distractors)
                if (thing.colour, thing.shape) == (list(COLOURS)[label["colour"]], SHAPES[label["shape"]])
            ]
            down, across = np.nonzero(masks[f"object{index}"])
            assert (across.mean() / 96, down.mean() / 96) == pytest.approx((label["u"], label["v"]), abs=0.07)
        nearest_last = [env.look.camera.project(thing.middle[None])[0, 2] for thing in env.distractors]
        assert len(nearest_last) == len(row["objects"])
        with Image.open(io.BytesIO(row["image"]["bytes"])) as picture:
            assert picture.size == (96, 96)


def test_a_thing_may_be_in_the_hand_where_it_is_not_asked_for_where_it_stands():
    held: dict[str, int] = dict.fromkeys(KINDS, 0)
    for seed in range(2000, 2000 + 20 * len(KINDS)):
        row = record_question(QuestionJob(seed, 48, "broad"))
        held[row["kind"]] += questions._environment(48).distractors[0].z > 0
        assert all(0 < part < 1 for thing in row["objects"] for part in (thing["u"], thing["v"]))
    assert 5 < sum(held.values()) < 40
    assert held["presence"] == held["nearest"] == 0


def test_two_of_one_colour_are_not_asked_apart_by_it():
    """A scene with a red can and a red mug has no answer to "What is the red object?"."""
    can, mug = TableObject("red", "can", -0.1, 0.6, 0.0), TableObject("red", "mug", 0.1, 0.6, 0.0)
    facts = scene_facts(
        StillScene((0.22, 0.88), 0.5, (can, mug)), HOME.camera, np.array([0.0, 0.6, 0.2]), np.random.default_rng(0)
    )
    assert KINDS["shape"].answer(facts) is None
    assert KINDS["colour"].answer(facts) == "red"
    assert side_of((0.5, 0.5), (0.55, 0.5)) is None


def test_still_scenes_keep_their_things_apart_and_in_view():
    for seed in range(200):
        look = broad_look(seed) if seed % 2 else unseen_look(seed // 2)
        scene = draw_still_scene(np.random.default_rng(seed), look.camera)
        spots = np.array([(thing.x, thing.y) for thing in scene.things])
        apart = np.linalg.norm(spots[:, None] - spots, axis=-1) + np.eye(len(spots))
        assert apart.min() > 0.06, seed
        seen = look.camera.project(np.array([thing.middle for thing in scene.things]))[:, :2]
        assert ((seen > 0) & (seen < 1)).all(), seed
        assert len({thing.name for thing in scene.things}) == len(scene.things)


def test_words_to_judge_by_are_in_no_question_and_no_demonstration():
    told = {goal_of(task, seed).instruction(sample_layout(seed)) for task in TASKS for seed in range(100)}
    asked = {wording for kind in KINDS.values() for wording in kind.wordings}
    held_out = {text for instruction in told for text in held_out_paraphrases(instruction)}
    assert len(held_out) > 100
    assert not held_out & (told | asked)


def test_a_finished_data_set_is_not_overwritten_unless_asked(tmp_path):
    arguments = {"workers": 1, "image_size": 32, "progress": False}
    record_questions(tmp_path / "q", 2, **arguments)
    with pytest.raises(FileExistsError, match=r"finished data set in .*overwrite=True"):
        record_questions(tmp_path / "q", 3, **arguments)
    record_questions(tmp_path / "q", 3, overwrite=True, **arguments)
    assert len(load(tmp_path / "q")) == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="other files"):
        record_questions(tmp_path / "other", 3, overwrite=True, **arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "q"]


def test_seeds_outside_a_split_and_empty_requests_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got seed 1000000, expected one in range"):
        record_questions(tmp_path / "q", 20, EVALUATION_SEEDS.start - 10, workers=1, progress=False)
    with pytest.raises(ValueError, match="got count 0"):
        record_questions(tmp_path / "q", 0)
    with pytest.raises(ValueError, match="got workers 0"):
        record_questions(tmp_path / "q", 1, workers=0)


NUMBERS = ("gripper", "gripper_offset")


def test_answers_say_what_the_picture_shows():
    """Worked out by hand from a scene and from the camera that stands at the robot's right, looking left and ahead."""
    bottle, mug = TableObject("green", "bottle", -0.2, 0.56, 0.0), TableObject("purple", "mug", 0.0, 0.66, 0.0)
    facts = scene_facts(
        StillScene((0.22, 0.88), 0.5, (bottle, mug)), HOME.camera, np.array([0.0, 0.6, 0.2]), np.random.default_rng(0)
    )
    answers = {name: kind.answer(facts) for name, kind in KINDS.items()}
    bottle_first = facts.first == 0
    assert answers["shape"] == ("bottle" if bottle_first else "mug")
    assert answers["object_order"] == ("left" if bottle_first else "right")
    assert (answers["drawer_side"], answers["nearest"], answers["count"]) == ("left", "purple", "2")
    assert answers["drawer_state"] == "open"
    gripper, offset = (numbers(str(answers[name])) for name in NUMBERS)
    place = np.array(facts.places[facts.first])
    assert gripper == pytest.approx(HOME.camera.image_position(np.array([0.0, 0.6, 0.2])), abs=0.005)
    assert offset == pytest.approx(place - gripper, abs=0.011)
    out_of_view = replace(facts, gripper=(0.4, 1.02))
    assert [KINDS[name].answer(out_of_view) for name in NUMBERS] == [None, None]
