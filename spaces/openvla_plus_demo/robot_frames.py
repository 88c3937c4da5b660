"""Where "forward" is: the directions of a data set's axes, in words and as its usual camera sees them.

Actions carry no camera. For BridgeData and RT-1 the usual camera looks the way the robot reaches, so x runs away from
the viewer, y to the left, z up; that is also the guess for data sets not listed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


STILL_METRES, STILL_RADIANS = 0.001, 0.01  # below this a part of a motion is not worth a word
CLOSED, OPEN = 0.3, 0.7  # of the gripper's 0..1
HAND_CAMERA = re.compile(r"wrist|hand|gripper|palm", re.IGNORECASE)  # in the name of a camera that moves with the hand


@dataclass(frozen=True)
class RobotFrame:
    """A camera's angles in degrees (MuJoCo's convention), and what the two ends of each axis are called."""

    azimuth: float = 0.0
    elevation: float = -35.0
    directions: tuple[tuple[str, str], ...] = (("forward", "back"), ("left", "right"), ("up", "down"))

    def on_picture(self, motion: np.ndarray) -> np.ndarray:
        """Motions float [..., 3] in metres -> [..., 2], to the right and down in the picture, in metres."""
        azimuth, elevation = np.deg2rad(self.azimuth), np.deg2rad(self.elevation)
        ahead = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        view = np.cos(elevation) * ahead + np.array([0.0, 0.0, np.sin(elevation)])
        right = np.array([ahead[1], -ahead[0], 0.0])
        return np.stack([motion @ right, motion @ np.cross(view, right)], axis=-1)


SIMULATED = (("right", "left"), ("forward", "back"), ("up", "down"))
ROBOT_FRAMES = {"tabletop": RobotFrame(118.0, -42.0, SIMULATED)}


def frame_of(data_set: str) -> RobotFrame:
    return ROBOT_FRAMES.get(data_set, RobotFrame())


def is_on_the_hand(camera: str) -> bool:
    return HAND_CAMERA.search(camera) is not None


def place_of_arrow(cameras: Sequence[str]) -> int:
    """Which camera's picture a motion is drawn on: the first that stands still, since frames are those of such."""
    return next((index for index, camera in enumerate(cameras) if not is_on_the_hand(camera)), 0)


def in_words(action: np.ndarray, frame: RobotFrame) -> str:
    """One step, float [7] in metres, radians and 0..1, as a sentence."""
    distance, turn = float(np.linalg.norm(action[:3])), float(np.linalg.norm(action[3:6]))
    if distance < STILL_METRES:
        move = "The hand stays where it is"
    else:
        move = f"The hand moves {distance * 1000:.0f} mm {direction(action[:3], frame)}"
    rotation = f", turns {np.rad2deg(turn):.0f}°" if turn >= STILL_RADIANS else ""
    return f"{move}{rotation}, and the gripper is {gripper_in_words(float(action[6]))}."


def direction(motion: np.ndarray, frame: RobotFrame) -> str:
    """Where a motion goes: its largest part, and the others that are at least half as large."""
    order = [axis for axis in np.argsort(-np.abs(motion)) if abs(motion[axis]) >= 0.5 * np.abs(motion).max()]
    *first, last = (frame.directions[axis][int(motion[axis] < 0)] for axis in order)
    return f"{', '.join(first)} and {last}" if first else last


def gripper_in_words(opening: float) -> str:
    if opening >= OPEN:
        return "open"
    return "closed" if opening <= CLOSED else "half open"


def rotation_matrix(angles: np.ndarray) -> np.ndarray:
    """Roll, pitch, yaw in radians, applied in this order about fixed axes, as a matrix [3, 3]."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    about_y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
