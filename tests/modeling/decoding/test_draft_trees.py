"""Draft trees: the most frequent continuations of actions drawn from a data set's histograms."""

from collections import Counter

import numpy as np
import pytest

from gen_vla.modeling.action_grammar import ActionGrammar, grammar_from_action_config
from gen_vla.modeling.action_strings import ActionStringProcessor
from gen_vla.modeling.draft_trees import DRAWN, END_SHARE, drafts_for, drawn_actions, forced_completions
from gen_vla.processors import ActionBins, make_action_config
from gen_vla.processors import ActionStringProcessor as ProcessorStrings


PIECES = {character: number for number, character in enumerate("0123456789+-.", start=3)}
HISTOGRAM = [[0, 2, 9, 4, 1, 0, 3, 5]]
ALL_STYLES = pytest.mark.parametrize("style", ["signed", "plain", "legacy", "bins"])


def grammar_of(decimals: int, dims: int = 1) -> ActionGrammar:
    return ActionGrammar(ActionStringProcessor(dims, 1, decimals), PIECES, eos_token_id=2)


def state_after(grammar, text: str) -> int:
    return grammar.advance([PIECES[character] for character in text])


def texts_of(grammar, tree) -> list[str]:
    texts = [""]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        texts.append(texts[parent] + grammar.text_of[token])
    return texts[1:]


@pytest.mark.parametrize(("start", "nodes"), [("", 40), ("+0.", 60), ("-0.2", 12)])
def test_a_tree_holds_the_most_frequent_continuations(start, nodes):
    """Beginnings of all drawn actions, counted one by one: the tree's are the most frequent, in their order."""
    grammar = grammar_of(3)
    drawn = [grammar.strings.encode(action) for action in drawn_actions(grammar.strings, HISTOGRAM)]
    state, rests = state_after(grammar, start), Counter()
    for text in drawn:
        for end in range(len(start) + 1, len(text) + 1):
            same_state = state_after(grammar, text[: len(start)]) == state
            rests[text[len(start) : end]] += same_state
    tree = drafts_for(grammar, HISTOGRAM, nodes).tree(state)
    assert len(tree.tokens) == nodes + 1
    found = [rests[text] for text in texts_of(grammar, tree)]
    assert found == sorted(rests.values(), reverse=True)[:nodes]


def test_actions_are_drawn_from_the_histogram():
    strings = ActionStringProcessor(2, 3, binary_dims=(1,))
    drawn = drawn_actions(strings, [[0, 0, 0, 90, 10, 0, 0, 0], [0, 0, 25, 0, 0, 0, 75, 0]])
    assert drawn.shape == (DRAWN, 3, 2)
    np.testing.assert_array_equal(
        drawn, drawn_actions(strings, [[0, 0, 0, 90, 10, 0, 0, 0], [0, 0, 25, 0, 0, 0, 75, 0]])
    )
    inner = np.histogram(drawn[..., 0], 8, (-1, 1))[0] / drawn[..., 0].size
    assert 0.7 < inner[3] < 0.9
    assert inner[0] < 0.05
    for end in (-1, 1):
        assert np.mean(drawn[..., 0] == end) == pytest.approx(END_SHARE, abs=3e-3)
    assert set(np.unique(drawn[..., 1])) == {0.0, 1.0}
    assert drawn[..., 1].mean() == pytest.approx(0.68, abs=0.05)  # what lies above one half
    assert not np.array_equal(drawn[:, 0], drawn[:, 1])


@ALL_STYLES
@pytest.mark.parametrize("nodes", [0, 1, 9, 40])
def test_trees_of_every_state_are_made_of_legal_continuations(style, nodes, llama_like):
    codec = ActionBins(2, 2, bins=16) if style == "bins" else ProcessorStrings(2, 2, 3, style, binary_dims=(1,))
    grammar = grammar_from_action_config(make_action_config(codec, llama_like))
    drafts, completions = drafts_for(grammar, None, nodes), forced_completions(grammar)
    for state in range(len(grammar.transitions)):
        tree, states = drafts.tree(state), [state]
        forced = 0
        for slot, (token, parent) in enumerate(zip(tree.tokens[1:], tree.parents[1:]), start=1):
            states.append(grammar.transitions[states[parent]][token])
            assert tree.depths[slot] == tree.depths[parent] + 1
            assert tree.mask[slot].tolist() == [a or b == slot for b, a in enumerate(tree.mask[parent])]
            chain = forced == slot - 1 == parent and len(grammar.transitions[states[parent]]) == 1
            forced += chain
        assert len(tree.tokens) - 1 - forced <= nodes
        for slot, reached in enumerate(states):
            allowed = set(grammar.transitions[reached])
            tokens = sorted({token for following in grammar.transitions for token in following})
            assert {tokens[column] for column in tree.allowed[slot].nonzero()[0]} == allowed
            assert slot == 0 or tokens[tree.columns[slot]] == tree.tokens[slot]
        edges = list(zip(tree.parents[1:], tree.tokens[1:]))
        assert len(set(edges)) == len(edges)
        if completions[state] is not None:
            assert len(tree.tokens) == 1  # nothing is left to check


def test_what_is_forced_to_the_end_needs_no_pass(llama_like):
    strings = ProcessorStrings(1, 1, 2, "signed", binary_dims=(0,))
    grammar = grammar_from_action_config(make_action_config(strings, llama_like))
    ids = {text: token for token, text in grammar.text_of.items()}
    completions = forced_completions(grammar)
    assert completions[grammar.advance([ids["+"], ids["1"]])] == (ids["."], ids["0"], ids["0"])
    assert completions[0] is None


def test_trees_are_kept_by_the_content_of_a_histogram():
    grammar, counts = grammar_of(2), [list(HISTOGRAM[0])]
    first = drafts_for(grammar, counts, 4)
    assert drafts_for(grammar, HISTOGRAM, 4) is first
    assert first.tree(0) is first.tree(0)
    counts[0][0] = 50  # statistics are edited in place
    assert drafts_for(grammar, counts, 4) is not first
    assert drafts_for(grammar, None, 4) is not first
