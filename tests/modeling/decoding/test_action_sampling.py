"""Sampled actions follow the model's own distribution under grammar and temperature, by trees and by `generate`."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from test_docs import ROOT, blocks
from tiny_models import picture, tiny_model, tiny_processor
from transformers import GenerationConfig

from gen_vla.modeling import OpenVLAPlusForVision2Seq
from gen_vla.processors import ActionBins, ActionStringProcessor


DRAWS = 2000
WAYS = [{}, {"tree_nodes": 5}, {"tree_nodes": 0}]


def interfering(model: Any) -> GenerationConfig:
    """A generation config in which everything would change the result."""
    tokens = sorted(model.action_grammar.text_of)
    return GenerationConfig(
        do_sample=True,
        temperature=0.2,
        top_k=3,
        top_p=0.5,
        min_p=0.3,
        typical_p=0.5,
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        suppress_tokens=tokens[:3],
        begin_suppress_tokens=tokens[3:5],
        bad_words_ids=[[tokens[5]]],
        sequence_bias=[[[tokens[6]], 9.0]],
        min_new_tokens=40,
        forced_eos_token_id=tokens[7],
        exponential_decay_length_penalty=(1, 1.5),
        stop_strings="0",
        max_time=1e-6,
        guidance_scale=3.0,
        num_return_sequences=2,
        use_cache=False,
    )


@torch.no_grad()
def exact_distribution(model: Any, inputs: Any, temperature: float) -> dict[tuple[int, ...], float]:
    """The probability of every action (its tokens, EOS left out) by full passes over everything."""
    grammar = model.action_grammar
    prompt = torch.cat((inputs["input_ids"][0], torch.tensor(model.config.action_config["lead_in_ids"]).long()))
    if inputs["input_ids"][0, -1] == prompt[-1]:
        prompt = inputs["input_ids"][0]
    actions: dict[tuple[int, ...], float] = {}
    pending = [((), 0, 1.0)]
    while pending:
        tokens, state, probability = pending.pop()
        allowed = sorted(grammar.transitions[state])
        if allowed == [grammar.eos_token_id]:
            actions[tokens] = probability
            continue
        ids = torch.cat((prompt, torch.tensor(tokens).long()))[None]
        logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1].double()
        shares = (logits[allowed] / temperature).softmax(-1).tolist()
        pending += [
            ((*tokens, token), grammar.transitions[state][token], probability * share)
            for token, share in zip(allowed, shares, strict=True)
        ]
    return actions


def draws(model: Any, inputs: Any, **options: Any) -> Any:
    many = {
        "input_ids": inputs["input_ids"].repeat(DRAWS, 1),
        "attention_mask": inputs["attention_mask"].repeat(DRAWS, 1),
        "pixel_values": inputs["pixel_values"].repeat(DRAWS, 1, 1, 1),
    }
    torch.manual_seed(0)
    return model.predict_actions(**many, do_sample=True, **options)


def check_distribution(prediction: Any, exact: dict[tuple[int, ...], float], eos_token_id: int) -> None:
    """Chi-square of the drawn actions; those expected fewer than five times count as one."""
    counted = Counter(tuple(t for t in row if t != eos_token_id) for row in prediction.token_ids.tolist())
    assert counted.keys() <= exact.keys()
    often = [action for action, probability in exact.items() if probability * DRAWS >= 5]
    found, expected = [counted[action] for action in often], [exact[action] * DRAWS for action in often]
    assert len(often) > 10
    rest = max(DRAWS - sum(expected), 1e-9)
    found, expected = [*found, DRAWS - sum(found)], [*expected, rest]
    if rest < 5:
        found, expected = [*found[:-2], sum(found[-2:])], [*expected[:-2], sum(expected[-2:])]
    assert chisquare(found, expected, sum_check=False).pvalue > 0.001
    # The probability of every drawn token, at the sampling temperature, is what the exact one is a product of.
    probabilities = prediction.digit_probabilities.prod(axis=1)
    wanted = [exact[tuple(t for t in row if t != eos_token_id)] for row in prediction.token_ids.tolist()]
    np.testing.assert_allclose(probabilities, wanted, rtol=1e-3)


@pytest.fixture(scope="module", params=["bins", "signed", "legacy"])
def acting(request: pytest.FixtureRequest, llama_like: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model saved with a generation config that interferes, its inputs, a temperature and the exact distribution."""
    codec = ActionBins(1) if request.param == "bins" else ActionStringProcessor(1, decimals=1, style=request.param)
    model, processor = tiny_model(llama_like, codec), tiny_processor(llama_like, codec)
    inputs = processor.action_inputs(picture(), "go")
    temperature = 5.0 if request.param == "bins" else 2.0
    exact = exact_distribution(model, inputs, temperature)
    assert sum(exact.values()) == pytest.approx(1.0)
    folder: Path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    interfering(model).save_pretrained(folder)
    loaded = OpenVLAPlusForVision2Seq.from_pretrained(folder).eval()
    assert loaded.generation_config.repetition_penalty == 5.0
    return loaded, inputs, temperature, exact


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_draws_follow_the_models_distribution(acting: Any, way: dict[str, Any]) -> None:
    model, inputs, temperature, exact = acting
    prediction = draws(model, inputs, temperature=temperature, **way)
    check_distribution(prediction, exact, model.action_grammar.eos_token_id)


def test_a_saved_generation_config_changes_no_action(acting: Any) -> None:
    model, inputs, _, _ = acting
    saved = model.generation_config.to_dict()
    plain, tree = (model.predict_actions(**inputs, tree_nodes=nodes) for nodes in (0, 8))
    assert plain.token_ids.tolist() == tree.token_ids.tolist()
    np.testing.assert_allclose(plain.digit_probabilities, tree.digit_probabilities, rtol=1e-4)
    beams = model.predict_actions(**inputs, num_beams=2)
    assert beams.token_ids.shape == plain.token_ids.shape
    assert model.generation_config.to_dict() == saved  # and stays, for questions


@pytest.mark.parametrize("seed", [0, 1])
def test_the_spread_of_an_action_is_measured_by_sampling(llama_like: Any, seed: int) -> None:
    """The code of how_to/run_on_a_robot.md, against the standard deviation by all actions and their probabilities."""
    strings = ActionStringProcessor(1, decimals=1)
    model, processor = tiny_model(llama_like, strings, seed=seed), tiny_processor(llama_like, strings)
    names: dict[str, Any] = {"model": model, "processor": processor, "unnorm_key": "tiny"}
    page = ROOT / "docs" / "how_to" / "run_on_a_robot.md"
    exec(compile(blocks(page, "python")[-1], page.name, "exec"), names)
    exact = exact_distribution(model, processor.action_inputs(picture(), "go"), 1.0)
    values = np.array([float(strings.decode(model.action_grammar.text(tokens))[0, 0]) for tokens in exact])
    probabilities = np.array(list(exact.values()))
    wanted = np.sqrt(probabilities @ (values - probabilities @ values) ** 2)
    torch.manual_seed(0)
    found = names["spread"](picture(), "go", draws=800)
    assert found.shape == (1, 1)
    np.testing.assert_allclose(found, wanted, rtol=0.1)


def test_options_that_are_given_count(llama_like: Any) -> None:
    codec = ActionBins(1)
    model, processor = tiny_model(llama_like, codec), tiny_processor(llama_like, codec)
    inputs = processor.action_inputs(picture(), "go")
    few = draws(model, inputs, temperature=5.0, top_k=4)
    assert len(set(few.token_ids[:, 0].tolist())) == 4
    cut = draws(model, inputs, temperature=5.0, top_p=0.3)
    assert 1 < len(set(cut.token_ids[:, 0].tolist())) < 100
    exact = exact_distribution(model, inputs, 5.0)  # what is reported stays the model's own probability
    np.testing.assert_allclose(cut.digit_probabilities[0, 0], exact[(int(cut.token_ids[0, 0]),)], rtol=1e-4)


@pytest.mark.parametrize(
    "option",
    [
        {"do_sample": False, "use_cache": True, "num_beams": 1, "max_new_tokens": 15, "top_p": None},
        {"temperature": None},
        {"top_k": 1},
        {"top_p": 0.2},
        {"temperature": 0.7},
        {"temperature": 0.0},
        {"min_p": 0.5},
        {"length_penalty": 2.0, "early_stopping": True},
        {"repetition_penalty": 1.0},
        {"output_scores": True, "return_dict_in_generate": True},
        {"do_sample": True, "top_k": 0},
        {"do_sample": True, "top_p": 1.0, "typical_p": 1.0},
    ],
    ids=str,
)
def test_options_without_effect_cost_no_pass(llama_like: Any, option: dict[str, Any]) -> None:
    strings = ActionStringProcessor(3, decimals=2)
    model, processor = tiny_model(llama_like, strings), tiny_processor(llama_like, strings)
    inputs = processor.action_inputs(picture(), "go")
    results = []
    for options in (option, {"do_sample": option.get("do_sample", False)}):
        torch.manual_seed(0)
        results.append(model.predict_actions(**inputs, **options))
    same, plain = results
    assert same.token_ids.tolist() == plain.token_ids.tolist()
    assert same.digit_probabilities.tolist() == plain.digit_probabilities.tolist()
    assert same.forward_passes == plain.forward_passes < plain.token_ids.shape[1]
