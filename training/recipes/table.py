"""The shipped recipes as a table: `gen-vla train --list`."""

from rich.table import Table

from gen_vla.training.recipes.loading import load_recipe, recipe_names
from gen_vla.training.recipes.schema import PACKAGE_PREFIX, Recipe


# Parameters of the full-size models by family and number of encoders: (with D, without). Counted in tests.
SIZES = {"openvla_plus": ("7.5B", "7.5B"), "pi0_flow": ("", "3.2B")}
PALIGEMMA_SIZES = ("3.3B", "2.9B")
SMOL_SIZE = "137M"
YES, NO = "●", "·"


def recipes_table() -> Table:
    table = Table(title="D: a frozen vision encoder   S: actions as digit strings   C: half of a batch is co-training")
    for column in ("recipe", "base model"):
        table.add_column(column, no_wrap=True)
    for column in "DSC":
        table.add_column(column, justify="center")
    for column in ("robot data", "vision-language data", "size"):
        table.add_column(column)
    for name in recipe_names():
        recipe = load_recipe(name)
        table.add_row(
            name, recipe.model.initial_model or "random weights", *marks(recipe), *data(recipe), size(recipe)
        )
    return table


def marks(recipe: Recipe) -> list[str]:
    acts = bool(recipe.data.robot)
    present = (
        recipe.model.frozen not in (None, "all"),
        acts and recipe.actions.representation == "string",
        acts and bool(recipe.data.questions),
    )
    return [YES if part else NO for part in present]


def data(recipe: Recipe) -> tuple[str, str]:
    robot = ", ".join(source.key for source in recipe.data.robot) or NO
    if recipe.data.instruction_augmentation:
        robot += ", paraphrased"
    return robot, ", ".join(source.name for source in recipe.data.questions) or NO


def size(recipe: Recipe) -> str:
    """Parameters of a recipe that starts from a full-size model; the others are mini."""
    start = recipe.model.initial_model
    if start is None or start.removeprefix(PACKAGE_PREFIX).startswith("mini-"):
        return "mini"
    if start.startswith("smol-"):
        return SMOL_SIZE
    paligemma = start.startswith("paligemma") and not recipe.is_flow
    sizes = PALIGEMMA_SIZES if paligemma else SIZES.get(recipe.model.family, ("any", "any"))
    return sizes[recipe.model.frozen is None]
