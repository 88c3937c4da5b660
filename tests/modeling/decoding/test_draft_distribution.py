"""What is expected of the next action."""

import itertools

import numpy as np
import pytest
import torch

from gen_vla.modeling.action_bins import ActionBins
from gen_vla.modeling.action_grammar import ActionGrammar, BinGrammar
from gen_vla.modeling.action_strings import ActionStringProcessor
from gen_vla.modeling.draft_distribution import (
    END_MASS,
    GRID,
    DraftDistribution,
    draft_distributions,
    previous_per_row,
)


PIECES = {character: number for number, character in enumerate("0123456789+-.", start=3)}
HISTOGRAM = [[0, 2, 9, 4, 1, 0, 3, 5]]


def grammar_of(decimals: int) -> ActionGrammar:
    return ActionGrammar(ActionStringProcessor(1, 1, decimals), PIECES, eos_token_id=2)


def test_a_histogram_edited_in_place_is_another_one():
    counts = [list(HISTOGRAM[0])]
    before = DraftDistribution(grammar_of(3), counts).mass(0, 0.5, 1.0)
    assert DraftDistribution(grammar_of(3), counts).mass(0, 0.5, 1.0) == before
    counts[0][7] = 100
    assert DraftDistribution(grammar_of(3), counts).mass(0, 0.5, 1.0) > 2 * before


def test_masses_of_all_bins_are_those_of_each():
    bins = ActionBins(1, 1, bins=16)
    grammar = BinGrammar(bins, bin_tokens_end=60, eos_token_id=2)
    draft = DraftDistribution(grammar, HISTOGRAM, np.array([[0.4]]))
    masses = draft.masses(0, np.append(bins.edges, 1.0))
    each = [draft.mass(0, low, high) for low, high in itertools.pairwise(bins.edges)]
    np.testing.assert_allclose(masses[:-2], each[:-1], rtol=1e-12)
    assert masses[-2] + masses[-1] == pytest.approx(each[-1])  # 1 itself has a bin of its own
    assert masses[-1] == pytest.approx(END_MASS)
    assert masses.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("previous", [-1.0, -0.6004, 0.0, 0.25, 1.0, 3.0])
def test_the_previous_action_is_where_the_next_is_expected(previous):
    """The peak lies on the grid point next to it, is as high on both sides and falls with the distance."""
    draft = DraftDistribution(grammar_of(3), None, np.array([[previous]]))
    inner = np.diff(draft.cumulative[0])[1:-1]
    centre = int(np.rint((np.clip(previous, -1, 1) + 1) * GRID))
    left, right = inner[:centre][::-1], inner[centre:]
    assert (np.diff(left) < 0).all()
    assert (np.diff(right) < 0).all()
    both = min(len(left), len(right))
    np.testing.assert_allclose(left[:both], right[:both], rtol=1e-9)


def test_a_previous_action_that_is_no_number_is_no_error():
    assert DraftDistribution(grammar_of(3), None, np.array([[np.nan]])).mass(0, -1.0, 1.0) == pytest.approx(1.0)


def test_hints_of_a_batch_where_an_episode_begins():
    grammar = ActionGrammar(ActionStringProcessor(3, 2, 2), PIECES, eos_token_id=2)
    actions = np.linspace(-1, 1, 12).reshape(2, 2, 3)
    for previous in (actions, list(actions), torch.tensor(actions), torch.tensor(actions, dtype=torch.bfloat16)):
        found = [previous for previous in previous_per_row(grammar, previous, rows=2) if previous is not None]
        np.testing.assert_allclose(np.stack(found), actions, atol=1e-2)
    first, second = previous_per_row(grammar, [None, actions[1]], rows=2)
    assert first is None
    assert second is not None
    assert previous_per_row(grammar, None, rows=3) == [None] * 3
    one, other, third = draft_distributions(grammar, [HISTOGRAM * 3, HISTOGRAM * 3, None], [None, actions[0], None])
    assert len({id(one), id(other), id(third)}) == 3
    same = HISTOGRAM * 3
    assert len({id(draft) for draft in draft_distributions(grammar, [same, same], [None, None])}) == 1


@pytest.mark.parametrize(("shape", "horizon"), [((1, 3), 2), ((1, 2), 1), ((1, 1, 1, 3), 1), ((1,), 1), ((1, 0), 1)])
def test_a_hint_of_another_shape_is_an_error(shape, horizon):
    grammar = ActionGrammar(ActionStringProcessor(3, horizon, 2), PIECES, eos_token_id=2)
    with pytest.raises(ValueError, match=rf"in row 0, expected \[{horizon}, 3\]: what predict_actions returned"):
        previous_per_row(grammar, np.zeros(shape), rows=1)
