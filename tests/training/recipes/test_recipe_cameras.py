"""Cameras of a recipe: what a model keeps of them, and that training and acting show it the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Image, load_from_disk
from rlds_data_sets import write_rlds
from robot_data_sets import encode, make_episodes, write_lerobot
from tiny_runs import noise, tiny_flow_settings, tiny_recipe, tiny_vlm_model, write_robot_data

from gen_vla.commands.main import main
from gen_vla.training.checkpoints import load_model, load_processor
from gen_vla.training.mixing.encoded_pictures import decode_picture
from gen_vla.training.model_building import build_model
from gen_vla.training.publishing.assembling import publish_to_folder
from gen_vla.training.recipes.data_schema import RobotSource
from gen_vla.training.recipes.loading import Recipe
from gen_vla.training.recipes.sources import model_cameras, open_data, short_names
from gen_vla.training.robot_data.source import open_robot_source
from gen_vla.training.run import build_collator, build_preparer, run_recipe


CAMERAS = ["wrist", "top"]  # another order than the data set's


def test_data_sets_share_a_model_place_by_place() -> None:
    assert model_cameras({}) is None
    assert model_cameras({"a": ["observation/image_0"], "b": ["observation.images.image_0"]}) == ["image_0"]
    assert model_cameras({"a": ["observation/image_0"], "b": ["image"]}) is None
    assert model_cameras({"a": ["x/top", "x/wrist"], "b": ["front", "hand"]}) == ["top", "wrist"]
    with pytest.raises(ValueError, match=r"different numbers of cameras \(a: x/top, x/wrist; b: front\)"):
        model_cameras({"a": ["x/top", "x/wrist"], "b": ["front"]})
    with pytest.raises(ValueError, match="got the cameras x/top, x/top of a, expected each once"):
        model_cameras({"a": ["x/top", "x/top"]})
    assert short_names(["observation.images.top", "observation/wrist", "image"]) == ["top", "wrist", "image"]
    assert short_names(["left.rgb", "right.rgb"]) == ["left.rgb", "right.rgb"]


def two_cameras(work_dir: Path, kind: str, family: str, **overrides: Any) -> Recipe:
    """A recipe with a data set of two cameras, written as `kind`."""
    episodes = make_episodes(2, 4, cameras=("top", "wrist"), size=24)
    if kind == "rlds":
        path = write_rlds(work_dir, episodes, "arm").relative_to(work_dir)
    else:
        path = write_lerobot(work_dir / "arm", episodes, "v3.0", "image").relative_to(work_dir)
    families = {"openvla_plus": {}, "vla_plus": {"model": tiny_vlm_model()}, "pi0_flow": tiny_flow_settings()}
    settings = {"data__co_training": [], **families[family], **overrides}
    return tiny_recipe(
        work_dir,
        **settings,
        data__robot=[{"path": str(path), "key": "arm", "cameras": CAMERAS, "transform": None}],
        data__streaming=kind == "rlds",
        actions__action_dim=7,
        actions__binary_dims=[6],
        tokenizer={"vocab_size": 400, "texts_from_rows": 8},
        training__steps=1,
        training__save_steps=1,
    )


def first_picture(path: Path, camera: str) -> Any:
    source = open_robot_source(path, key="arm", cameras=[camera], transform=None)
    row = next(source.rows(source.shards()))
    return decode_picture(row["images"][0], "first")


@pytest.mark.parametrize("family", ["openvla_plus", "vla_plus", "pi0_flow"])
@pytest.mark.parametrize("kind", ["rlds", "lerobot"])
def test_training_and_acting_show_the_same(kind: str, family: str, tmp_path: Path) -> None:
    recipe = two_cameras(tmp_path, kind, family)
    opened = open_data(recipe, tmp_path)
    model, processor = build_model(recipe, tmp_path, opened)
    assert processor.cameras == opened.cameras == CAMERAS
    collator = build_collator(recipe, model.config, processor, opened.names)
    prepare = build_preparer(recipe, processor, opened.norm_stats, collator, model.config)
    row = opened.first_rows("robot/arm", 1)[0]
    images = [image.decode() if hasattr(image, "decode") else image for image in row["images"]]
    batch = collator([prepare({**row, "images": images}, "robot/arm", 0)])
    labels = batch.get("labels", torch.full_like(batch["input_ids"], -100))  # the flow-matching π0 writes no tokens
    prompt = batch["input_ids"][0][labels[0] == -100]

    path = tmp_path / recipe.data.robot[0].path
    pictures = {camera: first_picture(path, camera) for camera in ("top", "wrist")}
    assert np.asarray(pictures["top"]).mean() < np.asarray(pictures["wrist"]).mean()
    inputs = processor.action_inputs(pictures, row["instruction"])
    assert inputs["input_ids"].tolist() == [prompt.tolist()]
    image_tokens, bos = [processor.image_token_id] * 8, processor.tokenizer.bos_token_id
    start = [*image_tokens, bos] if family == "pi0_flow" else [bos, *image_tokens]
    assert prompt.tolist()[: len(start)] == start
    assert batch["pixel_values"].shape[0] == 2
    torch.testing.assert_close(inputs["pixel_values"], batch["pixel_values"], rtol=0, atol=0)
    wrong = processor.action_inputs([pictures["top"], pictures["wrist"]], row["instruction"])
    assert not torch.equal(wrong["pixel_values"], batch["pixel_values"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model of two cameras; its data set lies beside it."""
    work_dir = tmp_path_factory.mktemp("two_cameras")
    return run_recipe(two_cameras(work_dir, "lerobot", "openvla_plus"), work_dir, progress=False)


def test_training_saves_the_cameras(trained: Path, tmp_path: Path) -> None:
    assert json.loads((trained / "processor_config.json").read_text())["cameras"] == CAMERAS
    assert load_processor(trained).cameras == CAMERAS
    one = tiny_recipe(tmp_path, training__steps=1)
    assert build_model(one, tmp_path, open_data(one, tmp_path))[1].cameras == ["image"]
    further = tiny_recipe(tmp_path, model={"initial_model": str(trained)}, actions__action_dim=3)
    assert build_model(further, tmp_path, open_data(further, tmp_path))[1].cameras == ["image"]


def test_predict_takes_a_picture_of_each_camera(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise(1, 20).save("top.png")
    noise(2, 30).save("wrist=2.png")
    command = ["predict", str(trained)]
    answers = []
    for pictures in (["wrist=2.png", "top.png"], ["top=top.png", "wrist=wrist=2.png"]):
        assert main([*command, *pictures, "open the drawer", "--picture", "drawn.png"]) == 0, capsys.readouterr().err
        answers.append(capsys.readouterr().out)
    model, processor = load_model(trained), load_processor(trained)
    inputs = processor.action_inputs([noise(2, 30), noise(1, 20)], "open the drawer")
    assert answers[0] == answers[1]
    assert json.loads(answers[0])["text"] == model.predict_actions(**inputs).text[0]
    assert (tmp_path / "drawn.png").stat().st_size > 1000
    for pictures, message in (
        (["top.png"], "got 1 pictures for an action, expected one per camera (wrist, top, in this order)"),
        (["top=top.png", "front=top.png"], "got pictures of top, front for an action"),
        (["top=top.png", "top.png"], "expected FILE or CAMERA=FILE for all of them"),
        (["top=top.png", "wrist=missing.png"], "got no file at missing.png"),
    ):
        assert main([*command, *pictures, "open the drawer"]) == 2
        assert message in capsys.readouterr().err


def test_measurements_show_every_camera(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "latency", str(trained), "--repeats", "1"]) == 0, capsys.readouterr().err
    data, output = str(trained.parent / "arm"), tmp_path / "agreement.json"
    command = ["evaluate", "agreement", str(trained), data, "--pictures", "2", "--output", str(output)]
    assert main(command) == 0, capsys.readouterr().err
    assert json.loads(output.read_text())["comparisons"]["tree"]["same"] == 2
    assert main([*command, "--camera", "top"]) == 2
    assert "got 1 cameras (top), expected 2" in capsys.readouterr().err


@pytest.mark.slow
def test_a_repository_of_two_cameras_stands_on_its_own(trained: Path, tmp_path: Path) -> None:
    folder = publish_to_folder(trained, "gen-vla/two", tmp_path / "repository")
    assert load_processor(folder).cameras == CAMERAS
    assert "| cameras | `wrist`, `top`: a picture of each per action" in (folder / "README.md").read_text()


def test_batches_and_beams_keep_the_pictures_of_a_row(trained: Path) -> None:
    model, processor = load_model(trained), load_processor(trained)
    rows = [[noise(4 * row), noise(4 * row + 1)] for row in range(2)]
    words = ["open the drawer", "go"]
    batch = model.predict_actions(**processor.action_inputs(rows, words), tree_nodes=0)
    for options in ({}, {"cache_implementation": "static"}, {"num_beams": 3}):
        inputs = processor.action_inputs(rows, words)
        together = model.predict_actions(**inputs, **options)
        alone = [model.predict_actions(**processor.action_inputs(*one), **options) for one in zip(rows, words)]
        assert together.text == [single.text[0] for single in alone]
        if "num_beams" not in options:
            assert together.text == batch.text


def test_beams_get_each_picture_of_their_row(trained: Path) -> None:
    model, processor = load_model(trained), load_processor(trained)
    inputs = processor(images=[[noise(0), noise(1)], [], [noise(2)]], text=["a", "b", "c"])
    ids, expanded = model._expand_inputs_for_generation(expand_size=2, **inputs)
    numbers = [0, 1, 0, 1, 2, 2]
    torch.testing.assert_close(expanded["pixel_values"], inputs["pixel_values"][numbers], rtol=0, atol=0)
    assert len(ids) == len(expanded["attention_mask"]) == 6


def test_a_recording_shows_the_columns_that_are_named(tmp_path: Path) -> None:
    recorded: Any = load_from_disk(str(write_robot_data(tmp_path / "plain")))
    wrist = [noise(90 + row) for row in range(len(recorded))]
    encoded = [{"bytes": encode(np.asarray(picture), "PNG"), "path": None} for picture in wrist]
    recorded.add_column("wrist", encoded).cast_column("wrist", Image()).save_to_disk(str(tmp_path / "robot"))
    for cameras, expected in ((None, [noise(0)]), (["wrist", "image"], [wrist[0], noise(0)])):
        robot = [{"path": "robot", "key": "tiny", "cameras": cameras}]
        opened = open_data(tiny_recipe(tmp_path, data__robot=robot), tmp_path)
        assert opened.cameras == (cameras or ["image"])
        images = [decode_picture(image, "first") for image in opened.first_rows("robot/tiny", 1)[0]["images"]]
        assert [image.tobytes() for image in images] == [image.tobytes() for image in expected]


def test_data_sets_of_other_numbers_of_cameras_stop_a_run_before_it_reads_them(tmp_path: Path) -> None:
    recipe = two_cameras(tmp_path, "lerobot", "openvla_plus")
    both = [*recipe.data.robot, RobotSource(path="arm", key="one")]
    with pytest.raises(ValueError, match=r"different numbers of cameras \(arm: .*wrist, .*top; one: .*top\)"):
        open_data(replace(recipe, data=replace(recipe.data, robot=both)), tmp_path)
    assert not (tmp_path / "rows").exists()
