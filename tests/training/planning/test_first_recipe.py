"""`gen-vla init`: what it finds out about data sets of several kinds, and what it chooses for them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import robot_data_sets
from robot_data_sets import Episode, make_episodes, write_lerobot
from robot_rows import write
from tiny_vlms import tiny_vla_pair

from gen_vla.commands.main import main
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.schema import Recipe


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def arm(
    kind: str = "position", cameras: tuple[str, ...] = ("image_0",), words: str = "close the drawer"
) -> list[Episode]:
    """Twelve smooth episodes of 60 steps and more; actions are "position"s, "displacement"s or made up ("unknown")."""
    episodes = make_episodes(12, 60, cameras, 16)
    random = np.random.default_rng(0)
    for episode in episodes:
        steps, episode.instruction = len(episode.actions), words
        path = np.cumsum(random.normal(0, 0.01, (steps + 1, 6)), axis=0)
        episode.states[:, :6] = random.normal(size=(steps, 6)) if kind == "unknown" else path[:-1]
        episode.actions[:, :6] = np.diff(path, axis=0) if kind == "displacement" else path[1:]
    return episodes


def init(*options: str, data: str = "episodes", base: str = "openvla_plus") -> Recipe:
    command = ["init", "my_arm", "--data", data, "--base", base, "--no-co-training", "--work-dir", ".", *options]
    assert main(command) == 0
    return load_recipe("my_arm.yaml")


def test_three_cameras_at_50_hz(here, monkeypatch, capsys):
    monkeypatch.setattr(robot_data_sets, "FPS", 50)
    episodes = arm(cameras=("cam_high", "cam_left", "cam_right", "off"))
    for episode in episodes:
        episode.pictures["off"] = np.zeros_like(episode.pictures["off"])
        episode.actions[: len(episode.actions) // 2] = episode.actions[0]
    write_lerobot(here / "episodes", episodes, "v3.0", kind="image")
    recipe = init()
    [robot] = recipe.data.robot
    assert (robot.path, robot.key, robot.every, robot.displacements) == ("episodes", "my_arm", 5, [])
    assert robot.cameras == [f"observation.images.{name}" for name in ("cam_high", "cam_left", "cam_right")]
    assert (recipe.actions.horizon, recipe.actions.binary_dims) == (5, [6])
    assert recipe.data.image_augmentation
    assert recipe.data.instruction_augmentation
    rows = sum(-(-len(episode.actions) // 5) for episode in episodes)
    assert recipe.training.steps == max(500, 20 * rows // 32)  # 32 rows a step
    said = capsys.readouterr().out
    for words in (
        "10 Hz of 50",
        "0.5 s at 10 Hz",
        "not off, of one colour",
        "the data set has no names",
        "nothing moves",
    ):
        assert words in said
    written = Path("my_arm.yaml").read_text()
    assert "every: 5" in written
    assert "# 10 Hz of 50: digits hardly keep up" in written
    assert main(["train", "my_arm.yaml", "--work-dir", ".", "--check"]) == 0


def test_the_state_shown_and_joints_relative_to_it(here, monkeypatch, capsys):
    """Chunks are shorter by what the state takes; a gripper by name stays absolute, and a joint at rest is a joint."""
    monkeypatch.setattr(robot_data_sets, "FPS", 30)
    episodes, random = arm(cameras=("image_0", "wrist", "side")), np.random.default_rng(1)
    for episode in episodes:
        episode.states[:, 5], episode.actions[:, 5] = random.normal(0, 1e-3, (2, len(episode.actions)))
    folder = write_lerobot(here / "episodes", episodes, "v3.0", kind="image")
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    features["action"]["names"] = [*(f"joint_{n}.pos" for n in range(5)), "joint\n5.pos", "gripper.pos"]
    robot_data_sets.edit_info(folder, features=features)
    plain = init(base="package://mini-vlm")
    Path("my_arm.yaml").unlink()
    recipe = init("--show-state", "--relative", base="package://mini-vlm")
    [robot] = recipe.data.robot
    assert (recipe.data.state, robot.every, robot.displacements) == (True, 3, [])
    assert [group.dims for group in robot.relative] == [[0, 1, 2, 3, 4, 5]]
    assert recipe.actions.horizon < plain.actions.horizon
    assert main(["train", "my_arm.yaml", "--work-dir", ".", "--check"]) == 0
    said = capsys.readouterr().out
    assert "State: " in said
    assert said.count("relative to the state") == 6


def test_some_cameras_are_not_said_to_be_all(here, capsys):
    write_lerobot(here / "episodes", make_episodes(2, 6, ("top", "wrist"), 16))
    init("--camera", "observation.images.wrist")
    assert "[observation.images.wrist]  # 1 of its 2\n" in capsys.readouterr().out


def test_a_broken_video_is_named_and_stops_nothing(here, capsys):
    folder = write_lerobot(here / "episodes", make_episodes(4, 9, size=16))
    (folder / "videos/chunk-000/observation.images.image_0/episode_000000.mp4").write_bytes(b"no video")
    recipe = init()
    assert recipe.data.robot[0].cameras == ["observation.images.image_0"]
    said = capsys.readouterr().out
    assert "look at: 1 of the pictures looked at cannot be read" in said
    assert "episode_000000.mp4" in said


@pytest.mark.parametrize("kind", ["displacement", "unknown"])
def test_only_positions_are_relative(here, capsys, kind):
    write_lerobot(here / "episodes", arm(kind), kind="image")
    command = ["init", "my_arm", "--data", "episodes", "--relative", "--work-dir", "."]
    assert main(command) == 2
    assert "beside a state of 7 values, expected positions" in " ".join(capsys.readouterr().err.split())
    assert not Path("my_arm.yaml").exists()


@pytest.mark.parametrize(
    ("kind", "every", "moves", "horizon"),
    [
        ("displacement", 5, [0, 1, 2, 3, 4, 5], 5),
        ("unknown", 1, None, 8),  # 25 would be 1225 tokens
    ],
)
def test_dimensions_that_are_moves_and_those_that_nothing_tells(
    here, monkeypatch, capsys, kind, every, moves, horizon
):
    monkeypatch.setattr(robot_data_sets, "FPS", 50)
    write_lerobot(here / "episodes", arm(kind), kind="image")
    recipe = init()
    [robot] = recipe.data.robot
    assert (robot.every, robot.displacements, recipe.actions.horizon) == (every, moves, horizon)
    assert ("says which of [0, 1, 2, 3, 4, 5] are moves" in capsys.readouterr().out) == (kind == "unknown")


def test_a_gripper_of_two_values_that_rarely_closes(here, capsys):
    episodes = arm(words="fnord the blorp")
    for number, episode in enumerate(episodes):
        episode.actions[:, 6] = 1.0
        episode.actions[-1, 6] = 1.0 if number else -1.0
    write_lerobot(here / "episodes", episodes, kind="image")
    recipe = init()
    assert recipe.actions.normalization == ["quantiles"] * 6 + ["min_max"]
    assert recipe.actions.binary_dims == []
    assert recipe.data.instruction_augmentation is None
    assert "'fnord the blorp', and no shipped paraphrase fits" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["rlds", "recording", "v2.0"])
def test_other_formats(here, form):
    folder = write(here, form, make_episodes(3, 9, size=16))
    recipe = init(data=str(folder.relative_to(here)))
    assert (recipe.actions.horizon, recipe.data.robot[0].every) == (2 if form == "v2.0" else 4, 1)


@pytest.mark.parametrize("base", ["openvla_plus", "pi0_plus", "pi0_flow"])
def test_families_by_name(here, base):
    write_lerobot(here / "episodes", make_episodes(2, 5, size=16), kind="image")
    recipe, shipped = init(base=base), load_recipe("pi0_bridge" if base == "pi0_flow" else f"{base}_bridge")
    assert (recipe.model.initial_model, recipe.data.questions) == (shipped.model.initial_model, [])
    assert bool(recipe.training.lora) == (base != "pi0_flow")


@pytest.mark.parametrize("frozen", ["vision", None])
def test_a_converted_model_as_base(here, frozen):
    write_lerobot(here / "episodes", make_episodes(2, 5, size=16), kind="image")
    for part in tiny_vla_pair("smolvlm", here / "base", frozen=frozen):
        part.save_pretrained(here / "smolvlm-plus")
    recipe = init(base="smolvlm-plus")
    assert (recipe.model.initial_model, recipe.model.frozen) == ("smolvlm-plus", frozen)
    assert (recipe.model.family, recipe.data.image_size) == ("vla_plus", 16)
    assert (recipe.training.steps, recipe.training.warmup_steps) == (500, 15), "not the 600 of 20,000 steps"


def test_a_model_of_a_short_context_gets_shorter_chunks_and_fewer_cameras(here, monkeypatch, capsys):
    """The packaged model takes 384 tokens; 64 of them are a picture."""
    monkeypatch.setattr(robot_data_sets, "FPS", 10)
    told = "put the small wooden spoon beside the yellow towel, " * 7
    episodes = [replace(e, instruction=told) for e in make_episodes(2, 20, ("image_0", "wrist", "side"), 16)]
    write_lerobot(here / "episodes", episodes, kind="image")
    recipe = init(base="package://mini-vlm")
    said = capsys.readouterr().out
    assert len(recipe.data.robot[0].cameras or []) == 2
    assert 1 <= recipe.actions.horizon < 5
    assert recipe.training.lora is None
    assert "the model takes no longer rows" in said
    assert "2 of 3: each takes as many tokens again" in said
    assert main(["train", "my_arm.yaml", "--work-dir", ".", "--check"]) == 0


def test_real_episodes(here, data_dir):
    recipe = init(data=str(data_dir / "octo_bridge_debug" / "bridge_dataset" / "1.0.0"))
    [robot] = recipe.data.robot
    assert robot.cameras == [f"observation/image_{number}" for number in range(3)]  # the last one is black
    assert Path(robot.path).is_absolute()
    assert recipe.actions.binary_dims == [6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "taken"}, "got the name of taken.yaml, which exists, expected a new one: init never overwrites"),
        ({"base": "qwen"}, "got --base 'qwen', and no model in"),
        ({"data": "nowhere"}, "got --data 'nowhere', which is no folder here"),
        ({"data": "wordless"}, "there is nothing to learn from; lerobot-edit-dataset --operation.type modify_tasks"),
        ({"data": "parts"}, r"name the features with `action` and `state`, such as action: [action.moves]"),
        ({"name": "my arm"}, "got name 'my arm', expected letters"),
    ],
)
def test_mistakes_write_nothing(here, capsys, options, message):
    episodes = make_episodes(2, 5, size=16)
    write_lerobot(here / "episodes", episodes, kind="image")
    for episode in episodes:
        episode.columns = {"action.moves": episode.actions}
    write_lerobot(here / "parts", episodes, kind="image")
    for episode in episodes:
        episode.columns, episode.instruction = None, ""
    write_lerobot(here / "wordless", episodes, kind="image")
    (here / "taken.yaml").write_text("mine")
    given = {"name": "mine", "data": "episodes", "base": "package://mini-vlm", **options}
    assert main(["init", given["name"], "--data", given["data"], "--base", given["base"], "--work-dir", "."]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in here.glob("*.yaml")] == ["taken.yaml"]
    assert (here / "taken.yaml").read_text() == "mine"
