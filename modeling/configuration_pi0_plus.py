"""Configuration of π0+: SigLIP, once or twice, a linear projector, a Gemma, and what the actions mean.

Decides: the fields of config.json and their defaults, which are the full-size model's (3.3B parameters). Refuses to
know: how any of it is computed.
"""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from .action_statistics import plain_statistics  # noqa: F401
from .nested_configuration import (
    ActionStatisticsMixin,
    as_config,
    auto_map_for,
    check_output_layer,
    tied_embeddings,
)
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
FROZEN_CHOICES = ("siglip", None)


class Pi0PlusConfig(ActionStatisticsMixin, PretrainedConfig):
    """Configuration of `Pi0PlusForVision2Seq`.

    Args:
        vision_config: SigLIP's vision encoder (a dictionary or a config), PaliGemma's `vision_config`.
        text_config: Gemma, PaliGemma's `text_config`.
        frozen: `"siglip"`: the encoder never moves, and a second one with the same shape, its copy, trains (the
            recipe). `None`: one encoder that trains, which is PaliGemma itself (without D).
        image_token_id: id of the placeholder whose embeddings the projected patches replace.
        action_config: the action format, see `action_grammar.py`; `None` for a model that only talks.
        norm_stats: OpenVLA's statistics by data set, see `action_statistics.py`.
        prompt_template: the texts training used; the processor holds the same.
        tie_word_embeddings: whether the output layer is the embedding matrix; by default as `text_config` says.
        initializer_range: standard deviation of new weights in the projector and the output layer.
    """

    model_type = "pi0_plus"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012  # pyright: ignore

    def __init__(
        self,
        vision_config: Any = None,
        text_config: Any = None,
        frozen: str | None = "siglip",
        image_token_id: int = 257152,
        action_config: dict[str, Any] | None = None,
        norm_stats: dict[str, Any] | None = None,
        prompt_template: dict[str, str] | None = None,
        tie_word_embeddings: bool | None = None,
        initializer_range: float = 0.02,
        auto_map: dict[str, str] | None = None,
        **kwargs: Any,
    ):
        if frozen not in FROZEN_CHOICES:
            raise ValueError(f"got frozen={frozen!r}, expected one of {', '.join(map(repr, FROZEN_CHOICES))}")
        self.vision_config = as_config(vision_config, VISION_DEFAULTS)
        self.text_config = as_config(text_config, TEXT_DEFAULTS)
        if self.text_config.model_type != "gemma":
            raise ValueError(
                f"got a text_config of model_type {self.text_config.model_type!r}, expected 'gemma': PaliGemma 2's "
                "sliding windows and capped logits are not built"
            )
        # The model builds its attention masks itself. This keeps Gemma from attending to the future wherever it is
        # run without one; PaliGemma's configurations in transformers 5 say True.
        self.text_config.use_bidirectional_attention = False
        self.frozen = frozen
        self.image_token_id = image_token_id
        self.action_config = action_config
        self.norm_stats = norm_stats
        self.prompt_template = prompt_template
        self.initializer_range = initializer_range
        self.auto_map = auto_map or auto_map_for(
            "configuration_pi0_plus.Pi0PlusConfig", "modeling_pi0_plus.Pi0PlusForVision2Seq"
        )
        check_output_layer(self.text_config)
        # transformers 5 reads the flag here, transformers 4 reads the text configuration's.
        tied = tied_embeddings(tie_word_embeddings, text_config, self.text_config)
        super().__init__(tie_word_embeddings=tied, **kwargs)  # pyright: ignore

    @property
    def encoder_configs(self) -> dict[str, Any]:
        """The vision encoders' configurations, in the order of their channels."""
        names = ("siglip", "siglip_copy") if self.frozen else ("siglip",)
        return dict.fromkeys(names, self.vision_config)

    @property
    def num_image_tokens(self) -> int:
        """N, the tokens one picture takes."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2
