"""What a result file says about how its model was trained, so that runs that differ by their seed are known as such.

Decides: what counts as the same recipe. Refuses to know: what a recipe means.

    {"recipe": "openvla-plus-rt1", "seed": 1, "settings": "5f0c9b17a2e4"}

`settings` is a digest of the recipe without its name, its words, its training seed and where figures went.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.utils import HFValidationError


def trained_as(model: str) -> dict[str, Any] | None:
    """Of a model's folder, or of a repository in the cache; `None` without a recipe there. Asks no network."""
    path = Path(model) / "recipe.yaml"
    if not path.is_file():
        path = _cached(model)
    if path is None:
        return None
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        name, training = recipe["name"], dict(recipe["training"])
        seed = int(training.pop("seed"))
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        return None  # not a recipe of ours
    training.pop("report_to", None)
    rest = {key: value for key, value in recipe.items() if key not in ("name", "description")}
    settings = json.dumps({**rest, "training": training}, sort_keys=True, default=str)
    return {"recipe": name, "seed": seed, "settings": hashlib.sha256(settings.encode()).hexdigest()[:12]}


def with_record(results: dict[str, Any], model: str | None) -> dict[str, Any]:
    """Results of a model with `trained` in them, where it is known."""
    record = trained_as(model) if model else None
    return {**results, "trained": record} if record else results


def _cached(repository: str) -> Path | None:
    try:
        found = try_to_load_from_cache(repository, "recipe.yaml")
    except HFValidationError:  # a folder's path is no repository's name
        return None
    return Path(found) if isinstance(found, str) else None
