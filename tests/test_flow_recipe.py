"""Which settings a recipe of the flow-matching π0 may have."""

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import tiny_flow_settings, tiny_recipe

from gen_vla.training.flow_recipe import is_flow
from gen_vla.training.recipe import load_recipe
from gen_vla.training.recipe_schema import RecipeError


def flow_recipe(work_dir: Path, **changes: Any) -> Any:
    return tiny_recipe(work_dir, **{**tiny_flow_settings(), **changes})


def test_the_shipped_recipes_are_the_papers_baseline() -> None:
    assert [
        name for name in ("pi0_rt1", "pi0_bridge", "pi0_plus_rt1", "openvla_rt1") if is_flow(load_recipe(name))
    ] == [
        "pi0_rt1",
        "pi0_bridge",
    ]
    recipe = load_recipe("pi0_rt1")
    assert recipe.data.instruction_augmentation is not None
    assert (recipe.data.questions, recipe.model.frozen) == ([], None)


def test_family_and_actions_go_together(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"tiny: got model.family='pi0_flow' with actions.representation='bins', exp"
    ):
        flow_recipe(tmp_path, actions__representation="bins")
    with pytest.raises(
        RecipeError, match=r"got model.family='openvla_plus' with actions.representation='flow', expec"
    ):
        tiny_recipe(tmp_path, actions__representation="flow")


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        (
            "data__co_training",
            None,
            r"data.co_training=\['scenes'\] for the flow-matching π0, expected \[\]: it learns",
        ),
        ("training__lora", {"rank": 4}, r"training.lora=LoraRecipe\(rank=4.*, expected None"),
        ("loss__balance", "example", "loss.balance='example' for the flow-matching π0, expected 'token'"),
        ("loss__decimal_weights", [1.0], r"loss.decimal_weights=\[1.0\] .* expected \[\]"),
        ("loss__constant_dimension_weight", 0.5, "loss.constant_dimension_weight=0.5 .* expected 1.0"),
        ("actions__label_decimals", 2, "label_decimals=2 with representation 'flow', expected none"),
    ],
)
def test_settings_for_tokens_are_refused(setting: str, value: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=told):
        flow_recipe(tmp_path, **{setting: value})


def test_a_frozen_encoder_dino_and_an_expert_elsewhere_are_refused(tmp_path: Path) -> None:
    model = tiny_flow_settings()["model"]
    with pytest.raises(RecipeError, match=r"model.frozen='siglip' for the flow-matching π0, expected None"):
        flow_recipe(tmp_path, model={**model, "frozen": "siglip"})
    with pytest.raises(RecipeError, match=r"got dino=\{'hidden_size': 8\} for pi0_flow, expected none"):
        flow_recipe(tmp_path, model={**model, "dino": {"hidden_size": 8}})
    with pytest.raises(
        RecipeError, match=r"got expert=\{'hidden_size': 8\} for openvla_plus, expected none: only pi0"
    ):
        tiny_recipe(tmp_path, model__expert={"hidden_size": 8})
