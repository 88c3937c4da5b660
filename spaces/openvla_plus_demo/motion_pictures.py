"""A motion as pictures: an arrow on the camera's picture, and the gripper in space before and after.

A model does not say where in the picture the hand is, so the arrow starts in the middle; its length shows the share of
the longest motion in the data set. In space the motion is to scale and the gripper is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont, ImageOps
from robot_frames import RobotFrame, rotation_matrix


TEAL, ORANGE, GREY = "#0f766e", "#c2410c", "#7b8aa0"
SIDE = 640  # pixels of the longer side of what is drawn
FINE = 2  # drawn this much larger, then reduced, for smooth edges
REACH = 0.42  # of the shorter side: the longest arrow
GAP = 8  # pixels between pictures on one sheet
LEAST_EXTENT = 0.01  # metres: the gripper is half as large as the motion, or as this
HALF_OPEN = 0.5  # how the gripper is drawn before: the model does not say


@dataclass(frozen=True)
class Arrow:
    """A motion on a picture: its path float [T, 3] in metres from the start, a colour, a label for the legend."""

    path: np.ndarray
    colour: str
    label: str = ""


def draw_arrows(picture: Image.Image, arrows: Sequence[Arrow], frame: RobotFrame, longest: float) -> Image.Image:
    """The picture with motions on it; `longest` are the metres that the longest arrow stands for."""
    scale = SIDE / max(picture.size)
    size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
    canvas = picture.resize((size[0] * FINE, size[1] * FINE), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    middle = np.array(canvas.size) / 2
    stroke = max(min(canvas.size) // 90, 4)
    for index, arrow in enumerate(arrows):  # each thinner than the one before, so that equal arrows all show
        points = middle + frame.on_picture(arrow.path) / longest * REACH * min(canvas.size)
        draw_path(draw, np.vstack([middle, points]), arrow.colour, stroke / (1 + index))
    hub = stroke * 1.6
    draw.ellipse([*(middle - hub), *(middle + hub)], fill="white", outline="#1f2937", width=max(stroke // 2, 1))
    draw_legend(draw, arrows, canvas.size[1])
    return canvas.resize(size, Image.Resampling.LANCZOS)


def with_others(drawn: Image.Image, others: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """A picture with smaller ones of other cameras below it, each under its name; alone, it stays as it is."""
    if not others:
        return drawn
    side = (drawn.width - GAP) // 2
    rows = (len(others) + 1) // 2
    text, line = ImageFont.load_default(size=26), 40
    sheet = Image.new("RGB", (drawn.width, drawn.height + rows * (GAP + line + side)), "white")
    sheet.paste(drawn)
    for index, (name, picture) in enumerate(others):
        tile = Image.new("RGB", (side, line + side), "white")  # which cuts a long name off
        ImageDraw.Draw(tile).text((GAP, 0), name, fill="#1f2937", font=text)
        tile.paste(ImageOps.pad(picture, (side, side), color="white", centering=(0.0, 0.0)), (0, line))
        sheet.paste(tile, ((index % 2) * (side + GAP), drawn.height + GAP + (index // 2) * (GAP + line + side)))
    return sheet


def draw_path(draw: ImageDraw.ImageDraw, points: np.ndarray, colour: str, stroke: float) -> None:
    """A line with a head, with a white edge so that it shows on any picture; too short for a head, a thick dot."""
    last = points[-1] - points[0]
    length = float(np.linalg.norm(last))
    if length < 4 * stroke:
        for radius, fill in ((3.4 * stroke, "white"), (2.8 * stroke, colour)):
            draw.ellipse([*(points[-1] - radius), *(points[-1] + radius)], fill=fill)
        return
    along = points[-1] - points[-2]
    along = along / max(float(np.linalg.norm(along)), 1e-9)
    aside = np.array([-along[1], along[0]])
    for grow, fill in ((0.7 * stroke, "white"), (0.0, colour)):
        tip, base = points[-1] + grow * 1.6 * along, points[-1] - (4.5 * stroke + grow) * along
        line = [tuple(point) for point in (*points[:-1], base + 0.5 * stroke * along)]
        draw.line(line, fill=fill, width=round(1.5 * stroke + 2 * grow), joint="curve")
        wing = (2.6 * stroke + grow * 1.5) * aside
        draw.polygon([tuple(tip), tuple(base + wing), tuple(base - wing)], fill=fill)


def draw_legend(draw: ImageDraw.ImageDraw, arrows: Sequence[Arrow], height: int) -> None:
    named = [arrow for arrow in arrows if arrow.label]
    text, line, edge = ImageFont.load_default(size=21 * FINE), 34 * FINE, 10 * FINE
    for index, arrow in enumerate(named):
        top = height - edge - line * (len(named) - index)
        right = edge + 44 * FINE + draw.textlength(arrow.label, font=text)
        draw.rounded_rectangle([edge, top, right, top + line - 4 * FINE], radius=6 * FINE, fill="white")
        swatch = [edge + 8 * FINE, top + 7 * FINE, edge + 24 * FINE, top + 23 * FINE]
        draw.rounded_rectangle(swatch, radius=3 * FINE, fill=arrow.colour)
        draw.text((edge + 33 * FINE, top + 2 * FINE), arrow.label, fill="#1f2937", font=text)


def draw_in_space(steps: np.ndarray, frame: RobotFrame) -> Image.Image:
    """The gripper before (grey) and after (teal) an action, seen roughly as the data set's camera would; `steps` are
    float [T, 7] in metres, radians and 0..1."""
    path = np.vstack([np.zeros(3), np.cumsum(steps[:, :3], axis=0)])
    size = 0.5 * max(float(np.ptp(path, axis=0).max()), LEAST_EXTENT)
    turned = rotation_matrix(steps[:, 3:6].sum(axis=0))
    before = gripper(np.eye(3), HALF_OPEN, size)
    after = [line + path[-1] for line in gripper(turned, float(steps[-1, 6]), size)]
    everything = np.vstack([*before, *after, path])
    low, high = everything.min(axis=0), everything.max(axis=0)
    middle, reach = (low + high) / 2, 0.55 * float((high - low).max())
    figure = Figure(figsize=(4.6, 4.6), dpi=140, facecolor="white")
    axes: Any = figure.add_axes((0.0, 0.02, 0.94, 0.96), projection="3d")
    axes.view_init(elev=-frame.elevation - 12, azim=frame.azimuth + 180 + 12)
    floor = 1000 * (middle[2] - reach)
    for lines, colour, word in ((before, GREY, "before"), (after, TEAL, "after")):
        for line in lines:
            x, y, z = 1000 * line.T
            axes.plot(x, y, np.full_like(z, floor), color="#0f172a", linewidth=3, alpha=0.08)
            axes.plot(x, y, z, color=colour, linewidth=4.5, solid_capstyle="round")
        x, y, z = 1000 * lines[-1][-1]
        axes.text(x, y, z + 80 * size, word, color=colour, fontsize=10, ha="center", weight="bold")
    axes.plot(*(1000 * path[:, :2].T), np.full(len(path), floor), color=ORANGE, linewidth=1, linestyle=":")
    axes.plot(*(1000 * path.T), color=ORANGE, linewidth=2.5, marker="o", markersize=3.5)
    label_axes(axes, 1000 * middle, 1000 * reach, frame)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def gripper(turned: np.ndarray, opening: float, size: float) -> list[np.ndarray]:
    """A two-fingered gripper that points down, as lines float [n, 3] around its fingertips; the wrist comes last."""
    half = size * (0.06 + 0.34 * float(np.clip(opening, 0.0, 1.0)))
    palm, wrist, edge = 0.8 * size, 1.25 * size, 0.42 * size
    lines = [
        [[0, -half, 0], [0, -half, palm]],
        [[0, half, 0], [0, half, palm]],
        [[0, -edge, palm], [0, edge, palm]],
        [[0, 0, palm], [0, 0, wrist]],
    ]
    return [np.array(line) @ turned.T for line in lines]


def label_axes(axes: Any, middle: np.ndarray, reach: float, frame: RobotFrame) -> None:
    for name, centre, words in zip("xyz", middle, frame.directions):
        getattr(axes, f"set_{name}lim")(centre - reach, centre + reach)
        getattr(axes, f"set_{name}label")(f"{words[0]} (mm)", fontsize=9, color="#475569")
        axis = getattr(axes, f"{name}axis")
        axis.set_pane_color((0.97, 0.98, 0.99, 1.0))
        axis.set_tick_params(labelsize=8, colors="#64748b")
        axis.set_major_locator(MaxNLocator(4))
    axes.grid(color="#e2e8f0")
    axes.set_box_aspect((1, 1, 1), zoom=0.95)
