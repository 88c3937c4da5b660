"""An action as HTML: its string coloured by probability, its values as a table, two models side by side.

Colours run from orange (a guess) over cream to teal (sure): people who see no red or no green can tell them apart, and
dark letters keep a contrast of more than 7 : 1 on all of them. What the format leaves no choice about stays grey.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from policy import DIMENSIONS, PredictedAction
from robot_frames import frame_of, gripper_in_words, in_words


GUESS, EVEN, SURE = (253, 176, 116), (254, 243, 214), (158, 222, 208)  # RGB at probabilities 0, 0.5 and 1
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
ROW_NAMES = ("move x", "move y", "move z", "roll", "pitch", "yaw", "gripper")
MILLI, DEGREES = 1000.0, 180.0 / np.pi
LEGEND = (
    '<div class="legend"><span>a guess</span>'
    f'<i style="background: linear-gradient(to right, rgb{GUESS}, rgb{EVEN}, rgb{SURE})"></i><span>sure</span>'
    '<span><span class="fixed sample">.</span> fixed by the format</span></div>'
    '<p class="hint">Point at a digit, or tap it, to read its probability.</p>'
)


def headline(action: PredictedAction) -> str:
    return f'<p class="sentence">{escape(in_words(action.steps[0], frame_of(action.data_set)))}</p>'


def action_card(action: PredictedAction) -> str:
    """How an action is written, its values, what it cost: one pass may check several guesses."""
    later = f" (the first of {len(action.steps)} steps)" if len(action.steps) > 1 else ""
    return (
        f'<div class="card"><h3>What the model wrote</h3>{action_string(action)}{LEGEND}'
        f"<h3>What it means{later}</h3>{action_table(action)}"
        f'<p class="cost">{seconds(action.milliseconds)} for this action: the language model ran '
        f"{action.forward_passes} times to write {len(action.pieces)} tokens.</p></div>"
    )


def seconds(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def action_string(action: PredictedAction) -> str:
    """The string, token by token; its text content is exactly what the model wrote."""
    owners = value_of_pieces(action)
    values = ["" for _ in range(max(owners, default=-1) + 1)]
    for owner, piece in zip(owners, action.pieces):
        values[owner] += coloured(piece.text, piece.probability, piece.choice)
    named = [
        f'<span class="value" data-name="{DIMENSIONS[index % len(DIMENSIONS)]}">{pieces}</span>'
        for index, pieces in enumerate(values)
    ]
    return f'<div class="action-string" data-testid="action-string">{"".join(named)}</div>'


def coloured(text: str, probability: float, choice: bool) -> str:
    """One token; its probability shows when it is pointed at, or tapped. One that is not 1 is never called 100 %."""
    if not choice:
        return f'<span class="fixed" data-tip="fixed by the format">{escape(text)}</span>'
    percent = "over 99.9 %" if probability >= 0.9995 else f"{100 * probability:.1f} %"
    tip = escape(f"“{text.strip()}”: {percent}")
    style = f"background: {colour(probability)}"
    return f'<span class="chosen" tabindex="-1" data-tip="{tip}" style="{style}">{escape(text)}</span>'


def colour(probability: float) -> str:
    below, above, share = (GUESS, EVEN, 2 * probability) if probability < 0.5 else (EVEN, SURE, 2 * probability - 1)
    return "rgb({}, {}, {})".format(*(round(low + (high - low) * share) for low, high in zip(below, above)))


def value_of_pieces(action: PredictedAction) -> list[int]:
    """Which value each token belongs to: the last one that has begun where the token ends."""
    if len(action.pieces) == action.steps.size:  # one token per value
        return list(range(len(action.pieces)))
    begins = [match.start() for match in NUMBER.finditer("".join(piece.text for piece in action.pieces))]
    ends = np.cumsum([len(piece.text) for piece in action.pieces])
    return [max(sum(begin < end for begin in begins) - 1, 0) for end in ends]


def action_table(action: PredictedAction) -> str:
    """The first step's values, and where they lie in the range of the data set, on an axis drawn from zero."""
    rows = []
    for index, name in enumerate(ROW_NAMES):
        normalized, gripper = float(action.normalized[0, index]), DIMENSIONS[index] == "gripper"
        span = bar(0.0, normalized) if gripper else bar(0.5, (normalized + 1) / 2)
        value = in_units(index, float(action.steps[0, index]))
        rows.append(f"<tr><th scope='row'>{name}</th><td>{value}</td><td>{span}</td></tr>")
    return (
        '<table class="values" data-testid="action-table"><thead><tr><th></th><th scope="col">value</th>'
        '<th scope="col">in the range of the data</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def in_units(index: int, value: float) -> str:
    if index < 3:
        return f"{MILLI * value:+.1f} mm"
    return f"{DEGREES * value:+.1f}°" if index < 6 else f"{value:.2f}, {gripper_in_words(value)}"


def bar(zero: float, place: float) -> str:
    middle = 100 * float(np.clip(place, 0, 1))
    start, end = sorted((100 * zero, middle))
    return (
        f'<div class="bar" aria-hidden="true"><s style="left: {100 * zero:.1f}%"></s>'
        f'<i style="left: {start:.1f}%; width: {end - start:.1f}%"></i>'
        f'<u style="left: {middle:.1f}%"></u></div>'
    )


@dataclass(frozen=True)
class Compared:
    """What one model does on a picture and on its changed copy; `colour` is that of its arrows."""

    name: str
    colour: str
    original: PredictedAction
    changed: PredictedAction


def comparison(models: Sequence[Compared]) -> str:
    cards = []
    for model in models:
        pair = "".join(
            f'<div><p class="where">{where}</p>{headline(action)}{action_string(action)}</div>'
            for where, action in (("on the picture", model.original), ("on the changed copy", model.changed))
        )
        cards.append(
            f'<section data-testid="compared"><h3><i style="background: {model.colour}"></i>{escape(model.name)}'
            f'</h3><p class="apart">{difference(model.original, model.changed)}</p>'
            f'<div class="pair">{pair}</div></section>'
        )
    return f'<div class="card comparison">{"".join(cards)}{LEGEND}</div>'


def difference(original: PredictedAction, changed: PredictedAction) -> str:
    apart = changed.steps[0] - original.steps[0]
    millimetres, degrees = MILLI * np.linalg.norm(apart[:3]), DEGREES * np.linalg.norm(apart[3:6])
    before, after = (gripper_in_words(float(action.steps[0, 6])) for action in (original, changed))
    gripper = f"stays {before}" if before == after else f"is {after} instead of {before}"
    return (
        f"The two movements are <strong>{millimetres:.0f} mm and {degrees:.0f}°</strong> apart; the gripper {gripper}."
    )
