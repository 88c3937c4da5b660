"""Pictures of the tabletop for people: a sheet of all variants, and a plot of the scores in each."""

from pathlib import Path
from typing import Any

from gen_vla.evaluation.simulation.environment import TabletopEnv


# The camera chooses the graphics backend, so it comes before whatever loads mujoco.
# isort: split

from matplotlib.figure import Figure
from PIL import Image

from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS, Task
from gen_vla.evaluation.simulation.looks import HOME, Look
from gen_vla.evaluation.simulation.videos import smooth_render
from gen_vla.evaluation.tables import percent
from gen_vla.evaluation.tabletop.variants import FAMILIES, SEEN_VARIANTS, VARIANTS


TILE = 216  # pixels
SHEET: tuple[Task, int, int] = ("pick_object", EVALUATION_SEEDS[35], 4)  # task, seed and steps of the expert
# What stands in the first column under the ordinary scene: other scenes and tasks.
OTHER_SCENES: tuple[tuple[Task, int, int], ...] = (
    ("move_near", EVALUATION_SEEDS[26], 16),
    ("open_drawer", EVALUATION_SEEDS[6], 15),
)


def _picture(task: Task, seed: int, steps: int, look: Look = HOME, masked: bool = False) -> tuple[Image.Image, str]:
    env = TabletopEnv()
    instruction = env.reset(task, seed, look, masked)
    for _ in range(steps):
        env.step(env.expert_action())
    return smooth_render(env, TILE), instruction


def variants_sheet(path: Path) -> None:
    """A PNG with one picture per variant, a column per family; the first column shows the ordinary looks."""
    masked, _ = _picture(*SHEET, masked=True)
    columns = {"ordinary": [_picture(*SHEET), (masked, "masked background"), *(_picture(*s) for s in OTHER_SCENES)]}
    for family in FAMILIES:
        members = [look for look in (*VARIANTS, *SEEN_VARIANTS) if look.family == family]
        columns[family] = [(_picture(*SHEET, look)[0], look.name.replace("_", " ")) for look in members]
    rows = max(map(len, columns.values()))
    figure = Figure(figsize=(2.3 * len(columns), 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, len(columns))
    for place, (family, shown) in enumerate(columns.items()):
        panels[0, place].set_title(family.replace("_", " "), fontsize=14)
        for row, axes in enumerate(panels[:, place]):
            axes.axis("off")
            if row < len(shown):
                axes.imshow(shown[row][0])
                axes.text(0.5, -0.03, shown[row][1], transform=axes.transAxes, ha="center", va="top", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=96)


def plot_variants(scores: dict[str, Any], path: Path, title: str, mode: str = "variants") -> None:
    """A PNG with a bar per variant, coloured by family, its interval on each, the matching score as a line."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    for family, found in scores[mode]["families"].items():
        names = [f"{family}, {name}".replace("_", " ") for name in found["variants"]]
        cells = found["variants"].values()
        label = f"{family.replace('_', ' ')}: mean {percent(found['mean'])} %"
        axes.bar(names, [100 * (cell["mean"] or 0.0) for cell in cells], label=label)
        low, high = zip(*(cell["all"]["interval"] for cell in cells), strict=True)
        axes.vlines(names, [100 * bound for bound in low], [100 * bound for bound in high], color="#2b303b")
    if scores.get("matching", {}).get("mean") is not None:
        axes.axhline(100 * scores["matching"]["mean"], color="#4c566a", linestyle="--", label="matching")
    axes.tick_params(axis="x", rotation=90, labelsize=9)
    axes.set(ylim=(0, 100), ylabel="success, %", title=title)
    figure.legend(loc="outside upper center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
