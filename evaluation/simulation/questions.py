"""What is asked about tabletop scenes, and what all recorders of questions share.

`simulation/recording.py` draws scenes until one has the kind of question and the answer that are wanted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gen_vla.evaluation.simulation.layouts import COLOURS, OPEN, SHAPES, SHUT, Layout


CLEAR_SIDE = 0.08  # of the picture's width, that one thing is left of another
CLEARLY_NEARER = 1.3  # times


@dataclass(frozen=True)
class SceneFacts:
    """A scene as a question sees it: image positions (u, v) 0..1 of both objects and of the drawer's handle.

    `asked` is an object that may or may not be there; `first` is the index of the object a question names first.
    """

    layout: Layout
    places: tuple[tuple[float, float], tuple[float, float]]
    handle: tuple[float, float]
    to_handle: tuple[float, float]  # metres of each object
    asked: str
    first: int

    @property
    def names(self) -> dict[str, str]:
        """What a wording's slots hold."""
        first, second = self.layout.objects[self.first], self.layout.objects[1 - self.first]
        names = {"first": first.name, "second": second.name, "colour": first.colour, "shape": first.shape}
        return {**names, "asked": self.asked}


@dataclass(frozen=True)
class QuestionKind:
    """`answer` returns None where a scene leaves room for argument; what it is given is up to the recorder."""

    answers: tuple[str, ...]
    wordings: tuple[str, ...]
    answer: Callable[..., str | None]


def wanted_answer(kinds: dict[str, Any], seed: int) -> tuple[str, str]:
    """The kind and the answer of a seed's question: consecutive seeds take turns over both, so both are balanced."""
    name = list(kinds)[seed % len(kinds)]
    answers = kinds[name].answers
    return name, answers[seed // len(kinds) % len(answers)]


def side_of(subject: tuple[float, float], reference: tuple[float, float]) -> str | None:
    """Left or right as the picture shows it, not as the robot has it."""
    if abs(subject[0] - reference[0]) < CLEAR_SIDE:
        return None
    return "left" if subject[0] < reference[0] else "right"


def _drawer_state(facts: SceneFacts) -> str | None:
    if facts.layout.opening <= SHUT:
        return "closed"
    return "open" if facts.layout.opening >= OPEN / 2 else None


def _nearest(facts: SceneFacts) -> str | None:
    near, far = sorted(facts.to_handle)
    return facts.layout.objects[facts.to_handle.index(near)].colour if far > CLEARLY_NEARER * near else None


KINDS: dict[str, QuestionKind] = {
    "shape": QuestionKind(
        SHAPES,
        ("What is the {colour} object?", "Which kind of object is {colour}?"),
        lambda f: f.layout.objects[f.first].shape,
    ),
    "colour": QuestionKind(
        tuple(COLOURS),
        ("What colour is the {shape}?", "Which colour does the {shape} have?"),
        lambda f: f.layout.objects[f.first].colour,
    ),
    "object_order": QuestionKind(
        ("left", "right"),
        ("Is the {first} left or right of the {second}?", "On which side of the {second} is the {first}?"),
        lambda f: side_of(f.places[f.first], f.places[1 - f.first]),
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
        lambda f: "yes" if f.asked in (thing.name for thing in f.layout.objects) else "no",
    ),
}
