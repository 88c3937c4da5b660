"""Which settings a recipe of the flow-matching π0 may have."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_pi0_flow_config, tiny_pi0_flow_processor, tiny_statistics
from tiny_runs import tiny_flow_settings, tiny_recipe

from gen_vla.training.model_building import apply_recipe, new_config
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.schema import RecipeError
from gen_vla.training.recipes.sources import OpenedData
from gen_vla.training.run import build_collator, build_preparer


def flow_recipe(work_dir: Path, **changes: Any) -> Any:
    return tiny_recipe(work_dir, **{**tiny_flow_settings(), **changes})


def test_the_shipped_recipes_are_the_papers_baseline() -> None:
    names = ("pi0_rt1", "pi0_bridge", "pi0_plus_rt1", "openvla_rt1")
    assert [name for name in names if load_recipe(name).is_flow] == ["pi0_rt1", "pi0_bridge"]
    recipe = load_recipe("pi0_rt1")
    assert recipe.data.instruction_augmentation is not None
    assert (recipe.data.questions, recipe.model.frozen) == ([], None)


MODEL = tiny_flow_settings()["model"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"actions__representation": "bins"}, "'pi0_flow' with actions.representation='bins', expected"),
        ({"data__co_training": None}, r"data.co_training=\['scenes'\] for the flow-matching π0, expected \[\]: it"),
        ({"training__lora": {"rank": 4}}, r"training.lora=LoraRecipe\(rank=4.*, expected None"),
        ({"loss__balance": "example"}, "loss.balance='example' for the flow-matching π0, expected 'token'"),
        ({"loss__decimal_weights": [1.0]}, r"loss.decimal_weights=\[1.0\] .* expected \[\]"),
        ({"loss__constant_dimension_weight": 0.5}, "loss.constant_dimension_weight=0.5 .* expected 1.0"),
        ({"actions__label_decimals": 2}, "label_decimals=2 with representation 'flow', expected none"),
        ({"model": {**MODEL, "frozen": "siglip"}}, "model.frozen='siglip' for the flow-matching π0, expected None"),
        ({"model": {**MODEL, "dino": {"hidden_size": 8}}}, r"dino=\{'hidden_size': 8\} for pi0_flow, expected none"),
    ],
)
def test_settings_for_tokens_and_other_encoders_are_refused(changes, told, tmp_path):
    with pytest.raises(RecipeError, match=told):
        flow_recipe(tmp_path, **changes)


def test_other_families_have_no_flow_and_no_expert(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'openvla_plus' with actions.representation='flow', expected"):
        tiny_recipe(tmp_path, actions__representation="flow")
    with pytest.raises(RecipeError, match=r"expert=\{'hidden_size': 8\} for openvla_plus, expected none: only pi0"):
        tiny_recipe(tmp_path, model__expert={"hidden_size": 8})


@pytest.mark.parametrize("published", [True, False])
def test_a_run_from_published_weights_resizes_pictures_as_they_were_trained(gemma_like, tmp_path, published):
    """In training, with augmentation and without, and in what the run saves; other starts stay as they are."""
    recipe = flow_recipe(tmp_path, data__image_augmentation={})
    config: Any = tiny_pi0_flow_config(gemma_like, noise_in_padding=published)
    processor = tiny_pi0_flow_processor(gemma_like)
    apply_recipe(processor, config, recipe, OpenedData(norm_stats={"tiny": tiny_statistics(3)}))
    assert processor.image_processor.resize_strategy == ("resize-with-pad" if published else "resize-naive")
    collator = build_collator(recipe, config, processor, ["robot/tiny"])
    preparer: Any = build_preparer(recipe, processor, config.norm_stats, collator, config)
    assert preparer.draw_noise(0)["noise"].shape == (3, 8 if published else 3)
    augmenter = partial(preparer.augment_picture, size=8, augment=lambda picture, name: picture)
    bars = np.asarray(augmenter(Image.new("RGB", (64, 32), (255, 255, 255)), "row"))[:, :, 0]
    assert bars.tolist() == [[0 if published and row in (0, 1, 6, 7) else 255] * 8 for row in range(8)]
    assert (config.noise_in_padding, new_config(recipe, gemma_like, {}).noise_in_padding) == (published, False)
