"""Configuration of the flow-matching π0: that of transformers' PI0, and what the actions mean."""

import copy
from typing import Any

from .action_statistics import plain_statistics  # noqa: F401
from .base_configuration import ActionStatisticsMixin, auto_map_for, image_tokens
from .relative_actions import check_groups  # noqa: F401
from .transformers_version import check_transformers


check_transformers("the flow-matching π0")  # before the import of what older versions lack

from transformers import PI0Config  # noqa: E402


class Pi0FlowConfig(ActionStatisticsMixin, PI0Config):
    """Configuration of `Pi0FlowForActionPrediction`; the fields of `PI0Config`, and:

    Args:
        action_config: the action format, `make_flow_action_config(...)`; its horizon is `chunk_size`, its dimensions
            are at most `max_action_dim`. `None` for a model that was not trained to act on a robot yet.
        norm_stats, prompt_template: as in `OpenVLAPlusConfig`.
        noise_in_padding: whether the flow has all of `max_action_dim`, as in the published weights of π0 (openpi's
            `models/pi0.py`, LeRobot's `pi0/modeling_pi0.py`): noise also behind the first D dimensions, whose
            velocities are learned (towards zeros) and followed. Without, all is zero there; so is the default of saved
            configurations of this family that lack the field.
    """

    model_type = "pi0_flow"

    action_config: dict[str, Any] | None = None
    norm_stats: dict[str, Any] | None = None
    prompt_template: dict[str, str] | None = None
    noise_in_padding: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        # PI0 changes settings in both; what the caller gave stays as it is.
        self.vlm_config, self.dit_config = copy.deepcopy((self.vlm_config, self.dit_config))
        super().__post_init__(**kwargs)
        if not getattr(self, "auto_map", None):
            self.auto_map = auto_map_for("Pi0FlowConfig", "modeling_pi0_flow.Pi0FlowForActionPrediction")
        check_action_config(self.action_config, self.chunk_size, self.max_action_dim)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; the configuration of a PI0 becomes one of this family, not one that calls itself PI0."""
        if config_dict.get("model_type") == cls.model_type:
            config_dict = {"noise_in_padding": False, **config_dict}
        return super().from_dict({**config_dict, "model_type": cls.model_type}, **kwargs)

    @property
    def frozen(self) -> None:
        """The encoder that never moves: none, this family has no D."""
        return None

    @property
    def flow_dim(self) -> int:
        """The dimensions of noise and velocities; those behind them are zero."""
        known = None if self.noise_in_padding else self.action_config
        return known["action_dim"] if known else self.max_action_dim

    @property
    def text_config(self) -> Any:
        """The Gemma of the vision-language model."""
        return self.vlm_config.text_config  # pyright: ignore

    @property
    def vision_config(self) -> Any:
        """The one SigLIP."""
        return self.vlm_config.vision_config  # pyright: ignore

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder whose embeddings the patches replace."""
        return self.vlm_config.image_token_id  # pyright: ignore

    @image_token_id.setter
    def image_token_id(self, value: int) -> None:
        self.vlm_config.image_token_id = value  # pyright: ignore

    @property
    def num_image_tokens(self) -> int:
        """N, the tokens one picture takes."""
        return image_tokens(self.vision_config)


def check_action_config(action_config: dict[str, Any] | None, chunk_size: int, max_action_dim: int) -> None:
    """Raises `ValueError` for an action format that the sizes of the model do not fit."""
    if action_config is None:
        return
    if action_config.get("representation") != "flow":
        raise ValueError(
            f"got an action_config with representation={action_config.get('representation')!r}, expected 'flow': this "
            "family writes no tokens; make_flow_action_config in gen_vla.processors makes one"
        )
    horizon, dims = action_config["horizon"], action_config["action_dim"]
    if horizon != chunk_size:
        raise ValueError(f"got an action_config with horizon={horizon}, expected chunk_size, which is {chunk_size}")
    if dims > max_action_dim:
        raise ValueError(
            f"got an action_config with action_dim={dims}, expected at most max_action_dim, which is {max_action_dim}"
        )
