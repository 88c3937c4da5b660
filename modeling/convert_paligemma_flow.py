"""Converts PaliGemma to a flow-matching π0 whose action expert has random weights, from which π0's training starts.

The expert attends to the keys and values of PaliGemma's layers, so it has as many layers, and heads of the same number
and width.
"""

from typing import Any

import torch

from .configuration_pi0_flow import Pi0FlowConfig
from .conversion_plan import Piece, Shapes, check_tensors
from .convert_paligemma_weights import paligemma_config, paligemma_names
from .modeling_pi0_flow import Pi0FlowForActionPrediction


EXPERT = {"hidden_size": 1024, "intermediate_size": 4096}  # π0's
PARTS = {  # π0+'s names with one encoder, and ours
    "model.language_model.": "model.vlm.language_model.",
    "model.vision_tower.siglip.": "model.vlm.vision_tower.",
    "model.projector.": "model.vlm.multi_modal_projector.linear.",
}


def flow_names(shapes: Shapes) -> dict[str, str]:
    """The checkpoint's tensor by each of our names, without the output layer, which π0 does not have."""
    ours = {}
    for name, source in paligemma_names(shapes, None).items():
        for before, after in PARTS.items():
            if name.startswith(before):
                ours[after + name.removeprefix(before)] = source
    return ours


def flow_config(shapes: Shapes, settings: dict[str, Any], expert: dict[str, Any] | None = None) -> Pi0FlowConfig:
    """The configuration for a checkpoint of PaliGemma.

    Args:
        shapes: by tensor name.
        settings: the checkpoint's config.json; sizes in it are ignored.
        expert: `hidden_size` and `intermediate_size` of the action expert; by default π0's.
    """
    parts = paligemma_config(shapes, settings, None)
    text = parts["text_config"]
    attention = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    return Pi0FlowConfig(
        vlm_config={
            "model_type": "paligemma",
            "vision_config": parts["vision_config"],
            "text_config": text,
            "projection_dim": text["hidden_size"],
            "image_token_id": parts["image_token_id"],
        },
        noise_in_padding=False,  # nothing of these weights was trained on it
        dit_config={"model_type": "gemma", **EXPERT, **(expert or {}), **{name: text[name] for name in attention}},
    )


def expert_weights(config: Pi0FlowConfig, seed: int) -> dict[str, torch.Tensor]:
    """All tensors that are not PaliGemma's, float32, as transformers initialises them: in a model with a minimal
    PaliGemma, to save memory.
    """
    settings = config.to_dict()
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vlm = settings["vlm_config"]
    vlm["text_config"] |= {**small, "vocab_size": 8}
    vlm["vision_config"] |= {**small, "num_attention_heads": 1, "projection_dim": 8}
    vlm |= {"projection_dim": 8, "hidden_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = Pi0FlowForActionPrediction(Pi0FlowConfig(**settings)).state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith("model.vlm.")}


def plan_flow(shapes: Shapes, model_shapes: Shapes, config: Pi0FlowConfig, seed: int = 0) -> dict[str, Piece]:
    """Where each tensor of a model comes from, given shapes by the names of the checkpoint and by ours.

    Raises:
        ConversionError: with all missing tensors, under our names, and all unexpected ones.
    """
    names, expert = flow_names(shapes), expert_weights(config, seed)
    missing = model_shapes.keys() - names.keys() - expert.keys()
    check_tensors(missing, {names[ours] for ours in names.keys() - model_shapes.keys()}, "PaliGemma")
    drawn = {name: Piece(None, made=lambda tensor=tensor: tensor) for name, tensor in expert.items()}
    return {name: drawn[name] if name in drawn else Piece(names[name]) for name in model_shapes}
