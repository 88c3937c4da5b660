"""LoRA: which weights get adapters in training, which train in full, and a saved adapter as a whole model.

A folder with `adapter_config.json` is an adapter as peft saves it. The base model is the folder, or the name on the
Hub, that is written there. What training changed besides weights, `config.json` and the processor's files, is read
from the adapter's folder if it lies there, else from the base model's.
"""

import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors import safe_open

from gen_vla.training.checkpoints import (
    check_folder,
    has_processor,
    load_model,
    load_processor,
    read_config,
    read_processor,
)
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.storage.json_files import read_json


LANGUAGE_LAYERS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
VISION_LAYERS = (
    r".*vision_tower\.({towers})\..*\.(query|key|value|dense|fc1|fc2|q_proj|k_proj|v_proj|out_proj)"
    r"|.*model\.projector\.(fc\d|linear)"
)
ADAPTER_FOLDER = "adapter"  # in a run's folder, beside the merged model
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
LOADED_FILES = ["*.json", "*.jinja", "*.safetensors"]


def lora_config(recipe: Recipe, model: Any) -> LoraConfig | None:
    """peft's settings for a recipe, or `None` where it trains all weights."""
    settings = recipe.training.lora
    if settings is None:
        return None
    with_adapters = settings.tower == "lora"
    if model.config.model_type == "vla_plus":  # every linear layer of the language model
        decoder = next(name for name, module in model.named_modules() if module is model.get_decoder())
        trained = [f"vlm.model.{name}" for name in model.family.vision]
        if model.config.frozen:
            trained += [f"vlm.model.frozen_vision.{name}" for name in model.family.projectors]
        modules = dict(model.named_modules())
        adapted = (f"{decoder}.layers.", *(trained if with_adapters else ()))
        layers: Any = [n for n, m in modules.items() if isinstance(m, torch.nn.Linear) and n.startswith(adapted)]
        full = [each for name in trained if name in modules for each in named_parts(name, modules[name])]
        if with_adapters:  # Gemma 3's projector is no linear layer
            full = [name for name in full if not any(each.startswith(name) for each in layers)]
    else:
        tower = model.model.vision_tower
        trained = [name for name in tower.names if not tower.is_frozen(name)]
        vision = VISION_LAYERS.format(towers="|".join(map(re.escape, trained)))
        layers = f"{LANGUAGE_LAYERS}|{vision}" if with_adapters else LANGUAGE_LAYERS
        full = [] if with_adapters else [*(f"vision_tower.{name}" for name in trained), "model.projector"]
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft divides by it; any number will do
        lora_dropout=settings.dropout,
        target_modules=layers,
        modules_to_save=full or None,
    )


def named_parts(name: str, module: torch.nn.Module) -> list[str]:
    """The name of a module, or those of the modules in a list, which peft does not take as one."""
    return [f"{name}.{each}" for each, _ in module.named_children()] if type(module) is torch.nn.ModuleList else [name]


def save_adapter(model: Any, folder: Path) -> Any:
    """Saves the adapter in `folder`, and returns the model with it merged in; other models come back as they are."""
    if not isinstance(model, PeftModel):
        return model
    model.save_pretrained(str(folder))
    return model.merge_and_unload()  # type: ignore[operator]


def is_adapter(folder: str | Path) -> bool:
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def check_checkpoint(folder: str | Path) -> Path:
    """The folder in full, if it is a complete model or an adapter whose base model can be found.

    Raises:
        FileNotFoundError: names what is missing.
    """
    folder = Path(folder)
    if not is_adapter(folder):
        return check_folder(folder).resolve()
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise FileNotFoundError(f"got the adapter {folder} without {ADAPTER_WEIGHTS}; copy the whole folder")
    base, local = base_of(folder)
    if local is None and base.count("/") != 1:
        raise FileNotFoundError(
            f"got the base model {base} in {folder / ADAPTER_CONFIG}, which is no folder here and no OWNER/NAME; "
            "put the folder there, or write where it is into base_model_name_or_path"
        )
    return folder.resolve()


def load_checkpoint(folder: str | Path) -> tuple[Any, Any]:
    """Model, in evaluation mode, and processor of a folder that `check_checkpoint` accepts; an adapter is merged."""
    folder = check_checkpoint(folder)
    if not is_adapter(folder):
        return load_model(folder), load_processor(folder)
    base = base_folder(folder)
    own_config = folder if (folder / "config.json").is_file() else base
    processor = read_processor(folder if has_processor(folder) else base)
    return merge(load_model(base, read_config(own_config)), folder), processor


def saved_dtype(folder: str | Path) -> torch.dtype:
    """The data type that the configuration of a checkpoint says its weights have."""
    folder = check_checkpoint(folder)
    source = folder if (folder / "config.json").is_file() else base_folder(folder)
    config = read_json(source / "config.json")
    return getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")


def base_of(folder: Path) -> tuple[str, Path | None]:
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not name:
        raise FileNotFoundError(
            f"got {folder / ADAPTER_CONFIG} without base_model_name_or_path, expected the folder or the Hub name of "
            "the model the adapter was trained on; write it there"
        )
    return name, next((path for path in (Path(name), folder / name) if path.is_dir()), None)


def base_folder(folder: Path) -> Path:
    base, local = base_of(folder)
    if local is None:
        revision = read_json(folder / ADAPTER_CONFIG).get("revision")
        local = Path(snapshot_download(base, revision=revision, allow_patterns=LOADED_FILES))
    return check_folder(local)


def merge(model: Any, folder: Path) -> Any:
    """The model with the adapter's weights added to its own; raises `ValueError` if the adapter does not fit the model
    tensor by tensor, or merging gives NaN.
    """
    adapted = PeftModel.from_pretrained(model, str(folder))
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        saved, expected = set(file.keys()), set(get_peft_model_state_dict(adapted))
    if saved != expected:
        raise ValueError(
            f"got an adapter in {folder} that does not fit its base model: {sorted(saved - expected)[:3]} are not in "
            f"the model, {sorted(expected - saved)[:3]} are missing; check base_model_name_or_path"
        )
    merged = adapted.merge_and_unload(safe_merge=True).eval()
    merged.config.text_config.tie_word_embeddings = merged.config.tie_word_embeddings  # where transformers 4 looks
    return merged
