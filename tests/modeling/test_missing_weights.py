"""A model whose file lacks weights neither acts nor answers until they are there."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import picture, tiny_model, tiny_pair
from tiny_runs import tiny_recipe
from transformers import AutoModel, TrainerCallback

from gen_vla.training.checkpoints import load_model
from gen_vla.training.run import run_recipe


@pytest.fixture(params=["openvla_plus", "pi0_plus", "pi0_flow"])
def made(request: Any, llama_like: Any, gemma_like: Any, tiny_strings: Any) -> tuple[Any, Any]:
    """A model and its processor."""
    tokenizer = llama_like if request.param == "openvla_plus" else gemma_like
    return tiny_pair(request.param, tokenizer, tiny_strings)


def change(folder: Path, tensors_to: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Rewrites the files of weights, and their index where there is one."""
    for path in folder.glob("*.safetensors"):
        save_file(tensors_to(load_file(path)), path, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        kept = {name: path.name for path in folder.glob("*.safetensors") for name in load_file(path)}
        index.write_text(json.dumps({**json.loads(index.read_text()), "weight_map": kept}))


def without_projector(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "projector" not in name}


def check_refusal(model: Any, processor: Any, message: str) -> None:
    """Raises unless the model acts and answers, and is refused to do so as `message` says."""
    inputs = processor.action_inputs(picture(), "go")
    for way in (model.predict_action, model.predict_actions):
        with pytest.raises(ValueError, match=message):
            way(**inputs)
    if model.config.model_type != "pi0_flow":
        with pytest.raises(ValueError, match=message):
            model.predict_actions(**inputs, tree_nodes=0)
        with pytest.raises(ValueError, match=message):
            model.generate(**processor.question_inputs(picture(), "what?"), max_new_tokens=1)


@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_a_model_without_its_projector_does_nothing(made: tuple[Any, Any], tmp_path: Path, size: str) -> None:
    whole, processor = made
    whole.save_pretrained(tmp_path, max_shard_size=size)
    change(tmp_path, without_projector)
    model, info = type(whole).from_pretrained(tmp_path, output_loading_info=True)
    assert model.missing_weights == sorted(info["missing_keys"])
    assert model.missing_weights
    assert all("projector" in name for name in model.missing_weights)
    message = rf"no weights of the right shape for {len(model.missing_weights)} tensors \(.*{model.missing_weights[0]}"
    for each in (model, copy.deepcopy(model)):
        check_refusal(each, processor, message)
    model.save_pretrained(tmp_path / "again")
    check_refusal(type(whole).from_pretrained(tmp_path / "again"), processor, message)
    for remedy in (
        lambda model: model.load_state_dict(whole.state_dict()),
        lambda model: setattr(model, "missing_weights", ()),
    ):
        repaired = copy.deepcopy(model)
        remedy(repaired)
        repaired.predict_action(**processor.action_inputs(picture(), "go"))
        repaired.save_pretrained(tmp_path / "repaired")
        assert "missing_weights" not in (tmp_path / "repaired" / "config.json").read_text()


def test_tied_weights_are_not_missing(llama_like: Any, tiny_strings: Any, tmp_path: Path) -> None:
    whole = tiny_model(llama_like, tiny_strings, tie_word_embeddings=True)
    whole.save_pretrained(tmp_path)
    assert not any("lm_head" in name for name in load_file(tmp_path / "model.safetensors"))
    assert not type(whole).from_pretrained(tmp_path).missing_weights


def test_weights_of_another_shape_are_missing(made: tuple[Any, Any], tmp_path: Path) -> None:
    whole, processor = made
    whole.save_pretrained(tmp_path)
    name = next(name for name in load_file(tmp_path / "model.safetensors") if "projector" in name)
    change(tmp_path, lambda tensors: {**tensors, name: tensors[name][..., :-1].contiguous()})
    model = type(whole).from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert model.missing_weights == [name]
    check_refusal(model, processor, rf"for 1 tensors \({name}\)")


def test_a_model_of_a_repository_does_nothing_either(made: tuple[Any, Any], tmp_path: Path) -> None:
    whole, processor = made
    whole.save_pretrained(tmp_path)  # with its code
    change(tmp_path, without_projector)
    model = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(model) is not type(whole)
    check_refusal(model, processor, "expected all: these are random numbers now")


def test_training_makes_up_for_missing_weights(tmp_path: Path) -> None:
    base = run_recipe(tiny_recipe(tmp_path, training__steps=1), tmp_path, progress=False)
    change(base, without_projector)
    seen: list[Any] = []

    class Seen(TrainerCallback):
        def on_train_begin(self, *args: Any, model: Any = None, **kwargs: Any) -> None:
            seen.append(model)

    changes = {"name": "next", "model": {"initial_model": base.name, "frozen": "siglip"}}
    recipe = tiny_recipe(tmp_path, training__steps=1, **changes)
    run_recipe(recipe, tmp_path, callbacks=[Seen()], progress=False)
    missing = load_model(base).missing_weights
    assert missing
    assert all("projector" in name for name in missing)
    seen[0].check_weights()
    load_model(tmp_path / "next").check_weights()

    change(base, lambda tensors: {name: tensor for name, tensor in tensors.items() if ".siglip." not in name})
    recipe = tiny_recipe(tmp_path, training__steps=1, **{**changes, "name": "last"})
    with pytest.raises(ValueError, match=r"tensors that are not trained .*siglip.* would stay random numbers"):
        run_recipe(recipe, tmp_path, progress=False)
