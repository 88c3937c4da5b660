"""What is asked about tabletop scenes, and the one answer to each question.

`recording/questions.py` draws scenes until one has the kind of question and the answer that are wanted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gen_vla.evaluation.simulation.layouts import COLOURS, OPEN, SHAPES, SHUT
from gen_vla.evaluation.simulation.still_scenes import MOST_THINGS, StillScene


CLEAR_SIDE = 0.08  # of the picture's width, that one thing is left of another
CLEARLY_NEARER = 1.3  # times

Place = tuple[float, float]


@dataclass(frozen=True)
class SceneFacts:
    """A scene as a question sees it: image positions (u, v) 0..1 of all things, of the drawer's handle, and of the
    middle between the gripper's fingertips.

    `asked` is an object that may or may not be there; `first` and `second` are the indices of the things a question
    names.
    """

    scene: StillScene
    places: tuple[Place, ...]
    handle: Place
    gripper: Place
    to_handle: tuple[float, ...]  # metres of each thing
    asked: str
    first: int
    second: int

    @property
    def names(self) -> dict[str, str]:
        """What a wording's slots hold."""
        first, second = self.scene.things[self.first], self.scene.things[self.second]
        names = {"first": first.name, "second": second.name, "colour": first.colour, "shape": first.shape}
        return {**names, "asked": self.asked}


@dataclass(frozen=True)
class QuestionKind:
    """`answer` returns None where a scene leaves room for argument; no `answers` if they are numbers without end."""

    answers: tuple[str, ...]
    wordings: tuple[str, ...]
    answer: Callable[..., str | None]


def wanted_answer(kinds: dict[str, Any], seed: int) -> tuple[str, str | None]:
    """The kind and the answer of a seed's question, None for any.

    Consecutive seeds take turns over both, so both are balanced.
    """
    name = list(kinds)[seed % len(kinds)]
    answers = kinds[name].answers
    return name, answers[seed // len(kinds) % len(answers)] if answers else None


def format_point(place: Place) -> str:
    """`[(0.42, 0.61)]`, as RoboPoint writes a point: from the picture's left and top, of its width and height."""
    return "[({:.2f}, {:.2f})]".format(*place)


def format_offset(to: Place, start: Place) -> str:
    """`[(+0.12, -0.05)]`: how far right and down `to` is of `start`, of the picture's width and height."""
    return f"[({to[0] - start[0]:+.2f}, {to[1] - start[1]:+.2f})]"


def side_of(subject: Place, reference: Place) -> str | None:
    """Left or right as the picture shows it, not as the robot has it."""
    if abs(subject[0] - reference[0]) < CLEAR_SIDE:
        return None
    return "left" if subject[0] < reference[0] else "right"


def _only(facts: SceneFacts, asked: str, told: str) -> str | None:
    """What `asked` ("shape") is of the only thing that has the named one's `told` ("colour")."""
    thing = facts.scene.things[facts.first]
    alike = [other for other in facts.scene.things if getattr(other, told) == getattr(thing, told)]
    return getattr(thing, asked) if len(alike) == 1 else None


def _drawer_state(facts: SceneFacts) -> str | None:
    if facts.scene.opening <= SHUT:
        return "closed"
    return "open" if facts.scene.opening >= OPEN / 2 else None


def _gripper(facts: SceneFacts, answer: str) -> str | None:
    return answer if min(facts.gripper) > 0.0 and max(facts.gripper) < 1.0 else None


def _nearest(facts: SceneFacts) -> str | None:
    near, far = sorted(facts.to_handle)[:2]
    return facts.scene.things[facts.to_handle.index(near)].colour if far > CLEARLY_NEARER * near else None


KINDS: dict[str, QuestionKind] = {
    "shape": QuestionKind(
        SHAPES,
        ("What is the {colour} object?", "Which kind of object is {colour}?"),
        lambda f: _only(f, "shape", "colour"),
    ),
    "colour": QuestionKind(
        tuple(COLOURS),
        ("What colour is the {shape}?", "Which colour does the {shape} have?"),
        lambda f: _only(f, "colour", "shape"),
    ),
    "object_order": QuestionKind(
        ("left", "right"),
        ("Is the {first} left or right of the {second}?", "On which side of the {second} is the {first}?"),
        lambda f: side_of(f.places[f.first], f.places[f.second]),
    ),
    "drawer_side": QuestionKind(
        ("left", "right"),
        ("Is the {first} left or right of the drawer handle?", "On which side of the handle is the {first}?"),
        lambda f: side_of(f.places[f.first], f.handle),
    ),
    "nearest": QuestionKind(
        tuple(COLOURS),
        ("What colour is the object nearest to the drawer handle?", "Which colour is nearest to the drawer handle?"),
        _nearest,
    ),
    "drawer_state": QuestionKind(
        ("open", "closed"), ("Is the drawer open or closed?", "Is the drawer closed or open?"), _drawer_state
    ),
    "presence": QuestionKind(
        ("yes", "no"),
        ("Is there a {asked} on the table?", "Do you see a {asked}?"),
        lambda f: "yes" if f.asked in (thing.name for thing in f.scene.things) else "no",
    ),
    "count": QuestionKind(
        tuple(str(number) for number in range(2, MOST_THINGS + 1)),
        ("How many objects are there?", "How many objects do you see?"),
        lambda f: str(len(f.scene.things)),
    ),
    "point": QuestionKind(
        (),
        ("Point to the {first}.", "Where is the {first}?"),
        lambda f: format_point(f.places[f.first]),
    ),
    "gripper": QuestionKind(
        (),
        ("Point to the gripper.", "Where is the gripper?"),
        lambda f: _gripper(f, format_point(f.gripper)),
    ),
    "gripper_offset": QuestionKind(
        (),
        ("How far is the {first} from the gripper?", "How far does the gripper have to go to the {first}?"),
        lambda f: _gripper(f, format_offset(f.places[f.first], f.gripper)),
    ),
}
