"""The first recipe for a robot data set: settings that fit what `data_look.py` found, each with its reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gen_vla.processors.action_statistics import QUANTILES
from gen_vla.training.checkpoints import read_config
from gen_vla.training.mixing.instruction_augmentation import paraphrases
from gen_vla.training.model_building import HUB_PREFIX, PACKAGE_PREFIX, fetch_model, local_start
from gen_vla.training.planning.check import tokens_over
from gen_vla.training.planning.data_look import DataLook
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.recipes.sources import short_names
from gen_vla.training.robot_data.episodes import rows_of


# The recipe that is extended, by what `--base` names: a family, or the `model_type` of a folder.
FAMILIES = {"openvla_plus": "openvla_plus_bridge", "pi0_plus": "pi0_plus_bridge", "pi0_flow": "pi0_bridge"}
BY_TYPE = {**FAMILIES, "vla_plus": "plus_my_robot"}
PACKAGED = {f"{PACKAGE_PREFIX}mini-vlm": "mini_openvla_plus"}
FEWEST_TO_HOLD_OUT, HELD_OUT_SHARE = 10, 0.1  # of episodes
HERTZ = 10  # steps a second that a policy which writes digits keeps up with
CHUNK_SECONDS, CHUNK_TOKENS, VALUE_TOKENS, UNKNOWN_CHUNK = 0.5, 400, 7, 4  # "+0.1234" is 7 tokens
MOST_CAMERAS = 3
PASSES, FEWEST_STEPS, MOST_STEPS = 20, 500, 60_000
WARMUP_SHARE = 0.03  # of the steps at most, LLaVA's (scripts/v1_5/finetune.sh)
LARGE = 1_000_000  # rows from which on OpenVLA's authors left augmentation out
MUCH_STILL, REPEATED = 0.2, 5  # share of the steps; episodes with the same words


@dataclass(frozen=True)
class Setting:
    name: str
    value: Any
    reason: str = ""

    @property
    def text(self) -> str:
        shown = yaml.safe_dump([self.value], default_flow_style=True, width=10_000, allow_unicode=True)
        return shown.strip()[1:-1]


@dataclass(frozen=True)
class Base:
    recipe: str  # the one that is extended
    settings: list[Setting]  # that say more of the model than it does


def find_base(base: str, work_dir: Path) -> Base:
    """A base by the name of a family or of a converted model.

    Args:
        base: a name in `FAMILIES`, a folder (in the work folder or seen from here), `hf://...` or `package://...`.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: for a model that is not converted.
    """
    if base in {**FAMILIES, **PACKAGED}:
        return Base({**FAMILIES, **PACKAGED}[base], [])
    named = base
    if base.startswith(HUB_PREFIX):
        folder = fetch_model(base, ["*.json", "*.jinja"])
    elif not (folder := local_start(base, work_dir)).is_dir():
        folder = Path(base).absolute()
        named = str(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"got --base {base!r}, and no model in {work_dir / base} or {folder}, expected {', '.join(FAMILIES)}, "
            f"{', '.join(PACKAGED)}, hf://OWNER/NAME, or a folder that gen-vla convert wrote"
        )
    config = read_config(folder)
    settings = [Setting("model.initial_model", named)]
    if config.model_type == "vla_plus":
        frozen = "vision" if config.frozen else None
        settings.append(Setting("model.frozen", frozen, "D: one of two encoders" if frozen else "it has one encoder"))
        size = getattr(config.vlm_config.vision_config, "image_size", None)  # None of an encoder that takes any
        if size:
            largest = max(size) if isinstance(size, (list, tuple)) else size
            settings.append(Setting("data.image_size", largest, "the encoder's own"))
    return Base(BY_TYPE[config.model_type], settings)


def fitting_recipe(
    look: DataLook,
    base: Base,
    name: str,
    source: dict[str, Any],
    work_dir: Path,
    co_training: bool = True,
    state: Sequence[Setting] = (),
) -> list[Setting]:
    """The settings of a recipe for a data set: shorter chunks, then fewer cameras, until rows fit into the model;
    raises `RecipeError` for a name that no run can have.

    Args:
        source: `path`, `key` and what else of `RobotSource` the data set was opened with.
        co_training: whether half of every batch is vision-language data.
        state: of `state_settings`.
    """
    most, fitting = MOST_CAMERAS, MOST_STEPS
    while True:
        settings = [*first_recipe(look, base, source, most, fitting, co_training), *state]
        values = {each.name: each.value for each in settings}
        prefix = "data.robot.0."
        robot = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
        others = {key: value for key, value in values.items() if not key.startswith(prefix)}
        recipe = load_recipe(base.recipe, others | {"name": name, "data.robot": [robot], "data.co_training": []})
        if recipe.is_flow or (over := tokens_over(recipe, work_dir)) <= 0:
            return settings
        horizon = recipe.actions.horizon - -(-over // (VALUE_TOKENS * recipe.actions.action_dim + 1))
        if horizon < 1 and len(robot["cameras"]) == 1:
            return settings  # `--check` says so
        most, fitting = (most, horizon) if horizon > 0 else (len(robot["cameras"]) - 1, MOST_STEPS)


def first_recipe(
    look: DataLook, base: Base, source: dict[str, Any], most: int, fitting: int, co_training: bool
) -> list[Setting]:
    """The same for a model that takes at most so many cameras, and chunks of as many steps as fit."""
    recipe, fps = load_recipe(base.recipe), look.dataset.reader.fps
    pace = thinning(look)
    every = pace[0].value
    rows = sum(rows_of(length, every) for length in look.lengths)
    robot = [*(Setting(name, value) for name, value in source.items()), cameras(look, most), *pace]
    settings = [
        *base.settings,
        *action_settings(look, fps / every if fps else None, fitting),
        *(Setting(f"data.robot.0.{each.name}", each.value, each.reason) for each in robot),
        *augmentation(look, rows),
    ]
    if len(look.lengths) >= FEWEST_TO_HOLD_OUT:
        rows = round(rows * (1 - HELD_OUT_SHARE))
        held_out = {"episodes": HELD_OUT_SHARE}
        settings.append(Setting("data.validation", held_out, "scored with every checkpoint, never trained on"))
    if not co_training and not recipe.is_flow:
        settings.append(Setting("data.co_training", [], "no C: robot data alone"))
    elif recipe.data.questions:
        names = [source.name for source in recipe.data.questions]
        settings.append(Setting("data.co_training", names, "C: half of every batch; [] for robot data alone"))
    return settings + training_settings(recipe, rows, co_training)


def cameras(look: DataLook, most: int) -> Setting:
    useful = [name for name in look.dataset.cameras if name not in look.blank] or look.dataset.cameras[:1]
    reason = "all that it has" if len(useful) > 1 else "its only one"
    if len(useful) < (stored := len(look.dataset.reader.cameras)):
        reason = f"{len(useful)} of its {stored}"
    if look.blank:
        reason = f"not {', '.join(short_names(look.blank))}, of one colour"
    if len(useful) > most:
        reason = f"{most} of {len(useful)}: each takes as many tokens again"
    return Setting("cameras", useful[:most], reason)


def thinning(look: DataLook) -> list[Setting]:
    fps, known = look.dataset.reader.fps, look.dataset.displacements is not None  # of a transform
    every = max(1, round(fps / HERTZ)) if fps else 1
    if fps is None or every == 1:
        return [Setting("every", 1, f"{fps:g} Hz" if fps else "it does not say its rate")]
    if "unknown" in look.kinds and not known:
        reason = f"{every} of {fps:g} Hz, once `displacements` says which of {look.dims('unknown')} are moves"
        return [Setting("every", 1, reason)]
    moves, reason = look.dims("displacement"), f"{fps / every:g} Hz of {fps:g}: digits hardly keep up with more"
    told = Setting(
        "displacements", moves, f"{'these are moves' if moves else 'all are positions'}, by names and states"
    )
    return [Setting("every", every, reason), *([] if known else [told])]


def action_settings(look: DataLook, rate: float | None, fitting: int) -> list[Setting]:
    width, names, found = len(look.kinds), look.dataset.action_names, look.statistics
    most = max(1, CHUNK_TOKENS // (VALUE_TOKENS * width))
    wanted = max(1, round(CHUNK_SECONDS * rate)) if rate else UNKNOWN_CHUNK
    horizon = min(wanted, most, fitting, max(min(look.lengths) // 2, 1))
    reason = f"{horizon / rate:.2g} s at {rate:g} Hz" if rate else "steps, at a rate that is not known"
    reason += "; the model takes no longer rows" if horizon == fitting < min(wanted, most) else ""
    reason += f"; more than {CHUNK_TOKENS} tokens take long" if horizon == most < wanted else ""
    binary = look.dims("binary")
    settings = [
        Setting("actions.action_dim", width, ", ".join(names) if names else "the data set has no names for them"),
        Setting("actions.horizon", horizon, reason),
        Setting("actions.binary_dims", binary, "0 or 1 alone: a gripper" if binary else "none is 0 or 1 alone"),
    ]
    varied = set(range(width)) - {*binary, *look.dims("constant")}
    if rare := [dim for dim in sorted(varied) if found["q01"][dim] == found["q99"][dim]]:
        modes = ["min_max" if dim in rare else QUANTILES for dim in range(width)]
        why = f"{rare} is one value in 98 % of the steps, which quantiles would leave alone"
        settings.append(Setting("actions.normalization", modes, why))
    return settings


def state_settings(look: DataLook, shown: bool, relative: bool) -> list[Setting]:
    """What shows a model the robot's state, and what makes positions relative to it, grippers left as they are.

    Raises:
        ValueError: for data without a state, or whose positions are not those of the state.
    """
    settings = [Setting("data.state", True, "joints, or pose and gripper, in the prompt")] if shown else []
    if (shown or relative) and not look.dataset.has_state:
        raise ValueError(
            f"got data with the features {', '.join(look.dataset.reader.features)}, expected the robot's state; name "
            "its features with --state, or leave out --show-state and --relative"
        )
    if not relative:
        return settings
    names = look.dataset.action_names or [""] * len(look.kinds)
    dims = [dim for dim in look.dims("position") if "gripper" not in names[dim].lower()]
    if not dims or look.state_width != len(look.kinds):
        raise ValueError(
            f"got actions of the kinds {', '.join(look.kinds)} beside a state of {look.state_width} values, expected "
            "positions, and a state with as many values in the same order; leave out --relative, and write `relative` "
            "with its `dims` and `state` into the recipe if some of them are positions"
        )
    reason = "minus the state; what is a rotation needs a group with `rotation`"
    return [*settings, Setting("data.robot.0.relative", [{"dims": dims}], reason)]


def augmentation(look: DataLook, rows: int) -> list[Setting]:
    settings = []
    if rows < LARGE:
        settings.append(Setting("data.image_augmentation", {}, "crops and colours, as OpenVLA on small data"))
    if repeated(look) and any(map(paraphrases, look.instructions)):
        several = "s" if len(look.instructions) > 1 else ""
        reason = f"{len(look.instructions)} wording{several} in {len(look.lengths)} episodes: half in other words"
        settings.append(Setting("data.instruction_augmentation", {}, reason))
    return settings


def repeated(look: DataLook) -> bool:
    return len(look.lengths) >= REPEATED * len(look.instructions)


def training_settings(recipe: Recipe, rows: int, co_training: bool) -> list[Setting]:
    mixed = bool(recipe.data.questions) and co_training
    each = recipe.training.batch_size * recipe.training.gradient_accumulation_steps
    share = each * (recipe.data.robot_share if mixed else 1)
    wanted = int(float(f"{PASSES * rows / share:.1g}"))
    steps = min(max(wanted, FEWEST_STEPS), MOST_STEPS)
    reason = f"{steps * share / rows:.3g} passes over some {rows:,} rows on one GPU"
    settings = [Setting("training.steps", steps, reason), Setting("training.save_steps", max(steps // 5, 1))]
    warmup = max(round(WARMUP_SHARE * steps), 1)
    if recipe.training.warmup_steps > warmup and recipe.model.initial_model not in PACKAGED:
        settings.append(Setting("training.warmup_steps", warmup, "3 % of the steps"))
    if not recipe.is_flow and recipe.model.initial_model not in PACKAGED:
        settings.append(Setting("training.lora", {"rank": 32}, "for one GPU; null trains all weights"))
    return settings


def describe(look: DataLook) -> str:
    low, high = min(look.lengths), max(look.lengths)
    steps = f"{low:,} steps" if low == high else f"{low:,} to {high:,} steps"
    words = f"{len(look.instructions)} instruction{'s' if len(look.instructions) > 1 else ''}"
    return f"{look.dataset.reader.format}, {len(look.lengths)} episodes of {steps}, {words}"


def remarks(look: DataLook) -> list[str]:
    found = list(look.dataset.reader.notes)
    if look.unreadable:
        found.append(f"{len(look.unreadable)} of the pictures looked at cannot be read: {look.unreadable[0]}")
    if look.unlabelled:
        found.append(f"{look.unlabelled} episodes without an instruction, which are left out")
    if repeated(look) and not any(map(paraphrases, look.instructions)):
        found.append(
            f"each task has one wording, such as {next(iter(look.instructions))!r}, and no shipped paraphrase fits: a "
            "policy may not understand another; use different words for a task in different episodes"
        )
    if look.still > MUCH_STILL:
        found.append(f"in {look.still:.0%} of the steps nothing moves: a policy learns to wait; cut such steps off")
    return found


def recipe_text(name: str, base: Base, settings: list[Setting], about: str) -> str:
    tree: dict[str, Any] = {}
    for setting in settings:
        *parents, last = setting.name.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = setting
    described = Setting("description", f"A first policy on {name}'s data.")
    top = [Setting("extends", base.recipe), Setting("name", name), described]
    lines = _lines({each.name: each for each in top} | tree)
    return "\n".join([f"# Written by gen-vla init for {about}.", *lines, ""])


def _lines(tree: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, value in tree.items():
        if isinstance(value, Setting):
            comment = f"  # {' '.join(value.reason.split())}" if value.reason else ""
            lines.append(f"{indent}{f'{name}: {value.text}':<34}{comment}".rstrip())
        elif list(value) == ["0"]:  # the only entry of a list
            inner = _lines(value["0"], indent + "    ")
            lines += [f"{indent}{name}:", f"{indent}  - {inner[0].lstrip()}", *inner[1:]]
        else:
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
    return lines
