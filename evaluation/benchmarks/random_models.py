"""Models of given sizes with random weights, and inputs for them: what speed is measured on.

Decides: the sizes and what an action of such a model looks like. Refuses to know: what is measured.
"""

from typing import Any

import torch

from gen_vla.modeling import (
    OpenVLAPlusConfig,
    OpenVLAPlusForVision2Seq,
    Pi0PlusConfig,
    Pi0PlusForVision2Seq,
)


# OpenVLA's quantiles of Bridge, as its checkpoint holds them.
BRIDGE = {
    "q01": [-0.0287273, -0.0417035, -0.0260939, -0.0809211, -0.0928870, -0.2071828, 0.0],
    "q99": [0.0283097, 0.0408553, 0.0401616, 0.0819205, 0.0779285, 0.2038257, 1.0],
    "min": [-1.0] * 7,
    "max": [1.0] * 7,
    "mask": [True] * 6 + [False],
}
# A character is a token, as in the Llama-2 and Gemma vocabularies; which id it has does not matter here.
PIECES = {character: index + 3 for index, character in enumerate("0123456789+-.\n")}
SIZES: dict[str, dict[str, Any]] = {
    "mini": {"vision": (96, 4, 3), "image": (64, 16), "text": (128, 384, 3, 4)},
    "100m": {"vision": (384, 8, 6), "image": (224, 16), "text": (768, 2048, 11, 12)},
    "1b": {"vision": (768, 12, 12), "image": (224, 16), "text": (2048, 5504, 20, 16)},
    "7b": {"vision": (1024, 24, 16), "image": (224, 14), "text": (4096, 11008, 32, 32)},
    "pi0-3b": {"vision": (1152, 27, 16), "image": (224, 14), "text": (2048, 16384, 18, 8)},  # Gemma's: one key head
}
VOCABULARY = {"openvla_plus": 32064, "pi0_plus": 257216}


def build_random(
    size: str, device: str, dtype: torch.dtype, representation: str = "string", horizon: int = 1, counts: Any = None
) -> Any:
    """A model of a size with random weights, an action format and statistics; `counts` are its histograms."""
    common: dict[str, Any] = {"decimals": 4, "binary_dims": [6], "action_dim": 7, "horizon": horizon, "lead_in": "\n"}
    action: dict[str, Any] = {**common, "representation": "string", "style": "signed", "pieces": PIECES}
    if representation == "bins":
        action = {**common, "representation": "bins", "bins": 256, "bin_tokens_end": 32000}
    settings = {
        "action_config": {**action, "lead_in_ids": [13], "eos_token_id": 2},
        "norm_stats": {
            "random": {"action": {**BRIDGE, "histogram": counts}, "num_transitions": 1, "num_trajectories": 1}
        },
    }
    build = pi0_plus_config if size.startswith("pi0") else openvla_plus_config
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model_class, config = build(SIZES[size], settings)
            model = model_class(config)
    finally:
        torch.set_default_dtype(default)
    return model.eval()


def openvla_plus_config(shape: dict[str, Any], settings: dict[str, Any]) -> tuple[type, Any]:
    """An OpenVLA+ of a shape: DINOv2 and SigLIP alike, Llama."""
    vision, text = encoder_settings(shape), shape["text"]
    return OpenVLAPlusForVision2Seq, OpenVLAPlusConfig(
        dino_config={"model_type": "dinov2_with_registers", **vision},
        siglip_config={
            "model_type": "siglip_vision_model",
            **vision,
            "intermediate_size": 4 * vision["hidden_size"],
        },
        text_config={"model_type": "llama", **text_settings(text, "openvla_plus")},
        **settings,
    )


def pi0_plus_config(shape: dict[str, Any], settings: dict[str, Any]) -> tuple[type, Any]:
    """A π0+ of a shape: SigLIP twice, Gemma with one head of keys."""
    text = text_settings(shape["text"], "pi0_plus")
    return Pi0PlusForVision2Seq, Pi0PlusConfig(
        vision_config={"model_type": "siglip_vision_model", **encoder_settings(shape), "intermediate_size": 4304},
        text_config={"model_type": "gemma", **text, "num_key_value_heads": 1, "head_dim": 256},
        **settings,
    )


def encoder_settings(shape: dict[str, Any]) -> dict[str, int]:
    """What DINOv2 and SigLIP have in common."""
    (width, blocks, heads), (image, patch) = shape["vision"], shape["image"]
    sizes = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads}
    return {**sizes, "image_size": image, "patch_size": patch}


def text_settings(text: tuple[int, int, int, int], family: str) -> dict[str, int]:
    """What Llama and Gemma have in common."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {**dict(zip(names, text, strict=True)), "vocab_size": VOCABULARY[family]}


def random_inputs(model: Any, rows: int, seed: int = 0) -> dict[str, Any]:
    """A prompt of 20 words behind the image tokens, and a random picture."""
    config = model.config
    words = torch.full((rows, 20), 500)
    image = torch.full((rows, config.num_image_tokens), config.image_token_id)
    ids = torch.cat((torch.ones(rows, 1, dtype=torch.long), image, words, torch.full((rows, 1), 13)), dim=1)
    encoders = list(config.encoder_configs.values())
    side, channels = encoders[0].image_size, 3 if model.model.vision_tower.shared_pixels else 3 * len(encoders)
    pixels = torch.randn(rows, channels, side, side, generator=torch.Generator().manual_seed(seed))
    ids = ids.to(model.device)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(model.device, model.dtype),
    }
