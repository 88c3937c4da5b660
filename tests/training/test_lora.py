"""LoRA: what gets adapters, what trains in full, what is saved and resumed, and adapters merged into whole models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import picture, tiny_model, tiny_pi0_model, tiny_pi0_processor, tiny_processor, tiny_statistics
from tiny_runs import tiny_recipe
from tiny_runs import tiny_vlm_model as vlm_settings
from tiny_vlms import FAMILIES, tiny_vla_plus

from gen_vla.commands.options import load_any
from gen_vla.processors import PROMPT_TEMPLATE, ActionStringProcessor
from gen_vla.training.checkpoints import load_model
from gen_vla.training.lora import check_checkpoint, is_adapter, load_checkpoint, lora_config, saved_dtype
from gen_vla.training.publishing import assembling
from gen_vla.training.publishing.assembling import publish_to_folder
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.schema import RecipeError
from gen_vla.training.run import run_recipe


LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module", params=["openvla_plus", "vla_plus"])
def runs(request, tmp_path_factory):
    """Family, folder with a base model `tiny`, and with `adapted`, trained from it with LoRA."""
    folder = tmp_path_factory.mktemp("lora")
    model = {"model": vlm_settings()} if request.param == "vla_plus" else {}
    run_recipe(tiny_recipe(folder, training__steps=2, **model), folder, progress=False)
    recipe = tiny_recipe(folder, name="adapted", training__lora=LORA, training__steps=6, **adapting(request.param))
    run_recipe(recipe, folder, progress=False)
    return request.param, folder, recipe


def adapting(family):
    """Overrides that start from the base model."""
    frozen = "siglip" if family == "openvla_plus" else "vision"
    return {"model": {"family": family, "initial_model": "tiny", "frozen": frozen}}


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
    openvla = family == "openvla_plus"
    trained, frozen = ("tower.dino.", "tower.siglip.") if openvla else ("model.vision_tower.", "frozen_vision.vision_")
    assert any(trained in name for name in moved)
    assert not any(frozen in name for name in moved)
    assert not any("language_model" in name or "lm_head" in name for name in moved - layers)


def test_the_adapter_merged_anew_is_the_saved_model(runs):
    _, folder, _ = runs
    merged, _ = load_checkpoint(folder / "adapted" / "adapter")
    saved = load_model(folder / "adapted")
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value, atol=1e-6, rtol=0)


def test_the_last_checkpoint_loads_as_the_saved_model(runs):
    _, folder, _ = runs
    found, processor = load_any(str(folder / "adapted" / "checkpoints" / "checkpoint-6"))
    saved = load_model(folder / "adapted")
    assert found.config.norm_stats == saved.config.norm_stats
    assert processor.action_config == saved.config.action_config
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, atol=1e-6, rtol=0)


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


@pytest.mark.parametrize("family", FAMILIES)
def test_both_projectors_of_any_vision_language_model_train(family, gemma_like, tmp_path):
    """In full beside adapters of the language model; else by adapters, or in full without a linear layer."""
    for tower in ("full", "lora"):
        model = tiny_vla_plus(family, gemma_like)
        copy = model.vlm.model.frozen_vision
        expected = {name for name, weight in copy.named_parameters() if weight.requires_grad} - {"image_newline"}
        own = {"family": "vla_plus", "initial_model": "start", "frozen": "vision"}
        recipe = tiny_recipe(tmp_path, training__lora={**LORA, "tower": tower}, model=own)
        adapters: Any = lora_config(recipe, model)
        get_peft_model(model, adapters)
        trained = {name for name, weight in copy.named_parameters() if weight.requires_grad}
        assert all(name.startswith(copy.projectors) for name in trained)
        if tower == "full":
            assert {name.replace(".modules_to_save.default", "") for name in trained} == expected
        for projector in set(copy.projectors) - {"image_newline"}:
            assert any(name.startswith(projector) for name in trained)


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


def test_a_recipe_that_adapts_random_weights_is_refused_as_it_is_read(tmp_path):
    with pytest.raises(RecipeError, match=r"training.lora without model.initial_model"):
        tiny_recipe(tmp_path, training__lora=LORA)


# ---- a saved adapter as a whole model
STRINGS = ActionStringProcessor(action_dim=3, decimals=2, binary_dims=[2])
WEIGHTS = "adapter_model.safetensors"


def logits_of(model: Any, processor: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**processor.action_inputs([picture(), picture(1)], ["open the drawer", "go"])).logits


def save_adapter(root: Path, model: Any, processor: Any) -> tuple[Path, torch.Tensor]:
    """A base model in `root/base`, an adapter on it in `root/adapter`, and the logits of both together."""
    model.to(torch.bfloat16).save_pretrained(root / "base")
    processor.save_pretrained(root / "base")
    base = load_model(root / "base")
    config = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj", "down_proj"], modules_to_save=["lm_head"], init_lora_weights=False
    )
    torch.manual_seed(1)
    adapted = get_peft_model(base, config)
    with torch.no_grad():
        adapted.get_output_embeddings().weight.mul_(1.25)
    adapted.save_pretrained(str(root / "adapter"))
    logits, before = logits_of(adapted, processor), logits_of(load_model(root / "base"), processor)
    assert (logits - before).abs().max() > 0.1
    return root / "adapter", logits


@pytest.fixture(scope="module")
def adapter(llama_like: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """Of an OpenVLA+; copy it before changing anything in it."""
    model, processor = tiny_model(llama_like, STRINGS), tiny_processor(llama_like, STRINGS)
    return save_adapter(tmp_path_factory.mktemp("lora"), model, processor)


def test_merged_logits_are_those_of_the_adapter(adapter: tuple[Path, torch.Tensor]) -> None:
    folder, expected = adapter
    assert is_adapter(folder)
    assert check_checkpoint(folder) == folder
    model, processor = load_checkpoint(folder)
    torch.testing.assert_close(logits_of(model, processor), expected, rtol=0, atol=1e-5)
    assert type(model).__name__ == "OpenVLAPlusForVision2Seq"
    assert not [name for name in model.state_dict() if "lora" in name or "base_layer" in name or "original" in name]
    assert saved_dtype(folder) == torch.bfloat16  # the base model's


def test_what_training_saved_beside_the_adapter_comes_first(adapter, llama_like, tmp_path):
    shutil.copytree(adapter[0], tmp_path / "adapter")
    config = json.loads((adapter[0].parent / "base" / "config.json").read_text())
    config["norm_stats"] = {"mine": tiny_statistics(3, scale=2.0)}
    (tmp_path / "adapter" / "config.json").write_text(json.dumps(config))
    template = {**PROMPT_TEMPLATE, "question": "Q: {question}\nA:"}
    tiny_processor(llama_like, STRINGS, prompt_template=template).save_pretrained(tmp_path / "adapter")
    model, processor = load_checkpoint(tmp_path / "adapter")
    assert list(model.config.norm_stats) == ["mine"]
    assert processor.prompt_template == template


def test_published_it_is_a_whole_pi0_plus(gemma_like: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembling, "verify", lambda *_: None)  # takes seconds; test_model_building.py has it
    model, processor = tiny_pi0_model(gemma_like, STRINGS), tiny_pi0_processor(gemma_like, STRINGS)
    folder, expected = save_adapter(tmp_path, model, processor)
    repository = publish_to_folder(folder, "gen-vla/merged", tmp_path / "repository")
    names = {path.name for path in repository.iterdir()}
    assert not [name for name in names if "adapter" in name]
    weights = load_file(repository / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    rounded = load_model(repository)
    assert (logits_of(rounded, processor) - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), FileNotFoundError, rf"without {WEIGHTS}"),
        (lambda folder: set_base(folder, None), FileNotFoundError, "without base_model_name_or_path, expected"),
        (lambda folder: set_base(folder, "no/such/folder"), FileNotFoundError, "no folder here and no OWNER/NAME"),
        (lambda folder: rename(folder, "q_proj", "z_proj"), ValueError, r"does not fit its base model: .*z_proj"),
        (lambda folder: rename(folder, "q_proj", None), ValueError, r"\[\] are not in the model, .*q_proj.* missing"),
        (lambda folder: spoil(folder), ValueError, "NaN"),
    ],
)
def test_what_would_be_lost_is_named(change, error, message, adapter, tmp_path):
    shutil.copytree(adapter[0], tmp_path / "adapter")
    change(tmp_path / "adapter")
    with pytest.raises(error, match=message):
        load_checkpoint(tmp_path / "adapter")


def set_base(folder: Path, name: str | None) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": name}))


def rename(folder: Path, old: str, new: str | None) -> None:
    """Other names for some tensors; none removes them."""
    weights = load_file(folder / WEIGHTS)
    kept = {name: tensor for name, tensor in weights.items() if new is not None or old not in name}
    save_file({name.replace(old, new or old): tensor for name, tensor in kept.items()}, folder / WEIGHTS)


def spoil(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    next(tensor for name, tensor in weights.items() if "lora_A" in name).fill_(float("nan"))
    save_file(weights, folder / WEIGHTS)
