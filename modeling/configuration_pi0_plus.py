"""Configuration of π0+: SigLIP once or twice, linear projector, Gemma. Defaults are the full-size model's (3.3B)."""

from typing import Any

from transformers import AutoConfig

from .action_statistics import plain_statistics  # noqa: F401
from .base_configuration import ActionTextConfig, as_config
from .transformers_version import OLDEST  # noqa: F401


# Full size: PaliGemma 3B on 224 pixels.
VISION_DEFAULTS = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "vision_use_head": False,
}
TEXT_DEFAULTS = {
    "model_type": "gemma",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 257216,
}


class Pi0PlusConfig(ActionTextConfig):
    """Configuration of `Pi0PlusForVision2Seq`; the fields of `ActionTextConfig`, and:

    Args:
        vision_config: SigLIP's vision encoder (a dictionary or a config), PaliGemma's `vision_config`.
        text_config: Gemma, PaliGemma's `text_config`.
        frozen: `"siglip"`: the encoder never moves, and a second one with the same shape, its copy, trains (the
            recipe). `None`: one encoder that trains, which is PaliGemma itself (without D).
    """

    model_type = "pi0_plus"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012  # pyright: ignore
    text_defaults = TEXT_DEFAULTS
    frozen_choices = ("siglip", None)
    model_file = "modeling_pi0_plus.Pi0PlusForVision2Seq"

    def __init__(
        self,
        vision_config: Any = None,
        text_config: Any = None,
        frozen: str | None = "siglip",
        image_token_id: int = 257152,
        **kwargs: Any,
    ):
        self.vision_config = as_config(vision_config, VISION_DEFAULTS)
        text_type = as_config(text_config, TEXT_DEFAULTS).model_type
        if text_type != "gemma":
            raise ValueError(
                f"got a text_config of model_type {text_type!r}, expected 'gemma': PaliGemma 2's sliding windows and "
                "capped logits are not built"
            )
        super().__init__(text_config, frozen, image_token_id, **kwargs)
        # The model builds its attention masks itself. This keeps Gemma from attending to the future wherever it is
        # run without one; PaliGemma's configurations in transformers 5 say True.
        self.text_config.use_bidirectional_attention = False

    @property
    def encoder_configs(self) -> dict[str, Any]:
        """The vision encoders' configurations, in the order of their channels."""
        names = ("siglip", "siglip_copy") if self.frozen else ("siglip",)
        return dict.fromkeys(names, self.vision_config)
