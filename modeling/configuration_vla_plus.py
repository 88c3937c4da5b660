"""Configuration of a vision-language model of transformers that also acts, with the paper's D or without."""

from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from .action_statistics import plain_statistics  # noqa: F401  # transformers 4 copies what this file names
from .base_configuration import ActionStatisticsMixin, auto_map_for, in_this_version
from .relative_actions import check_groups  # noqa: F401
from .transformers_version import OLDEST  # noqa: F401
from .vlm_families import FAMILIES, family_of


class VLAPlusConfig(ActionStatisticsMixin, PretrainedConfig):
    """Configuration of `VLAPlusForVision2Seq`.

    Args:
        vlm_config: the vision-language model's (a dictionary or a config).
        frozen: `"vision"`: its vision encoder never moves, and a copy of it trains (the recipe's D). `None`: the model
            as it is.
        action_config, norm_stats, prompt_template: as in `OpenVLAPlusConfig`.
    """

    model_type = "vla_plus"
    sub_configs = {"vlm_config": AutoConfig}  # noqa: RUF012  # pyright: ignore
    frozen_choices = ("vision", None)

    def __init__(
        self,
        vlm_config: Any = None,
        frozen: str | None = "vision",
        action_config: dict[str, Any] | None = None,
        norm_stats: dict[str, Any] | None = None,
        prompt_template: dict[str, str] | None = None,
        auto_map: dict[str, str] | None = None,
        **kwargs: Any,
    ):
        if frozen not in self.frozen_choices:
            raise ValueError(f"got frozen={frozen!r}, expected one of {', '.join(map(repr, self.frozen_choices))}")
        if not isinstance(vlm_config, PretrainedConfig):
            vlm_config = config_of(vlm_config or {"model_type": "paligemma"})
        family_of(vlm_config)
        self.vlm_config = vlm_config
        self.frozen = frozen
        self.action_config = action_config
        self.norm_stats = norm_stats
        self.prompt_template = prompt_template
        self.auto_map = auto_map or auto_map_for(type(self).__name__, "modeling_vla_plus.VLAPlusForVision2Seq")
        kwargs.setdefault("tie_word_embeddings", getattr(vlm_config, "tie_word_embeddings", False))
        super().__init__(**kwargs)  # pyright: ignore

    @property
    def text_config(self) -> Any:
        """The language model's configuration."""
        return self.vlm_config.get_text_config()

    @property
    def image_token_id(self) -> int:
        """The token that image features replace."""
        found = getattr(self.vlm_config, "image_token_id", None)
        return self.vlm_config.image_token_index if found is None else found


def config_of(settings: dict[str, Any]) -> Any:
    """The configuration in a dictionary; raises `ValueError` if its type is missing or unknown."""
    settings = dict(settings)
    model_type = settings.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"got a vlm_config with model_type={model_type!r}, expected one of {', '.join(FAMILIES)}; "
            f"transformers {transformers.__version__} does not know it"
        )
    return CONFIG_MAPPING[model_type](**in_this_version(settings))
