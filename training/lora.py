"""LoRA in training: which weights get adapters, which train in full, and what is saved.

The language model's linear layers get adapters; the trainable encoder and the projector, small and new to the task,
train in full unless the recipe says otherwise. `lora_merging.py` makes a whole model of a saved adapter.
"""

import re
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel

from gen_vla.training.recipes.data_schema import RecipeError
from gen_vla.training.recipes.loading import MINI
from gen_vla.training.recipes.schema import Recipe


LANGUAGE_LAYERS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
VISION_LAYERS = (
    r".*vision_tower\.({towers})\..*\.(query|key|value|dense|fc1|fc2|q_proj|k_proj|v_proj|out_proj)"
    r"|.*model\.projector\.(fc\d|linear)"
)
ADAPTER_FOLDER = "adapter"  # in a run's folder, beside the merged model


def lora_config(recipe: Recipe, model: Any) -> LoraConfig | None:
    """peft's settings for a recipe, or `None` where it trains all weights.

    Raises:
        RecipeError: for adapters of random weights, which would never learn what the weights lack; but at mini size,
            where nothing is learned, they show that the run works.
    """
    settings = recipe.training.lora
    if settings is None:
        return None
    if recipe.model.initial_model is None and not recipe.name.startswith(MINI):
        raise RecipeError(
            f"{recipe.name}: got training.lora without model.initial_model, expected a model to adapt; name one, or "
            "leave lora out"
        )
    tower = model.model.vision_tower
    trained = [name for name in tower.names if name != tower.frozen]
    layers, full = LANGUAGE_LAYERS, None
    if settings.tower == "lora":
        layers += "|" + VISION_LAYERS.format(towers="|".join(map(re.escape, trained)))
    else:
        full = [*(f"vision_tower.{name}" for name in trained), "model.projector"]
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft divides by it; any number will do
        lora_dropout=settings.dropout,
        target_modules=layers,
        modules_to_save=full,
    )


def save_adapter(model: Any, folder: Path) -> Any:
    """Saves the adapter in `folder`, and returns the model with it merged in; other models come back as they are."""
    if not isinstance(model, PeftModel):
        return model
    model.save_pretrained(str(folder))
    return model.merge_and_unload()  # type: ignore[operator]
