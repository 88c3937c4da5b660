"""PaliGemma's tensors under π0+'s names, its encoder doubled.

Decides: the configuration that a checkpoint's tensors imply, and for every tensor of the result where it comes from;
what one tensor becomes says `widen_paligemma_tensor` beside the model. Refuses to know: files, tokenizers, actions.
`gen-vla convert` does the rest; nothing that ships imports this file.

Widths, depths and vocabulary come from the tensors; numbers of attention heads stand in the configuration.
"""

import math
from typing import Any

import torch

from .conversion_plan import ConversionError, Piece, depth, refuse, require
from .modeling_pi0_plus import widen_paligemma_tensor


TEXT, VISION = "model.language_model", "model.vision_tower.siglip"
TEXT_KEPT = ("rms_norm_eps", "rope_theta", "max_position_embeddings", "hidden_act", "hidden_activation")
VISION_KEPT = ("layer_norm_eps", "hidden_act")


def paligemma_names(shapes: dict[str, tuple[int, ...]], frozen: str | None) -> dict[str, str]:
    """Our names of all tensors, and the checkpoint's; raises `ConversionError` for strangers."""
    ours: dict[str, str] = {}
    strangers = []
    for name, shape in shapes.items():
        try:
            targets = widen_paligemma_tensor(name, torch.empty(shape, device="meta"), frozen)
        except ValueError:
            strangers.append(name)
        else:
            ours |= dict.fromkeys(targets, name)
    refuse([], strangers, "PaliGemma")
    return ours


def paligemma_config(
    shapes: dict[str, tuple[int, ...]], settings: dict[str, Any], frozen: str | None
) -> dict[str, Any]:
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
    needed = [f"{TEXT}.embed_tokens.weight", f"{TEXT}.layers.0.mlp.gate_proj.weight"]
    needed += [f"{TEXT}.layers.0.self_attn.{name}_proj.weight" for name in ("q", "k")]
    needed += [f"{VISION}.embeddings.patch_embedding.weight", f"{VISION}.embeddings.position_embedding.weight"]
    needed += [f"{VISION}.encoder.layers.0.mlp.fc1.weight"]
    require(sizes, needed, "PaliGemma")
    return {
        "vision_config": _vision_config(sizes, vision),
        "text_config": _text_config(sizes, text),
        "frozen": frozen,
        "image_token_id": settings.get("image_token_index", settings.get("image_token_id", 257152)),
    }


def attention_heads(settings: dict[str, Any], owner: str) -> int:
    """The number of heads; the published configurations name it, and no default would be safe."""
    if "num_attention_heads" not in settings:
        raise ConversionError(
            f"got a {owner} without num_attention_heads, expected it in config.json, since no tensor tells it"
        )
    return settings["num_attention_heads"]


def _vision_config(sizes: dict[str, tuple[int, ...]], vision: dict[str, Any]) -> dict[str, Any]:
    patches, width = sizes[f"{VISION}.embeddings.position_embedding.weight"]
    patch_size = sizes[f"{VISION}.embeddings.patch_embedding.weight"][-1]
    heads, side = attention_heads(vision, "vision_config"), math.isqrt(patches)
    if side * side != patches or width % heads:
        raise ConversionError(
            f"got {patches} patches of width {width}, expected a square and a multiple of {heads} heads"
        )
    return {
        "model_type": "siglip_vision_model",
        **{name: vision[name] for name in VISION_KEPT if vision.get(name) is not None},
        "hidden_size": width,
        "intermediate_size": sizes[f"{VISION}.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": depth(sizes, f"{VISION}.encoder.layers"),
        "num_attention_heads": heads,
        "image_size": side * patch_size,
        "patch_size": patch_size,
        "vision_use_head": False,
    }


def _text_config(sizes: dict[str, tuple[int, ...]], text: dict[str, Any]) -> dict[str, Any]:
    vocab_size, hidden_size = sizes[f"{TEXT}.embed_tokens.weight"]
    queries, keys = (sizes[f"{TEXT}.layers.0.self_attn.{name}_proj.weight"][0] for name in ("q", "k"))
    heads = attention_heads(text, "text_config")
    if queries % heads or keys % (queries // heads):
        raise ConversionError(f"got {queries} query and {keys} key rows, expected whole heads of {heads}")
    return {
        "model_type": "gemma",
        **{name: text[name] for name in TEXT_KEPT if text.get(name) is not None},
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": sizes[f"{TEXT}.layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": depth(sizes, f"{TEXT}.layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys // (queries // heads),
        "head_dim": queries // heads,
        "bos_token_id": text.get("bos_token_id", 2),
        "eos_token_id": text.get("eos_token_id", 1),
        "pad_token_id": text.get("pad_token_id", 0),
    }


def plan_paligemma(
    shapes: dict[str, tuple[int, ...]], model_shapes: dict[str, tuple[int, ...]], frozen: str | None
) -> dict[str, Piece]:
    """Where every tensor of a model comes from.

    Args:
        shapes: of the checkpoint, by its names.
        model_shapes: of the model, by ours. The output layer is the embedding and need not be in the checkpoint.

    Raises:
        ConversionError: with all tensors that are missing, under our names, or unexpected.
    """
    names = paligemma_names(shapes, frozen)
    missing = model_shapes.keys() - names.keys() - {"lm_head.weight"}
    refuse(missing, {names[ours] for ours in names.keys() - model_shapes.keys()}, "PaliGemma")
    return {
        ours: Piece(names[ours], change=_part(names[ours], ours, frozen)) for ours in model_shapes if ours in names
    }


def _part(source: str, target: str, frozen: str | None) -> Any:
    """What `target` is, given the tensor `source`."""
    return lambda tensor: widen_paligemma_tensor(source, tensor, frozen)[target]
