"""Chunks that continue given steps: the same as one token at a time, forced through the same prefix."""

import numpy as np
import pytest
import torch
from tiny_models import picture, tiny_pair
from tiny_vlms import tiny_inputs, tiny_vla_plus

from gen_vla.processors import ActionBins, ActionStringProcessor


@torch.no_grad()
def forced_by_hand(model, inputs, steps: np.ndarray) -> str:
    """One row by full passes over everything: the given steps' text, then the best allowed token each time."""
    grammar, ids = model.action_grammar, inputs["input_ids"]
    prompt, pi0 = ids.shape[1], model.config.model_type == "vla_plus"  # whose prompts attend in both directions
    strings = grammar.strings
    chunk = np.zeros((strings.horizon, strings.action_dim))
    chunk[: len(steps)] = steps
    text = strings.encode(chunk)
    begun = text.split("\n" if strings.style == "signed" else "\n\n")[: len(steps)]
    characters = sum(map(len, begun)) + (len(begun) - 1 if strings.style == "signed" else 2 * len(begun) - 2)
    state, written = 0, []
    while grammar.eos_token_id not in grammar.transitions[state]:
        options = list(grammar.transitions[state])
        done = "".join(map(grammar.text_of.get, written))
        if len(done) < characters:
            [token] = [each for each in options if text.startswith(done + grammar.text_of[each])][-1:]
        else:
            types = {"token_type_ids": (torch.arange(ids.shape[1]) >= prompt).long()[None]} if pi0 else {}
            logits = model(input_ids=ids, pixel_values=inputs["pixel_values"], **types).logits[0, -1]
            token = options[int(logits[options].argmax())]
        state = grammar.transitions[state][token]
        written.append(token)
        ids = torch.cat((ids, torch.tensor([[token]])), dim=1)
    return grammar.text(written)


@pytest.mark.parametrize("family", ["openvla_plus", "pi0_plus"])
@pytest.mark.parametrize("style", ["signed", "plain", "bins"])
def test_trees_continue_a_prefix_as_one_token_at_a_time_does(family, style, llama_like):
    bins = ActionBins(3, 4, bins=16)
    strings = bins if style == "bins" else ActionStringProcessor(3, 4, 2, style, binary_dims=(2,))
    texts = set()
    for seed in range(2):
        model, processor = tiny_pair(family, llama_like, strings, seed)
        inputs = processor.action_inputs([picture(row) for row in range(3)], ["two", "out in", "in"])
        free = model.predict_actions(**inputs)
        random = np.random.default_rng(seed)
        wanted = random.uniform(-1, 1, (3, 3, 3)).astype(np.float32) * (1, 2, 1)  # the units of the statistics
        wanted[..., 2] = random.integers(0, 2, (3, 3))
        prefix = [wanted[0, :2], wanted[1, :0], wanted[2]]  # each row has its own length
        slow = model.predict_actions(**inputs, prefix_actions=prefix, tree_nodes=0)
        for nodes, cache in ((1, "dynamic"), (7, "dynamic"), (40, "dynamic"), (2, "static"), (30, "static")):
            fast = model.predict_actions(**inputs, prefix_actions=prefix, tree_nodes=nodes, cache_implementation=cache)
            assert fast.text == slow.text
            assert fast.token_ids.tolist() == slow.token_ids.tolist()
            np.testing.assert_allclose(fast.digit_probabilities, slow.digit_probabilities, atol=2e-5)
            assert fast.forward_passes < slow.forward_passes or style == "bins"
        assert slow.text[1] == free.text[1]
        assert slow.text[2] != free.text[2]
        off = np.array([1, 2, 1]) * (0.07 if style == "bins" else 0.0051)
        for row in (0, 2):
            assert (np.abs(slow.actions[row, : len(prefix[row])] - prefix[row])[:, :2] <= off[:2]).all()
        texts |= set(slow.text)
        if style != "bins":
            for row, steps in enumerate(prefix):
                single = processor.action_inputs(picture(row), ["two", "out in", "in"][row])
                normal = np.round(steps / (1, 2, 1), 2) if len(steps) else steps
                assert forced_by_hand(model, single, normal) == slow.text[row]
    assert len(texts) == 6


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_in_other_families(family, gemma_like):
    strings = ActionStringProcessor(2, 4, 3)
    model = tiny_vla_plus(family, gemma_like, strings)
    inputs = tiny_inputs(model, (3, 9))
    prefix = np.random.default_rng(0).uniform(-1, 1, (2, 2, 2))
    slow = model.predict_actions(**inputs, prefix_actions=prefix, tree_nodes=0)
    for nodes in (1, 12):
        assert model.predict_actions(**inputs, prefix_actions=prefix, tree_nodes=nodes).text == slow.text


def test_a_models_own_steps_are_repeated_exactly_and_change_nothing(llama_like):
    """What a model would have written anyway is what it writes when it is forced to; sampled tokens follow it, too."""
    strings = ActionStringProcessor(3, 5, 4, binary_dims=(2,))
    model, processor = tiny_pair("openvla_plus", llama_like, strings)
    inputs = processor.action_inputs(picture(), "two")
    free = model.predict_actions(**inputs)
    for k in range(5):
        begun = free.actions[:, :k]
        same = model.predict_actions(**inputs, prefix_actions=begun)
        assert same.text == free.text
        assert same.forward_passes <= free.forward_passes
        np.testing.assert_array_equal(same.actions[:, :k], begun)
        for options in ({}, {"tree_nodes": 0}):
            drawn = model.predict_actions(**inputs, prefix_actions=begun, do_sample=True, **options)
            np.testing.assert_array_equal(drawn.actions[:, :k], begun)
    beams = model.predict_actions(**inputs, prefix_actions=-free.actions[:, :2] * (1, 1, 0), num_beams=3)
    np.testing.assert_allclose(beams.actions[:, :2, :2], -free.actions[:, :2, :2], atol=1e-6)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (np.zeros((2, 1, 3)), "got prefix_actions of 2 rows, expected 1"),
        (np.zeros((1, 4, 3)), r"got .* shape \[4, 3\] .* expected \[k, 3\] with k below the horizon, 4"),
        (np.zeros((1, 1, 2)), r"got prefix_actions of shape \[1, 2\]"),
        (np.full((1, 1, 3), np.nan), "got prefix_actions with NaN or infinity"),
        (np.full((1, 1, 3), 0.5), "expected 0 or 1 because the dimension is binary"),
    ],
)
def test_mistakes(prefix, message, llama_like):
    model, processor = tiny_pair("openvla_plus", llama_like, ActionStringProcessor(3, 4, 2, binary_dims=(2,)))
    with pytest.raises(ValueError, match=message):
        model.predict_actions(**processor.action_inputs(picture(), "two"), prefix_actions=prefix)


def test_values_without_a_fixed_length_have_no_prefix(llama_like):
    model, processor = tiny_pair("openvla_plus", llama_like, ActionStringProcessor(3, 4, 2, "legacy"))
    with pytest.raises(ValueError, match="got prefix_actions for a model of style 'legacy'"):
        model.predict_actions(**processor.action_inputs(picture(), "two"), prefix_actions=np.zeros((1, 1, 3)))
