"""Episodes and scenes of the Meta-World drawers as videos and pictures for people.

Decides: what a frame shows and how large it is. Refuses to know: how a policy works, how it is scored
(`drawers/rollouts.py`).
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gen_vla.evaluation.drawers.environment import (
    EVALUATION_SEEDS,
    FRAMEBUFFER,
    MAX_MOVE,
    MAX_POLICY_STEPS,
    ActionError,
    DrawerEnv,
    Start,
    Task,
    Variation,
)
from gen_vla.evaluation.drawers.rollouts import Episode
from gen_vla.evaluation.policies.rollout import Moment, Policy


INK, PAPER, FAINT = (236, 239, 244), (27, 31, 40), (76, 86, 106)
FORWARD, BACKWARD, DONE, FAILED = (136, 192, 208), (208, 135, 112), (163, 190, 140), (191, 97, 106)
PANEL_HEIGHT = 76
FRAMES_PER_SECOND = 16  # 80 Hz / ACTION_REPEAT: real time
LAST_FRAME_REPEATS = 16


def record_video(
    policy: Policy,
    task: Task,
    seed: int,
    path: str | Path,
    *,
    size: int = 256,
    image_size: int = 96,
    variation: Variation = "modest",
    start: Start = "stock",
    max_steps: int = MAX_POLICY_STEPS,
) -> Episode:
    """One episode as `path`.mp4 and `path`.gif: the scene, the instruction, and the action about to be carried out."""
    if seed not in EVALUATION_SEEDS:
        raise ValueError(f"got seed {seed}, expected one in {EVALUATION_SEEDS}")
    env = DrawerEnv(task, image_size, variation, start)
    env.reset(seed)
    frames: list[Image.Image] = []
    success, refusal, step = False, None, 0
    while not success and refusal is None and step < max_steps:
        moment = Moment(task, seed, step, env.expert_action(), env.blind_expert_action())
        action = np.asarray(policy([env.render()], [env.instruction], [moment]))[0]
        frames.append(draw_frame(smooth_render(env, size), env.instruction, action, f"{step + 1}/{max_steps}"))
        try:
            success = env.step(action)
        except ActionError as error:
            refusal = str(error)
        step += 1
    ending = "done" if success else "refused" if refusal else "not done"
    last = draw_frame(smooth_render(env, size), env.instruction, None, ending, DONE if success else FAILED)
    write_video(frames + [last] * LAST_FRAME_REPEATS, Path(path))
    return Episode(task, seed, success, step, refusal)


class Rendered(Protocol):
    """Whatever draws itself as uint8 [size, size, 3]."""

    def render(self, size: int | None = None) -> np.ndarray: ...


def smooth_render(env: Rendered, size: int) -> Image.Image:
    """Rendered large and reduced, since the policy's camera has no antialiasing."""
    large = Image.fromarray(env.render(min(2 * size, FRAMEBUFFER)))
    return large.resize((size, size), Image.Resampling.LANCZOS)


def draw_frame(
    image: Image.Image,
    instruction: str,
    action: np.ndarray | None,
    note: str,
    note_colour: tuple[int, int, int] = FAINT,
) -> Image.Image:
    """The picture above a panel: instruction, note, a bar per moved axis (full width: 5 cm) and the gripper."""
    width, height = image.size
    frame = Image.new("RGB", (width, height + PANEL_HEIGHT), PAPER)
    frame.paste(image, (0, 0))
    draw, small = ImageDraw.Draw(frame), ImageFont.load_default(10)
    draw.text((10, height + 8), instruction, fill=INK, font=ImageFont.load_default(15))
    draw.text((width - 10, height + 12), note, fill=note_colour, font=small, anchor="ra")
    column = (width - 20) / 4
    for index, name in enumerate(("dx", "dy", "dz", "grip")):
        left = 10 + index * column
        value = "" if action is None else f" {action[6]:.0%}" if name == "grip" else f" {100 * action[index]:+.1f} cm"
        draw.text((left, height + 36), name + value, fill=INK if value else FAINT, font=small)
        right = left + column - 8
        draw.rectangle((left, height + 56, right, height + 62), fill=FAINT)
        if action is not None:
            _draw_bar(draw, left, right, height + 56, action, index)
    return frame


def _draw_bar(draw: ImageDraw.ImageDraw, left: float, right: float, top: int, action: np.ndarray, index: int) -> None:
    """Axes 0 to 2 grow from the middle, the gripper (3) from the left with its opening."""
    middle = (left + right) / 2
    if index == 3:
        span = (left, left + (right - left) * float(np.clip(action[6], 0, 1)))
        colour = FORWARD
    else:
        end = middle + (right - middle) * float(np.clip(action[index] / MAX_MOVE, -1, 1))
        span, colour = (min(middle, end), max(middle, end)), FORWARD if end >= middle else BACKWARD
    draw.rectangle((span[0], top, span[1], top + 6), fill=colour)


def write_video(frames: list[Image.Image], path: Path) -> None:
    """Frames of one size as `path`.mp4 and `path`.gif in real time."""
    import av  # an extra that only videos need

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path.with_suffix(".mp4")), "w") as container:
        stream = cast(Any, container.add_stream("libx264", rate=FRAMES_PER_SECOND))
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        stream.options = {"crf": "18"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    reduced = [frame.quantize(128, dither=Image.Dither.NONE) for frame in frames]
    duration = 1000 // FRAMES_PER_SECOND
    reduced[0].save(path.with_suffix(".gif"), save_all=True, append_images=reduced[1:], duration=duration, loop=0)


def contact_sheet(
    images: Sequence[Image.Image], path: str | Path, captions: Sequence[str] | None = None, columns: int = 6
) -> None:
    """A PNG of equally large pictures in rows, each with its caption, wrapped to three lines, below."""
    width, height = images[0].size
    gap, text = 4, 44 if captions else 0
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + text + gap) + gap), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, image in enumerate(images):
        x, y = gap + index % columns * (width + gap), gap + index // columns * (height + text + gap)
        sheet.paste(image, (x, y))
        if captions:
            lines = textwrap.wrap(captions[index], width=max(8, width // 6))[:3]
            draw.multiline_text((x + 2, y + height + 2), "\n".join(lines), fill=INK, font=font, spacing=2)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def first_picture(task: Task, seed: int, variation: Variation, start: Start) -> Image.Image:
    """What a policy sees first, drawn for people."""
    env = DrawerEnv(task, variation=variation, start=start)
    env.reset(seed)
    return smooth_render(env, 160)
