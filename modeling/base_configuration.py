"""What the configurations of the families share: sub-configurations, auto classes, and checked action statistics."""

import copy
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, PretrainedConfig

from .action_statistics import plain_statistics


class ActionStatisticsMixin:
    """For a configuration, before it in the list of bases: `norm_stats` is checked and made plain JSON whenever it is
    set or saved; raises `ValueError` as `plain_statistics`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, plain_statistics(value or {}) if name == "norm_stats" else value)

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; entries that were added to `norm_stats` since it was set are checked as well."""
        settings = super().to_dict()  # pyright: ignore[reportAttributeAccessIssue]
        return {**settings, "norm_stats": plain_statistics(settings.get("norm_stats") or {})}


class ActionTextConfig(ActionStatisticsMixin, PretrainedConfig):
    """Configuration of a model that writes answers and actions as tokens.

    Args:
        text_config: the language model (a dictionary or a config).
        frozen: the vision encoder that never moves, or `None`.
        image_token_id: id of the placeholder whose embeddings the projected patches replace.
        action_config: the action format, see `action_grammar.py`; `None` for a model that only answers questions.
        norm_stats: OpenVLA's statistics by data set, see `action_statistics.py`.
        prompt_template: the prompts of training; the processor holds the same.
        tie_word_embeddings: whether the output layer is the embedding matrix; by default as `text_config` says.
        initializer_range: standard deviation of new weights in the projector and the output layer; about the inverse
            square root of the widths, so a small model trained from scratch needs more than the default.
    """

    text_defaults: ClassVar[dict[str, Any]] = {}
    frozen_choices: ClassVar[tuple[str | None, ...]] = ()
    model_file: ClassVar[str] = ""  # as `file.Class`

    def __init__(
        self,
        text_config: Any = None,
        frozen: str | None = "siglip",
        image_token_id: int = 0,
        action_config: dict[str, Any] | None = None,
        norm_stats: dict[str, Any] | None = None,
        prompt_template: dict[str, str] | None = None,
        tie_word_embeddings: bool | None = None,
        initializer_range: float = 0.02,
        auto_map: dict[str, str] | None = None,
        **kwargs: Any,
    ):
        if frozen not in self.frozen_choices:
            raise ValueError(f"got frozen={frozen!r}, expected one of {', '.join(map(repr, self.frozen_choices))}")
        self.text_config = as_config(text_config, self.text_defaults)
        self.frozen = frozen
        self.image_token_id = image_token_id
        self.action_config = action_config
        self.norm_stats = norm_stats
        self.prompt_template = prompt_template
        self.initializer_range = initializer_range
        self.auto_map = auto_map or auto_map_for(type(self).__name__, self.model_file)
        check_logits_unscaled(self.text_config)
        # transformers 5 reads the flag here, transformers 4 reads the text configuration's.
        tied = tied_embeddings(tie_word_embeddings, text_config, self.text_config)
        super().__init__(tie_word_embeddings=tied, **kwargs)  # pyright: ignore

    @property
    def num_image_tokens(self) -> int:
        """N, the tokens one picture takes."""
        return image_tokens(next(iter(self.encoder_configs.values())))  # pyright: ignore[reportAttributeAccessIssue]


def image_tokens(vision_config: Any) -> int:
    """The patches of a vision encoder."""
    return (vision_config.image_size // vision_config.patch_size) ** 2


def as_config(given: Any, defaults: dict[str, Any]) -> Any:
    """A new configuration object from an object, a dictionary, or nothing, which means `defaults`."""
    if isinstance(given, PretrainedConfig):
        return copy.deepcopy(given)
    settings = copy.deepcopy(dict(given) if given else defaults)
    model_type = settings.pop("model_type", defaults["model_type"])
    return CONFIG_MAPPING[model_type](**settings)


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


def check_context(prompt: int, more: int, context: int) -> None:
    """Raises `ValueError` if so many tokens of a prompt, and so many more, are more than a model has positions for."""
    if prompt + more > context:
        raise ValueError(
            f"got a prompt of {prompt} tokens with up to {more} more to be written, expected {context} together at "
            "most, the model's context (max_position_embeddings); shorten the text, or show fewer pictures"
        )


def auto_map_for(config_class: str, model_file: str) -> dict[str, str]:
    """`auto_map` for every auto class a user may call; `register_for_auto_class` knows only one of them.

    Args:
        config_class: its name.
        model_file: as `modeling_family.Class`; the configuration lies beside it.
    """
    file = model_file.partition(".")[0].replace("modeling_", "configuration_")
    model_classes = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForVision2Seq")
    return {"AutoConfig": f"{file}.{config_class}", **dict.fromkeys(model_classes, model_file)}
