"""Trees of continuations against plain counting, and where a model leaves them."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_vla.evaluation.benchmarks.decoding_passes import read_bridge
from gen_vla.modeling import draft_trees
from gen_vla.modeling.action_grammar import ActionGrammar
from gen_vla.modeling.action_strings import ActionStringProcessor
from gen_vla.modeling.draft_distribution import Cursor, DraftDistribution, advance
from gen_vla.modeling.draft_trees import grow_tree, likely_exits
from gen_vla.modeling.tree_decoding import DRAFTED_AHEAD, Row
from gen_vla.processors import ActionStringProcessor as ProcessorStrings
from gen_vla.processors import make_action_config


PIECES = {character: number for number, character in enumerate("0123456789+-.", start=3)}
HISTOGRAM = [[0, 2, 9, 4, 1, 0, 3, 5]]


def grammar_of(decimals: int) -> ActionGrammar:
    return ActionGrammar(ActionStringProcessor(1, 1, decimals), PIECES, eos_token_id=2)


def cursor_after(grammar, text: str) -> Cursor:
    cursor = Cursor()
    for character in text:
        cursor = advance(grammar, cursor, PIECES[character])
    return cursor


def texts_of(grammar, tree) -> list[str]:
    texts = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        texts.append((texts[parent] if parent >= 0 else "") + grammar.text_of[token])
    return texts


def mass_of(draft, sign: str, decimals: str) -> float:
    """Of the values that begin so, from the cumulative distribution: 1000 steps on each side of 0."""
    width = 10 ** (3 - len(decimals))
    ends = np.array([int(decimals) * width, (int(decimals) + 1) * width])
    below = draft.cumulative[0][1 + 1000 + (ends if sign == "+" else -ends)]
    return abs(below[1] - below[0])


@pytest.mark.parametrize(("start", "nodes"), [("+0.", 150), ("-0.2", 60)])
def test_a_tree_of_digits_holds_the_most_probable_beginnings(start, nodes):
    """All beginnings of up to three decimals weighed one by one: the tree's are the heaviest, in their order."""
    grammar = grammar_of(3)
    draft = DraftDistribution(grammar, HISTOGRAM, np.array([[-0.21]]))
    tree = grow_tree(grammar, draft, cursor_after(grammar, start), nodes)
    sign, decimals = start[0], start[3:]
    every = [f"{number:0{more}d}" for more in range(1, 4 - len(decimals)) for number in range(10**more)]
    heaviest = sorted((mass_of(draft, sign, decimals + text) for text in every), reverse=True)
    found = [mass_of(draft, sign, decimals + text) for text in texts_of(grammar, tree)]
    np.testing.assert_allclose(found, heaviest[:nodes], rtol=1e-9)


def test_a_digit_finer_than_the_grid_is_any_of_ten():
    grammar = grammar_of(4)
    draft = DraftDistribution(grammar, HISTOGRAM)
    tree = grow_tree(grammar, draft, cursor_after(grammar, "+0.123"), 20)
    assert sorted(texts_of(grammar, tree)) == list("0123456789")


def test_trees_do_not_depend_on_what_is_kept(monkeypatch):
    kept = []
    for limit in (2**16, 3):
        grammar = grammar_of(3)
        monkeypatch.setattr(draft_trees, "CACHED_BRANCHES", limit)
        tree = grow_tree(grammar, DraftDistribution(grammar, HISTOGRAM, np.array([[-0.4]])), Cursor(), 80)
        assert len(tree.tokens) == 80
        kept.append((tree, len(draft_trees._branches(grammar))))
    assert kept[0][0] == kept[1][0]
    assert kept[1][1] <= 3 < kept[0][1]


def test_a_fork_shows_itself_and_not_all_that_follows():
    """Ways to a cursor are many more than cursors: shown with all that follows, a branch would never end."""
    grammar = grammar_of(4)
    branch = draft_trees.branch_at(grammar, Cursor())
    grow_tree(grammar, DraftDistribution(grammar, HISTOGRAM), Cursor(), 500)
    assert branch.following
    assert len(repr(branch)) < 1000


@given(
    style=st.sampled_from(["signed", "plain"]),
    numbers=st.tuples(st.integers(1, 999), st.integers(1, 999)),  # -0.00000 is none, so that -0.000 is special
    signs=st.tuples(st.sampled_from("+-"), st.sampled_from("+-")),
    more=st.sampled_from(["", "7"]),
    nodes=st.integers(1, 60),
)
@settings(max_examples=60, deadline=None)
def test_decimals_finer_than_the_grid_lead_to_the_same_trees(style, numbers, signs, more, nodes):
    """Two beginnings of a value, and trees from drafts that share nothing: alike, and taken for one where kept."""
    grammar = ActionGrammar(ActionStringProcessor(2, 1, 5, style), {**PIECES, "\n": 1}, eos_token_id=2)
    texts = [f"{sign}0.{number:03d}{more}" for sign, number in zip(signs, numbers, strict=True)]
    if style == "plain":
        texts = [text.lstrip("+") for text in texts]
    cursors = [cursor_after(grammar, text) for text in texts]
    previous = np.array([[0.3, -0.6]])
    draft = DraftDistribution(grammar, HISTOGRAM * 2, previous)
    trees = [grow_tree(grammar, draft, cursor, nodes) for cursor in cursors]
    apart = [_grown_apart(style, text, nodes, previous) for text in texts]
    assert trees[0] == trees[1] == apart[0] == apart[1]
    same_state = cursors[0].state == cursors[1].state
    assert (trees[0] is trees[1]) == same_state
    assert same_state or style == "plain"  # where a sign makes the value longer


def _grown_apart(style, text, nodes, previous):
    grammar = ActionGrammar(ActionStringProcessor(2, 1, 5, style), {**PIECES, "\n": 1}, eos_token_id=2)
    draft = DraftDistribution(grammar, HISTOGRAM * 2, previous)
    return grow_tree(grammar, draft, cursor_after(grammar, text), nodes)


def test_legacy_numbers_end_where_they_like_so_none_are_alike(llama_like):
    strings = ProcessorStrings(2, 1, 4, "legacy")
    grammar = ActionGrammar.from_action_config(make_action_config(strings, llama_like))
    ids = {piece: token for token, piece in grammar.text_of.items()}
    branches = set()
    for text in ("0.123", "0.456"):
        cursor = advance(
            grammar, Cursor(), next(ids[piece] for piece in (" ", " 0") if ids.get(piece) in grammar.transitions[0])
        )
        for character in text[len(cursor.prefix) :]:
            cursor = advance(grammar, cursor, ids[character])
        branches.add(draft_trees.branch_at(grammar, cursor))
    assert len(branches) == 2


@pytest.mark.parametrize("nodes", [3, 12, 60])
def test_likely_ends_are_where_a_model_that_follows_the_draft_leaves_the_tree(nodes):
    """Values drawn from the draft itself: each end comes as often as it says, or more often where it stands for one
    of many that are not alike."""
    grammar = ActionGrammar(ActionStringProcessor(2, 1, 4), PIECES, eos_token_id=2)
    draft = DraftDistribution(grammar, HISTOGRAM * 2, np.array([[0.31, -0.6]]))
    tree = grow_tree(grammar, draft, Cursor(), nodes)
    ends = likely_exits(grammar, draft, tree)
    probabilities = [probability for probability, _ in ends]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) <= 1 + 1e-9
    random, draws = np.random.default_rng(0), 4000
    found = Counter(_left_at(grammar, draft, tree, random) for _ in range(draws))
    for probability, cursor in ends[:3]:
        seen = found[draft_trees.branch_at(grammar, cursor).cursor] / draws
        assert seen > probability - 4 * np.sqrt(probability / draws)
    best = max(found, key=found.__getitem__)
    assert best in [cursor for _, cursor in ends[:2]]


def _left_at(grammar, draft, tree, random) -> Cursor:
    """Where a value that follows the draft leaves the tree, forced tokens included; without a branch, the end."""
    cursor, node = Cursor(), -1
    while node is not None:
        options = draft_trees._ordered_options(grammar, draft, draft_trees.branch_at(grammar, cursor))
        if not options:
            break
        tokens, probabilities = zip(*options, strict=True)
        token = tokens[random.choice(len(tokens), p=np.array(probabilities) / sum(probabilities))]
        cursor, node = advance(grammar, cursor, token), tree.child(node, token)
    while len(following := grammar.transitions[cursor.state]) == 1 and grammar.eos_token_id not in following:
        cursor = advance(grammar, cursor, next(iter(following)))
    return draft_trees.branch_at(grammar, cursor).cursor


def test_two_trees_drafted_ahead_are_mostly_enough_on_real_actions(data_dir):
    """Of the trees that recorded Bridge steps need after the first, two grown beforehand are 70 % and more."""
    episodes = read_bridge(data_dir / "octo_bridge_debug")[::4]
    grammar = ActionGrammar(ActionStringProcessor(7, binary_dims=(6,)), PIECES, eos_token_id=2)
    needed = drafted = 0
    for episode in episodes:
        for before, action in itertools.pairwise(episode):
            draft, row = DraftDistribution(grammar, None, before), Row(0, None)
            target, expected = [PIECES[c] for c in grammar.strings.encode(action)], []
            while not row.done:
                here = draft_trees.branch_at(grammar, row.cursor)
                needed, drafted = needed + bool(row.tokens), drafted + (here in expected)
                tree, node = grow_tree(grammar, draft, row.cursor, 57), -1
                ends = likely_exits(grammar, draft, tree)[:DRAFTED_AHEAD]
                expected = [draft_trees.branch_at(grammar, cursor) for _, cursor in ends]
                while not row.done and node is not None:
                    row.accept(grammar, target[len(row.tokens)])
                    node = tree.child(node, row.tokens[-1])
                row.accept_forced(grammar)
    assert needed > 500
    assert drafted > 0.7 * needed
