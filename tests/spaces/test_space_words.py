"""The Space's words and numbers: directions, units, colours, and HTML whose text is what the model wrote."""

import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from action_html import action_card, action_string, action_table, difference, in_units, seconds, value_of_pieces
from policy import Piece, PredictedAction
from robot_frames import RobotFrame, direction, frame_of, in_words, rotation_matrix


TEXT = "+0.5000-0.2500+0.0000+0.0000+0.0000-1.0000+1.0000"


def predicted(text: str = TEXT, values: list[float] | None = None) -> PredictedAction:
    """An action in signed style, every character a token with probability 0.75 but for the points."""
    step = np.array([values or [0.03, -0.01, 0.0, 0.0, 0.0, -0.2, 1.0]], dtype=np.float32)
    pieces = tuple(Piece(character, 0.75, character != ".") for character in text)
    return PredictedAction(text, pieces, step, step, "bridge_orig", 83.4, 13)


def text_of(html: str) -> str:
    return unescape(re.sub("<[^>]+>", "", html))


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ([0.03, 0.0, 0.0, 0, 0, 0, 1.0], "The hand moves 30 mm forward, and the gripper is open."),
        ([0.0, -0.02, 0.0, 0, 0, 0.1, 0.0], "The hand moves 20 mm right, turns 6°, and the gripper is closed."),
        ([-0.01, 0.0, -0.02, 0, 0, 0, 0.5], "The hand moves 22 mm down and back, and the gripper is half open."),
        ([0.02, 0.02, 0.011, 0, 0, 0, 1.0], "The hand moves 30 mm forward, left and up, and the gripper is open."),
        ([0.0004, 0, 0, 0, 0, 0, 1.0], "The hand stays where it is, and the gripper is open."),
    ],
)
def test_an_action_in_words(action, words):
    assert in_words(np.array(action), RobotFrame()) == words


def test_words_follow_the_data_set():
    right = np.array([0.03, 0.0, 0.0])
    names = ("tabletop", "bridge_orig", "never_heard_of")
    assert [direction(right, frame_of(name)) for name in names] == ["right", "forward", "forward"]


def test_axes_on_the_picture():
    """The usual camera looks along +x and down by 35 degrees: x goes up the picture, y to its left, z up."""
    places = RobotFrame().on_picture(np.eye(3))
    sine, cosine = np.sin(np.deg2rad(35)), np.cos(np.deg2rad(35))
    np.testing.assert_allclose(places, [[0, -sine], [-1, 0], [0, -cosine]], atol=1e-12)
    x, y, _ = frame_of("tabletop").on_picture(np.eye(3))
    assert x[0] > 0.4 < y[0]
    assert x[1] > 0 > y[1]  # +x runs right and nearer, +y right and away


def test_the_simulator_s_camera_is_the_space_s():
    looks = pytest.importorskip("gen_vla.evaluation.simulation.looks", reason="no simulator; gen-vla[sim]")
    frame, camera = frame_of("tabletop"), looks.HOME.camera
    assert (frame.azimuth, frame.elevation) == (camera.azimuth, camera.elevation)


def test_rotations_are_about_fixed_axes():
    quarter = np.pi / 2
    np.testing.assert_allclose(rotation_matrix(np.array([0, 0, quarter])) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation_matrix(np.array([quarter, 0, quarter])) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(rotation_matrix(np.array([0, quarter, quarter])) @ [0, 0, 1], [0, 1, 0], atol=1e-12)


def test_the_string_s_text_is_what_the_model_wrote():
    html = action_string(predicted())
    assert text_of(html) == TEXT
    assert re.findall(r'data-name="(\w+)"', html) == ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    assert html.count('class="chosen"') == 42
    assert html.count('class="fixed"') == 7
    assert "“5”: 75.0 %" in html


@pytest.mark.parametrize(
    ("pieces", "owners"),
    [
        (list("+0.12-1.00"), [0] * 5 + [1] * 5),
        (list("0.1\n-0.2"), [0] * 4 + [1] * 4),
        (["0", ".", "1", ",-", "0", ".", "2", ","], [0, 0, 0, 1, 1, 1, 1, 1]),  # a token that ends one and begins one
        (["128", "7", "0", "255", "9", "3", "1"], [0, 1, 2, 3, 4, 5, 6]),  # bins
    ],
    ids=["signed", "plain", "legacy", "bins"],
)
def test_which_value_a_token_belongs_to(pieces, owners):
    tokens = tuple(Piece(piece, 1.0, True) for piece in pieces)
    assert value_of_pieces(replace(predicted(), pieces=tokens)) == owners


def test_markup_in_tokens_stays_text():
    action = replace(predicted(), pieces=(Piece("<b>", 0.5, True), *predicted().pieces))
    assert "<b>" not in action_string(action).replace("<b style", "")
    assert "&lt;b&gt;" in action_string(action)


def test_values_in_units():
    assert [in_units(0, 0.0123), in_units(3, -0.1)] == ["+12.3 mm", "-5.7°"]
    grippers = [in_units(6, opening) for opening in (0.0, 0.5, 1.0)]
    assert grippers == ["0.00, closed", "0.50, half open", "1.00, open"]
    rows = action_table(predicted()).split("<tr>")[2:]
    assert len(rows) == 7
    assert "+30.0 mm" in rows[0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "0 mm and 0° apart; the gripper stays open."),
        ([0.0, 0.03, 0.0, 0.0, 0.0, -0.2, 0.0], "50 mm and 0° apart; the gripper is closed instead of open."),
    ],
)
def test_how_far_two_actions_are_apart(values, words):
    assert text_of(difference(predicted(), predicted(values=values))) == f"The two movements are {words}"


def test_a_card_says_times_passes_and_further_steps():
    assert [seconds(t) for t in (83.4, 1234.0)] == ["83 ms", "1.2 s"]
    card = action_card(predicted())
    assert "83 ms for this action: the language model ran 13 times to write 49 tokens" in card
    assert "steps)" not in card
    steps = np.repeat(predicted().steps, 3, axis=0)
    assert "the first of 3 steps" in action_card(replace(predicted(), steps=steps))
