"""A scripted expert for SimplerEnv: where the objects are, seven numbers per step, through the model's own adapter.

It is no measure of how hard a task is. It says that simulator, controller and axes are what a policy takes them for:
who moves by metres, turns by radians and opens by 1 gets done what the task asks.

    take      above the object, turned so that the fingers close across its narrow side; down; close; up
    put on    over the target, down to a centimetre above it, open, up
    put near  the same beside the target, where nothing else stands
    push      in front of the drawer, down, forward to where a shut one is, away

Positions are metres in the robot's frame: x away from it, z up; `simpler/controls.py` reads them in the simulator. It
cannot open drawers: their handles are drawn, but have no shape that collides.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from gen_vla.evaluation.simpler.policy import Robot


UP = np.array([0.0, 0.0, 1.0])
PUT_ON = ("put_spoon_on_towel", "put_carrot_on_plate", "stack_cube", "put_eggplant_in_basket")
KNOWN_TASKS = (*PUT_ON, "pick_coke_can", "move_near", "close_drawer")

ABOVE = 0.10  # metres over a grasp, to come down from and to lift to
CLEAR = 0.03  # between what is carried and what it is carried over
DROP = 0.01  # above what something is put on
TABLE = 0.002  # of the fingers above the table
BESIDE = 0.06  # between two things that are to be near each other: room for a finger
FINGER = 0.02  # of a closed hand beyond what it carries
BEFORE_DRAWER = 0.15  # of the hand from a drawer's front, before it is pushed
DETOUR = 0.005  # metres of a wider grasp that a radian less of turning is worth
ARRIVED, ALIGNED = 0.012, 0.06  # metres, radians
PATIENCE = 25  # steps after which a move is over, arrived or not
STUCK = 0.001  # metres in a step: no posture of the arm was found for so far a goal, and a nearer one is tried


@dataclass(frozen=True)
class Hand:
    """The gripper: the point between its fingers [3], unit vectors [3] out of its palm and from finger to finger, and
    the metres that fingers reach beyond the point."""

    position: np.ndarray
    approach: np.ndarray
    closing: np.ndarray
    reach: float


@dataclass(frozen=True)
class Things:
    """Points on the surfaces [N, 3] of the object to move, of its part that the hand closes on (the one nearest to its
    centre of mass), of its target, if it is not only to be picked up, and of all others."""

    source: np.ndarray
    held: np.ndarray
    target: np.ndarray | None = None
    others: tuple[np.ndarray, ...] = ()

    @property
    def around(self) -> tuple[np.ndarray, ...]:
        return self.others if self.target is None else (self.target, *self.others)


@dataclass(frozen=True)
class Drawer:
    """The middle of its front [3], the unit vector [3] along which it opens, and how far it is open (metres)."""

    front: np.ndarray
    outward: np.ndarray
    opening: float


class Move(NamedTuple):
    """Where the hand goes [3], with open fingers or closed ones, how many steps it takes at least, and the level
    direction [3] from finger to finger it turns to, pointing down; `None` for no turn."""

    goal: np.ndarray
    open: bool
    min_steps: int = 0
    closing: np.ndarray | None = None


class Pace(NamedTuple):
    """A robot's: metres and radians per step at most, share of a distance per step, steps of the fingers, and the
    radians by which its hand points forward where it points down."""

    metres: float
    radians: float
    gain: float
    fingers: int
    lean: float


# The widowx adds up targets, so that its hand comes later than it was sent. The google_robot goes a third of its way
# in a step, repeats a change of its fingers for 15 steps, and cannot point straight down where its hand is high.
PACES: dict[Robot, Pace] = {
    "widowx": Pace(0.03, 0.2, 0.5, 3, 0.0),
    "google_robot": Pace(0.12, 0.4, 1.5, 10, 0.3),
}


# What to do.
def plan(task: str, hand: Hand, things: Things | Drawer, fingers: int) -> list[Move]:
    """The moves of a task of `KNOWN_TASKS`, others raise `ValueError`; `fingers` are steps that these take."""
    if task not in KNOWN_TASKS:
        raise ValueError(f"got the task {task!r}, expected one the expert knows: {', '.join(KNOWN_TASKS)}")
    if isinstance(things, Drawer):
        return push(hand, things)
    if things.target is None:
        return take(hand, things, fingers)
    if task == "move_near":
        return put(hand, things, fingers, *beside(things.source, things.target, things.others))
    return put(hand, things, fingers, middle(things.target)[:2], float(things.target[:, 2].max()))


def take(hand: Hand, things: Things, fingers: int, spot: np.ndarray | None = None) -> list[Move]:
    """Over the object, down, close, up; the hand comes above all other things, and leaves above those on its way to
    `spot` (x, y)."""
    closing, grasp = find_grasp(hand, things)
    highest = max(points[:, 2].max() for points in (things.source, *things.around))
    above = max(grasp[2] + ABOVE, highest + hand.reach + CLEAR)
    over = np.array([*grasp[:2], above])
    lifted = np.array([*grasp[:2], grasp[2] + carried_height(things, spot)])
    return [
        Move(over, True, closing=closing),
        Move(grasp, True, closing=closing),
        Move(grasp, False, fingers, closing),
        Move(lifted, False, closing=closing),
    ]


def put(hand: Hand, things: Things, fingers: int, spot: np.ndarray, ground: float) -> list[Move]:
    """Takes the object and puts its middle on `spot` (x, y), its lower side at the height `ground`."""
    moves = take(hand, things, fingers, spot)
    grasp, lifted, closing = moves[1].goal, moves[-1].goal, moves[0].closing
    aside = np.array([*(spot - middle(things.held)[:2]), 0.0])
    lower = grasp + aside + UP * (ground - things.source[:, 2].min() + DROP)
    return [
        *moves,
        Move(lifted + aside, False, closing=closing),
        Move(lower, False, closing=closing),
        Move(lower, True, fingers, closing),
        Move(lifted + aside, True, closing=closing),
    ]


def push(hand: Hand, drawer: Drawer) -> list[Move]:
    """In front of the drawer as it stands, down to it, forward to where a shut one is, and away."""
    before = drawer.front + BEFORE_DRAWER * drawer.outward
    high = np.array([*before[:2], max(hand.position[2], before[2])])
    back = hand.position + drawer.outward * max(0.0, float((before - hand.position) @ drawer.outward))
    shut = drawer.front - drawer.opening * drawer.outward
    away = shut + BEFORE_DRAWER * drawer.outward
    return [Move(back, True), Move(high, True), Move(before, True), Move(shut, True), Move(away, True)]


def find_grasp(hand: Hand, things: Things) -> tuple[np.ndarray, np.ndarray]:
    """The direction the fingers close along [3], and where the hand goes [3]: across the narrow side, in the middle. A
    little width is given for a shorter turn: a round can is as wide from everywhere."""
    present = np.arctan2(hand.closing[1], hand.closing[0])

    def cost(angle: float) -> float:
        width = np.ptp(things.held[:, :2] @ np.array([np.cos(angle), np.sin(angle)]))
        return float(width) + DETOUR * abs(angle - present)

    angle = min(present + np.linspace(-np.pi / 2, np.pi / 2, 61), key=cost)
    closing = np.array([np.cos(angle), np.sin(angle), 0.0])
    axes = np.stack([np.cross(UP, closing), closing, UP])
    centre = middle(things.held @ axes.T) @ axes
    lowest = things.source[:, 2].min() + hand.reach + TABLE
    return closing, np.array([*centre[:2], max(centre[2], lowest)])


def carried_height(things: Things, spot: np.ndarray | None) -> float:
    """How far to lift, so that the object passes over what stands on its straight way to `spot` (x, y)."""
    start, low = middle(things.source)[:2], things.source[:, 2].min()
    way = np.zeros(2) if spot is None else spot - start
    heights = []
    for other in things.around:
        share = np.clip((middle(other)[:2] - start) @ way / max(way @ way, 1e-9), 0, 1)
        aside = np.linalg.norm(middle(other)[:2] - start - share * way)
        if aside < _radius(other) + _radius(things.source) + FINGER:
            heights.append(other[:, 2].max() - low)
    return max(ABOVE, float(max(heights, default=0.0)) + CLEAR)


def beside(source: np.ndarray, target: np.ndarray, others: tuple[np.ndarray, ...]) -> tuple[np.ndarray, float]:
    """Where to put down beside the target (x, y), and how high: the nearest place where nothing else stands."""
    centre, start = middle(target)[:2], middle(source)[:2]
    distance = _radius(target) + _radius(source) + BESIDE

    def cost(spot: np.ndarray) -> float:
        room = [np.linalg.norm(middle(other)[:2] - spot) - _radius(other) for other in others]
        crowded = max(0.0, _radius(source) + BESIDE - min(room, default=np.inf))
        return float(np.linalg.norm(spot - start) + 10 * crowded)

    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    spots = [centre + distance * np.array([np.cos(angle), np.sin(angle)]) for angle in angles]
    return min(spots, key=cost), float(source[:, 2].min())


def middle(points: np.ndarray) -> np.ndarray:
    """[3] of the box around points [N, 3]."""
    return (points.min(0) + points.max(0)) / 2


def _radius(points: np.ndarray) -> float:
    return float(np.linalg.norm(points[:, :2] - middle(points)[:2], axis=1).max())


# One step of it.
class Script:
    """Goes through moves, at least one, from one `step` to the next; the last is never over."""

    def __init__(self, moves: list[Move], pace: Pace):
        self.moves, self.pace = moves, pace
        self.index = self.steps = 0
        self.before, self.sent, self.share = np.zeros(3), 0.0, 1.0

    def step(self, hand: Hand) -> np.ndarray:
        """The next action, float64 [7]: metres, radians (roll, pitch, yaw), 1 for open fingers."""
        if self.index < len(self.moves) - 1 and self.is_over(hand):
            self.index, self.steps, self.sent = self.index + 1, 0, 0.0
        self.steps += 1
        move = self.moves[self.index]
        stuck = self.sent > 10 * STUCK and np.linalg.norm(hand.position - self.before) < STUCK
        self.share = self.share / 2 if stuck else 1.0
        way = _limited(self.pace.gain * (move.goal - hand.position), self.pace.metres)
        turn = _limited(self.pace.gain * remaining_rotation(hand, move.closing, self.pace.lean), self.pace.radians)
        self.before, self.sent = hand.position, self.share * float(np.linalg.norm(way))
        angles = Rotation.from_rotvec(self.share * turn).as_euler("xyz")
        return np.array([*(self.share * way), *angles, float(move.open)])

    def is_over(self, hand: Hand) -> bool:
        move = self.moves[self.index]
        there = np.linalg.norm(move.goal - hand.position) < ARRIVED
        turned = np.linalg.norm(remaining_rotation(hand, move.closing, self.pace.lean)) < ALIGNED
        return self.steps >= max(move.min_steps, 1) and bool((there and turned) or self.steps >= PATIENCE)


def remaining_rotation(hand: Hand, closing: np.ndarray | None, lean: float = 0.0) -> np.ndarray:
    """The rotation [3] (axis times angle) after which the hand points down, leaning, and closes along `closing`."""
    if closing is None:
        return np.zeros(3)
    down = np.array([np.sin(lean), 0.0, -np.cos(lean)])
    along = closing - (closing @ down) * down
    along = along / np.linalg.norm(along) * (1.0 if along @ hand.closing >= 0 else -1.0)
    now = np.stack([hand.approach, hand.closing, np.cross(hand.approach, hand.closing)], axis=1)
    wanted = np.stack([down, along, np.cross(down, along)], axis=1)
    return Rotation.from_matrix(wanted @ now.T).as_rotvec()


def _limited(vector: np.ndarray, most: float) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector if length <= most else vector * (most / length)
