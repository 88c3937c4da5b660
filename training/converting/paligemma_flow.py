"""Makes a flow-matching π0 of PaliGemma, from which π0's training starts: `gen-vla convert SRC DST --family pi0_flow`.

PaliGemma may be inside a `vla_plus`, where it was trained further.

The action expert has random weights. It attends to the keys and values of PaliGemma's layers, so it has as many
layers, and heads of the same number and width.
"""

from pathlib import Path
from typing import Any

import torch

from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.processors import OpenVLAPlusImageProcessor, Pi0FlowProcessor
from gen_vla.training.converting.foreign_layouts import GEMMA_TOKENS, image_settings, load_tokenizer
from gen_vla.training.converting.stock_checkpoint import read_checkpoint, write_model


PILLOW_BICUBIC = 3


def convert_to_flow(
    source: str | Path,
    draft: Path,
    tokenizer: str | Path | None = None,
    expert: dict[str, int] | None = None,
    center_crop_area: float | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
    seed: int = 0,
) -> None:
    """Writes a folder that does not act yet: it gets its action format from the recipe that trains it; raises
    `ConversionError` if the checkpoint lacks weights, or its pictures are resized otherwise.

    Arguments are as in `ConversionSettings`; `seed` is of the expert's weights.
    """
    # Not at the top: the other families run with a transformers that lacks this one.
    from gen_vla.modeling import Pi0FlowForActionPrediction

    found = read_checkpoint(source)
    config = flow_config(found.config, expert)
    with torch.device("meta"):  # shapes without memory
        model = Pi0FlowForActionPrediction(config)
    pixels = image_settings(found.folder)
    if pixels.get("resample", PILLOW_BICUBIC) != PILLOW_BICUBIC:
        raise ConversionError(f"got resample={pixels['resample']}, expected {PILLOW_BICUBIC}, Pillow's bicubic")
    half = [0.5, 0.5, 0.5]
    constants: dict[str, Any] = {"means": [pixels.get("image_mean", half)], "stds": [pixels.get("image_std", half)]}
    size = found.config.vision_config.image_size
    processor = Pi0FlowProcessor(
        OpenVLAPlusImageProcessor(image_size=size, center_crop_area=center_crop_area, **constants),
        load_tokenizer(tokenizer or found.folder, GEMMA_TOKENS, found.config.text_config),
        num_image_tokens=config.num_image_tokens,
    )
    if processor.image_token_id != found.config.image_token_id:
        raise ConversionError(
            f"got a tokenizer whose {processor.image_token} is {processor.image_token_id}, expected "
            f"{found.config.image_token_id}; it belongs to another model"
        )
    config.prompt_template = processor.prompt_template
    base = [name for name in found.sources if name.startswith("model.")]  # without the output layer
    origins = {name.replace("model.", "model.vlm.", 1): name for name in base}
    write_model(draft, model, found, origins, dtype, max_shard_bytes, made=expert_weights(config, seed))
    processor.save_pretrained(draft)


def flow_config(vlm_config: Any, expert: dict[str, int] | None = None) -> Any:
    from gen_vla.modeling import Pi0FlowConfig

    if (kind := vlm_config.text_config.model_type) != "gemma":
        raise ConversionError(f"got a language model of type {kind!r}, expected 'gemma': π0 starts from PaliGemma 1")
    sizes = {"hidden_size": vlm_config.text_config.hidden_size // 2}  # π0's: 1024 of 2048, and 4096 of 16384
    sizes |= {"intermediate_size": vlm_config.text_config.intermediate_size // 4, **(expert or {})}
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    attention = {name: getattr(vlm_config.text_config, name) for name in names}
    return Pi0FlowConfig(
        vlm_config=vlm_config.to_dict(),
        noise_in_padding=False,  # nothing of these weights was trained on it
        dit_config={"model_type": "gemma", **sizes, **attention},
    )


def expert_weights(config: Any, seed: int) -> dict[str, torch.Tensor]:
    """All tensors but PaliGemma's, float32, as transformers initialises them beside a minimal PaliGemma."""
    from gen_vla.modeling import Pi0FlowConfig, Pi0FlowForActionPrediction

    settings = config.to_dict()
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vlm = settings["vlm_config"]
    vlm["text_config"] |= {**small, "vocab_size": 8, "pad_token_id": 0, "layer_types": ["full_attention"]}
    vlm["vision_config"] |= {**small, "num_attention_heads": 1, "projection_dim": 8}
    vlm |= {"projection_dim": 8, "hidden_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = Pi0FlowForActionPrediction(Pi0FlowConfig(**settings)).state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("model.vlm.")}
