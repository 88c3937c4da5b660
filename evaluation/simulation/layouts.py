"""Tasks of the tabletop: what stands where, what the robot is asked to do, and when it is done.

Every scene holds a half-open drawer and two objects, so all four tasks start from the same pictures and six
instructions fit each of them: only the instruction says what to do. A task counts as done when it has been so at the
ends of HELD_STEPS policy steps in a row, so that a thing that flies past does not count.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np


Task = Literal["pick_object", "move_near", "open_drawer", "close_drawer"]
TASKS: tuple[Task, ...] = get_args(Task)
MAX_STEPS: dict[Task, int] = {"pick_object": 40, "move_near": 60, "open_drawer": 40, "close_drawer": 40}

TRAIN_SEEDS = range(0, 1_000_000)
EVALUATION_SEEDS = range(1_000_000, 2_000_000)
assert TRAIN_SEEDS.stop <= EVALUATION_SEEDS.start, "a layout must never be both trained on and judged"

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.12),
    "green": (0.12, 0.58, 0.22),
    "blue": (0.12, 0.32, 0.86),
    "yellow": (0.98, 0.80, 0.10),
    "purple": (0.55, 0.22, 0.74),
}
SHAPES = ("can", "bottle", "mug", "block", "ball", "sponge")
NEW_WORDS = {"yellow", "purple", "mug", "sponge"}  # of things that questions show, and demonstrations can leave out

# All metres, in Meta-World's frame: the robot stands at the origin and reaches along +y, +x is to its right.
DRAWER_X, DRAWER_Y = (0.20, 0.26), (0.86, 0.9)  # |x|; the side is drawn
OPEN_FRACTION = (0.35, 0.65)
OBJECT_X, OBJECT_Y = (-0.22, 0.22), (0.52, 0.76)
DRAWER_CLEARANCE = (
    0.19  # between a drawer's x and an object's: the drawer and the hand that moves it sweep this ground
)
LEAST_DISTANCE = 0.15  # between the objects: "near" has to be earned

GRASP_HEIGHT = 0.038  # metres from the table to an object's origin, where the fingers take it
DRAWS = 512  # of places at once, of which the first that fits is taken; one in three fits

# When a task is done.
HELD_STEPS = 2  # policy steps in a row
OPEN, SHUT = 0.9, 0.05  # of the drawer's way
LIFTED = 0.05  # metres above where it stood
IN_HAND = 0.06  # metres from the fingertips
LEFT_ALONE = 0.04  # metres: the object that was not named first may have moved this much
NEAR = 0.13  # metres between the middles of two objects
MOVED = 0.05  # metres: the least way of an object that was to be moved
SET_DOWN = 0.015  # metres above where it stood


@dataclass(frozen=True)
class TableObject:
    """One thing: what it is, where it stands (metres, radians), how high above the table, and of how many sizes."""

    colour: str
    shape: str
    x: float
    y: float
    yaw: float
    z: float = 0.0
    size: float = 1.0

    @property
    def name(self) -> str:
        """What the instruction calls it: always colour and shape."""
        return f"{self.colour} {self.shape}"

    @property
    def middle(self) -> np.ndarray:
        """float [3], metres: where the fingers take it."""
        return np.array([self.x, self.y, self.z + GRASP_HEIGHT * self.size])


@dataclass(frozen=True)
class Layout:
    """A scene: the drawer's (x, y) and open fraction, two objects, and which of them the instruction names first."""

    drawer: tuple[float, float]
    opening: float
    objects: tuple[TableObject, TableObject]
    source: int

    @property
    def words(self) -> set[str]:
        """Colours and shapes of both objects."""
        return {word for thing in self.objects for word in (thing.colour, thing.shape)}

    def digest(self) -> str:
        """Equal for layouts that agree to the millimetre, and for no others."""
        flat = [*self.drawer, self.opening, self.source, *(v for o in self.objects for v in asdict(o).values())]
        rounded = [round(value, 3) if isinstance(value, float) else value for value in flat]
        return hashlib.sha256(json.dumps(rounded).encode()).hexdigest()[:16]


def sample_layout(seed: int) -> Layout:
    """The layout of a seed, the same for every task; raises `ValueError` if the seed is neither for training nor for
    evaluation."""
    if seed not in TRAIN_SEEDS and seed not in EVALUATION_SEEDS:
        raise ValueError(f"got seed {seed}, expected one in {TRAIN_SEEDS} or {EVALUATION_SEEDS}")
    return draw_layout(np.random.default_rng([seed, 1]))


def draw_layout(rng: np.random.Generator) -> Layout:
    side = rng.choice((-1.0, 1.0))
    drawer = (float(side * rng.uniform(*DRAWER_X)), float(rng.uniform(*DRAWER_Y)))
    opening = float(rng.uniform(*OPEN_FRACTION))
    colours, shapes = rng.permutation(list(COLOURS))[:2], rng.permutation(SHAPES)[:2]
    spots = place_objects(rng, drawer[0])
    first, second = (
        TableObject(str(colour), str(shape), x, y, float(rng.uniform(-0.25, 0.25)))
        for colour, shape, (x, y) in zip(colours, shapes, spots, strict=True)
    )
    return Layout(drawer, opening, (first, second), int(rng.integers(2)))


def place_objects(rng: np.random.Generator, drawer_x: float) -> list[tuple[float, float]]:
    """Spots (x, y) of two objects, clear of each other and of the ground that the drawer sweeps."""
    spots = table_spots(rng, (DRAWS, 2), drawer_x)
    clear = np.linalg.norm(spots[:, 0] - spots[:, 1], axis=1) >= LEAST_DISTANCE
    if not clear.any():
        raise ValueError(
            f"got no room for two objects {LEAST_DISTANCE} m apart beside a drawer at x {drawer_x}, expected some in "
            f"{DRAWS} draws; check OBJECT_X, OBJECT_Y and DRAWER_CLEARANCE"
        )
    return [(float(x), float(y)) for x, y in spots[clear.argmax()]]


def table_spots(rng: np.random.Generator, shape: tuple[int, ...], drawer_x: float) -> np.ndarray:
    """Spots float [*shape, 2] (x, y), uniform over the ground beside the drawer where hand and objects work."""
    low, high = OBJECT_X
    low, high = (
        (low, min(high, drawer_x - DRAWER_CLEARANCE))
        if drawer_x > 0
        else (max(low, drawer_x + DRAWER_CLEARANCE), high)
    )
    return np.stack([rng.uniform(low, high, shape), rng.uniform(*OBJECT_Y, shape)], axis=-1)


@dataclass(frozen=True)
class Goal:
    """What an instruction asks for; `source` is the index of the object it names first (drawers: unused)."""

    task: Task
    source: int

    def instruction(self, layout: Layout) -> str:
        source, target = layout.objects[self.source], layout.objects[1 - self.source]
        if self.task == "pick_object":
            return f"pick up the {source.name}"
        if self.task == "move_near":
            return f"move the {source.name} near the {target.name}"
        return "open the drawer" if self.task == "open_drawer" else "close the drawer"


GOALS = tuple(Goal(task, source) for task in TASKS for source in ((0, 1) if task in TASKS[:2] else (0,)))


def goal_of(task: Task, seed: int) -> Goal:
    return Goal(task, sample_layout(seed).source if task in ("pick_object", "move_near") else 0)


def other_instruction(task: str, seed: int) -> str:
    """The opposite of what a task asks for in the layout of a seed: the other object, the other way of the drawer."""
    layout = sample_layout(seed)
    other = {"open_drawer": "close_drawer", "close_drawer": "open_drawer"}.get(task, task)
    return next(g for g in GOALS if g.task == other and (other != task or g.source != layout.source)).instruction(
        layout
    )


@dataclass(frozen=True)
class SceneState:
    """A moment: open fraction 0..1; objects and where they started float [2, 3], fingertips [3], metres."""

    opening: float
    objects: np.ndarray
    starts: np.ndarray
    fingertips: np.ndarray


def is_done(goal: Goal, state: SceneState) -> bool:
    if goal.task == "open_drawer":
        return state.opening >= OPEN
    if goal.task == "close_drawer":
        return state.opening <= SHUT
    source, other = goal.source, 1 - goal.source
    moved = np.linalg.norm(state.objects - state.starts, axis=1)
    risen = state.objects[source, 2] - state.starts[source, 2]
    if moved[other] > LEFT_ALONE:
        return False
    if goal.task == "pick_object":
        return bool(risen >= LIFTED and np.linalg.norm(state.fingertips - state.objects[source]) <= IN_HAND)
    apart = np.linalg.norm(state.objects[source, :2] - state.objects[other, :2])
    return bool(apart <= NEAR and moved[source] >= MOVED and risen <= SET_DOWN)


def layout_digests(seeds: Iterable[int]) -> set[str]:
    return {sample_layout(seed).digest() for seed in seeds}


def check_unseen(seeds: Iterable[int], trained: Iterable[str]) -> None:
    """Raises `ValueError` unless all seeds are for evaluation and none has a layout whose digest is in `trained`."""
    seeds = list(seeds)
    others = [seed for seed in seeds if seed not in EVALUATION_SEEDS]
    if others or not seeds:
        raise ValueError(f"got seeds {others[:5]}, expected at least one and all in {EVALUATION_SEEDS}")
    shared = layout_digests(seeds) & set(trained)
    if shared:
        raise ValueError(
            f"got {len(shared)} layouts to judge that were trained on ({sorted(shared)[:3]}), expected none; "
            "record the training data again with seeds of TRAIN_SEEDS"
        )
