"""Standard deviations from token probabilities, against numbers worked out by hand."""

import numpy as np
import pytest

from gen_vla.modeling.action_bins import ActionBins
from gen_vla.modeling.action_choices import written_tokens
from gen_vla.modeling.action_grammar import ActionGrammar, BinGrammar
from gen_vla.modeling.action_strings import ActionStringProcessor
from gen_vla.modeling.action_uncertainty import standard_deviations


PIECES = {character: number for number, character in enumerate("0123456789+-.", start=3)}


def chances_of(grammar, spreads: list[dict[int, float]]) -> np.ndarray:
    """Float64 [L, G] of the probabilities of some tokens in each place."""
    ascending, column = written_tokens(grammar)
    chances = np.zeros((len(spreads), len(ascending)))
    for place, spread in enumerate(spreads):
        for token, chance in spread.items():
            chances[place, column[token]] = chance
    return chances


def test_each_token_adds_the_variance_of_its_place():
    """+0.3-0.5: the first value's digit is 3 or 5 at even chances, the second's sign is wrong one time in four."""
    grammar = ActionGrammar(ActionStringProcessor(2, 1, 1), PIECES, eos_token_id=2)
    tokens = [PIECES[character] for character in "+0.3-0.5"]
    spreads = [{token: 1.0} for token in tokens]
    spreads[3] = {PIECES["3"]: 0.5, PIECES["5"]: 0.5}
    spreads[4] = {PIECES["-"]: 0.75, PIECES["+"]: 0.25}
    deviations = standard_deviations(grammar, tokens, chances_of(grammar, spreads), np.array([[0.3, -0.5]]))
    assert deviations.shape == (1, 2)
    assert deviations.dtype == np.float32
    assert deviations[0, 0] == pytest.approx(0.1)  # digits 0.2 apart
    assert deviations[0, 1] == pytest.approx(np.sqrt(0.75 * 0.25))  # values 1.0 apart


def test_no_doubt_is_zero_and_later_places_weigh_less():
    grammar = ActionGrammar(ActionStringProcessor(1, 1, 3), PIECES, eos_token_id=2)
    tokens = [PIECES[character] for character in "+0.123"]
    sure, values = [{token: 1.0} for token in tokens], np.array([[0.123]])
    assert standard_deviations(grammar, tokens, chances_of(grammar, sure), values).tolist() == [[0.0]]
    found = []
    for place, (chosen, other) in zip((3, 4, 5), ("13", "24", "35"), strict=True):
        spreads = [*sure]
        spreads[place] = {PIECES[chosen]: 0.5, PIECES[other]: 0.5}
        found.append(float(standard_deviations(grammar, tokens, chances_of(grammar, spreads), values)[0, 0]))
    np.testing.assert_allclose(found, [0.1, 0.01, 0.001], rtol=1e-5)


def test_bins_use_their_centres():
    grammar = BinGrammar(ActionBins(1, 1, bins=5), bin_tokens_end=20, eos_token_id=2)
    low, high = grammar.token_ids("0")[0], grammar.token_ids("3")[0]
    deviation = standard_deviations(grammar, [low], chances_of(grammar, [{low: 0.5, high: 0.5}]), np.array([[-0.75]]))
    assert deviation[0, 0] == pytest.approx(0.75)  # centres -0.75 and 0.75


def test_all_tokens_at_once_are_as_one_by_one():
    """Every token of four values in doubt, at random chances: 6 tokens each: a sign, an integer, a point, decimals."""
    grammar, random = ActionGrammar(ActionStringProcessor(4, 1, 3), PIECES, eos_token_id=2), np.random.default_rng(0)
    text = "+0.125-0.300-0.041+0.999"
    values, variances = np.array([[0.125, -0.3, -0.041, 0.999]]), np.zeros(4)
    spreads = []
    for place, character in enumerate(text):
        value, kind = divmod(place, 6)
        options = {"+": "+-", "-": "+-", ".": "."}.get(character, "0123456789")
        chances = random.dirichlet(np.ones(len(options)))
        spreads.append({PIECES[option]: chance for option, chance in zip(options, chances, strict=True)})
        size = abs(values.flat[value])
        digits = np.arange(10) / 10 ** max(kind - 2, 0)
        worths = np.array([size, -size]) if kind == 0 else digits[: len(options)]
        variances[value] += np.sum(chances * (worths - np.sum(chances * worths)) ** 2)
    found = standard_deviations(
        grammar, [PIECES[character] for character in text], chances_of(grammar, spreads), values
    )
    np.testing.assert_allclose(found.reshape(-1), np.sqrt(variances), rtol=1e-6)
