"""Recipes: one YAML file holds everything that makes a run what it is.

Decides: how a file is read, and that anything but the settings of `schema.py` is an error: an unknown key fails
with the nearest known name. `extends` starts from other recipes of the same folder, each over the one before it, and
overrides single keys, so that a row of a table reads as its difference. Files whose names begin with `_` are such
beginnings and no recipes. Refuses to know: which settings there are, how any of them is carried out.

    recipe = load_recipe("mini_openvla_plus")         # a name in training/recipes, or a path
    recipe.training.steps
    load_recipe("openvla_plus_rt1", mini=True)        # the same recipe at a size for a CPU and a minute
"""

import dataclasses
import types
import typing
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml

from gen_vla.training.recipes.schema import Recipe, RecipeError


RECIPES = Path(__file__).resolve().parent
MINI = "mini-"  # begins the name of a recipe at a small size


def load_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None, mini: bool = False) -> Recipe:
    """Reads a recipe.

    Args:
        name_or_path: a file, or the name of one in `training/recipes`.
        overrides: settings by dotted name, entries of lists by number:
            `{"training.steps": 10, "data.robot.0.key": "x"}`.
        mini: whether to shrink it by `_mini.yaml` and the overlay of its family: sizes and steps, nothing else.

    Raises:
        RecipeError: on a missing file, an unknown or missing key, a value of the wrong type, or settings that
            contradict each other.
    """
    settings = _read(_find(name_or_path))
    if mini:
        settings = _shrink(settings)
    for dotted, value in (overrides or {}).items():
        _override(settings, dotted, value)
    return _build(Recipe, settings, where=str(name_or_path))


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("[!_]*.yaml"))


def as_settings(recipe: Recipe) -> dict[str, Any]:
    """The complete recipe as plain dictionaries, defaults filled in; it reads back as the same recipe."""
    return _plain(dataclasses.asdict(recipe))


def _plain(value: Any) -> Any:
    """Tuples as lists, which is how YAML reads them back."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path.resolve()
    named = RECIPES / f"{path.name.removesuffix('.yaml')}.yaml"
    if named.is_file():
        return named
    near = get_close_matches(path.stem, recipe_names(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RecipeError(
        f"got recipe {str(name_or_path)!r}, which is no file; {hint}known: {', '.join(recipe_names())}, and "
        f"files, seen from {Path.cwd()}"
    )


def _shrink(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings under another name and with a small model of the same family, from random weights."""
    family = settings.get("model", {}).get("family", "openvla_plus")
    overlay = _read(RECIPES / f"_mini_{family}.yaml")
    return _merge(settings, {**overlay, "name": f"{MINI}{settings.get('name')}"})


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
    """The number of an existing entry of a list."""
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
        raise _wrong(f"{path}: extends", parents, "the name or the file of a recipe, or a list of them")
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


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a dataclass from a dictionary, a list of them, or a plain value of the right type."""
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _build(next(argument for argument in arguments if argument is not type(None)), value, where)
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        return [_build(arguments[0], entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    if origin is tuple:
        if not isinstance(value, list) or len(value) != len(arguments):
            raise _wrong(where, value, f"a list of {len(arguments)}")
        return tuple(_build(argument, entry, where) for argument, entry in zip(arguments, value, strict=True))
    if origin is Literal:
        if value not in arguments:
            raise _wrong(where, value, f"one of {', '.join(map(repr, arguments))}")
        return value
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = origin or kind
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        hint = " (YAML reads 2e-5 as text: write 2.0e-5)" if plain is float and isinstance(value, str) else ""
        raise _wrong(where, value, plain.__name__ + hint)
    return value


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, value, "settings by name")
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in value:
        if key not in fields:
            known = [*fields, "extends"] if kind is Recipe else list(fields)
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise RecipeError(f"{where}: got unknown key {key!r}; {hint}known: {', '.join(known)}")
    required = [
        name
        for name, entry in fields.items()
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in value]
    if missing:
        raise RecipeError(f"{where}: got no {', '.join(missing)}, expected {', '.join(required)}")
    return kind(**{key: _build(hints[key], entry, f"{where}: {key}") for key, entry in value.items()})


def _wrong(where: str, value: Any, expected: str) -> RecipeError:
    return RecipeError(f"{where}: got {value!r} ({type(value).__name__}), expected {expected}")
