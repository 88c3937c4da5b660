"""Pictures of the tabletop for people: a sheet of all variants, and a plot of the scores in each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen_vla.evaluation.simulation.environment import TabletopEnv


# The camera chooses the graphics backend, so it comes before whatever loads mujoco.
# isort: split

from PIL import Image, ImageDraw, ImageFont

from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS, Task
from gen_vla.evaluation.simulation.looks import HOME, Look
from gen_vla.evaluation.simulation.videos import INK, PAPER, smooth_render
from gen_vla.evaluation.tabletop.variants import FAMILIES, SEEN_VARIANTS, VARIANTS


TILE, GAP, HEADING, CAPTION = 216, 8, 34, 24  # pixels
SHEET_SEED, SHEET_STEPS = EVALUATION_SEEDS[35], 4
FAMILY_COLOURS = ("#5e81ac", "#a3744b", "#d0a02c", "#7a9a5b", "#8f6a96", "#b5564c")
# What stands in the first column under the ordinary scene: other scenes and tasks, each with the moment shown.
OTHER_SCENES: tuple[tuple[Task, int, int], ...] = (
    ("move_near", EVALUATION_SEEDS[26], 16),
    ("open_drawer", EVALUATION_SEEDS[6], 15),
)


def _picture(task: Task, seed: int, steps: int, look: Look = HOME, masked: bool = False) -> tuple[Image.Image, str]:
    """The picture after some steps of the expert, and its instruction."""
    env = TabletopEnv()
    instruction = env.reset(task, seed, look, masked)
    for _ in range(steps):
        env.step(env.expert_action())
    return smooth_render(env, TILE), instruction


def variants_sheet(path: str | Path) -> None:
    """A PNG with one picture per variant, a column per family; the first column shows the ordinary looks."""
    ordinary, instruction = _picture("pick_object", SHEET_SEED, SHEET_STEPS)
    masked, _ = _picture("pick_object", SHEET_SEED, SHEET_STEPS, masked=True)
    first = [(ordinary, instruction), (masked, "masked background")]
    first += [_picture(task, seed, steps) for task, seed, steps in OTHER_SCENES]
    columns = [("ordinary", first)]
    for family in FAMILIES:
        members = [v for v in (*VARIANTS, *SEEN_VARIANTS) if v.family == family]
        shown = [(_picture("pick_object", SHEET_SEED, SHEET_STEPS, v)[0], v.name.replace("_", " ")) for v in members]
        columns.append((family.replace("_", " "), shown))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _draw_columns(columns).save(path)


def _draw_columns(columns: Sequence[tuple[str, Sequence[tuple[Image.Image, str]]]]) -> Image.Image:
    """Columns of captioned pictures, each under its heading."""
    rows = max(len(pictures) for _, pictures in columns)
    width = GAP + len(columns) * (TILE + GAP)
    sheet = Image.new("RGB", (width, GAP + HEADING + rows * (TILE + CAPTION + GAP)), PAPER)
    draw, large, small = ImageDraw.Draw(sheet), ImageFont.load_default(19), ImageFont.load_default(12)
    for column, (heading, pictures) in enumerate(columns):
        x = GAP + column * (TILE + GAP)
        draw.text((x + TILE / 2, GAP + HEADING / 2 - 2), heading, fill=INK, font=large, anchor="mm")
        for row, (picture, caption) in enumerate(pictures):
            y = GAP + HEADING + row * (TILE + CAPTION + GAP)
            sheet.paste(picture, (x, y))
            draw.text((x + TILE / 2, y + TILE + CAPTION / 2), caption, fill=INK, font=small, anchor="mm")
    return sheet


def plot_variants(scores: dict[str, Any], path: str | Path, title: str, mode: str = "variants") -> None:
    """A PNG with a bar per variant, coloured by family, its interval on each, the matching score as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 4.6), layout="constrained")
    position, ticks, labels = 0.0, [], []
    for family, colour in zip(scores[mode]["families"], FAMILY_COLOURS, strict=False):
        found = scores[mode]["families"][family]
        start = position
        for name, cell in found["variants"].items():
            share, (low, high) = cell["mean"] or 0.0, cell["all"]["interval"]
            axes.bar(position, 100 * share, 0.8, color=colour)
            axes.plot([position, position], [100 * low, 100 * high], color="#2b303b", linewidth=1.2)
            ticks, labels = [*ticks, position], [*labels, name.replace("_", " ")]
            position += 1.0
        middle, mean = (start + position - 1.0) / 2, 100 * (found["mean"] or 0.0)
        axes.text(middle, 113, family.replace("_", " "), ha="center", fontsize=11, color=colour, fontweight="bold")
        axes.text(middle, 106, f"mean {mean:.0f} %", ha="center", fontsize=9, color="#4c566a")
        position += 0.7
    if "matching" in scores and scores["matching"]["mean"] is not None:
        level = 100 * scores["matching"]["mean"]
        axes.axhline(level, color="#4c566a", linestyle="--", linewidth=1, zorder=0)
        axes.text(position - 0.9, level, f" matching {level:.0f} %", va="center", fontsize=9, color="#4c566a")
    axes.set_xticks(ticks, labels, rotation=40, ha="right", fontsize=9)
    axes.set(ylim=(0, 120), xlim=(-0.7, position - 0.9), ylabel="success, %", yticks=range(0, 101, 20))
    axes.set_title(title, fontsize=12, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
