"""Actions as strings: exact spellings, the round trip, and that nothing else is ever read as an action."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_vla.processors import ActionStringError, ActionStringProcessor
from gen_vla.processors.action_strings import STYLES


ACTION = [0.0312, -0.12, 1.0]
SPELLED = {"signed": "+0.0312-0.1200+1.0000", "plain": "0.0312\n-0.1200\n1.0000", "legacy": "0.0312,-0.12,1.0,"}
TWO_STEPS = {
    "signed": "+0.5000-0.5000\n+0.0000+1.0000",
    "plain": "0.5000\n-0.5000\n\n0.0000\n1.0000",
    "legacy": "0.5,-0.5,0.0,1.0,",
}
# What legacy text may hold although `encode` never writes it, and how `encode` writes the same number.
LEGACY_EXTRAS = {"-0.0": "0.0", "1e-04": "0.0001", "-1e-04": "-0.0001"}


@pytest.mark.parametrize("style", STYLES)
def test_spelling_of_one_action_and_of_two_steps(style: str) -> None:
    one = ActionStringProcessor(action_dim=3, style=style)
    two = ActionStringProcessor(action_dim=2, horizon=2, style=style)
    assert one.encode(ACTION) == SPELLED[style]
    assert two.encode([[0.5, -0.5], [0.0, 1.0]]) == TWO_STEPS[style]
    np.testing.assert_array_equal(one.decode(SPELLED[style]), np.array([ACTION], dtype=np.float32))
    np.testing.assert_array_equal(two.decode(TWO_STEPS[style]), np.array([[0.5, -0.5], [0.0, 1.0]], np.float32))
    assert one.decode(SPELLED[style]).dtype == np.float32


@pytest.mark.parametrize("style", STYLES)
def test_values_that_round_to_zero_lose_their_sign(style: str) -> None:
    strings = ActionStringProcessor(action_dim=1, style=style)
    zero = strings.encode([0.0])
    for value in (-0.0, -0.00004, 0.00004, -1e-30):
        assert strings.encode([value]) == zero
    assert strings.encode([-0.00006]).startswith("-0.0001")
    assert not np.signbit(strings.decode(zero)).any()


def edge_actions(count: int, action_dim: int) -> np.ndarray:
    """Actions of which a third of the values are edges: zeros, ends, ties of the rounding, next to the ends."""
    rng = np.random.default_rng(7)
    edges = [0.0, -0.0, 1.0, -1.0, 0.5, 5e-5, -5e-5, 1e-4, -1e-4, 0.99995, -0.99995, 0.1, -0.9, 1e-9, 0.9999, 0.00015]
    values = rng.uniform(-1.0, 1.0, (count, action_dim))
    return np.where(rng.random(values.shape) < 1 / 3, rng.choice(edges, values.shape), values)


@pytest.mark.parametrize("style", STYLES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_round_trip_for_every_shape(style: str, data: st.DataObject) -> None:
    dims, horizon = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    decimals = data.draw(st.integers(1, 5))
    strings = ActionStringProcessor(dims, horizon, decimals, style)
    chunk = data.draw(st.lists(st.floats(-1.0, 1.0, width=32), min_size=dims * horizon, max_size=dims * horizon))
    text = strings.encode(np.reshape(chunk, (horizon, dims)))
    decoded = strings.decode(text)
    assert decoded.shape == (horizon, dims)
    assert np.abs(decoded.ravel() - chunk).max() <= 0.5 * 10.0**-decimals + 1e-7
    assert strings.encode(decoded) == text


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("decimals", [1, 2, 4])
def test_the_automaton_reads_exactly_what_encode_writes(style: str, decimals: int) -> None:
    strings = ActionStringProcessor(action_dim=1, decimals=decimals, style=style)
    scale = 10**decimals
    written = {strings.encode([value / scale]) for value in range(-scale, scale + 1)}
    readable = set()
    pending = [("", 0)]
    while pending:
        text, state = pending.pop()
        if state == strings.automaton.final:
            readable.add(text)
        pending += [(text + character, target) for character, target in strings.automaton.edges[state].items()]
    extras = set()
    if style == "legacy":
        extras = {"-0.0,", "1e-04,", "-1e-04,"} if decimals >= 4 else {"-0.0,"}
    assert len(written) == 2 * scale + 1
    assert readable - written == extras
    assert written <= readable


def test_legacy_reads_what_the_released_checkpoint_may_write() -> None:
    strings = ActionStringProcessor(action_dim=3, style="legacy")
    decoded = strings.decode("1e-04,-0.0,-1e-04,")
    np.testing.assert_array_equal(decoded, np.array([[1e-4, 0.0, -1e-4]], dtype=np.float32))
    assert not np.signbit(decoded[0, 1])
    assert strings.encode(decoded) == "0.0001,0.0,-0.0001,"
    for text in ("1e-05,0.0,0.0,", "2e-04,0.0,0.0,", "1e-04,0.0,0.0", "0.10,0.0,0.0,", "1.,0.0,0.0,", "0.00,0.0,0.0,"):
        with pytest.raises(ActionStringError):
            strings.decode(text)


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("", 0, "'+' '-'"),
        ("0.0312-0.1200", 0, "'+' '-'"),
        ("+2.0312-0.1200", 1, "'0' '1'"),
        ("+0,0312-0.1200", 2, "'.'"),
        ("+0.031-0.1200", 6, "'0' '1' '2'"),
        ("+1.0001-0.1200", 6, "'0'"),
        ("+0.0312-0.0000", 13, "'1' '2'"),
        ("+0.0312-0.1200 ", 14, "the end of the text"),
        ("+0.0312-0.120", 13, "'0' '1' '2'"),
        ("+0.0312-0.12٣0", 12, "'0' '1' '2'"),
        ("+0.0312−0.1200", 7, "'+' '-'"),  # noqa: RUF001  # a typographic minus is the point
    ],
)
def test_the_error_says_where_and_what(text: str, position: int, expected: str) -> None:
    strings = ActionStringProcessor(action_dim=2)
    with pytest.raises(ActionStringError) as caught:
        strings.decode(text)
    assert caught.value.position == position
    assert expected in str(caught.value.expected)
    assert f"at position {position} of" in str(caught.value)
    assert isinstance(caught.value, ValueError)


CHARACTERS = st.one_of(
    st.sampled_from(list("0123456789+-.,e\n \t")),
    st.sampled_from(list("٣३０−＋，．E\u00a0\u200b\r\0")),  # noqa: RUF001  # digits, signs and spaces of other scripts
    st.characters(),
)


@pytest.mark.parametrize("style", STYLES)
@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_a_changed_string_is_refused_or_is_another_valid_one(style: str, data: st.DataObject) -> None:
    horizon = data.draw(st.integers(1, 2))
    strings = ActionStringProcessor(action_dim=3, horizon=horizon, style=style, binary_dims=(2,))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    chunk = rng.uniform(-1.0, 1.0, (horizon, 3))
    chunk[:, 2] = rng.integers(0, 2, horizon)
    text = strings.encode(chunk)
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.integers(0, len(text)))
        kind = data.draw(st.sampled_from(["insert", "delete", "replace", "swap", "cut", "double", "case"]))
        character = data.draw(CHARACTERS)
        text = {
            "insert": text[:place] + character + text[place:],
            "delete": text[:place] + text[place + 1 :],
            "replace": text[:place] + character + text[place + 1 :],
            "swap": text[:place] + text[place : place + 2][::-1] + text[place + 2 :],
            "cut": text[:place],
            "double": text + text[:place],
            "case": text.upper(),
        }[kind]
    try:
        decoded = strings.decode(text)
    except ActionStringError:
        return
    assert decoded.shape == (horizon, 3)
    assert np.abs(decoded).max() <= 1.0
    spelled = ",".join(LEGACY_EXTRAS.get(value, value) for value in text.split(",")) if style == "legacy" else text
    assert strings.encode(decoded) == spelled


@pytest.mark.parametrize("text", [None, 3.0, b"+0.0312", ["+0.0312"]])
def test_only_text_is_decoded(text: object) -> None:
    with pytest.raises(ActionStringError, match=f"got {type(text).__name__}, expected an action string"):
        ActionStringProcessor(action_dim=1).decode(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_raise(bad: float) -> None:
    strings = ActionStringProcessor(action_dim=2, horizon=2)
    with pytest.raises(ActionStringError, match=f"got {bad} in step 1, dimension 0, expected a finite number"):
        strings.encode([[0.0, 0.0], [bad, 0.0]])


@pytest.mark.parametrize(
    ("horizon", "shape", "message"),
    [
        (1, (3,), r"shape \[3\], expected \[2\] or \[1, 2\]"),
        (1, (2, 2), r"shape \[2, 2\], expected \[2\] or \[1, 2\]"),
        (1, (), r"shape \[\], expected \[2\]"),
        (2, (2,), r"shape \[2\], expected \[2, 2\]"),
        (2, (1, 2, 2), r"shape \[1, 2, 2\], expected \[2, 2\]"),
    ],
)
def test_another_shape_raises(horizon: int, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ActionStringError, match=message):
        ActionStringProcessor(action_dim=2, horizon=horizon).encode(np.zeros(shape))


def test_values_outside_the_range_are_clipped_and_counted_per_dimension() -> None:
    strings = ActionStringProcessor(action_dim=3)
    assert strings.encode([1.5, -7.0, 1.0]) == "+1.0000-1.0000+1.0000"
    assert strings.encode([1.00001, 0.0, -1.0]) == "+1.0000+0.0000-1.0000"
    assert strings.clipped.tolist() == [2, 1, 0]
    chunks = ActionStringProcessor(action_dim=1, horizon=3)
    chunks.encode([[2.0], [0.0], [-2.0]])
    assert chunks.clipped.tolist() == [2]


@pytest.mark.parametrize(("style", "open_text", "closed"), [("signed", "+1.0", "+0.0"), ("legacy", "1.0,", "0.0,")])
def test_binary_dimensions_hold_zero_or_one(style: str, open_text: str, closed: str) -> None:
    strings = ActionStringProcessor(action_dim=2, decimals=1, style=style, binary_dims=[1])
    first = strings.encode([0.5, 0.0]).removesuffix(closed)
    assert strings.encode([0.5, 1.0]) == first + open_text
    assert strings.encode([0.5, 1.0 - 1e-6]) == first + open_text
    for value in (0.5, -1.0, 2.0):
        with pytest.raises(ActionStringError, match=f"got {value:g} in dimension 1, expected 0 or 1"):
            strings.encode([0.5, value])
    for wrong in (closed.replace("0.0", "0.5"), closed.replace("0.0", "-1.0").replace("+-", "-")):
        with pytest.raises(ActionStringError):
            strings.decode(first + wrong)


def test_settings_are_checked_and_travel_in_the_action_config() -> None:
    with pytest.raises(ValueError, match="got style='sign', expected one of 'signed', 'plain', 'legacy'"):
        ActionStringProcessor(style="sign")
    for name in ("action_dim", "horizon", "decimals"):
        for value in (0, -1, 2.0, True):
            wrong: dict[str, Any] = {name: value}
            with pytest.raises(ValueError, match=f"got {name}={value}, expected an integer of at least 1"):
                ActionStringProcessor(**wrong)
    with pytest.raises(ValueError, match=r"got binary_dims=\[7\], expected dimensions from 0 to 6"):
        ActionStringProcessor(binary_dims=[7])
    saved = {"action_dim": 2, "horizon": 3, "decimals": 2, "style": "plain", "binary_dims": [1], "lead_in": "\n"}
    strings = ActionStringProcessor.from_action_config(saved)
    assert (strings.action_dim, strings.horizon, strings.decimals) == (2, 3, 2)
    assert (strings.style, strings.binary_dims, strings.lead_in) == ("plain", (1,), "\n")
    with pytest.raises(ValueError, match="without decimals, style"):
        ActionStringProcessor.from_action_config({"action_dim": 2, "horizon": 1, "binary_dims": []})


@given(text=st.one_of(st.text(max_size=30), st.text(alphabet="+-.,e01234567890\n ", max_size=24)))
@settings(max_examples=300, deadline=None)
def test_random_text_is_never_an_action(text: str) -> None:
    for style in STYLES:
        with pytest.raises(ActionStringError):
            ActionStringProcessor(action_dim=7, style=style).decode(text)
