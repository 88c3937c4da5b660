"""Converts PaliGemma's tensors: the configuration that they imply, and their names in π0+, the encoder doubled.

`widen_paligemma_tensor` beside the model tells what a tensor becomes; `gen-vla convert` reads and writes the files.
Widths, depths and vocabulary come from the tensors, numbers of attention heads from the configuration.
"""

from typing import Any

import torch

from .conversion_plan import (
    ConversionError,
    Piece,
    Shapes,
    check_tensors,
    count_blocks,
    encoder_sizes,
    given,
    language_model_sizes,
    language_model_tensors,
    require_tensors,
)
from .modeling_pi0_plus import widen_paligemma_tensor


TEXT, VISION = "model.language_model", "model.vision_tower.siglip"
TEXT_KEPT = ("rms_norm_eps", "rope_theta", "max_position_embeddings", "hidden_act", "hidden_activation")
VISION_KEPT = ("layer_norm_eps", "hidden_act")


def paligemma_names(shapes: Shapes, frozen: str | None) -> dict[str, str]:
    """The checkpoint's tensor by each of our names; raises `ConversionError` for unexpected tensors."""
    ours: dict[str, str] = {}
    unexpected = []
    for name, shape in shapes.items():
        try:
            targets = widen_paligemma_tensor(name, torch.empty(shape, device="meta"), frozen)
        except ValueError:
            unexpected.append(name)
        else:
            ours |= dict.fromkeys(targets, name)
    check_tensors([], unexpected, "PaliGemma")
    return ours


def paligemma_config(shapes: Shapes, settings: dict[str, Any], frozen: str | None) -> dict[str, Any]:
    """Arguments of `Pi0PlusConfig` for a checkpoint.

    Args:
        shapes: by tensor name.
        settings: the checkpoint's config.json; sizes in it are ignored.
        frozen: `"siglip"` doubles the encoder, `None` leaves PaliGemma as it is.
    """
    text, vision = settings.get("text_config") or {}, settings.get("vision_config") or {}
    if text.get("model_type", "gemma") != "gemma":
        raise ConversionError(
            f"got a language model of type {text['model_type']!r}, expected 'gemma': PaliGemma 2 is not converted"
        )
    sizes = {ours: shapes[theirs] for ours, theirs in paligemma_names(shapes, frozen).items()}
    embeddings = [f"{VISION}.embeddings.{name}_embedding.weight" for name in ("patch", "position")]
    inner = f"{VISION}.encoder.layers.0.mlp.fc1.weight"
    require_tensors(sizes, [*language_model_tensors(TEXT), *embeddings, inner], "PaliGemma")
    (*_, patch_size), (patches, width) = (sizes[name] for name in embeddings)
    blocks = count_blocks(sizes, f"{VISION}.encoder.layers")
    vision_sizes = encoder_sizes(patches, width, attention_heads(vision, "vision_config"), patch_size, blocks)
    return {
        "vision_config": {
            "model_type": "siglip_vision_model",
            **given(vision, VISION_KEPT),
            **vision_sizes,
            "intermediate_size": sizes[inner][0],
            "vision_use_head": False,
        },
        "text_config": {
            "model_type": "gemma",
            **given(text, TEXT_KEPT),
            **language_model_sizes(sizes, TEXT, attention_heads(text, "text_config")),
            "bos_token_id": text.get("bos_token_id", 2),
            "eos_token_id": text.get("eos_token_id", 1),
            "pad_token_id": text.get("pad_token_id", 0),
        },
        "frozen": frozen,
        "image_token_id": settings.get("image_token_index", settings.get("image_token_id", 257152)),
    }


def attention_heads(settings: dict[str, Any], owner: str) -> int:
    """The number of heads; the published configurations have it, and no default would be safe."""
    if "num_attention_heads" not in settings:
        raise ConversionError(
            f"got a {owner} without num_attention_heads, expected it in config.json, since no tensor tells it"
        )
    return settings["num_attention_heads"]


def plan_paligemma(shapes: Shapes, model_shapes: Shapes, frozen: str | None) -> dict[str, Piece]:
    """Where each tensor of a model comes from, given shapes by the names of the checkpoint and by ours.

    The output layer is the embedding and need not be in the checkpoint.

    Raises:
        ConversionError: with all missing tensors, under our names, and all unexpected ones.
    """
    names = paligemma_names(shapes, frozen)
    missing = model_shapes.keys() - names.keys() - {"lm_head.weight"}
    check_tensors(missing, {names[ours] for ours in names.keys() - model_shapes.keys()}, "PaliGemma")
    return {
        ours: Piece(names[ours], change=_change(names[ours], ours, frozen)) for ours in model_shapes if ours in names
    }


def _change(source: str, target: str, frozen: str | None) -> Any:
    """A function that makes `target` of the tensor `source`."""
    return lambda tensor: widen_paligemma_tensor(source, tensor, frozen)[target]
