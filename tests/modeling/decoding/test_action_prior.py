"""What is expected of the next action."""

import itertools

import numpy as np
import pytest
import torch

from gen_vla.modeling.action_bins import ActionBins
from gen_vla.modeling.action_grammar import ActionGrammar, BinGrammar
from gen_vla.modeling.action_prior import END_MASS, GRID, ActionPrior, hints_of, priors_for
from gen_vla.modeling.action_strings import ActionStringProcessor


PIECES = {character: number for number, character in enumerate("0123456789+-.", start=3)}
HISTOGRAM = [[0, 2, 9, 4, 1, 0, 3, 5]]


def grammar_of(decimals: int) -> ActionGrammar:
    return ActionGrammar(ActionStringProcessor(1, 1, decimals), PIECES, eos_token_id=2)


def test_a_histogram_edited_in_place_is_another_one():
    counts = [list(HISTOGRAM[0])]
    before = ActionPrior(grammar_of(3), counts).mass(0, 0.5, 1.0)
    assert ActionPrior(grammar_of(3), counts).mass(0, 0.5, 1.0) == before
    counts[0][7] = 100
    assert ActionPrior(grammar_of(3), counts).mass(0, 0.5, 1.0) > 2 * before


def test_masses_of_all_bins_are_those_of_each():
    bins = ActionBins(1, 1, bins=16)
    grammar = BinGrammar(bins, bin_tokens_end=60, eos_token_id=2)
    prior = ActionPrior(grammar, HISTOGRAM, np.array([[0.4]]))
    masses = prior.masses(0, np.append(bins.edges, 1.0))
    each = [prior.mass(0, low, high) for low, high in itertools.pairwise(bins.edges)]
    np.testing.assert_allclose(masses[:-2], each[:-1], rtol=1e-12)
    assert masses[-2] + masses[-1] == pytest.approx(each[-1])  # 1 itself has a bin of its own
    assert masses[-1] == pytest.approx(END_MASS)
    assert masses.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("previous", [-1.0, -0.6004, 0.0, 0.25, 1.0, 3.0])
def test_the_previous_action_is_where_the_next_is_expected(previous):
    """The peak lies on the grid point next to it, is as high on both sides and falls with the distance."""
    prior = ActionPrior(grammar_of(3), None, np.array([[previous]]))
    inner = np.diff(prior.cumulative[0])[1:-1]
    centre = int(np.rint((np.clip(previous, -1, 1) + 1) * GRID))
    left, right = inner[:centre][::-1], inner[centre:]
    assert (np.diff(left) < 0).all()
    assert (np.diff(right) < 0).all()
    both = min(len(left), len(right))
    np.testing.assert_allclose(left[:both], right[:both], rtol=1e-9)


def test_a_previous_action_that_is_no_number_is_no_error():
    assert ActionPrior(grammar_of(3), None, np.array([[np.nan]])).mass(0, -1.0, 1.0) == pytest.approx(1.0)


def test_hints_of_a_batch_where_an_episode_begins():
    grammar = ActionGrammar(ActionStringProcessor(3, 2, 2), PIECES, eos_token_id=2)
    told = np.linspace(-1, 1, 12).reshape(2, 2, 3)
    for previous in (told, list(told), torch.tensor(told), torch.tensor(told, dtype=torch.bfloat16)):
        hints = [hint for hint in hints_of(grammar, previous, rows=2) if hint is not None]
        np.testing.assert_allclose(np.stack(hints), told, atol=1e-2)
    first, second = hints_of(grammar, [None, told[1]], rows=2)
    assert first is None
    assert second is not None
    assert hints_of(grammar, None, rows=3) == [None] * 3
    one, other, third = priors_for(grammar, [HISTOGRAM * 3, HISTOGRAM * 3, None], [None, told[0], None])
    assert len({id(one), id(other), id(third)}) == 3
    same = HISTOGRAM * 3
    assert len({id(prior) for prior in priors_for(grammar, [same, same], [None, None])}) == 1


@pytest.mark.parametrize(("shape", "horizon"), [((1, 3), 2), ((1, 2), 1), ((1, 1, 1, 3), 1), ((1,), 1), ((1, 0), 1)])
def test_a_hint_of_another_shape_is_an_error(shape, horizon):
    grammar = ActionGrammar(ActionStringProcessor(3, horizon, 2), PIECES, eos_token_id=2)
    with pytest.raises(ValueError, match=rf"in row 0, expected \[{horizon}, 3\]: what predict_actions returned"):
        hints_of(grammar, np.zeros(shape), rows=1)
