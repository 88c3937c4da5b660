"""The record in a result file of how its model was trained, so that runs that differ by their seed can be grouped.

    {"recipe": "openvla-plus-rt1", "seed": 1, "settings": "5f0c9b17a2e4"}

`settings` is a digest of the recipe without its name, its description, its training seed and where figures went.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import HFValidationError

from gen_vla.training.provenance.origin import cached_revision
from gen_vla.training.storage.hub_requests import HubError, ask


RECIPE = "recipe.yaml"
NOT_THERE = (401, 403, 404)  # a repository or a commit that is not on the Hub, or not for this token


def trained_as(model: str) -> dict[str, Any] | None:
    """Of a model's folder, or of a repository that was loaded; `None` without a recipe there."""
    return recipe_record(recipe_path(model))


def recipe_path(model: str) -> Path | None:
    """The recipe of a model's folder, or of a repository that was loaded; raises `HubError` as `trained_as` does."""
    path = Path(model) / RECIPE
    if Path(model).is_dir():
        return path if path.is_file() else None
    revision = cached_revision(model)
    return recipe_file(model, revision) if revision else None


def recipe_file(repository: str, revision: str) -> Path | None:
    """A repository's recipe at a commit, from the cache or from the Hub; `None` where there is none; raises `HubError`
    if it is not in the cache and the Hub does not answer.
    """
    try:
        cached = try_to_load_from_cache(repository, RECIPE, revision=revision)
    except HFValidationError:  # a folder's path is no repository's name
        return None
    if cached is not None:  # a path, or a mark that the repository has no such file
        return Path(cached) if isinstance(cached, str) else None
    what = f"read {RECIPE} of {repository}, which says how it was trained"
    try:
        return Path(ask(what, lambda: hf_hub_download(repository, RECIPE, revision=revision), tries=1))
    except LocalEntryNotFoundError as error:
        why = "the variable HF_HUB_OFFLINE forbids asking the Hub" if constants.HF_HUB_OFFLINE else "no answer"
        raise HubError(f"could not {what}: it is not in the cache, and {why}; run it again online") from error
    except EntryNotFoundError:
        return None
    except HubError as error:
        if error.status in NOT_THERE:
            return None
        raise


def recipe_record(path: Path | None) -> dict[str, Any] | None:
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
    try:
        record = trained_as(model) if model else None
    except HubError as error:  # not worth losing the results
        print(f"{error}; the results go without it", file=sys.stderr)
        record = None
    return {**results, "trained": record} if record else results
