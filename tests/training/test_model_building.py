"""The model a recipe starts from, in both families: from random weights, from another model, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import logged_steps, noise, run_tiny, tiny_recipe, tiny_vlm_model, weights_hash, write_robot_data

from gen_vla.modeling import OpenVLAPlusForVision2Seq, VLAPlusForVision2Seq
from gen_vla.processors import OpenVLAPlusProcessor, VLAPlusProcessor
from gen_vla.training.checkpoints import load_model, load_processor
from gen_vla.training.model_building import action_weights, build_model, check_initial_model, recipe_texts
from gen_vla.training.recipes.sources import OpenedData, open_data
from gen_vla.training.run import run_recipe


FAMILIES = {
    "openvla_plus": (OpenVLAPlusForVision2Seq, OpenVLAPlusProcessor, "dino"),
    "vla_plus": (VLAPlusForVision2Seq, VLAPlusProcessor, "vision"),
}
START = {"openvla_plus": "siglip", "vla_plus": "vision"}
FROZEN = {"openvla_plus": ".vision_tower.siglip.", "vla_plus": ".frozen_vision.vision_tower."}


def family_settings(family: str) -> dict[str, Any]:
    return {"model": tiny_vlm_model()} if family == "vla_plus" else {}


def build(recipe: Any, work_dir: Path) -> tuple[Any, Any]:
    return build_model(recipe, work_dir, open_data(recipe, work_dir))


@pytest.fixture(scope="module", params=FAMILIES)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Each family, and the model folder of a run of 4 steps of it; copy its parent before changing anything in it."""
    work_dir = tmp_path_factory.mktemp(request.param)
    return request.param, run_tiny(work_dir, training__steps=4, **family_settings(request.param))


def test_each_family_trains_acts_and_answers(finished: tuple[str, Path]) -> None:
    family, folder = finished
    model, processor = load_model(folder), load_processor(folder)
    model_class, processor_class, _ = FAMILIES[family]
    assert (type(model), type(processor).__name__) == (model_class, processor_class.__name__)
    assert model.config.prompt_template == processor.prompt_template == processor_class.default_prompt_template
    assert model.config.action_config == processor.action_config
    assert (model.config.frozen, list(model.config.norm_stats)) == (START[family], ["tiny"])
    texts = model.predict_actions(**processor.action_inputs([noise(0), noise(1)], ["open the drawer", "go"])).text
    assert [processor.action_strings.decode(text).shape for text in texts] == [(1, 3)] * 2
    question = processor.question_inputs(noise(2), "is the drawer open?")
    assert model.generate(**question, max_new_tokens=3, do_sample=False).shape[1] > question["input_ids"].shape[1]
    steps = logged_steps(folder)
    assert steps[-1]["robot/loss"] < steps[0]["robot/loss"]
    config = json.loads((folder / "config.json").read_text())
    assert config.get("use_cache", True)
    text = config.get("vlm_config", config)["text_config"]
    assert text.get("use_cache", True), "decoding would be quadratic for everyone who loads it"
    assert str(folder.parent) not in (folder / "config.json").read_text()


def test_the_frozen_encoder_of_each_family_stays_and_all_else_moves(finished, tmp_path):
    family, folder = finished
    shutil.copytree(folder.parent, tmp_path / "copy")
    recipe = tiny_recipe(tmp_path / "copy", training__steps=4, **family_settings(family))
    before, after = build(recipe, tmp_path / "copy")[0].state_dict(), load_model(folder).state_dict()
    unmoved = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {name for name in before if FROZEN[family] in name}
    assert len(frozen) > 10
    assert frozen <= unmoved
    # the token that masks patches in pretraining is used nowhere, nor is what follows a layer that LLaVA reads
    unused = ("mask_token", "post_layernorm.weight", "post_layernorm.bias")
    assert not {name for name in unmoved - frozen if not name.endswith(unused)}


def test_starting_from_a_model_keeps_its_weights_and_takes_the_new_settings(finished, tmp_path):
    family, source = finished
    work_dir, frozen = tmp_path / "copy", FAMILIES[family][2]
    shutil.copytree(source.parent, work_dir)
    changes = {"name": "next", "model": {"family": family, "initial_model": "tiny", "frozen": frozen}}
    changes |= {"actions__decimals": 3, "actions__style": "plain", "actions__horizon": 2, "training__steps": 2}
    changes |= {"data__robot": [{"path": "robot", "key": "renamed"}]}
    recipe = tiny_recipe(work_dir, **changes)
    start, processor = build(recipe, work_dir)
    before = load_model(source)
    assert weights_hash(start) == weights_hash(before)
    assert processor.tokenizer.get_vocab() == load_processor(source).tokenizer.get_vocab()
    folder = run_recipe(recipe, work_dir, progress=False)
    model = load_model(folder)
    assert (model.config.frozen, list(model.config.norm_stats)) == (frozen, ["renamed"])
    written = {name: model.config.action_config[name] for name in ("style", "decimals", "horizon")}
    assert written == {"style": "plain", "decimals": 3, "horizon": 2}
    assert load_processor(folder).action_config == model.config.action_config
    action = model.predict_action(**load_processor(folder).action_inputs(noise(0), "go"))
    assert action.shape == (2, 3)
    old, new = before.state_dict(), model.state_dict()
    unmoved = {name for name in old if torch.equal(old[name], new[name])}
    still = ".vision_tower.dino." if family == "openvla_plus" else FROZEN[family]
    assert {name for name in old if still in name} <= unmoved
    trained = "model.vision_tower.siglip" if family == "openvla_plus" else "vlm.model.vision_tower"
    assert f"{trained}.embeddings.patch_embedding.weight" not in unmoved


def test_from_random_weights_both_copies_of_the_encoder_are_one(tmp_path: Path) -> None:
    base = build(tiny_recipe(tmp_path, model=tiny_vlm_model()), tmp_path)[0].vlm.model
    copies = zip(base.vision_tower.named_parameters(), base.frozen_vision.vision_tower.parameters(), strict=True)
    for (name, one), other in copies:
        assert torch.equal(one, other), name
    alone = build(tiny_recipe(tmp_path, model={**tiny_vlm_model(), "frozen": None}), tmp_path)[0]
    assert not hasattr(alone.vlm.model, "frozen_vision")
    assert all(parameter.requires_grad for parameter in alone.parameters())


def test_a_model_of_another_architecture_is_refused_before_anything_else(finished, tmp_path):
    family, folder = finished
    shutil.copytree(folder.parent, tmp_path / "copy")
    other = next(name for name in FAMILIES if name != family)
    model: dict[str, Any] = {"family": other, "initial_model": "tiny", "frozen": START[other]}
    recipe = tiny_recipe(tmp_path / "copy", name="next", model=model)
    with pytest.raises(ValueError, match=rf"got the model tiny of the family {family}, expected {other}; correct"):
        check_initial_model(recipe, tmp_path / "copy")
    model = {"family": family, "initial_model": "tiny", "frozen": None}
    recipe = tiny_recipe(tmp_path / "copy", name="next", model=model)
    if family == "vla_plus":
        with pytest.raises(ValueError, match=r"two encoders and model.frozen=None, expected one, --no-dual; conv"):
            check_initial_model(recipe, tmp_path / "copy")
    else:
        check_initial_model(recipe, tmp_path / "copy")
    (tmp_path / "copy" / "tiny" / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ValueError, match="with model_type 'llava', expected one of openvla_plus, pi0_flow, vla_plus"):
        check_initial_model(recipe, tmp_path / "copy")


# ---- texts and weights
def test_the_tokenizer_learns_from_every_prompt_and_answer(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tokenizer__instructions=["wave"])
    texts = recipe_texts(recipe, tmp_path, open_data(recipe, tmp_path))
    assert texts == sorted(set(texts))
    action = "In: What action should the robot take to {}?\nOut:"
    assert {action.format(words) for words in ("wave", "open the drawer", "close the drawer")} <= set(texts)
    assert {"In: is the drawer open?\nOut:", " yes", " no", " one", " two"} <= set(texts)
    assert len(texts) == 3 + 2 + 4
    with pytest.raises(ValueError, match=r"expected data sets in tokenizer\.texts_from"):
        recipe_texts(tiny_recipe(tmp_path, tokenizer__texts_from=[]), tmp_path, OpenedData())


def test_dimensions_that_never_vary_are_found_and_weigh_less(tmp_path: Path) -> None:
    actions = np.column_stack([np.linspace(-1, 1, 6), np.full(6, 0.25), np.arange(6) % 2])
    write_robot_data(tmp_path / "robot", action=actions.tolist())
    recipe = tiny_recipe(tmp_path, loss__constant_dimension_weight=0.125, loss__decimal_weights=[0.5])
    model, processor = build(recipe, tmp_path)
    weights = action_weights(recipe, model.config)
    assert weights is not None
    prompt, text = processor.encode_text("Out:\n"), "+0.25+0.00+1.00"
    answer = processor.encode_text("Out:\n" + text)[len(prompt) :]
    value = [1.0, 1.0, 0.1, 0.5, 1.0]
    assert weights([*answer, 2]) == pytest.approx([*value, *(weight / 8 for weight in value), *value, 1.0])
