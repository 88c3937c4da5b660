"""Configuration of OpenVLA+: two vision encoders, a projector, a Llama. Defaults are the full-size model's (7.5B)."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from .action_statistics import plain_statistics  # noqa: F401
from .base_configuration import ActionStatisticsMixin, as_config, auto_map_for, image_tokens
from .relative_actions import check_groups  # noqa: F401
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


class OpenVLAPlusConfig(ActionStatisticsMixin, PretrainedConfig):
    """Configuration of `OpenVLAPlusForVision2Seq`.

    Args:
        dino_config: DINOv2 with registers (a dictionary or a config). Its last block is never built: the features are
            those of the second-to-last block, as in OpenVLA.
        siglip_config: SigLIP's vision encoder, likewise.
        text_config: the language model, Llama.
        frozen: the encoder that never moves: `"siglip"` (the recipe), `"dino"`, `"all"` for both, or `None` (without
            D).
        image_token_id: id of the placeholder whose embeddings the projected patches replace.
        action_config: the action format, see `action_grammar.py`; `None` for a model that only answers questions.
        norm_stats: OpenVLA's statistics by data set, see `action_statistics.py`.
        prompt_template: the prompts of training; the processor holds the same.
        tie_word_embeddings: whether the output layer is the embedding matrix; by default as `text_config` says.
        initializer_range: standard deviation of new weights in the projector and the output layer; about the inverse
            square root of the widths, so a small model trained from scratch needs more than the default.
    """

    model_type = "openvla_plus"
    sub_configs = {"dino_config": AutoConfig, "siglip_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012  # pyright: ignore
    frozen_choices = ("siglip", "dino", "all", None)

    def __init__(
        self,
        dino_config: Any = None,
        siglip_config: Any = None,
        text_config: Any = None,
        frozen: str | None = "siglip",
        image_token_id: int = 32001,
        action_config: dict[str, Any] | None = None,
        norm_stats: dict[str, Any] | None = None,
        prompt_template: dict[str, str] | None = None,
        tie_word_embeddings: bool | None = None,
        initializer_range: float = 0.02,
        auto_map: dict[str, str] | None = None,
        **kwargs: Any,
    ):
        self.dino_config = as_config(dino_config, DINO_DEFAULTS)
        self.siglip_config = as_config(siglip_config, SIGLIP_DEFAULTS)
        self.text_config = as_config(text_config, TEXT_DEFAULTS)
        patches = {name: image_tokens(config) for name, config in self.encoder_configs.items()}
        if len(set(patches.values())) != 1:
            raise ValueError(f"got {patches} patches per encoder, expected the same number; they share a grid")
        if frozen not in self.frozen_choices:
            raise ValueError(f"got frozen={frozen!r}, expected one of {', '.join(map(repr, self.frozen_choices))}")
        self.frozen = frozen
        self.image_token_id = image_token_id
        self.action_config = action_config
        self.norm_stats = norm_stats
        self.prompt_template = prompt_template
        self.initializer_range = initializer_range
        model_file = "modeling_openvla_plus.OpenVLAPlusForVision2Seq"
        self.auto_map = auto_map or auto_map_for(type(self).__name__, model_file)
        check_logits_unscaled(self.text_config)
        # transformers 5 reads the flag here, transformers 4 reads the text configuration's.
        tied = tied_embeddings(tie_word_embeddings, text_config, self.text_config)
        super().__init__(tie_word_embeddings=tied, **kwargs)  # pyright: ignore

    @property
    def encoder_configs(self) -> dict[str, Any]:
        """The vision encoders' configurations, in the order of their channels."""
        return {"dino": self.dino_config, "siglip": self.siglip_config}

    @property
    def num_image_tokens(self) -> int:
        """N, the tokens one picture takes."""
        return image_tokens(self.dino_config)


def tied_embeddings(tie_word_embeddings: bool | None, given: Any, text_config: Any) -> bool:
    """Whether the output layer is the embedding matrix; written into `text_config` too, where transformers 4 looks.

    `given` is the text configuration of the caller, which the outer flag must not contradict; `None` leaves the
    decision to it.
    """
    tied = text_config.tie_word_embeddings if tie_word_embeddings is None else tie_word_embeddings
    says = isinstance(given, PretrainedConfig) or "tie_word_embeddings" in (given or {})
    if says and text_config.tie_word_embeddings != tied:
        raise ValueError(
            f"got tie_word_embeddings={tied} with a text_config that says {text_config.tie_word_embeddings}, expected "
            "the same in both: set it in text_config alone"
        )
    text_config.tie_word_embeddings = tied
    return tied


def check_logits_unscaled(text_config: Any) -> None:
    """Raises `ValueError` for a language model that changes the logits of its output layer, which is not done here."""
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        value = getattr(text_config, name, None)
        if value not in (None, 1):
            raise ValueError(
                f"got a text_config of model_type {text_config.model_type!r} with {name}={value}, "
                "expected a language model whose logits are those of its output layer, such as Llama or Gemma 1"
            )
