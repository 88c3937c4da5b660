"""Recipes: one YAML file holds everything that makes a run what it is.

Decides: which settings exist, their defaults and types, and that anything else is an error: an unknown key fails with
the nearest known name. `extends` starts from another recipe of the same folder and overrides single keys, so that a
row of a table reads as its difference. Refuses to know: how any setting is carried out.

    recipe = load_recipe("mini_openvla_plus")         # a name in training/recipes, or a path
    recipe.training.steps
"""

import dataclasses
import re
import types
import typing
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml


RECIPES = Path(__file__).resolve().parent / "recipes"


class RecipeError(ValueError):
    """A recipe that cannot be read as one; says where, what was got and what was expected."""


@dataclass(frozen=True)
class ModelRecipe:
    """The architecture, or the model to start from.

    Attributes:
        initial_model: folder of a model to start from, relative to the work folder; `None` for random weights.
        frozen: the encoder that never moves (D), or `None`.
        initializer_range: see `OpenVLAPlusConfig`; ignored with `initial_model`, like the next three.
        dino, siglip, text: fields of the three sub-configurations.
    """

    initial_model: str | None = None
    frozen: Literal["siglip", "dino"] | None = "siglip"
    initializer_range: float = 0.02
    dino: dict[str, Any] = field(default_factory=dict)
    siglip: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenizerRecipe:
    """A tokenizer trained on the recipe's own text; unused with `model.initial_model`.

    Attributes:
        vocab_size: pieces at most.
        texts_from: data sets whose prompts and answers are the text.
        instructions: instructions that later runs will add.
    """

    vocab_size: int = 1024
    texts_from: list[str] = field(default_factory=list)
    instructions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ActionRecipe:
    """How actions are written (S).

    Attributes:
        representation: `"string"`, or `"bins"`, OpenVLA's one token per value (the baseline without S). For bins,
            `style`, `decimals` and `binary_dims` mean nothing.
        bin_tokens: which tokens the bins take: `"last"`, the last 256 of the vocabulary, as OpenVLA does; `"bytes"`,
            the byte pieces, for a small vocabulary of which every other piece is in use.
        label_decimals: decimals of a training label that carry information; the rest are written as zeros. Fewer than
            `decimals` spares a small model from fitting noise. `None` means all.
    """

    representation: Literal["string", "bins"] = "string"
    bin_tokens: Literal["last", "bytes"] = "last"
    style: Literal["signed", "plain", "legacy"] = "signed"
    action_dim: int = 7
    horizon: int = 1
    decimals: int = 4
    binary_dims: list[int] = field(default_factory=lambda: [6])
    label_decimals: int | None = None

    def __post_init__(self) -> None:
        if self.representation == "bins" and self.label_decimals is not None:
            raise RecipeError(
                f"actions: got label_decimals={self.label_decimals} with representation 'bins', expected none: a bin "
                "has no decimals"
            )


@dataclass(frozen=True)
class DemonstrationRecording:
    """Arguments of `metaworld_recording.record_demonstrations`."""

    episodes_per_task: int
    seed: int = 0
    start: Literal["stock", "half-open"] = "half-open"
    variation: Literal["none", "modest", "full"] = "modest"
    paraphrase: bool = False


@dataclass(frozen=True)
class QuestionRecording:
    """Arguments of `metaworld_recording.record_questions`."""

    count: int
    seed: int = 0


@dataclass(frozen=True)
class RobotSource:
    """A robot data set: columns image, instruction, action, episode_index.

    Attributes:
        path: folder of a `datasets` data set, relative to the work folder.
        key: its name in the statistics, and later the `unnorm_key`.
        record: how to record it from the simulator's experts if the folder is missing.
    """

    path: str
    key: str
    record: DemonstrationRecording | None = None


@dataclass(frozen=True)
class VisionLanguageSource:
    """A vision-language data set: columns image, question, answer; `record` as for a robot data set."""

    path: str
    name: str
    record: QuestionRecording | None = None


@dataclass(frozen=True)
class DataRecipe:
    """What a batch is made of. With both kinds, half of every per-device batch is robot data (C)."""

    robot: list[RobotSource] = field(default_factory=list)
    vision_language: list[VisionLanguageSource] = field(default_factory=list)
    image_size: int = 64


@dataclass(frozen=True)
class LossRecipe:
    """What the loss weighs.

    Attributes:
        balance: `"token"`: every supervised token counts the same, so longer answers weigh more (the paper's loss);
            `"example"`: every row counts the same; `"source"`: robot and vision-language halves count the same.
        decimal_weights: weights of the decimals of an action value, the first one first; missing ones count 1.
        constant_dimension_weight: weight of dimensions that never vary in the data.
    """

    balance: Literal["token", "example", "source"] = "token"
    decimal_weights: list[float] = field(default_factory=list)
    constant_dimension_weight: float = 1.0


@dataclass(frozen=True)
class TrainingRecipe:
    """Optimisation. `batch_size` is per device; an even number where two kinds of data are mixed."""

    steps: int
    batch_size: int = 16
    learning_rate: float = 2e-5
    min_learning_rate_rate: float = 0.1
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    adam_beta2: float = 0.999
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = True
    bf16: bool = True
    save_steps: int = 1000
    logging_steps: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation_steps", "save_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise RecipeError(f"training: got {name}={getattr(self, name)}, expected at least 1")


@dataclass(frozen=True)
class Recipe:
    """One run. `name` is also its folder in the work folder."""

    name: str
    description: str
    training: TrainingRecipe
    model: ModelRecipe = field(default_factory=ModelRecipe)
    tokenizer: TokenizerRecipe = field(default_factory=TokenizerRecipe)
    actions: ActionRecipe = field(default_factory=ActionRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)

    def __post_init__(self) -> None:
        """Settings that contradict each other fail here, before anything is recorded or loaded."""
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise RecipeError(f"got name {self.name!r}, expected letters, digits, '.', '_' and '-': it names a folder")
        if not self.data.robot and not self.data.vision_language:
            raise RecipeError(f"{self.name}: got no data sets, expected some in data.robot or data.vision_language")
        if self.data.robot and self.data.vision_language and self.training.batch_size % 2:
            raise RecipeError(
                f"{self.name}: got batch_size={self.training.batch_size}, expected an even number, since half of "
                "every per-device batch is robot data"
            )
        keys = [source.key for source in self.data.robot]
        for key in keys:
            if keys.count(key) > 1:
                raise RecipeError(
                    f"{self.name}: got the key {key!r} for {keys.count(key)} robot data sets, expected a key of its "
                    "own for each, since statistics are kept by key"
                )


def load_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Reads a recipe.

    Args:
        name_or_path: a file, or the name of one in `training/recipes`.
        overrides: settings by dotted name, entries of lists by number:
            `{"training.steps": 10, "data.robot.0.key": "x"}`.

    Raises:
        RecipeError: on a missing file, an unknown or missing key, a value of the wrong type, or settings that
            contradict each other.
    """
    settings = _read(_find(name_or_path))
    for dotted, value in (overrides or {}).items():
        _override(settings, dotted, value)
    return _build(Recipe, settings, where=str(name_or_path))


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


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
    near = get_close_matches(path.stem, recipe_names(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RecipeError(f"got recipe {str(name_or_path)!r}, which is no file; {hint}known: {', '.join(recipe_names())}")


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
    parent = settings.pop("extends", None)
    if parent is None:
        return settings
    if not isinstance(parent, str):
        raise _wrong(f"{path}: extends", parent, "the name or the file of a recipe")
    beside = (path.parent / parent).resolve()
    return _merge(_read(beside if beside.is_file() else _find(parent), (*heirs, path)), settings)


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
