"""Pieces every configuration of the family is made of: sub-configurations, where a repository's classes are, and
checked action statistics.
"""

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from .action_statistics import plain_statistics


class ActionStatisticsMixin:
    """For a configuration, before it in the list of bases: `norm_stats` is checked and made plain whenever it is set,
    by a constructor, by config.json or by hand; raises `ValueError` as `plain_statistics`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, plain_statistics(value or {}) if name == "norm_stats" else value)


def as_config(given: Any, defaults: dict[str, Any]) -> Any:
    """A configuration object from an object, a dictionary, or nothing, which means `defaults`."""
    if isinstance(given, PretrainedConfig):
        return given
    settings = dict(given) if given else dict(defaults)
    model_type = settings.pop("model_type", defaults["model_type"])
    return CONFIG_MAPPING[model_type](**settings)


def auto_map_for(config_class: str, model_class: str) -> dict[str, str]:
    """`auto_map` for every auto class a user may call; `register_for_auto_class` knows only one of them.

    Args:
        config_class, model_class: as `file.Class`.
    """
    model_classes = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForVision2Seq")
    return {"AutoConfig": config_class, **dict.fromkeys(model_classes, model_class)}
