"""LoRA in training: what gets adapters, what trains in full, what is saved; a stopped run goes on as if it had not."""

import json
import shutil

import pytest
import torch
from tiny_runs import tiny_pi0_model, tiny_recipe

from gen_vla.training.checkpoints import load_model
from gen_vla.training.lora import lora_config
from gen_vla.training.lora_merging import load_checkpoint
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.schema import RecipeError
from gen_vla.training.run import run_recipe


LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module", params=["openvla_plus", "pi0_plus"])
def runs(request, tmp_path_factory):
    """Family, folder with a base model `tiny`, and with `adapted`, trained from it with LoRA."""
    folder = tmp_path_factory.mktemp("lora")
    model = {"model": tiny_pi0_model()} if request.param == "pi0_plus" else {}
    run_recipe(tiny_recipe(folder, training__steps=2, **model), folder, progress=False)
    recipe = tiny_recipe(folder, name="adapted", training__lora=LORA, training__steps=6, **adapting(request.param))
    run_recipe(recipe, folder, progress=False)
    return request.param, folder, recipe


def adapting(family):
    """Overrides that start from the base model."""
    return {"model": {"family": family, "initial_model": "tiny", "frozen": "siglip"}}


def changed(before, after):
    """Names of the weights that differ."""
    before, after = before.state_dict(), after.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_language_layers_get_adapters_and_the_trained_tower_trains_in_full(runs):
    family, folder, _ = runs
    moved = changed(load_model(folder / "tiny"), load_model(folder / "adapted"))
    layers = {name for name in moved if "language_model.layers" in name}
    assert len(layers) == 2 * 7  # four projections of attention, three of the MLP, in each of two layers
    assert all(name.endswith("_proj.weight") for name in layers)
    assert any("projector" in name for name in moved)
    trained = "siglip_copy" if family == "pi0_plus" else "dino"
    assert any(f"vision_tower.{trained}." in name for name in moved)
    assert not any("vision_tower.siglip." in name for name in moved)
    assert not any("language_model" in name or "lm_head" in name for name in moved - layers)


def test_the_adapter_merged_anew_is_the_saved_model(runs):
    _, folder, _ = runs
    merged, _ = load_checkpoint(folder / "adapted" / "adapter")
    saved = load_model(folder / "adapted")
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value, atol=1e-6, rtol=0)


def test_a_resumed_run_ends_with_the_same_weights(runs, tmp_path):
    family, folder, recipe = runs
    shutil.copytree(folder / "tiny", tmp_path / "tiny")
    again = tiny_recipe(tmp_path, name="adapted", training__lora=LORA, training__steps=6, **adapting(family))
    shutil.copytree(folder / "adapted" / "checkpoints", tmp_path / "adapted" / "checkpoints")
    shutil.rmtree(tmp_path / "adapted" / "checkpoints" / "checkpoint-6")
    assert (tmp_path / "adapted" / "checkpoints" / "checkpoint-4").is_dir()
    run_recipe(again, tmp_path, resume=True, progress=False)
    assert changed(load_model(folder / "adapted"), load_model(tmp_path / "adapted")) == set()
    assert recipe.training.lora == again.training.lora


def test_adapters_in_the_tower_too_where_asked_for(runs):
    family, folder, _ = runs
    recipe = tiny_recipe(folder, training__lora={**LORA, "tower": "lora"}, **adapting(family))
    config = lora_config(recipe, load_model(folder / "tiny"))
    assert config is not None
    assert config.modules_to_save is None
    assert "vision_tower" in str(config.target_modules)


def test_the_adapter_alone_knows_the_statistics_it_was_trained_with(runs, tmp_path):
    _, folder, recipe = runs
    base = json.loads((folder / "tiny" / "config.json").read_text())
    base["norm_stats"] = None  # as those of a vision-language model
    shutil.copytree(folder / "tiny", tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(json.dumps(base))
    shutil.copytree(folder / "adapted" / "adapter", tmp_path / "adapter")
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    adapter["base_model_name_or_path"] = str(tmp_path / "base")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    model, processor = load_checkpoint(tmp_path / "adapter")
    assert model.config.norm_stats == load_model(folder / "adapted").config.norm_stats
    assert processor.action_config == model.config.action_config
    assert load_recipe(tmp_path / "adapter" / "recipe.yaml") == recipe


def test_a_mini_recipe_with_lora_runs_from_random_weights(tmp_path):
    recipe = tiny_recipe(tmp_path, name="mini-tiny", training__lora=LORA, training__steps=1)
    folder = run_recipe(recipe, tmp_path, progress=False)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert load_model(folder).config.norm_stats.keys() == {"tiny"}


def test_random_weights_are_not_adapted(tmp_path):
    with pytest.raises(RecipeError, match=r"training.lora without model.initial_model"):
        run_recipe(tiny_recipe(tmp_path, training__lora=LORA), tmp_path, progress=False)
