"""Models of given sizes with random weights, and inputs for them: what speed is measured on."""

from typing import Any

import torch

from gen_vla import modeling  # for what an older transformers lacks
from gen_vla.modeling import OpenVLAPlusConfig, OpenVLAPlusForVision2Seq
from gen_vla.modeling.base_configuration import image_tokens


# OpenVLA's quantiles of Bridge, as its checkpoint holds them.
BRIDGE = {
    "q01": [-0.0287273, -0.0417035, -0.0260939, -0.0809211, -0.0928870, -0.2071828, 0.0],
    "q99": [0.0283097, 0.0408553, 0.0401616, 0.0819205, 0.0779285, 0.2038257, 1.0],
    "min": [-1.0] * 7,
    "max": [1.0] * 7,
    "mask": [True] * 6 + [False],
}
NORMALIZED = {**BRIDGE, "q01": [-1.0] * 7, "q99": [1.0] * 7}  # of actions that are in [-1, 1] already
# A character is a token, as in the Llama-2 and Gemma vocabularies; which id it has does not matter here.
PIECES = {character: index + 3 for index, character in enumerate("0123456789+-.\n")}
SIZES: dict[str, dict[str, Any]] = {
    "mini": {"vision": (96, 4, 3), "image": (64, 16), "text": (128, 384, 3, 4)},
    "100m": {"vision": (384, 8, 6), "image": (224, 16), "text": (768, 2048, 11, 12)},
    "1b": {"vision": (768, 12, 12), "image": (224, 16), "text": (2048, 5504, 20, 16)},
    "7b": {"vision": (1024, 24, 16), "image": (224, 14), "text": (4096, 11008, 32, 32)},
    "pi0-3b": {"vision": (1152, 27, 16), "image": (224, 14), "text": (2048, 16384, 18, 8)},  # Gemma's: one key head
}
VOCABULARY = {"openvla_plus": 32064, "paligemma": 257216}


def build_random(
    size: str, device: str, dtype: torch.dtype, representation: str = "string", horizon: int = 1, counts: Any = None
) -> Any:
    """A model of a size with random weights, an action format and statistics; `counts` are its histograms."""
    action: dict[str, Any] = {"decimals": 4, "binary_dims": [6], "action_dim": 7, "horizon": horizon, "lead_in": "\n"}
    if representation == "bins":
        action |= {"representation": "bins", "bins": 256, "bin_tokens_end": 32000}
    else:
        action |= {"representation": "string", "style": "signed", "pieces": PIECES}
    statistics = {"action": {**BRIDGE, "histogram": counts}, "num_transitions": 1, "num_trajectories": 1}
    config = random_config(
        size,
        action_config={**action, "lead_in_ids": [13], "eos_token_id": 2},
        norm_stats={"random": statistics},
    )
    model_class: Any = modeling.VLAPlusForVision2Seq if size.startswith("pi0") else OpenVLAPlusForVision2Seq
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return model_class(config).eval()
    finally:
        torch.set_default_dtype(default)


def random_config(size: str, **settings: Any) -> Any:
    """Of a π0+ (PaliGemma's SigLIP twice, Gemma with one head of keys) for sizes of π0, else of an OpenVLA+."""
    (width, blocks, heads), (image, patch) = SIZES[size]["vision"], SIZES[size]["image"]
    vision = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads}
    vision |= {"image_size": image, "patch_size": patch}
    siglip = {"model_type": "siglip_vision_model", **vision}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text = dict(zip(names, SIZES[size]["text"], strict=True))
    if size.startswith("pi0"):
        gemma = {"model_type": "gemma", **text, "num_key_value_heads": 1, "head_dim": 256}
        paligemma = {
            "model_type": "paligemma",
            "vision_config": {**siglip, "intermediate_size": 4304, "vision_use_head": False},
            "text_config": {**gemma, "vocab_size": VOCABULARY["paligemma"]},
            "projection_dim": text["hidden_size"],
            "image_token_id": VOCABULARY["paligemma"] - 64,
        }
        return modeling.VLAPlusConfig(paligemma, **settings)
    return OpenVLAPlusConfig(
        dino_config={"model_type": "dinov2_with_registers", **vision},
        siglip_config={**siglip, "intermediate_size": 4 * width},
        text_config={"model_type": "llama", **text, "vocab_size": VOCABULARY["openvla_plus"]},
        **settings,
    )


def random_inputs(model: Any, rows: int) -> dict[str, Any]:
    """A prompt of 20 words behind the image tokens, and a random picture."""
    config = model.config
    words = torch.full((rows, 20), 500)
    vlm = getattr(config, "vlm_config", None)
    encoders = [vlm.vision_config] if vlm else list(config.encoder_configs.values())
    image = torch.full((rows, image_tokens(encoders[0])), config.image_token_id)
    ids = torch.cat((torch.ones(rows, 1, dtype=torch.long), image, words, torch.full((rows, 1), 13)), dim=1)
    side = encoders[0].image_size
    pixels = torch.randn(rows, 3 * len(encoders), side, side, generator=torch.Generator().manual_seed(0))
    ids = ids.to(model.device)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(model.device, model.dtype),
    }


def synchronize(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
