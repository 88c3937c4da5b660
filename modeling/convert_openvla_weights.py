"""Converts OpenVLA's tensors: the configuration that they imply, and their names in OpenVLA+.

    OpenVLA (timm's names)                          OpenVLA+
    vision_backbone.featurizer.blocks.3.attn.qkv    model.vision_tower.dino.encoder.layer.3.attention.attention.query
    vision_backbone.fused_featurizer.blocks.3...    model.vision_tower.siglip.encoder.layers.3...
    projector.fc1                                   model.projector.fc1
    language_model.model.layers.3...                model.language_model.layers.3...
    language_model.lm_head                          lm_head

Widths, depths and vocabulary come from the tensors; numbers of attention heads from an encoder's timm id and the
configuration of the language model. The last block of each encoder, the final norms and SigLIP's attention pool do not
affect OpenVLA's features, which are those of the second-to-last block; they are left out. DINOv2's attention is
written under the names of transformers 4, which 5 reads as well.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch

from .conversion_plan import (
    ConversionError,
    Piece,
    Shapes,
    check_tensors,
    count_blocks,
    language_model_sizes,
    require_tensors,
)


DINO, SIGLIP, TEXT = "vision_backbone.featurizer", "vision_backbone.fused_featurizer", "language_model.model"
# Heads of the encoders OpenVLA and Prismatic models are built from, by timm id without its tag.
ATTENTION_HEADS = {
    "vit_large_patch14_reg4_dinov2": 16,
    "vit_so400m_patch14_siglip_224": 16,
    "vit_so400m_patch14_siglip_384": 16,
}
# Tensors that do not affect the second-to-last block's patch features, and buffers that the configuration implies.
WITHOUT_EFFECT = re.compile(
    r"vision_backbone\.(fused_)?featurizer\.(norm|fc_norm)\.|vision_backbone\.fused_featurizer\.attn_pool\."
    r"|language_model\.model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
)


def openvla_config(shapes: Shapes, timm_ids: list[str], text: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `OpenVLAPlusConfig` for a checkpoint.

    Args:
        timm_ids: of the two encoders, DINOv2 first.
        text: the checkpoint's configuration of its Llama; sizes in it are ignored.

    Raises:
        ConversionError: if the checkpoint is of another architecture, or a tensor that tells a size is missing.
    """
    if text.get("model_type", "llama") != "llama":
        raise ConversionError(f"got a language model of type {text['model_type']!r}, expected 'llama'")
    if len(timm_ids) != 2 or "dinov2" not in timm_ids[0] or "siglip" not in timm_ids[1]:
        raise ConversionError(f"got the encoders {timm_ids}, expected DINOv2 and SigLIP, in this order")
    names = [f"{DINO}.reg_token", f"{DINO}.blocks.0.mlp.fc1.weight", f"{SIGLIP}.blocks.0.mlp.fc1.weight"]
    names += [f"{encoder}.{name}" for encoder in (DINO, SIGLIP) for name in ("pos_embed", "patch_embed.proj.weight")]
    layer = [f"layers.0.{name}.weight" for name in ("mlp.gate_proj", "self_attn.q_proj", "self_attn.k_proj")]
    names += [f"{TEXT}.{name}" for name in ("embed_tokens.weight", *layer)]
    require_tensors(shapes, names, "OpenVLA")
    dino_hidden = shapes[f"{DINO}.blocks.0.mlp.fc1.weight"][0]
    dino_width = shapes[f"{DINO}.pos_embed"][-1]
    return {
        "dino_config": {
            "model_type": "dinov2_with_registers",
            **_encoder_sizes(shapes, DINO, timm_ids[0]),
            "mlp_ratio": dino_hidden // dino_width if dino_hidden % dino_width == 0 else dino_hidden / dino_width,
            "num_register_tokens": shapes[f"{DINO}.reg_token"][1],
            "layer_norm_eps": 1e-6,
        },
        "siglip_config": {
            "model_type": "siglip_vision_model",
            **_encoder_sizes(shapes, SIGLIP, timm_ids[1]),
            "intermediate_size": shapes[f"{SIGLIP}.blocks.0.mlp.fc1.weight"][0],
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "vision_use_head": False,
        },
        "text_config": _text_config(shapes, text),
    }


def _encoder_sizes(shapes: Shapes, encoder: str, timm_id: str) -> dict[str, int]:
    heads = ATTENTION_HEADS.get(timm_id.partition(".")[0])
    if heads is None:
        raise ConversionError(
            f"got the encoder {timm_id!r}, whose number of attention heads is unknown and stands in no tensor; "
            f"known: {', '.join(ATTENTION_HEADS)}"
        )
    _, patches, width = shapes[f"{encoder}.pos_embed"]
    patch_size = shapes[f"{encoder}.patch_embed.proj.weight"][-1]
    blocks = count_blocks(shapes, f"{encoder}.blocks")
    side = math.isqrt(patches)
    if side * side != patches or width % heads:
        raise ConversionError(
            f"got {patches} patches of width {width} in {encoder}, expected a square and a multiple of {heads} heads"
        )
    sizes = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads}
    return {**sizes, "image_size": side * patch_size, "patch_size": patch_size}


def _text_config(shapes: Shapes, text: dict[str, Any]) -> dict[str, Any]:
    heads = text.get("num_attention_heads", 32)  # the default of transformers, on which OpenVLA's config.json relies
    kept = ("rms_norm_eps", "rope_theta", "rope_scaling", "max_position_embeddings", "hidden_act")
    return {
        "model_type": "llama",
        "rms_norm_eps": 1e-6,  # likewise; the released model runs with it although Llama-2 was trained with 1e-5
        **{name: text[name] for name in kept if text.get(name) is not None},
        **language_model_sizes(shapes, TEXT, heads),
        "bos_token_id": text.get("bos_token_id", 1),
        "eos_token_id": text.get("eos_token_id", 2),
        "pad_token_id": text.get("pad_token_id", 32000),
    }


def plan_openvla(config: Any) -> dict[str, Piece]:
    """Where each tensor of a model of this configuration comes from."""
    plan = _dino_plan(config.dino_config.num_hidden_layers - 1)
    plan |= _siglip_plan(config.siglip_config.num_hidden_layers - 1)
    for layer in (1, 2, 3):
        plan |= _weight_and_bias(f"model.projector.fc{layer}", f"projector.fc{layer}")
    return plan | _llama_plan(config.text_config.num_hidden_layers)


def _dino_plan(blocks: int) -> dict[str, Piece]:
    ours = "model.vision_tower.dino"
    plan = {
        f"{ours}.embeddings.cls_token": Piece(f"{DINO}.cls_token"),
        f"{ours}.embeddings.mask_token": Piece(None),  # only pretraining masks patches
        f"{ours}.embeddings.register_tokens": Piece(f"{DINO}.reg_token"),
        f"{ours}.embeddings.position_embeddings": Piece(f"{DINO}.pos_embed", change=_with_class_position),
        **_weight_and_bias(f"{ours}.embeddings.patch_embeddings.projection", f"{DINO}.patch_embed.proj"),
    }
    for block in range(blocks):
        here, there = f"{ours}.encoder.layer.{block}", f"{DINO}.blocks.{block}"
        plan |= _split_qkv(f"{here}.attention.attention", f"{there}.attn.qkv", ("query", "key", "value"))
        plan |= _weight_and_bias(f"{here}.attention.output.dense", f"{there}.attn.proj")
        for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            plan |= _weight_and_bias(f"{here}.{name}", f"{there}.{name}")
        for number in (1, 2):
            plan[f"{here}.layer_scale{number}.lambda1"] = Piece(f"{there}.ls{number}.scale_factor")
    return plan


def _siglip_plan(blocks: int) -> dict[str, Piece]:
    ours = "model.vision_tower.siglip"
    plan = {
        f"{ours}.embeddings.position_embedding.weight": Piece(f"{SIGLIP}.pos_embed", change=lambda t: t.squeeze(0)),
        **_weight_and_bias(f"{ours}.embeddings.patch_embedding", f"{SIGLIP}.patch_embed.proj"),
    }
    names = {"layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for block in range(blocks):
        here, there = f"{ours}.encoder.layers.{block}", f"{SIGLIP}.blocks.{block}"
        plan |= _split_qkv(f"{here}.self_attn", f"{there}.attn.qkv", ("q_proj", "k_proj", "v_proj"))
        plan |= _weight_and_bias(f"{here}.self_attn.out_proj", f"{there}.attn.proj")
        for name, theirs in names.items():
            plan |= _weight_and_bias(f"{here}.{name}", f"{there}.{theirs}")
    return plan


def _llama_plan(layers: int) -> dict[str, Piece]:
    ours = "model.language_model"
    linear = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    linear += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    names = ["embed_tokens", "norm", *(f"layers.{layer}.{name}" for layer in range(layers) for name in linear)]
    plan = {f"{ours}.{name}.weight": Piece(f"{TEXT}.{name}.weight") for name in names}
    return {**plan, "lm_head.weight": Piece("language_model.lm_head.weight")}


def _weight_and_bias(ours: str, theirs: str) -> dict[str, Piece]:
    return {f"{ours}.{kind}": Piece(f"{theirs}.{kind}") for kind in ("weight", "bias")}


def _split_qkv(ours: str, theirs: str, names: tuple[str, str, str]) -> dict[str, Piece]:
    """timm keeps queries, keys and values in one matrix, in this order."""
    return {
        f"{ours}.{name}.{kind}": Piece(f"{theirs}.{kind}", part, parts=3)
        for part, name in enumerate(names)
        for kind in ("weight", "bias")
    }


def _with_class_position(positions: torch.Tensor) -> torch.Tensor:
    """Zeros in front, for CLS: transformers adds a position to it, timm does not."""
    return torch.cat((torch.zeros_like(positions[:, :1]), positions), dim=1)


def check_complete(plan: dict[str, Piece], shapes: Iterable[str], config: Any) -> None:
    """Raises `ConversionError` with every missing and every unexpected tensor."""
    present = set(shapes)
    needed = {piece.source for piece in plan.values() if piece.source is not None}
    last = (
        f"{DINO}.blocks.{config.dino_config.num_hidden_layers - 1}.",
        f"{SIGLIP}.blocks.{config.siglip_config.num_hidden_layers - 1}.",
    )
    unexpected = [n for n in present - needed if not WITHOUT_EFFECT.match(n) and not n.startswith(last)]
    check_tensors(needed - present, unexpected, "OpenVLA")


def hub_name(name: str) -> str:
    """The Hub layout's name of a tensor from a Prismatic training run."""
    for part, layer in (("projector.0", "fc1"), ("projector.2", "fc2"), ("projector.4", "fc3")):
        name = re.sub(rf"^projector\.{re.escape(part)}\.", f"projector.{layer}.", name)
    name = re.sub(r"^vision_backbone\.dino_featurizer\.", f"{DINO}.", name)
    name = re.sub(r"^vision_backbone\.siglip_featurizer\.", f"{SIGLIP}.", name)
    name = re.sub(r"^llm_backbone\.llm\.", "language_model.", name)
    return re.sub(r"(\.ls\d)\.gamma$", r"\1.scale_factor", name)
