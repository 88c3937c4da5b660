"""`gen-vla train` on data and settings that cannot work: a message and exit code 2, before the first step."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rlds_data_sets import write_rlds
from robot_data_sets import make_episodes, write_lerobot
from table_data import SETS, write_table_data
from tiny_runs import tiny_recipe, write_robot_data

from gen_vla.commands.main import main
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.storage.hub_requests import HTTP_ERROR
from gen_vla.training.trainer import CoTrainer


SOURCES = [f"--set=data.vision_language.{number}.path={path}" for number, path in enumerate(SETS)]


@pytest.fixture(autouse=True)
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of these must be found before anything is trained."""
    monkeypatch.setattr(CoTrainer, "compute_loss", lambda *_, **__: pytest.fail("a step was taken"))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table_data(tmp_path_factory.mktemp("tables"))


@pytest.fixture
def copied(tables: Path, tmp_path: Path) -> Path:
    """The same data sets, to be damaged."""
    return shutil.copytree(tables, tmp_path / "copy")


def refused(capsys: pytest.CaptureFixture[str], recipe: str, work_dir: Path, *options: str) -> str:
    """The message of a run that is refused."""
    code = main(["train", recipe, "--work-dir", str(work_dir), *options])
    message = capsys.readouterr().err
    assert code == 2, message[-2000:]
    return message[message.rindex("gen-vla: ") :]


def mini(capsys: pytest.CaptureFixture[str], work_dir: Path, *options: str) -> str:
    return refused(capsys, "openvla_plus_bridge", work_dir, "--mini", *SOURCES, *options)


def tiny(capsys: pytest.CaptureFixture[str], work_dir: Path, **overrides: Any) -> str:
    tiny_recipe(work_dir, **overrides)
    return refused(capsys, str(work_dir / "tiny.yaml"), work_dir)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.shufle_buffer=3", "unknown key 'data.shufle_buffer'; did you mean 'shuffle_buffer'?"),
        ("training.batch_size=7", "got training.batch_size=7, expected an even number"),
        ("data.co_training=[llav]", "got co_training with 'llav', which is no vision-language data set here; did you"),
        ("data.max_bad_share=2.0", "data.max_bad_share: got 2.0 (float), expected less than or equal to 1"),
        ("data.robot.0.weight=0.0", "data.robot.0.weight: got 0.0 (float), expected greater than 0"),
        ("model.frozen=clip", "model.frozen: got 'clip' (str), expected 'siglip', 'dino', 'all' or 'vision'"),
        ("actions.action_dim=8", "got actions of 7 dimensions in robot/bridge_orig, expected actions.action_dim=8"),
        ("actions.action_dim=6", "got binary_dims=[6] with action_dim=6, expected dimensions from 0 to 5"),
        ("actions.binary_dims=[5, 6]", "dimension 5, expected 0 and 1 alone, since actions.binary_dims names it"),
        ("data.robot.0.split=validation", "validation"),
        ("data.robot.0.cameras=[image_7]", "got camera 'image_7', expected one of"),
        ("data.robot.0.path=nowhere", "got no folder at"),
        ("data.vision_language.2.path=nowhere", "got no vision-language data set at"),
        ("data.vision_language.0.format=vqasynth", "llava"),
    ],
)
def test_settings_that_cannot_work(setting, message, tables, capsys):
    assert message in mini(capsys, tables, f"--set={setting}")


def test_a_missing_model(tables, capsys):
    message = refused(capsys, "openvla_plus_bridge", tables)
    assert "got " in message
    assert "gen-vla convert makes it" in message


def test_a_truncated_tfrecord(copied, capsys):
    file = next((copied / "bridge_orig").glob("**/*.tfrecord-00001-of-00002"))
    file.write_bytes(file.read_bytes()[:-100])
    message = mini(capsys, copied)
    assert file.name in message
    assert "cut off" in message


def test_a_parquet_without_its_column(copied, capsys):
    info = write_lerobot(copied / "lerobot", make_episodes(2, 5, size=16), "v2.1") / "meta" / "info.json"
    info.write_text(info.read_text().replace('"action":', '"motion":'))
    assert "expected action" in mini(capsys, copied, "--set=data.robot.0.path=lerobot")


def test_every_episode_with_nan_leaves_nothing(copied, capsys):
    shutil.rmtree(copied / "bridge_orig")
    episodes = make_episodes(3, 6, size=16)
    for episode in episodes:
        episode.states[2, 0] = np.nan
    write_rlds(copied, episodes, "bridge_orig")
    assert "without a step that has an instruction and a finite action" in mini(capsys, copied)


def test_nan_and_missing_columns_in_a_recording(tmp_path, capsys):
    actions = [[0.0, 0.0, 1.0]] * 5 + [[0.0, float("nan"), 1.0]]
    write_robot_data(tmp_path / "robot", action=actions)
    message = tiny(capsys, tmp_path)
    assert "tiny: got 1 bad rows among 6, expected at most 1.00%: step with an action that is not finite" in message
    assert "episode 1 (nan in dimension 1 at step 2)" in message
    message = tiny(capsys, tmp_path / "other", data__robot=[{"path": "questions", "key": "tiny"}])
    assert "expected also instruction, action, episode_index" in message


def test_a_gripper_with_a_width_is_scaled_where_it_is_not_called_binary(tmp_path, capsys):
    widths = [[0.0, 0.0, width] for width in (0, 0.02, 0.04, 0.06, 0.08, 1)]
    write_robot_data(tmp_path / "robot", action=widths)
    message = tiny(capsys, tmp_path)
    assert "got values from 0 to 1 in dimension 2, expected 0 and 1 alone" in message
    assert "actions.binary_dims: []" in message
    recipe = tiny_recipe(tmp_path, actions={"action_dim": 3, "decimals": 2, "binary_dims": []})
    statistics = open_data(recipe, tmp_path).norm_stats["tiny"]["action"]
    assert statistics["mask"] == [True, True, True]


def test_a_run_without_a_connection(tables, capsys, monkeypatch):
    def no_answer(*_: Any, **__: Any) -> None:
        raise HTTP_ERROR("name or service not known")

    monkeypatch.setattr("gen_vla.training.run.open_data", no_answer)
    message = mini(capsys, tables)
    assert "the Hub could not be asked" in message
    assert "--set data.co_training=[]" in message


@pytest.mark.parametrize("name", ["nowhere", "./owner/name", "owner/name/more"])
def test_what_no_model_is_loaded_from(name, tmp_path, capsys):
    Image.new("RGB", (20, 20)).save(tmp_path / "camera.png")
    assert main(["predict", name, str(tmp_path / "camera.png"), "go"]) == 2
    assert "is no folder here" in capsys.readouterr().err
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert main(["predict", str(tmp_path / "adapter"), str(tmp_path / "camera.png"), "go"]) == 2
    assert "adapter without adapter_model.safetensors; copy the whole folder" in capsys.readouterr().err


def test_a_service_that_is_not_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gen_vla.training.run.get_available_reporting_integrations", lambda: ["tensorboard"])
    tiny_recipe(tmp_path)
    message = refused(capsys, str(tmp_path / "tiny.yaml"), tmp_path, "--report-to", "trackio")
    assert "got report_to='trackio', whose package is missing; pip install trackio" in message
    assert yaml.safe_load((tmp_path / "tiny.yaml").read_text())["name"] == "tiny"
