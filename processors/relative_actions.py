"""Actions relative to the robot's state and back, for data sets whose actions say where to be.

All steps of a chunk are relative to the state at its beginning, as in openpi (`DeltaActions` and `AbsoluteActions` in
src/openpi/transforms.py). The groups of dimensions stand in the action statistics (`action_statistics.py`) as
`"relative"`:

    {"dims": [0, 1, 2], "state": [0, 1, 2]}                         the action minus the state
    {"dims": [3, 4, 5], "state": [3, 4, 5], "rotation": "euler"}    the turn from the state to the action

A turn is about the axes of the robot's base, like a robosuite controller's: matrices action @ state^T, and back
turn @ state. It is written as the action is. Where the state's rotation is written otherwise, `"state_rotation"` says
how:

    euler        roll, pitch, yaw: about the fixed axes x, then y, then z, in radians
    axis_angle   axis times angle, in radians
    quaternion   x, y, z, w, of either sign; a result has w >= 0
    rot6d        the first two columns of the matrix, one after the other (Zhou et al., 2019)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


ROTATIONS = {"euler": 3, "axis_angle": 3, "quaternion": 4, "rot6d": 6}
SHORTEST = 1e-6  # length of what has a direction


def to_relative(actions: Any, state: Any, groups: Sequence[dict[str, Any]]) -> np.ndarray:
    """Chunks [..., T, D] relative to the states [..., P] at their beginning, float64; `ValueError` for a rotation
    without a direction.
    """
    return _changed(actions, state, groups, back=False)


def to_absolute(actions: Any, state: Any, groups: Sequence[dict[str, Any]]) -> np.ndarray:
    """The inverse of `to_relative`."""
    return _changed(actions, state, groups, back=True)


def check_groups(groups: Any, action_dim: int, name: str) -> None:
    """Raises `ValueError` unless `groups` are as above, with each dimension of an action in one at most."""
    known, seen = {"dims", "state", "rotation", "state_rotation"}, set[int]()
    for group in groups if isinstance(groups, list) else [groups]:
        fits = isinstance(group, dict) and {"dims", "state"} <= set(group) <= known
        kind, stored = (group.get("rotation") or "", group.get("state_rotation") or "") if fits else ("", "")
        fits = fits and {kind, stored} <= {"", *ROTATIONS} and bool(kind or not stored)
        if fits:
            dims, state = group["dims"], group["state"]
            widths = ROTATIONS.get(kind, len(dims)), ROTATIONS.get(stored or kind, len(dims))
            whole = all(isinstance(dim, int) and dim >= 0 for dim in [*dims, *state])
            fits = whole and (len(dims), len(state)) == widths and not seen.intersection(dims)
            fits = fits and len(set(dims)) == len(dims) and max(dims, default=action_dim) < action_dim
            seen.update(dims)
        if not fits:
            raise ValueError(
                f"got {group} among the relative actions of {name}, expected dims of an action below {action_dim}, "
                "each once, as many of the state, and for a rotation its name: "
                f"{', '.join(f'{rotation} ({width} values)' for rotation, width in ROTATIONS.items())}"
            )


def _changed(actions: Any, state: Any, groups: Sequence[dict[str, Any]], back: bool) -> np.ndarray:
    changed, state = np.array(actions, dtype=np.float64), np.asarray(state, dtype=np.float64)
    for group in groups:
        there, here = changed[..., group["dims"]], state[..., None, group["state"]]
        if kind := group.get("rotation"):
            turn = as_matrix(here, group.get("state_rotation") or kind)
            turned = as_matrix(there, kind) @ (turn if back else turn.swapaxes(-1, -2))
            changed[..., group["dims"]] = from_matrix(turned, kind)
        else:
            changed[..., group["dims"]] = there + here if back else there - here
    return changed


def as_matrix(values: np.ndarray, kind: str) -> np.ndarray:
    """Rotation matrices float64 [..., 3, 3] of rotations [..., K], of the kind named."""
    if kind == "euler":
        roll, pitch, yaw = (_about(axis, values[..., axis]) for axis in range(3))
        return yaw @ pitch @ roll
    if kind == "rot6d":
        first = _unit(values[..., :3], kind)
        second = _unit(values[..., 3:] - (first * values[..., 3:]).sum(-1, keepdims=True) * first, kind)
        return np.stack((first, second, np.cross(first, second)), axis=-1)
    if kind == "axis_angle":
        half = np.linalg.norm(values, axis=-1, keepdims=True) / 2
        values = np.concatenate((values * np.sinc(half / np.pi) / 2, np.cos(half)), axis=-1)
    x, y, z, w = np.moveaxis(_unit(values, kind), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def from_matrix(matrix: np.ndarray, kind: str) -> np.ndarray:
    """The inverse of `as_matrix`, float64 [..., K]: angles in [-pi, pi], a pitch in [-pi / 2, pi / 2]."""
    if kind == "rot6d":
        return np.concatenate((matrix[..., 0], matrix[..., 1]), axis=-1)
    m = np.moveaxis(matrix, (-2, -1), (0, 1))
    if kind == "euler":
        across = np.hypot(m[0, 0], m[1, 0])
        locked = across < SHORTEST  # roll and yaw are about one axis: all of it is yaw
        roll = np.where(locked, 0.0, np.arctan2(m[2, 1], m[2, 2]))
        yaw = np.where(locked, np.arctan2(-m[0, 1], m[1, 1]), np.arctan2(m[1, 0], m[0, 0]))
        return np.stack((roll, np.arctan2(-m[2, 0], across), yaw), axis=-1)
    # Four times the products of x, y, z, w with each other; the row of the largest square is the most exact.
    square = np.stack((m[0, 0] - m[1, 1] - m[2, 2], m[1, 1] - m[0, 0] - m[2, 2], m[2, 2] - m[0, 0] - m[1, 1]))
    square = 1 + np.concatenate((square, (m[0, 0] + m[1, 1] + m[2, 2])[None]))
    xy, xz, yz = m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1]
    xw, yw, zw = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    rows = ((square[0], xy, xz, xw), (xy, square[1], yz, yw), (xz, yz, square[2], zw), (xw, yw, zw, square[3]))
    products = np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
    largest = square.argmax(axis=0)[..., None, None]
    quaternion = _unit(np.take_along_axis(products, largest, axis=-2)[..., 0, :], "quaternion")
    quaternion = np.where(quaternion[..., 3:] < 0, -quaternion, quaternion)
    if kind == "quaternion":
        return quaternion
    sine = np.linalg.norm(quaternion[..., :3], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternion[..., 3:])
    return quaternion[..., :3] * np.where(sine > SHORTEST, angle / np.maximum(sine, SHORTEST), 2.0)


def _about(axis: int, angle: np.ndarray) -> np.ndarray:
    """Matrices [..., 3, 3] of turns about the axis x, y or z."""
    matrix = np.zeros((*angle.shape, 3, 3))
    one, other = (axis + 1) % 3, (axis + 2) % 3
    matrix[..., axis, axis] = 1.0
    matrix[..., one, one] = matrix[..., other, other] = np.cos(angle)
    matrix[..., other, one] = np.sin(angle)
    matrix[..., one, other] = -np.sin(angle)
    return matrix


def _unit(values: np.ndarray, kind: str) -> np.ndarray:
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    if (length < SHORTEST).any():
        raise ValueError(f"got a rotation of kind {kind} without a direction, such as zeros, expected a {kind}")
    return values / length
