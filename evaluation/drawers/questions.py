"""What is asked about the drawer scenes, and what the answers are.

Decides: the kinds of questions, their wordings, when a scene leaves room for argument. Refuses to know: how pictures
and scenes are made, data sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gen_vla.evaluation.drawers.environment import COLOURS


# What is asked. Each answer function gets `scene_state()` and the block colours the question names, and returns
# None where the scene leaves room for argument.
Answer = Callable[[dict[str, Any], list[str]], str | None]


@dataclass(frozen=True)
class Kind:
    """`named` blocks fill the wordings' {0} and {1}; `seen` masks must be in the picture besides every block."""

    answers: tuple[str, ...]
    wordings: tuple[str, ...]
    answer: Answer
    named: int = 0
    seen: tuple[str, ...] = ()


def _side(subject: tuple[float, float], reference: tuple[float, float], margin: float = 0.08) -> str | None:
    """Left or right as the picture shows it, not as the robot or the table has it."""
    if abs(subject[0] - reference[0]) < margin:
        return None
    return "left" if subject[0] < reference[0] else "right"


def _two_way(value: float, low: float, high: float, names: tuple[str, str]) -> str | None:
    if low < value < high:
        return None
    return names[0] if value <= low else names[1]


def _nearest_block(state: dict[str, Any]) -> str | None:
    """Nearest to the handle both on the table and in the picture, each by a clear margin."""
    blocks, handle = state["blocks"], np.array(state["handle_image"])
    if len(blocks) < 2:
        return None
    on_table = sorted((b["to_handle"], colour) for colour, b in blocks.items())
    in_picture = sorted((float(np.linalg.norm(np.array(b["image"]) - handle)), c) for c, b in blocks.items())
    clear = all(ranked[1][0] > 1.3 * ranked[0][0] for ranked in (on_table, in_picture))
    return on_table[0][1] if clear and on_table[0][1] == in_picture[0][1] else None


NUMBERS = ("zero", "one", "two", "three")
KINDS: dict[str, Kind] = {
    "drawer_state": Kind(
        ("open", "closed"),
        ("Is the drawer open or closed?", "Is the drawer closed or open?"),
        lambda s, _: _two_way(s["drawer_opening"], 0.03, 0.35, ("closed", "open")),
        seen=("cabinet", "handle"),
    ),
    "cabinet_colour": Kind(
        tuple(COLOURS),
        ("What colour is the cabinet?", "Which colour does the drawer cabinet have?"),
        lambda s, _: s["cabinet_colour"],
        seen=("cabinet",),
    ),
    "block_colour": Kind(
        tuple(COLOURS),
        ("What colour is the block?", "Which colour does the block on the table have?"),
        lambda s, _: next(iter(s["blocks"])) if len(s["blocks"]) == 1 else None,
    ),
    "block_count": Kind(
        NUMBERS,
        ("How many blocks are on the table?", "How many blocks are there?"),
        lambda s, _: NUMBERS[len(s["blocks"])],
    ),
    "block_order": Kind(
        ("left", "right"),
        ("Is the {0} block left or right of the {1} block?", "On which side of the {1} block is the {0} block?"),
        lambda s, names: _side(s["blocks"][names[0]]["image"], s["blocks"][names[1]]["image"]),
        named=2,
    ),
    "block_side": Kind(
        ("left", "right"),
        ("Is the {0} block left or right of the drawer handle?", "On which side of the handle is the {0} block?"),
        lambda s, names: _side(s["blocks"][names[0]]["image"], s["handle_image"]),
        named=1,
        seen=("handle",),
    ),
    "hand_side": Kind(
        ("left", "right"),
        ("Is the robot hand left or right of the drawer handle?", "On which side of the handle is the robot hand?"),
        lambda s, _: _side(s["hand_image"], s["handle_image"]),
        seen=("handle", "hand"),
    ),
    "hand_distance": Kind(
        ("near", "far"),
        ("Is the robot hand near the drawer handle or far from it?", "Is the hand near or far from the handle?"),
        lambda s, _: _two_way(s["hand_to_handle"], 0.13, 0.26, ("near", "far")),
        seen=("handle", "hand"),
    ),
    "gripper": Kind(
        ("open", "closed"),
        ("Is the gripper open or closed?", "Is the robot gripper closed or open?"),
        lambda s, _: _two_way(s["gripper_opening"], 0.15, 0.85, ("closed", "open")),
        seen=("hand",),
    ),
    "nearest_block": Kind(
        tuple(COLOURS),
        ("Which block is nearest to the drawer handle?", "What colour is the block nearest to the handle?"),
        lambda s, _: _nearest_block(s),
        seen=("handle",),
    ),
}
# Share of the picture that has to show: about two thirds of the smallest block, a third of the handle or the hand.
LEAST_SHARE = {"cabinet": 0.03, "handle": 0.0015, "hand": 0.004, "block": 0.005}
