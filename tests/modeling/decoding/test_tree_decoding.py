"""Tree decoding against plain constrained decoding: the same tokens, in fewer passes, for every kind of action."""

import numpy as np
import pytest
import torch
from tiny_models import picture, tiny_pair

from gen_vla.modeling.action_grammar import ActionGrammar
from gen_vla.modeling.action_strings import ActionStringProcessor as GrammarStrings
from gen_vla.modeling.draft_trees import drafts_for
from gen_vla.modeling.tree_decoding import Row, pack
from gen_vla.modeling.verification_passes import TreeCache
from gen_vla.processors import ActionStringProcessor


INSTRUCTIONS = ["in", "Out two", "in two out two in two", "two"]


def inputs_of(processor, rows: int):
    words = [INSTRUCTIONS[row % len(INSTRUCTIONS)] for row in range(rows)]
    return processor.action_inputs([picture(row) for row in range(rows)], words)


@pytest.mark.parametrize("kind", ["openvla_plus", "pi0_plus"])
@pytest.mark.parametrize("style", ["signed", "plain", "legacy"])
@pytest.mark.parametrize(("horizon", "rows"), [(1, 1), (1, 4), (3, 3)])
def test_same_tokens_as_one_at_a_time(kind, style, horizon, rows, llama_like):
    strings = ActionStringProcessor(3, horizon, 3, style, binary_dims=(2,))
    for seed in range(2):
        model, processor = tiny_pair(kind, llama_like, strings, seed)
        inputs = inputs_of(processor, rows)
        slow = model.predict_actions(**inputs, tree_nodes=0)
        for nodes, cache in ((1, "dynamic"), (7, "dynamic"), (30, "dynamic"), (2, "static"), (30, "static")):
            fast = model.predict_actions(**inputs, tree_nodes=nodes, cache_implementation=cache)
            assert fast.token_ids.tolist() == slow.token_ids.tolist()
            assert fast.text == slow.text
            np.testing.assert_array_equal(fast.actions, slow.actions)
            np.testing.assert_allclose(fast.digit_probabilities, slow.digit_probabilities, atol=2e-5)
            assert fast.forward_passes < slow.forward_passes


def with_histogram(model, values) -> None:
    """Statistics whose histograms hold just the values float [N, T, D], so that drafts expect them."""
    (statistics,) = model.config.norm_stats.values()
    lines = np.asarray(values).reshape(-1, values.shape[-1]).T
    statistics["action"]["histogram"] = [(1000 * np.histogram(line, 40, (-1, 1))[0]).tolist() for line in lines]


def test_horizon_16_and_wrong_drafts(llama_like):
    """Drafts that are sure of the wrong end cost passes and no token."""
    strings = ActionStringProcessor(2, 16, 2, "signed")
    model, processor = tiny_pair("openvla_plus", llama_like, strings)
    inputs = inputs_of(processor, 2)
    slow = model.predict_actions(**inputs, tree_nodes=0)
    with_histogram(model, slow.normalized)
    good = model.predict_actions(**inputs, tree_nodes=12)
    with_histogram(model, -np.sign(slow.normalized))
    bad = model.predict_actions(**inputs, tree_nodes=12)
    assert good.text == bad.text == slow.text
    assert good.forward_passes < bad.forward_passes < slow.forward_passes


@pytest.mark.parametrize("kind", ["openvla_plus", "pi0_plus"])
def test_many_random_cases(kind, llama_like):
    """450 actions: every style, dimensions and horizon drawn, drafts that know, do not know or are wrong."""
    random = np.random.default_rng(7)
    for case in range(20):
        strings = ActionStringProcessor(
            int(random.integers(1, 4)),
            int(random.choice([1, 1, 2, 5])),
            int(random.integers(1, 5)),
            ("signed", "plain", "legacy")[case % 3],
            binary_dims=(0,) if case % 2 else (),
        )
        model, processor = tiny_pair(kind, llama_like, strings, seed=case)
        inputs = inputs_of(processor, rows := int(random.integers(5, 11)))
        slow = model.predict_actions(**inputs, tree_nodes=0)
        for expected in (slow.normalized, -slow.normalized, random.uniform(-1, 1, slow.normalized.shape)):
            with_histogram(model, expected)
            fast = model.predict_actions(
                **inputs,
                tree_nodes=int(random.integers(1, 40)),
                cache_implementation=str(random.choice(["dynamic", "static"])),
            )
            assert fast.text == slow.text, (case, rows)


def test_exact_ties_are_broken_alike(llama_like):
    """With an output layer of zeros every token ties with every other; both ways then take the same one."""
    strings = ActionStringProcessor(3, 2, 3, "signed")
    model, processor = tiny_pair("openvla_plus", llama_like, strings)
    model.lm_head.weight.data.zero_()
    inputs = inputs_of(processor, 3)
    slow = model.predict_actions(**inputs, tree_nodes=0)
    for cache in ("dynamic", "static"):
        assert model.predict_actions(**inputs, tree_nodes=9, cache_implementation=cache).text == slow.text


def test_near_ties_in_float32(llama_like):
    """Output rows that differ in the sixth digit: the tree's logits are close enough to tell which is larger."""
    strings = ActionStringProcessor(3, 1, 4, "signed")
    same = 0
    for seed in range(20):
        model, processor = tiny_pair("openvla_plus", llama_like, strings, seed)
        weight = model.lm_head.weight.data
        weight.copy_(weight[:1] + 1e-3 * weight)
        inputs = inputs_of(processor, 2)
        slow = model.predict_actions(**inputs, tree_nodes=0)
        same += sum(
            a == b for a, b in zip(slow.text, model.predict_actions(**inputs, tree_nodes=20).text, strict=True)
        )
    assert same == 40


def test_bf16_agrees_with_itself_almost_always(llama_like):
    """Half precision rounds a tree of another shape differently: near-ties may fall the other way, digits may not."""
    strings = ActionStringProcessor(3, 1, 2)
    same = rows = 0
    for seed in range(6):
        model, processor = tiny_pair("openvla_plus", llama_like, strings, seed)
        model = model.to(torch.bfloat16)
        inputs = inputs_of(processor, 4)
        slow, fast = model.predict_actions(**inputs, tree_nodes=0), model.predict_actions(**inputs, tree_nodes=16)
        same += sum(a == b for a, b in zip(slow.text, fast.text, strict=True))
        rows += 4
    assert same >= rows - 2


def test_calibration_keeps_the_fastest_budget_per_batch_size(tiny_openvla):
    model, processor = tiny_openvla
    inputs = inputs_of(processor, 2)
    times = model.calibrate_tree_nodes(**inputs, candidates=(3, 11), repeats=2)
    assert set(times) == {3, 11}
    assert all(milliseconds > 0 for milliseconds in times.values())
    best = min(times, key=times.__getitem__)
    assert model.default_tree_nodes(rows=2) == best
    assert model.predict_actions(**inputs).tree_nodes == model.predict_actions(**inputs, tree_nodes=best).tree_nodes
    assert [model.default_tree_nodes(rows) for rows in (1, 4, 16)] == [8, 4, 4]
    with pytest.raises(ValueError, match="got candidates=\\(0,\\)"):
        model.calibrate_tree_nodes(**inputs, candidates=(0,))


def test_the_two_ways_cannot_be_mixed(tiny_openvla):
    model, processor = tiny_openvla
    inputs = inputs_of(processor, 1)
    with pytest.raises(ValueError, match="num_beams, which only generate has"):
        model.predict_actions(**inputs, tree_nodes=4, num_beams=2)
    with pytest.raises(ValueError, match="got tree_nodes=-1"):
        model.predict_actions(**inputs, tree_nodes=-1)
    with pytest.warns(FutureWarning, match="`previous` has no effect"):
        model.predict_actions(**inputs, previous=np.zeros((1, 1, 3)))


def test_packing_shows_each_node_its_ancestors_only():
    """Behind a prompt the nodes are "+", "+0", "+0." and "-"; behind "+0" the point is forced and not counted."""
    pieces = {character: number for number, character in enumerate("0123456789+-.", start=3)}
    grammar = ActionGrammar(GrammarStrings(1, 1, 1), pieces, eos_token_id=2)
    drafts, state = drafts_for(grammar, None, nodes=4), grammar.advance([pieces["+"], pieces["0"]])
    rows = [Row(last=99, position=7, drafts=drafts), Row(last=pieces["0"], position=2, drafts=drafts)]
    rows[1].state = state
    fed = pack(rows, 7, 7)
    assert fed.ids[0].tolist() == [99, *(pieces[each] for each in "+0.-"), 99, 99]
    assert fed.positions[0, :5].tolist() == [7, 8, 9, 10, 8]
    assert fed.parents[0, :5].tolist() == [0, 0, 1, 2, 0]
    mask = fed.tree_mask[0].astype(int).tolist()
    assert mask[3] == [1, 1, 1, 1, 0, 0, 0]
    assert mask[4] == [1, 0, 0, 0, 1, 0, 0]
    assert mask[5] == [0, 0, 0, 0, 0, 1, 0]  # padding
    assert fed.ids[1, :2].tolist() == [pieces["0"], pieces["."]]
    assert fed.positions[1].tolist() == [2, 3, 4, 4, 4, 4, 2]


def test_cache_keeps_what_was_accepted():
    """Two rows of a prompt of one token behind three slots for trees; the second row accepts less."""
    cache = TreeCache(3, 8)
    keys = torch.arange(8.0).view(2, 1, 4, 1)
    cache.fed, cache.visible = 4, 4
    assert cache.update(keys, -keys, 0)[1].flatten().tolist() == (-keys).flatten().tolist()
    cache.move(torch.tensor([[0, 2], [1, 0]]), torch.tensor([[4, 5], [4, 0]]))
    cache.fed, cache.visible = 2, 7
    kept, values = cache.update(torch.full((2, 1, 2, 1), 9.0), torch.zeros(2, 1, 2, 1), 0)
    assert kept.flatten(1).tolist() == [[9, 9, 2, 3, 0, 2, 0], [9, 9, 6, 7, 5, 0, 0]]
    assert values.flatten(1).tolist() == [[0, 0, -2, -3, 0, -2, 0], [0, 0, -6, -7, -5, 0, 0]]
