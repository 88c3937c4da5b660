"""Pieces every configuration of the family is made of: sub-configurations, where a repository's classes are, and
checked action statistics.
"""

import copy
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from .action_statistics import plain_statistics


class ActionStatisticsMixin:
    """For a configuration, before it in the list of bases: `norm_stats` is checked and made plain whenever it is set,
    by a constructor, by config.json or by hand; raises `ValueError` as `plain_statistics`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, plain_statistics(value or {}) if name == "norm_stats" else value)

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; entries that were added to `norm_stats` since it was set are checked and made plain."""
        settings = super().to_dict()  # pyright: ignore[reportAttributeAccessIssue]
        return {**settings, "norm_stats": plain_statistics(settings.get("norm_stats") or {})}


def as_config(given: Any, defaults: dict[str, Any]) -> Any:
    """A configuration object from an object, a dictionary, or nothing, which means `defaults`; a copy, so that the
    caller's own is never changed."""
    if isinstance(given, PretrainedConfig):
        return copy.deepcopy(given)
    settings = copy.deepcopy(dict(given) if given else defaults)
    model_type = settings.pop("model_type", defaults["model_type"])
    return CONFIG_MAPPING[model_type](**settings)


def tied_embeddings(tie_word_embeddings: bool | None, given: Any, text_config: Any) -> bool:
    """Whether the output layer is the embedding matrix; written into `text_config` too, where transformers 4 looks.

    Args:
        tie_word_embeddings: of the outer configuration; `None` for what the text configuration says.
        given: the text configuration as the caller gave it.
        text_config: what became of it.

    Raises:
        ValueError: if the two say different things.
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


def check_output_layer(text_config: Any) -> None:
    """Raises `ValueError` for a language model whose logits are more than its output layer's: they are not computed
    here.
    """
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


def auto_map_for(config_class: str, model_class: str) -> dict[str, str]:
    """`auto_map` for every auto class a user may call; `register_for_auto_class` knows only one of them.

    Args:
        config_class, model_class: as `file.Class`.
    """
    model_classes = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForVision2Seq")
    return {"AutoConfig": config_class, **dict.fromkeys(model_classes, model_class)}
