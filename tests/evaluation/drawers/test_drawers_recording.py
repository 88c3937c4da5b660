"""Recorded demonstrations and questions: what is in them, that it is true, and that workers do not change it."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import needs_simulator  # noqa: F401  # skips this file without one
import numpy as np
import pytest
from datasets import Dataset, load_from_disk

from gen_vla.commands.main import main
from gen_vla.evaluation.drawers import recording
from gen_vla.evaluation.drawers.environment import COLOURS, TASKS, DrawerEnv
from gen_vla.evaluation.recording import rows as simulated_rows
from gen_vla.evaluation.simulation.actions import MAX_MOVE
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory) -> tuple[Dataset, dict]:
    folder = tmp_path_factory.mktemp("drawers") / "demonstrations"
    metadata = recording.record_demonstrations(folder, 3, workers=1, image_size=64, progress=False)
    return load(folder), metadata


def load(folder: Path) -> Dataset:
    dataset = load_from_disk(str(folder))
    assert isinstance(dataset, Dataset)
    return dataset


def digest(folder: Path) -> str:
    """Over every value and every image byte of a saved data set, in order."""
    table = load(folder).data
    images = b"".join(row["bytes"] for row in table["image"].to_pylist())
    rest = json.dumps(table.drop(["image"]).to_pydict()).encode()
    return hashlib.sha256(images + rest).hexdigest()


def test_demonstrations_have_their_columns_and_frames_in_order(demonstrations):
    dataset, metadata = demonstrations
    columns = ["image", "instruction", "action", "task", "episode_index", "frame_index", "seed"]
    assert dataset.column_names == columns
    assert len(dataset) == metadata["frames"]
    assert metadata["episodes"] == {"drawer-close": 3, "drawer-open": 3}
    assert dataset[0]["image"].size == (64, 64)
    actions = np.array(dataset["action"])
    assert actions.shape == (len(dataset), 7)
    assert np.abs(actions[:, :3]).max() <= MAX_MOVE + 1e-7
    assert not actions[:, 3:6].any()
    all_rows = dataset.select_columns(columns[1:]).to_list()
    for index in range(6):
        rows = [row for row in all_rows if row["episode_index"] == index]
        assert [row["frame_index"] for row in rows] == list(range(len(rows)))
        expected = (TASKS[0], "close the drawer", 0.0) if index < 3 else (TASKS[1], "open the drawer", 1.0)
        assert {(row["task"], row["instruction"], row["action"][6]) for row in rows} == {expected}


def test_clean_episodes_replay_to_success():
    rows = recording.record_episode(recording.DrawerJob("drawer-open", 4, 64, False, False, "none", "stock"))
    assert rows is not None
    env = DrawerEnv("drawer-open", 64, "none")
    env.reset(4)
    done = [env.step(row["action"]) for row in rows]
    assert done == [False] * (len(rows) - 1) + [True]


def test_labels_are_the_clean_expert_where_the_disturbed_one_went(monkeypatch):
    job = recording.DrawerJob("drawer-close", 8, 64, True, False, "none", "stock")
    env = recording._environment(job.task, 64, "none", "stock")
    experts, executed = [], []

    def spy(action, deviation, holds, rng):
        experts.append(env.expert_action())
        executed.append(disturb(action, 0.3, holds, rng))
        return executed[-1]

    disturb = simulated_rows.disturb
    monkeypatch.setattr(simulated_rows, "disturb", spy)
    rows = recording.record_episode(job)
    assert rows is not None
    np.testing.assert_array_equal([row["action"] for row in rows], experts)
    assert (np.array(executed)[:, :3] != np.array(experts)[:, :3]).all()


def test_noise_moves_the_hand_and_leaves_the_gripper():
    rng = np.random.default_rng(0)
    clean = np.array([0.01, 0.02, 0.03, 0, 0, 0, 1.0], dtype=np.float32)
    np.testing.assert_array_equal(simulated_rows.disturb(clean, 0.0, 0.0, rng), clean)
    disturbed = np.stack([simulated_rows.disturb(clean, 0.6, 0.2, rng) for _ in range(200)])
    assert disturbed[:, :3].std(axis=0) == pytest.approx([0.03] * 3, rel=0.15)
    np.testing.assert_array_equal(disturbed[:, 3:], np.tile(clean[3:], (200, 1)))


def test_the_number_of_workers_does_not_change_the_data(tmp_path):
    for workers in (1, 2):
        recording.record_demonstrations(tmp_path / f"d{workers}", 2, 40, workers, 32, progress=False)
        recording.record_questions(tmp_path / f"q{workers}", 20, 40, workers, image_size=32, progress=False)
    assert digest(tmp_path / "d1") == digest(tmp_path / "d2")
    assert digest(tmp_path / "q1") == digest(tmp_path / "q2")


def test_questions_are_balanced_short_and_described(tmp_path):
    metadata = recording.record_questions(tmp_path / "q", 100, 0, 1, image_size=32, progress=False)
    dataset = load(tmp_path / "q")
    assert dataset.column_names == ["image", "question", "answer", "kind", "seed"]
    assert set(dataset["kind"]) == set(recording.KINDS)
    assert len(recording.KINDS) == 10
    assert all(len(answer.split()) == 1 for answer in dataset["answer"])
    assert max(metadata["majority_baseline"].values()) <= 0.6
    assert metadata["majority_baseline"]["block_colour"] == 0.2
    assert metadata["split"] == "train"
    held_out = recording.record_questions(tmp_path / "h", 2, EVALUATION_SEEDS.start, 1, image_size=32, progress=False)
    assert (held_out["split"], held_out["seeds"]) == ("evaluation", [1_000_000, 1_000_001])
    written = json.loads((tmp_path / "q" / simulated_rows.METADATA_FILE).read_text())
    assert written["questions"] == 100
    assert written["provenance"]["versions"]["metaworld"]


def centre(mask: np.ndarray) -> float:
    """The mean column of a mask."""
    return float(np.nonzero(mask)[1].mean())


def named_blocks(question: str) -> list[str]:
    """Block colours in the order the wording names them."""
    words = question.split()
    return [word for word, after in itertools.pairwise(words) if word in COLOURS and after.startswith("block")]


def shown_colour(image: np.ndarray, mask: np.ndarray) -> str:
    """The palette's colour closest in hue and saturation to the pixels under a mask."""
    seen = image[mask].mean(axis=0)
    return max(
        COLOURS, key=lambda c: float(np.dot(seen, COLOURS[c]) / np.linalg.norm(seen) / np.linalg.norm(COLOURS[c]))
    )


def answer_from_pixels(kind: str, question: str, env: DrawerEnv) -> str:
    """The answer from the segmented picture, without the code that asked."""
    masks, image = env.segmentation(192), env.render(192)
    blocks = {name: mask for name, mask in masks.items() if name.endswith("block")}
    left_or_right = {True: "left", False: "right"}
    match kind:
        case "block_count":
            return ("zero", "one", "two", "three")[sum(bool(mask.any()) for mask in blocks.values())]
        case "cabinet_colour":
            return shown_colour(image, masks["cabinet"])
        case "block_colour":
            return shown_colour(image, next(iter(blocks.values())))
        case "hand_side":
            return left_or_right[centre(masks["hand"]) < centre(masks["handle"])]
        case "block_side":
            return left_or_right[centre(blocks[f"{named_blocks(question)[0]} block"]) < centre(masks["handle"])]
        case "block_order":
            first, second = named_blocks(question)
            if question.startswith("On which side of the"):  # names the reference before the subject
                first, second = second, first
            return left_or_right[centre(blocks[f"{first} block"]) < centre(blocks[f"{second} block"])]
        case "nearest_block":
            rows, columns = np.nonzero(masks["handle"])
            handle = np.array([rows.mean(), columns.mean()])
            middles = {name: np.mean(np.nonzero(mask), axis=1) for name, mask in blocks.items()}
            return min(middles, key=lambda name: float(np.linalg.norm(middles[name] - handle))).split()[0]
    data = env._env.data
    match kind:  # the rest from the simulator's joints and bodies
        case "gripper":
            gap = np.linalg.norm(data.body("rightclaw").xpos - data.body("leftclaw").xpos)
            return "open" if gap > 0.06 else "closed"
        case "drawer_state":
            return "open" if data.qpos[9] < -0.05 else "closed"
        case "hand_distance":
            # The hand's origin is 4.5 cm above the fingertips.
            tips = data.body("hand").xpos - np.array([0, 0, 0.045])
            handle = data.body("drawer_link").xpos - np.array([0, 0.16, 0])
            return "near" if np.linalg.norm(tips - handle) < 0.2 else "far"
    raise AssertionError(kind)


def test_every_answer_is_what_the_picture_shows():
    """Left is left in the picture, a colour is the one of the pixels, a count is that of the visible blocks."""
    for seed in range(200, 300):
        row = recording.record_question(recording.QuestionJob(seed, 64))
        env = recording._environment("drawer-close", 64, "full", "stock")  # still holds the scene asked about
        assert answer_from_pixels(row["kind"], row["question"], env) == row["answer"], (seed, row["question"])


def test_a_finished_data_set_is_not_overwritten_unless_asked(tmp_path):
    arguments = {"workers": 1, "image_size": 32, "progress": False}
    recording.record_questions(tmp_path / "q", 2, **arguments)
    with pytest.raises(FileExistsError, match=r"finished data set in .*overwrite=True"):
        recording.record_questions(tmp_path / "q", 3, **arguments)
    assert len(load(tmp_path / "q")) == 2
    recording.record_questions(tmp_path / "q", 3, overwrite=True, **arguments)
    assert len(load(tmp_path / "q")) == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="other files"):
        recording.record_questions(tmp_path / "other", 3, overwrite=True, **arguments)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "q"]


def test_seeds_outside_a_split_and_empty_requests_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got seed 1000000, expected one in range"):
        recording.record_demonstrations(tmp_path / "d", 1, EVALUATION_SEEDS.start, workers=1, progress=False)
    with pytest.raises(ValueError, match="got seed 1000009, expected one in range"):
        recording.record_questions(tmp_path / "q", 20, EVALUATION_SEEDS.start - 10, workers=1, progress=False)
    with pytest.raises(ValueError, match="got count 0"):
        recording.record_questions(tmp_path / "q", 0)
    with pytest.raises(ValueError, match="got workers 0"):
        recording.record_questions(tmp_path / "q", 1, workers=0)


def test_the_command_line_records(tmp_path, capsys):
    folder = str(tmp_path / "q")
    arguments = ["--count", "2", "--workers", "1", "--image-size", "32"]
    assert main(["record", "drawers", "questions", folder, *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 2
