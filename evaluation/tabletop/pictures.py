"""Pictures and videos of the tabletop for people.

Decides: what is drawn and how it is laid out. Refuses to know: how episodes are run or scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen_vla.evaluation.simulation.environment import TabletopEnv


# The camera chooses the graphics backend, so it comes before whatever loads mujoco.
# isort: split

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gen_vla.evaluation.drawers.environment import ActionError
from gen_vla.evaluation.drawers.videos import (
    DONE,
    FAILED,
    INK,
    LAST_FRAME_REPEATS,
    PAPER,
    draw_frame,
    smooth_render,
    write_video,
)
from gen_vla.evaluation.policies.rollout import Moment
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS, MAX_STEPS, Task
from gen_vla.evaluation.simulation.looks import FAMILIES, ORDINARY, VARIANTS, Variant
from gen_vla.evaluation.tabletop.policies import TabletopPolicy


TILE, GAP, HEADING, CAPTION = 216, 8, 34, 24  # pixels
SHEET_SEED, SHEET_STEPS = EVALUATION_SEEDS[35], 4
FAMILY_COLOURS = ("#5e81ac", "#a3744b", "#d0a02c", "#7a9a5b", "#8f6a96")
# What stands in the first column under the ordinary scene: other scenes and tasks, each with the moment shown.
OTHER_SCENES: tuple[tuple[Task, int, int], ...] = (
    ("move_near", EVALUATION_SEEDS[26], 16),
    ("open_drawer", EVALUATION_SEEDS[6], 15),
)


class _Masked:
    """An environment seen with its background removed."""

    def __init__(self, env: TabletopEnv):
        self._env = env

    def render(self, size: int | None = None) -> np.ndarray:
        return self._env.render_masked(size)


def moment(
    task: Task, seed: int, steps: int, variant: Variant = ORDINARY, size: int = TILE, masked: bool = False
) -> tuple[Image.Image, str]:
    """The picture after some steps of the expert, and its instruction."""
    env = TabletopEnv()
    instruction = env.reset(task, seed, variant)
    for _ in range(steps):
        env.step(env.expert_action())
    return smooth_render(_Masked(env) if masked else env, size), instruction


def variants_sheet(path: str | Path) -> None:
    """A PNG with one picture per variant, a column per family; the first column shows the ordinary looks."""
    ordinary, instruction = moment("pick_object", SHEET_SEED, SHEET_STEPS)
    masked, _ = moment("pick_object", SHEET_SEED, SHEET_STEPS, masked=True)
    first = [(ordinary, instruction), (masked, "masked background")]
    first += [moment(task, seed, steps) for task, seed, steps in OTHER_SCENES]
    columns = [("ordinary", first)]
    for family in FAMILIES:
        members = [v for v in VARIANTS if v.family == family]
        shown = [(moment("pick_object", SHEET_SEED, SHEET_STEPS, v)[0], v.name.replace("_", " ")) for v in members]
        columns.append((family.replace("_", " "), shown))
    _save(_draw_columns(columns), Path(path))


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


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def record_videos(
    policy: TabletopPolicy, task: Task, seed: int, path: Path, *, image_size: int = 112, size: int = 320
) -> bool:
    """One episode as `path` (.mp4) and as a .gif beside it: scene, instruction, action -> whether it succeeded."""
    env, limit = TabletopEnv(image_size), MAX_STEPS[task]
    instruction = env.reset(task, seed)
    frames: list[Image.Image] = []
    success, ending = False, "not done"
    while not success and len(frames) < limit:
        experts = env.expert_action(), env.blind_expert_action(), env.deaf_expert_action()
        action = policy([env.render()], [instruction], [Moment(task, seed, len(frames), *experts)])[0]
        shown = None if action is None else np.asarray(action)
        frames.append(draw_frame(smooth_render(env, size), instruction, shown, f"{len(frames) + 1}/{limit}"))
        try:
            if shown is None:
                raise ActionError("the policy gave no action")
            success = env.step(shown)
        except ActionError:
            ending = "malformed"
            break
    ending, colour = ("done", DONE) if success else (ending, FAILED)
    last = draw_frame(smooth_render(env, size), instruction, None, ending, colour)
    write_video(frames + [last] * LAST_FRAME_REPEATS, path)
    return success


def plot_variants(scores: dict[str, Any], path: str | Path, title: str) -> None:
    """A PNG with a bar per variant, coloured by family, its interval on each, the matching score as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 4.6), layout="constrained")
    position, ticks, labels = 0.0, [], []
    for family, colour in zip(scores["variants"]["families"], FAMILY_COLOURS, strict=False):
        found = scores["variants"]["families"][family]
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
