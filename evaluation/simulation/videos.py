"""Episodes of the simulated suites as videos for people."""

from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageDraw, ImageFont, ImageOps

from gen_vla.evaluation.policies.pictures import side_by_side
from gen_vla.evaluation.policies.rollout import Moment, Policy
from gen_vla.evaluation.simulation.actions import HERTZ, ActionError
from gen_vla.evaluation.simulation.offscreen_camera import FRAMEBUFFER
from gen_vla.evaluation.simulation.rollouts import EpisodeJob


INK, PAPER = (236, 239, 244), (27, 31, 40)
DONE, FAILED = (163, 190, 140), (191, 97, 106)
PANEL_HEIGHT = 60
LAST_FRAME_REPEATS = 16


def record_video(env: Any, policies: dict[str, Policy], job: EpisodeJob, path: Path, size: int) -> list[bool]:
    """One episode as `path`.mp4 and `path`.gif: scene, instruction and the action about to be carried out; several
    policies act side by side, each under its name. Returns which of them succeeded."""
    played = [_play(env, policy, job, size, name if len(policies) > 1 else "") for name, policy in policies.items()]
    length = max(len(frames) for frames, _ in played) + LAST_FRAME_REPEATS
    rows = [frames + [frames[-1]] * (length - len(frames)) for frames, _ in played]
    write_video([side_by_side(frames) for frames in zip(*rows, strict=True)], path)
    return [done for _, done in played]


def _play(env: Any, policy: Policy, job: EpisodeJob, size: int, name: str) -> tuple[list[Image.Image], bool]:
    env.reset(*job.start)
    frames: list[Image.Image] = []
    ending, colour = "not done", FAILED
    for step in range(job.max_steps):
        moment = Moment(job.task, job.seed, step, env.robot_state(), *env.expert_actions())
        action = policy([env.render()], [job.instruction], [moment])[0]
        note = f"{step + 1}/{job.max_steps}"
        if action is not None:
            x, y, z = (100 * float(metres) for metres in action[:3])
            note = f"dx {x:+.1f} cm  dy {y:+.1f} cm  dz {z:+.1f} cm  grip {float(action[6]):.0%}   {note}"
        frames.append(draw_frame(smooth_render(env, size), job.instruction, note, INK, name))
        try:
            if action is None:
                raise ActionError("the policy gave no action")
            if env.step(action):
                ending, colour = "done", DONE
                break
        except ActionError:
            ending = "malformed"
            break
    frames.append(draw_frame(smooth_render(env, size), job.instruction, ending, colour, name))
    return frames, ending == "done"


def smooth_render(env: Any, size: int) -> Image.Image:
    """Rendered large and reduced, since the policy's camera has no antialiasing."""
    large = Image.fromarray(env.render(min(2 * size, FRAMEBUFFER)))
    return large.resize((size, size), Image.Resampling.LANCZOS)


def draw_frame(
    image: Image.Image, instruction: str, note: str, colour: tuple[int, int, int], name: str
) -> Image.Image:
    """The picture with a name, above a panel with the instruction and a note."""
    frame = ImageOps.expand(image, (0, 0, 0, PANEL_HEIGHT), PAPER)
    draw, large = ImageDraw.Draw(frame), ImageFont.load_default(15)
    draw.text((10, 8), name, fill=INK, font=large, stroke_width=2, stroke_fill=PAPER)
    draw.text((10, image.height + 8), instruction, fill=INK, font=large)
    draw.text((10, image.height + 38), note, fill=colour, font=ImageFont.load_default(10))
    return frame


def write_video(frames: list[Image.Image], path: Path) -> None:
    """Frames of one size as `path`.mp4 and `path`.gif in real time."""
    import av  # an extra that only videos need

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path.with_suffix(".mp4")), "w") as container:
        stream = cast(Any, container.add_stream("libx264", rate=round(HERTZ)))
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        stream.options = {"crf": "18"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    reduced = [frame.quantize(128, dither=Image.Dither.NONE) for frame in frames]
    duration = round(1000 / HERTZ)
    reduced[0].save(path.with_suffix(".gif"), save_all=True, append_images=reduced[1:], duration=duration, loop=0)
