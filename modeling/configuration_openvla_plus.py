"""Configuration of OpenVLA+: two vision encoders, a projector, a Llama. Defaults are the full-size model's (7.5B)."""

from typing import Any

from transformers import AutoConfig

from .action_statistics import plain_statistics  # noqa: F401
from .base_configuration import ActionTextConfig, as_config, image_tokens
from .transformers_version import OLDEST  # noqa: F401


# Full size: the encoders and the language model of OpenVLA 7B.
DINO_DEFAULTS = {
    "model_type": "dinov2_with_registers",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "mlp_ratio": 4,
    "image_size": 224,
    "patch_size": 14,
    "num_register_tokens": 4,
}
SIGLIP_DEFAULTS = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "vision_use_head": False,
}
TEXT_DEFAULTS = {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000, "max_position_embeddings": 2048}


class OpenVLAPlusConfig(ActionTextConfig):
    """Configuration of `OpenVLAPlusForVision2Seq`; the fields of `ActionTextConfig`, and:

    Args:
        dino_config: DINOv2 with registers (a dictionary or a config). Its last block is never built: the features are
            those of the second-to-last block, as in OpenVLA.
        siglip_config: SigLIP's vision encoder, likewise.
        text_config: Llama.
        frozen: the encoder that never moves: `"siglip"` (the recipe), `"dino"`, or `None` (without D).
    """

    model_type = "openvla_plus"
    sub_configs = {"dino_config": AutoConfig, "siglip_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012  # pyright: ignore
    text_defaults = TEXT_DEFAULTS
    frozen_choices = ("siglip", "dino", None)
    model_file = "modeling_openvla_plus.OpenVLAPlusForVision2Seq"

    def __init__(
        self,
        dino_config: Any = None,
        siglip_config: Any = None,
        text_config: Any = None,
        frozen: str | None = "siglip",
        image_token_id: int = 32001,
        **kwargs: Any,
    ):
        self.dino_config = as_config(dino_config, DINO_DEFAULTS)
        self.siglip_config = as_config(siglip_config, SIGLIP_DEFAULTS)
        patches = {name: image_tokens(config) for name, config in self.encoder_configs.items()}
        if len(set(patches.values())) != 1:
            raise ValueError(f"got {patches} patches per encoder, expected the same number; they share a grid")
        super().__init__(text_config, frozen, image_token_id, **kwargs)

    @property
    def encoder_configs(self) -> dict[str, Any]:
        """The vision encoders' configurations, in the order of their channels."""
        return {"dino": self.dino_config, "siglip": self.siglip_config}
