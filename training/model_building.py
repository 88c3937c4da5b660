"""The model and processor a recipe starts from: random weights, or another model's under this recipe's settings."""

import copy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file

from gen_vla.modeling.base_configuration import image_tokens
from gen_vla.processors import (
    ActionBins,
    ActionGrammar,
    ActionStringProcessor,
    OpenVLAPlusImageProcessor,
    make_action_config,
    make_flow_action_config,
    with_actions,
)
from gen_vla.processors.image_processing_openvla_plus import SIGLIP_MEAN, SIGLIP_STD
from gen_vla.processors.processing_vla_plus import TILING, ActionInputs
from gen_vla.processors.robot_state import REFERENCE, SHOWN, STATE_BINS, template_with_state
from gen_vla.training.checkpoints import check_folder, family_named, load_model, read_config, read_processor
from gen_vla.training.loss_weights import ActionTokenWeights, BinTokenWeights
from gen_vla.training.recipes.data_schema import did_you_mean
from gen_vla.training.recipes.schema import PACKAGE_PREFIX, ActionRecipe, ModelRecipe, Recipe
from gen_vla.training.recipes.sources import OpenedData
from gen_vla.training.storage.recordings import load_recording
from gen_vla.training.tokenizer import train_tokenizer


HUB_PREFIX = "hf://"
PACKAGED_MODELS = Path(__file__).resolve().parent / "base_models"


def build_model(recipe: Recipe, work_dir: Path, opened: OpenedData) -> tuple[Any, Any]:
    """The model at the start of training, and its processor.

    Args:
        opened: the recipe's data sets; the model keeps the robot data's statistics.

    Raises:
        FileNotFoundError: if the model to start from is missing.
        ValueError: if it is of another family, or has another number of encoders than the recipe asks for.
    """
    torch.manual_seed(recipe.training.seed)
    if recipe.model.initial_model:
        folder = initial_model_folder(recipe.model.initial_model, work_dir)
        processor, config = read_start(folder, recipe, str(folder))
        apply_recipe(processor, config, recipe, opened)
        return load_model(folder, config), processor
    tokenizer = train_tokenizer(recipe_texts(recipe, work_dir, opened), recipe.tokenizer.vocab_size)
    config = new_config(recipe, tokenizer, opened.norm_stats)
    processor = new_processor(recipe, tokenizer, config, opened)
    model = family_named(recipe.model.family).model(config)
    if recipe.pretraining:
        for name in model.model.vision_tower.names:
            weights = encoder_file(recipe, work_dir, name)
            if not weights.is_file():
                raise FileNotFoundError(
                    f"got no {weights}, expected a pretrained encoder; gen-vla train makes it first"
                )
            model.model.vision_tower.get_submodule(name).load_state_dict(load_file(weights))
    return model, processor


def encoder_file(recipe: Recipe, work_dir: Path, name: str) -> Path:
    """Where `pretraining/encoders.py` leaves an encoder that a recipe starts from."""
    return work_dir / recipe.name / "encoders" / name / "encoder.safetensors"


def new_config(recipe: Recipe, tokenizer: Any, norm_stats: dict[str, Any]) -> Any:
    family, settings = family_named(recipe.model.family), recipe.model
    if settings.family == "pi0_flow":
        own: dict[str, Any] = {"chunk_size": recipe.actions.horizon, "noise_in_padding": False}
    else:
        own = {"frozen": settings.frozen}
    if settings.family == "openvla_plus":
        own |= {"initializer_range": settings.initializer_range}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = family.config(
        **model_sizes(settings, recipe.data.image_size, len(tokenizer), special),
        **own,
        action_config=make_recipe_action_config(recipe, tokenizer),
        norm_stats=norm_stats,
        prompt_template=recipe_prompts(recipe, family.processor.default_prompt_template),
    )
    (config.vlm_config if settings.family == "vla_plus" else config).image_token_id = tokenizer.get_vocab()["<image>"]
    return config


def new_processor(recipe: Recipe, tokenizer: Any, config: Any, opened: OpenedData) -> Any:
    crop, of_siglip = center_crop_area(recipe), ((SIGLIP_MEAN,), (SIGLIP_STD,))
    if recipe.model.family == "vla_plus":
        from transformers import LlavaProcessor, PaliGemmaProcessor, SiglipImageProcessor  # warns without torchvision

        size, vlm = {"height": recipe.data.image_size, "width": recipe.data.image_size}, config.vlm_config
        pictures: Any = SiglipImageProcessor(size=size, do_center_crop=False)
        if vlm.model_type == "paligemma":
            pictures.image_seq_length = image_tokens(vlm.vision_config)
            stock: Any = PaliGemmaProcessor(pictures, tokenizer)
        else:
            strategy = vlm.vision_feature_select_strategy
            stock = LlavaProcessor(pictures, tokenizer, vlm.vision_config.patch_size, strategy)
        settings = {"center_crop_area": crop, "state_statistics": state_statistics(recipe, opened)}
        return with_actions(stock, config.action_config, config.prompt_template, opened.cameras, **settings)
    normalisation = () if recipe.model.family == "openvla_plus" else of_siglip
    return family_named(recipe.model.family).processor(
        OpenVLAPlusImageProcessor(recipe.data.image_size, *normalisation, center_crop_area=crop),
        tokenizer,
        num_image_tokens=config.num_image_tokens,
        action_config=config.action_config,
        prompt_template=config.prompt_template,
        cameras=opened.cameras,
        state_statistics=state_statistics(recipe, opened),
    )


def state_statistics(recipe: Recipe, opened: OpenedData) -> dict[str, Any] | None:
    if not recipe.takes_state:
        return None
    return {key: {"proprio": entry["proprio"]} for key, entry in opened.norm_stats.items()}


def recipe_prompts(recipe: Recipe, prompt_template: dict[str, str]) -> dict[str, str]:
    return template_with_state(prompt_template, recipe.data.state and not recipe.is_flow)


def model_sizes(
    settings: ModelRecipe, image_size: int, vocab_size: int, special: dict[str, int] | None = None
) -> dict[str, Any]:
    siglip = {"model_type": "siglip_vision_model", "vision_use_head": False, "image_size": image_size}
    text = {"vocab_size": vocab_size, **(special or {}), **settings.text}
    if settings.family == "pi0_flow":
        spread = {"initializer_range": settings.initializer_range}
        vlm = {
            "vision_config": {**siglip, **spread, **settings.siglip},
            "text_config": {"model_type": "gemma", **spread, **text},
        }
        if "hidden_size" in text:
            vlm["projection_dim"] = text["hidden_size"]
        expert = {"model_type": "gemma", **spread, **settings.expert}
        return {"vlm_config": {"model_type": "paligemma", **vlm}, "dit_config": expert}
    if settings.family == "vla_plus":
        spread = {"initializer_range": settings.initializer_range}
        vision = {**siglip, **spread, **settings.siglip}
        llava = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
        text = {"model_type": "llama", **spread, **text}
        return {"vlm_config": {"model_type": "llava", "vision_config": vision, "text_config": text, **llava}}
    return {
        "dino_config": {"model_type": "dinov2_with_registers", "image_size": image_size, **settings.dino},
        "siglip_config": {**siglip, **settings.siglip},
        "text_config": {"model_type": "llama", **text},
    }


def center_crop_area(recipe: Recipe) -> float | None:
    """What the saved model's image processor crops, to match the crops of training; `None` for nothing."""
    augmentation = recipe.data.image_augmentation
    return augmentation.center_crop_area if augmentation else None


def without_center_crop(processor: Any) -> Any:
    """The processor as training uses it: pictures are cropped, if at all, by their augmentation."""
    training = copy.copy(processor)
    training.image_processor = copy.copy(processor.image_processor)
    set_center_crop(training, None)
    return training


def set_center_crop(processor: Any, area: float | None) -> None:
    """Sets the share of a picture's area that a processor keeps: a stock image processor does not crop by itself."""
    (processor if isinstance(processor, ActionInputs) else processor.image_processor).center_crop_area = area


def square_side(processor: ActionInputs) -> int | None:
    """Side of the square that a stock processor makes of every picture; `None` where a picture's shape matters."""
    pictures: Any = processor.image_processor  # pyright: ignore[reportAttributeAccessIssue]
    size = dict(processor.picture_options.get("size", pictures.size))
    cut = ("do_center_crop", "image_grid_pinpoints", *TILING)
    if any(processor.picture_options.get(name, getattr(pictures, name, None)) for name in cut):
        return None
    return size["height"] if "height" in size and size["height"] == size.get("width") else None


def initial_model_folder(name: str, work_dir: Path) -> Path:
    """The folder of the model to start from, fetched from the Hub where its name begins with `hf://`."""
    if name.startswith(HUB_PREFIX):
        return check_folder(fetch_model(name))
    folder = local_start(name, work_dir)
    if not folder.is_dir() and folder.parent == PACKAGED_MODELS:
        there = ", ".join(sorted(path.name for path in PACKAGED_MODELS.iterdir()))
        raise FileNotFoundError(f"got model.initial_model={name!r}, expected {PACKAGE_PREFIX} and one of {there}")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"got model.initial_model={name!r} and no folder {folder}, expected a saved model there; gen-vla convert "
            "makes it of a published checkpoint, gen-vla train of a recipe (docs/how_to/train_the_paper.md)"
        )
    return check_folder(folder)


def local_start(name: str, work_dir: Path) -> Path:
    """Where a model to start from lies, or would lie, that is not on the Hub."""
    if name.startswith(PACKAGE_PREFIX):
        return PACKAGED_MODELS / name.removeprefix(PACKAGE_PREFIX)
    return work_dir / name


def fetch_model(name: str, files: list[str] | None = None) -> Path:
    """The folder of a model `hf://OWNER/NAME[@REVISION]`; `files` are patterns, by default all."""
    repo_id, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    return Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=files))


def check_initial_model(recipe: Recipe, work_dir: Path) -> None:
    """Raises what `build_model` would about the model to start from, without reading its weights."""
    name = recipe.model.initial_model
    if name:
        _check_architecture(read_config(initial_model_folder(name, work_dir)), recipe.model, name)


def _check_architecture(config: Any, settings: ModelRecipe, name: str) -> None:
    if config.model_type != settings.family:
        raise ValueError(
            f"got the model {name} of the family {config.model_type}, expected {settings.family}; correct "
            "model.family or model.initial_model"
        )
    if settings.family == "vla_plus" and bool(config.frozen) != bool(settings.frozen):
        encoders, wanted = ("two encoders", "one, --no-dual") if config.frozen else ("one encoder", "two, --dual")
        raise ValueError(
            f"got the model {name} with {encoders} and model.frozen={settings.frozen!r}, expected {wanted}; "
            "convert the model it comes from again with that option of gen-vla convert"
        )


def read_start(folder: Path, recipe: Recipe, name: str) -> tuple[Any, Any]:
    processor, config = read_processor(folder), read_config(folder)
    _check_architecture(config, recipe.model, name)
    return processor, config


def apply_recipe(processor: Any, config: Any, recipe: Recipe, opened: OpenedData) -> None:
    """Puts another model's processor and configuration under this recipe's settings, in place."""
    if recipe.model.family == "pi0_flow":
        config.chunk_size = recipe.actions.horizon  # no weight depends on it
        if config.noise_in_padding:  # published weights of π0, and how pictures were resized for them
            processor.image_processor.resize_strategy = "resize-with-pad"
    else:
        config.frozen = recipe.model.frozen
    config.norm_stats = opened.norm_stats
    config.action_config = make_recipe_action_config(recipe, processor.tokenizer)
    config.prompt_template = processor.prompt_template = recipe_prompts(recipe, processor.prompt_template)
    processor.action_config, processor.cameras = config.action_config, opened.cameras
    processor.state_statistics = state_statistics(recipe, opened)
    set_center_crop(processor, center_crop_area(recipe))
    if recipe.model.family == "vla_plus":
        set_picture_options(processor, recipe)


def set_picture_options(processor: ActionInputs, recipe: Recipe) -> None:
    """Adds a recipe's `picture_options`; raises `ValueError` for one that the stock image processor ignores."""
    pictures: Any = processor.image_processor  # pyright: ignore[reportAttributeAccessIssue]
    options = recipe.data.picture_options or {}
    for name in options:
        if name not in (known := pictures.valid_kwargs.__annotations__):
            raise ValueError(
                f"got data.picture_options with {name!r}, expected arguments of {type(pictures).__name__}; "
                f"{did_you_mean(name, known)}"
            )
    processor.picture_options = {**processor.picture_options, **options}


def make_recipe_action_config(recipe: Recipe, tokenizer: Any) -> dict[str, Any]:
    state = {"state": SHOWN if recipe.data.state else REFERENCE} if recipe.takes_state else {}
    return {**make_action_format(recipe.actions, tokenizer), **state}


def make_action_format(actions: ActionRecipe, tokenizer: Any) -> dict[str, Any]:
    if actions.representation == "flow":
        return make_flow_action_config(actions.action_dim, actions.horizon, actions.binary_dims)
    if actions.representation == "bins":
        end = None
        if actions.bin_tokens == "bytes":
            first, last = (tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in (0, 255))
            if first is None or last is None or last - first != 255:
                raise ValueError(
                    "got a tokenizer without 256 byte pieces in a row, expected them; set bin_tokens: last"
                )
            end = last + 1
        return make_action_config(ActionBins(actions.action_dim, actions.horizon), tokenizer, end)
    strings = ActionStringProcessor(
        action_dim=actions.action_dim,
        horizon=actions.horizon,
        decimals=actions.decimals,
        style=actions.style,
        binary_dims=actions.binary_dims,
    )
    return make_action_config(strings, tokenizer)


def recipe_texts(recipe: Recipe, work_dir: Path, opened: OpenedData) -> list[str]:
    """What the recipe's models will read and write, for training a tokenizer: every different prompt and answer."""
    template = family_named(recipe.model.family).processor.default_prompt_template
    instructions, questions, answers = set(recipe.tokenizer.instructions), set(), set()
    for name in recipe.tokenizer.texts_from:
        dataset = load_recording(work_dir / name, ("image",))
        if "instruction" in dataset.column_names:
            instructions |= {text.lower() for text in set(dataset["instruction"])}
        if "question" in dataset.column_names:
            questions |= set(dataset["question"])
            answers |= set(dataset["answer"])
    for name in opened.names:
        for row in opened.first_rows(name, recipe.tokenizer.texts_from_rows):
            instructions |= {row["instruction"].lower()} if "instruction" in row else set()
            questions |= {turn["question"] for turn in row.get("turns", ())}
            answers |= {turn["answer"] for turn in row.get("turns", ())}
    if not recipe.tokenizer.texts_from and not recipe.tokenizer.texts_from_rows:
        raise ValueError(
            "got no texts to train a tokenizer on, expected data sets in tokenizer.texts_from, or a number of rows in "
            "tokenizer.texts_from_rows"
        )
    state = " ".join(map(str, range(0, STATE_BINS, 17)))  # 0 17 34 ... 255: all digits
    prompts = recipe_prompts(recipe, template)
    texts = {prompts["action"].format(instruction=text, state=state) for text in instructions}
    texts |= {template["question"].format(question=text) for text in questions}
    return sorted(texts | {template["answer"].format(answer=text) for text in answers})


def action_weights(recipe: Recipe, config: Any) -> ActionTokenWeights | BinTokenWeights | None:
    if not recipe.data.robot or not config.action_config:
        return None
    statistics = [entry["action"] for entry in config.norm_stats.values()]
    constant = [
        dim
        for dim in range(recipe.actions.action_dim)
        if all(entry["min"][dim] == entry["max"][dim] for entry in statistics)
    ]
    if recipe.actions.representation == "bins":
        return BinTokenWeights(recipe.actions.action_dim, constant, recipe.loss.constant_dimension_weight)
    return ActionTokenWeights(
        ActionGrammar.from_action_config(config.action_config),
        recipe.loss.decimal_weights,
        constant,
        recipe.loss.constant_dimension_weight,
    )
