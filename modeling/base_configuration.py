"""What the configurations of the families share: sub-configurations, auto classes, and checked action statistics."""

import copy
from typing import Any

import transformers
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


def image_tokens(vision_config: Any) -> int:
    """The patches of a vision encoder."""
    return (vision_config.image_size // vision_config.patch_size) ** 2


def as_config(given: Any, defaults: dict[str, Any]) -> Any:
    """A new configuration object from an object, a dictionary, or nothing, which means `defaults`."""
    if isinstance(given, PretrainedConfig):
        return copy.deepcopy(given)
    settings = copy.deepcopy(dict(given) if given else defaults)
    model_type = settings.pop("model_type", defaults["model_type"])
    return CONFIG_MAPPING[model_type](**in_this_version(settings))


def in_this_version(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a configuration that transformers 5 wrote: in 4, rotary embeddings have other names, and whether
    embeddings are tied is read from the language model's.
    """
    if transformers.__version__ >= "5":
        return settings
    settings = {name: in_this_version(each) if isinstance(each, dict) else each for name, each in settings.items()}
    if "text_config" in settings:
        settings["text_config"]["tie_word_embeddings"] = settings.get("tie_word_embeddings", False)
    if rope := settings.pop("rope_parameters", None):
        if "sliding_attention" in rope:
            settings["rope_local_base_freq"], rope = rope["sliding_attention"]["rope_theta"], rope["full_attention"]
        settings["rope_theta"] = rope.pop("rope_theta")
        settings["rope_scaling"] = None if rope == {"rope_type": "default"} else rope
    return settings


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
