"""`gen-vla train RECIPE --check`: a look at the data of any recipe, with and without the model it starts from."""

import re
from pathlib import Path

import pytest
from robot_data_sets import make_episodes, write_lerobot
from table_data import SETS, write_table_data
from tiny_runs import tiny_recipe

from gen_vla.commands.main import main
from gen_vla.training.model_building import build_model
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.trainer import CoTrainer


SENTENCE = "are those of a small tokenizer made for this look"


@pytest.fixture(autouse=True)
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CoTrainer, "compute_loss", lambda *_, **__: pytest.fail("a step was taken"))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table_data(tmp_path_factory.mktemp("tables"))


def checked(capsys: pytest.CaptureFixture[str], recipe: Path | str, work_dir: Path, *options: str) -> str:
    code = main(["train", str(recipe), "--work-dir", str(work_dir), "--check", *options])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def start_model(work_dir: Path, name: str = "start") -> Path:
    """A saved tiny model."""
    recipe = tiny_recipe(work_dir)
    model, processor = build_model(recipe, work_dir, open_data(recipe, work_dir))
    model.save_pretrained(work_dir / name)
    processor.save_pretrained(work_dir / name)
    return work_dir / name


def lerobot_recipe(tmp_path: Path, cameras: tuple[str, ...] = ("a_depth", "top"), **settings: object) -> Path:
    """A recipe for a LeRobot data set of three episodes; returns the data set's folder."""
    data = {"robot": [{"path": "lerobot", "key": "own", **settings}], "image_size": 16}
    tokenizer = {"vocab_size": 400, "texts_from_rows": 5}
    tiny_recipe(tmp_path, actions={"action_dim": 7}, data=data, tokenizer=tokenizer)
    return write_lerobot(tmp_path / "lerobot", make_episodes(3, 5, cameras, size=16), "v2.1", "image")


def test_a_recipe_from_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_recipe(tmp_path)
    text = checked(capsys, tmp_path / "tiny.yaml", tmp_path)
    assert "to open the drawer?\\nOut:\\n«" in text
    assert SENTENCE not in text
    assert {file.name for file in (tmp_path / "tiny").iterdir()} == {"first_rows.png", "row_lengths.json"}
    (longest,) = re.findall(r"vision_language/scenes: rows of .* at 95 %, (\d+) the longest of 4", text)
    plan = ["train", str(tmp_path / "tiny.yaml"), "--work-dir", str(tmp_path), "--plan"]
    assert main(plan) == 0
    assert f"{longest} the longest, as --check measured 4 rows" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["openvla_plus_bridge", "openvla_bridge", "pi0_plus_bridge", "pi0_bridge"])
def test_a_full_size_recipe_without_its_model(name: str, tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [f"--set=data.vision_language.{number}.path={path}" for number, path in enumerate(SETS)]
    text = checked(capsys, name, tables, *sources)
    assert SENTENCE in text
    assert "<image> x 256" in text
    assert (tables / name.replace("_", "-") / "first_rows.png").is_file()


def test_the_tokenizer_of_the_model_is_used_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = start_model(tmp_path)
    (folder / "model.safetensors").unlink()
    tiny_recipe(tmp_path, name="further", model={"initial_model": "start", "frozen": None})
    text = checked(capsys, tmp_path / "further.yaml", tmp_path)
    assert SENTENCE not in text
    assert "<s><image> x 4  In: What action" in text
    (folder / "tokenizer.json").unlink()
    assert SENTENCE in checked(capsys, tmp_path / "further.yaml", tmp_path)


def test_no_table_is_written_and_cameras_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lerobot_recipe(tmp_path, ("top", "wrist"))
    text = " ".join(checked(capsys, tmp_path / "tiny.yaml", tmp_path).split())
    assert "LeRobot v2.1" in text
    assert "observation.images.top (the first)" in text
    assert "of 2 cameras only the first is used, observation.images.top; not observation.images.wrist" in text
    assert not (tmp_path / "rows").exists()
    named = "--set=data.robot.0.cameras=[top,wrist]"
    text = " ".join(checked(capsys, tmp_path / "tiny.yaml", tmp_path, named).split())
    assert "only the first is used" not in text
    assert "<image> x 8" in text


def test_actions_too_long_for_the_model_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_recipe(tmp_path, actions={"action_dim": 3, "decimals": 2, "binary_dims": [2], "horizon": 8})
    assert main(["train", str(tmp_path / "tiny.yaml"), "--work-dir", str(tmp_path), "--check"]) == 2
    captured = capsys.readouterr()
    assert "4 of 4 rows cannot be used" in captured.out, "everything is shown before"
    assert "vision_language/scenes" in captured.out
    assert re.search(r"a run would stop at its rows: robot/tiny: got a row of \d+ tokens .*at most 128", captured.err)
    assert "nothing is cut: lower actions.horizon or actions.decimals, or show fewer cameras" in captured.err
