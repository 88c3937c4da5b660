"""Reads recipes: one YAML file holds everything that makes a run what it is.

The settings are those of `schema.py`, anything else is an error. `extends` starts from other recipes of the same
folder, each over the one before it, so that a row of a table reads as its difference. Files whose names begin with
`_` are only such beginnings.

    recipe = load_recipe("mini_openvla_plus")         # a name in training/recipes, or a path
    recipe.training.steps
    load_recipe("openvla_plus_rt1", mini=True)        # the same recipe at a size for a CPU and a minute
"""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from gen_vla.training.recipes.data_schema import RecipeError, did_you_mean
from gen_vla.training.recipes.schema import MINI, Recipe


RECIPES = Path(__file__).resolve().parent


def load_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None, mini: bool = False) -> Recipe:
    """Reads a recipe; raises `RecipeError` on a missing file, an unknown or missing key, a value of the wrong type, or
    settings that contradict each other.

    Args:
        name_or_path: a file, or the name of one in `training/recipes`.
        overrides: settings by dotted name, entries of lists by number:
            `{"training.steps": 10, "data.robot.0.key": "x"}`.
        mini: whether to shrink it by `_mini.yaml` and the overlay of its family: sizes and steps, nothing else.
    """
    settings = _read(_find(name_or_path))
    if mini:
        overlay = _read(RECIPES / f"_mini_{settings.get('model', {}).get('family', 'openvla_plus')}.yaml")
        settings = _merge(settings, {**overlay, "name": f"{MINI}{settings.get('name')}"})
    for dotted, value in (overrides or {}).items():
        _override(settings, dotted, value)
    try:
        # As JSON, since pydantic's strict mode takes a section from a dictionary only there.
        return TypeAdapter(Recipe).validate_json(json.dumps(settings), strict=True)
    except TypeError as error:
        raise RecipeError(
            f"{name_or_path}: {error}, expected text, numbers, true, false, null, lists and settings by name; write a "
            "date in quotes"
        ) from error
    except ValidationError as error:
        complaints = [_complaint(entry) for entry in error.errors()]
        raise RecipeError(f"{name_or_path}: " + "\n".join(complaints)) from error


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("[!_]*.yaml"))


def as_settings(recipe: Recipe) -> dict[str, Any]:
    """The complete recipe as plain dictionaries, defaults filled in; it reads back as the same recipe."""
    return dataclasses.asdict(recipe)


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path.resolve()
    named = RECIPES / f"{path.name.removesuffix('.yaml')}.yaml"
    if named.is_file():
        return named
    raise RecipeError(
        f"got recipe {str(name_or_path)!r}, which is no file; {did_you_mean(path.stem, recipe_names())}, and files, "
        f"seen from {Path.cwd()}"
    )


def _override(settings: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets one setting in place; what lies on the way to it is made, unless something else is there."""
    *parents, last = dotted.split(".")
    place: Any = settings
    for depth, parent in enumerate(parents, start=1):
        place = place.setdefault(parent, {}) if isinstance(place, dict) else place[_entry(place, parent, dotted)]
        if not isinstance(place, (dict, list)):
            raise RecipeError(
                f"got override {dotted!r}, but {'.'.join(parents[:depth])} is {place!r}, expected settings by name; "
                "override it as a whole"
            )
    name: Any = last if isinstance(place, dict) else _entry(place, last, dotted)
    place[name] = value


def _entry(entries: list[Any], number: str, dotted: str) -> int:
    if not number.isdigit() or int(number) >= len(entries):
        raise RecipeError(
            f"got override {dotted!r} with entry {number!r} of a list of {len(entries)}, expected a number from 0 to "
            f"{len(entries) - 1}; override the list as a whole to add to it"
        )
    return int(number)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key cannot be written twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.YAMLError(f"got key {key.value!r} twice, expected it once,{key.start_mark}")
        return super().construct_mapping(node, deep)


def _read(path: Path, heirs: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's settings as written, those it extends underneath; `heirs` are the recipes that extend it."""
    if path in heirs:
        circle = ", ".join(file.name for file in (*heirs, path))
        raise RecipeError(f"got recipes that extend one another: {circle}, expected no circle")
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"got {path}, which is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise RecipeError(f"got {path} holding {type(settings).__name__}, expected settings by name")
    parents = settings.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise RecipeError(
            f"{path}: extends: got {parents!r} ({type(parents).__name__}), expected the name or the file of a recipe, "
            "or a list of them"
        )
    base: dict[str, Any] = {}
    for parent in parents:
        beside = (path.parent / parent).resolve()
        base = _merge(base, _read(beside if beside.is_file() else _find(parent), (*heirs, path)))
    return _merge(base, settings)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _complaint(error: Any) -> str:
    """One of pydantic's errors as a line: the setting by its dotted name, what was got, what was expected."""
    *section, last = error["loc"] or ("",)
    place = ".".join(str(part) for part in error["loc"] if "[" not in str(part))  # of a union, pydantic names the type
    if error["type"] == "value_error":  # of a check in `schema.py`
        return f"{place}: {error['ctx']['error']}" if place else str(error["ctx"]["error"])
    if error["type"] == "unexpected_keyword_argument":
        return f"got unknown key {place!r}; {did_you_mean(str(last), _known(section))}"
    if error["type"] == "missing":
        return f"got no {place}, expected it: it has no default"
    expected = error["msg"].removeprefix("Input should be ").replace("array", "list")
    expected = expected.replace("an object", "settings by name")
    if error["type"] == "float_type" and isinstance(error["input"], str):
        expected += " (YAML reads 2e-5 as text: write 2.0e-5)"
    return f"{place}: got {error['input']!r} ({type(error['input']).__name__}), expected {expected}"


def _known(section: list[str | int]) -> list[str]:
    kind: Any = Recipe
    for part in section:
        if isinstance(part, str):  # not the number of a list's entry
            kind = typing.get_type_hints(kind)[part]
            kind = next(filter(dataclasses.is_dataclass, (kind, *typing.get_args(kind))))
    return [entry.name for entry in dataclasses.fields(kind)] + (["extends"] if kind is Recipe else [])
