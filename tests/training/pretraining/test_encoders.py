"""Pretraining of the vision encoders on a label per image token."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset as Rows
from datasets import Features, Image, List, Value
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_runs import tiny_recipe

from gen_vla.processors import OpenVLAPlusImageProcessor
from gen_vla.training.model_building import build_model, encoder_file
from gen_vla.training.pretraining.encoders import encoder_trainer, pretrain_encoder, pretrain_encoders, sine_positions
from gen_vla.training.pretraining.labelled_pictures import LabelCollator, LabelledPictures
from gen_vla.training.pretraining.token_heads import TokenHead, TokenTargets
from gen_vla.training.recipes.schema import Recipe, TrainingRecipe
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.run_folder import last_checkpoint


SETTINGS = TrainingRecipe(
    steps=4, batch_size=4, learning_rate=1e-3, gradient_checkpointing=False, bf16=False, save_steps=2, logging_steps=2
)


def write_labelled_questions(folder: Path, rows: int = 8, shapes: tuple[str, ...] = ("can", "mug")) -> Path:
    """Pictures of 16 pixels: a white square of 4 where the only object is, at the same place as its label says."""
    rng = np.random.default_rng(0)
    data: dict[str, list[Any]] = {"image": [], "objects": []}
    for _ in range(rows):
        picture, (left, top) = np.zeros((16, 16, 3), dtype=np.uint8), rng.integers(0, 13, 2)
        picture[top : top + 4, left : left + 4] = 255
        data["image"].append(picture)
        data["objects"].append([{"colour": 0, "shape": 1, "u": (left + 2) / 16, "v": (top + 2) / 16}])
    data |= {"handle": [[0.5, 0.5]] * rows, "opening": [0.25] * rows}
    data |= {"question": ["is it open?"] * rows, "answer": ["no"] * rows}
    thing = {"colour": Value("int8"), "shape": Value("int8"), "u": Value("float32"), "v": Value("float32")}
    words = dict.fromkeys(("question", "answer"), Value("string"))
    places = {"objects": List(thing), "handle": List(Value("float32")), "opening": Value("float32")}
    Rows.from_dict(data, features=Features({"image": Image(), **places, **words})).save_to_disk(str(folder))
    record = {"colours": ["red"], "shapes": list(shapes)}
    (folder / "recording.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def recipe_with_pretraining(work_dir: Path, **changes: Any) -> Recipe:
    recipe = tiny_recipe(work_dir, data__robot=[], tokenizer__texts_from=["questions"])
    return dataclasses.replace(recipe, pretraining=dataclasses.replace(SETTINGS, **changes))


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    write_labelled_questions(tmp_path / "questions")
    return tmp_path


def test_a_recipe_starts_from_its_encoders(work_dir: Path) -> None:
    recipe = recipe_with_pretraining(work_dir)
    pretrain_encoders(recipe, work_dir)
    model, _ = build_model(recipe, work_dir, open_data(recipe, work_dir))
    for name in ("dino", "siglip"):
        saved, loaded = load_file(encoder_file(recipe, work_dir, name)), getattr(model.model.vision_tower, name)
        assert all(torch.equal(saved[key], value) for key, value in loaded.state_dict().items())
        log = json.loads((encoder_file(recipe, work_dir, name).parent / "training_log.json").read_text())
        assert {"loss", "colour", "shape", "place"} <= set(log["history"][0])


@pytest.mark.parametrize("name", ["dino", "siglip"])
def test_a_killed_run_goes_on_to_the_same_weights(name: str, work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_with_pretraining(work_dir)
    weights = encoder_file(recipe, work_dir, name)
    pretrain_encoder(name, recipe, work_dir)
    whole = load_file(weights)
    weights.unlink()
    newest = last_checkpoint(weights.parent / "checkpoints")
    assert newest is not None
    newest.rename(newest.with_name("gone"))
    pretrain_encoder(name, recipe, work_dir)
    assert all(torch.equal(whole[key], value) for key, value in load_file(weights).items())


def test_an_encoder_of_other_settings_is_refused(work_dir: Path) -> None:
    pretrain_encoder("dino", recipe_with_pretraining(work_dir), work_dir)
    with pytest.raises(ValueError, match="pretrained with other settings"):
        pretrain_encoder("dino", recipe_with_pretraining(work_dir, steps=5), work_dir)


def test_recordings_of_other_classes_are_refused(work_dir: Path) -> None:
    folders = [work_dir / "questions", write_labelled_questions(work_dir / "other", shapes=("can", "cup"))]
    with pytest.raises(ValueError, match="expected those of"):
        LabelledPictures(folders)


def test_an_encoder_learns_where_and_what(work_dir: Path) -> None:
    recipe = recipe_with_pretraining(work_dir, steps=60, learning_rate=3e-3, logging_steps=10)
    pictures = LabelledPictures([work_dir / "questions"])
    trainer = encoder_trainer("dino", recipe, pictures, work_dir / "checkpoints")
    collator: Any = trainer.data_collator
    collator.largest_shift = 0
    trainer.train()
    first, *_, last, _ = trainer.state.log_history
    assert last["loss"] < 0.5 * first["loss"]
    assert (last["colour"], last["shape"]) == (1.0, 1.0)
    assert last["place"] < 0.15


def test_a_label_moves_with_its_picture(work_dir: Path) -> None:
    """The middle of the white square is where the label of the moved picture says."""
    pictures = LabelledPictures([work_dir / "questions"])
    collator = LabelCollator(OpenVLAPlusImageProcessor(16, [(0.0,)], [(1.0,)]), 4, *pictures.classes, largest_shift=3)
    torch.manual_seed(0)
    moved, seen = collator([pictures[0]] * 40), set()
    for pixels, shapes, places in zip(moved["pixel_values"], moved["shapes"], moved["places"]):
        tokens = (shapes == 2).nonzero()
        square = pixels[0].nonzero().float()
        if len(tokens) and len(square) == 16:  # wholly in view
            token = tokens[0, 0]
            v, u = (square.mean(dim=0) + 0.5) / 4
            expected = torch.tensor([u - token % 4, v - token // 4])
            torch.testing.assert_close(places[token], expected, atol=1e-4, rtol=0)
            seen.add((float(u), float(v)))
    assert len(seen) > 10


@pytest.mark.parametrize("named", [False, True])
def test_figures_of_a_head(named: bool) -> None:
    """One picture of two tokens: a red can (1, 1) at the first, nothing at the second."""
    head = TokenHead(8, colours=3, shapes=4, named=named)
    targets = TokenTargets(
        torch.tensor([[1, 0]]), torch.tensor([[1, 0]]), torch.tensor([[[0.5, 0.25], [0.0, 0.0]]]), torch.tensor([1.0])
    )
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.zero_()
        for wanted in (1 * 4 + 1,) if named else (1, 3 + 1):
            head.out.bias[wanted] = 5.0
        head.out.bias[-3:] = torch.tensor([0.5, 0.65, 0.0])
    right = head.right(torch.randn(1, 2, 8), targets)
    assert (right["colour"].tolist(), right["shape"].tolist()) == ([True], [True])
    torch.testing.assert_close(right["place"], torch.tensor([0.4]))


def test_positions_differ_and_neighbours_are_alike() -> None:
    positions = sine_positions(8, 32)
    likeness = torch.nn.functional.normalize(positions, dim=1) @ torch.nn.functional.normalize(positions, dim=1).T
    assert positions.shape == (64, 32)
    assert likeness.fill_diagonal_(0).max() < 0.999
    assert likeness[9, 10] > likeness[9, 13]
    with pytest.raises(ValueError, match="expected a multiple of 4"):
        sine_positions(8, 30)


def test_pretraining_is_for_models_from_random_weights(work_dir: Path) -> None:
    recipe = recipe_with_pretraining(work_dir)
    with pytest.raises(ValidationError, match="got pretraining with"):
        dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, initial_model="start"))
