"""What is expected of the next action, and the trees grown from it, against plain counting."""

import numpy as np
import pytest

from gen_vla.modeling import action_prior
from gen_vla.modeling.action_grammar import ActionGrammar
from gen_vla.modeling.action_prior import ActionPrior, Place, grow_tree, step
from gen_vla.modeling.action_strings import ActionStringProcessor


PIECES = {character: number for number, character in enumerate("0123456789+-.", start=3)}
HISTOGRAM = [[0, 2, 9, 4, 1, 0, 3, 5]]


def grammar_of(decimals: int) -> ActionGrammar:
    return ActionGrammar(ActionStringProcessor(1, 1, decimals), PIECES, eos_token_id=2)


def place_behind(grammar, text: str) -> Place:
    place = Place()
    for character in text:
        place = step(grammar, place, PIECES[character])
    return place


def texts_of(grammar, tree) -> list[str]:
    texts = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        texts.append((texts[parent] if parent >= 0 else "") + grammar.text_of[token])
    return texts


def mass_of(prior, sign: str, decimals: str) -> float:
    """Of the values that begin so, from the cumulative distribution: 1000 steps on each side of 0."""
    width = 10 ** (3 - len(decimals))
    ends = np.array([int(decimals) * width, (int(decimals) + 1) * width])
    below = prior.cumulative[0][1 + 1000 + (ends if sign == "+" else -ends)]
    return abs(below[1] - below[0])


@pytest.mark.parametrize(("start", "nodes"), [("+0.", 150), ("-0.2", 60)])
def test_a_tree_of_digits_holds_the_most_probable_beginnings(start, nodes):
    """All beginnings of up to three decimals weighed one by one: the tree's are the heaviest, in their order."""
    grammar = grammar_of(3)
    prior = ActionPrior(grammar, HISTOGRAM, np.array([[-0.21]]))
    tree = grow_tree(grammar, prior, place_behind(grammar, start), nodes)
    sign, decimals = start[0], start[3:]
    every = [f"{number:0{more}d}" for more in range(1, 4 - len(decimals)) for number in range(10**more)]
    heaviest = sorted((mass_of(prior, sign, decimals + text) for text in every), reverse=True)
    found = [mass_of(prior, sign, decimals + text) for text in texts_of(grammar, tree)]
    np.testing.assert_allclose(found, heaviest[:nodes], rtol=1e-9)


def test_a_digit_finer_than_the_grid_is_any_of_ten():
    grammar = grammar_of(4)
    prior = ActionPrior(grammar, HISTOGRAM)
    tree = grow_tree(grammar, prior, place_behind(grammar, "+0.123"), 20)
    assert sorted(texts_of(grammar, tree)) == list("0123456789")


def test_trees_do_not_depend_on_what_is_kept(monkeypatch):
    kept = []
    for limit in (2**16, 3):
        grammar = grammar_of(3)
        monkeypatch.setattr(action_prior, "FORKS_KEPT", limit)
        tree = grow_tree(grammar, ActionPrior(grammar, HISTOGRAM, np.array([[-0.4]])), Place(), 80)
        assert len(tree.tokens) == 80
        kept.append((tree, len(action_prior._forks(grammar))))
    assert kept[0][0] == kept[1][0]
    assert kept[1][1] <= 3 < kept[0][1]


def test_a_histogram_edited_in_place_is_another_one():
    counts = [list(HISTOGRAM[0])]
    before = ActionPrior(grammar_of(3), counts).mass(0, 0.5, 1.0)
    assert ActionPrior(grammar_of(3), counts).mass(0, 0.5, 1.0) == before
    counts[0][7] = 100
    assert ActionPrior(grammar_of(3), counts).mass(0, 0.5, 1.0) > 2 * before
