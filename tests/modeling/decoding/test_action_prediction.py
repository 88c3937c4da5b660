"""From observations to actions: shapes, units, the lead-in, probabilities by hand, decoding options, errors."""

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import picture, tiny_model, tiny_processor, tiny_statistics

from gen_vla.modeling import ActionPrediction
from gen_vla.modeling.action_prediction import append_lead_in
from gen_vla.processors import ActionStringProcessor
from gen_vla.processors.action_strings import STYLES


INSTRUCTIONS = ["open the drawer", "go", "put it in"]
OPENVLA_PROMPT = "In: What action should the robot take to go?\nOut:"


def pair(tokenizer: Any, seed: int = 0, **format_: Any) -> tuple[Any, Any]:
    """A model and a processor for one action format; by default 3 dimensions and 2 decimals."""
    strings = ActionStringProcessor(**{"action_dim": 3, "decimals": 2, **format_})
    return tiny_model(tokenizer, strings, seed=seed), tiny_processor(tokenizer, strings)


def observations(processor: Any, rows: int = 3) -> Any:
    return processor.action_inputs([picture(row) for row in range(rows)], INSTRUCTIONS[:rows])


@torch.no_grad()
def greedy_by_hand(model: Any, inputs: Any) -> tuple[list[int], list[float]]:
    """Constrained greedy decoding of one row by full passes over everything: token ids and their probabilities."""
    grammar, ids, state = model.action_grammar, inputs["input_ids"], 0
    chosen, probabilities = [], []
    while len(chosen) < grammar.max_tokens:
        logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1].double()
        allowed = list(grammar.transitions[state])
        shares = logits[allowed].softmax(-1)
        best = int(shares.argmax())
        chosen.append(allowed[best])
        probabilities.append(float(shares[best]))
        state = grammar.transitions[state][allowed[best]]
        ids = torch.cat((ids, torch.tensor([[allowed[best]]])), dim=1)
    return chosen, probabilities


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("style", STYLES)
def test_shapes(llama_like: Any, style: str, horizon: int) -> None:
    model, processor = pair(llama_like, style=style, horizon=horizon)
    prediction = model.predict_actions(**observations(processor))
    assert isinstance(prediction, ActionPrediction)
    assert prediction.actions.shape == prediction.normalized.shape == (3, horizon, 3)
    assert prediction.actions.dtype == prediction.normalized.dtype == np.float32
    assert prediction.token_ids.shape == prediction.digit_probabilities.shape
    assert prediction.token_ids.shape[0] == len(prediction.text) == 3
    assert prediction.forward_passes < prediction.token_ids.shape[1] <= model.action_grammar.max_tokens
    for options in ({"tree_nodes": 0}, {"use_cache": False}, {"tree_nodes": 0, "cache_implementation": "static"}):
        slow = model.predict_actions(**observations(processor), **options)
        assert slow.forward_passes == slow.token_ids.shape[1]
        assert slow.text == prediction.text
    action = model.predict_action(**observations(processor, 1))
    assert action.shape == ((3,) if horizon == 1 else (horizon, 3))
    assert action.dtype == np.float32
    np.testing.assert_array_equal(np.reshape(action, (horizon, 3)), prediction.actions[0])


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tokens_and_probabilities_equal_full_passes_by_hand(llama_like: Any, style: str, seed: int) -> None:
    model, processor = pair(llama_like, seed, style=style, horizon=2)
    prediction = model.predict_actions(**observations(processor))
    for row in range(3):
        single = processor.action_inputs(picture(row), INSTRUCTIONS[row])
        tokens, probabilities = greedy_by_hand(model, single)
        length = prediction.token_ids.shape[1]
        assert prediction.token_ids[row].tolist() == tokens[:length]
        np.testing.assert_allclose(prediction.digit_probabilities[row], probabilities[:length], rtol=0, atol=1e-5)
        assert set(tokens[length:]) <= {model.action_grammar.eos_token_id}


def test_the_fields_agree_with_one_another(llama_like: Any) -> None:
    model, processor = pair(llama_like)
    prediction = model.predict_actions(**observations(processor))
    strings = processor.action_strings
    for row in range(3):
        text = processor.tokenizer.decode(prediction.token_ids[row]).strip()
        assert prediction.text[row] == text
        assert strings.encode(prediction.normalized[row]) == text
        np.testing.assert_array_equal(strings.decode(text), prediction.normalized[row])
    # tiny_statistics: dimension d ranges over [-(d + 1), d + 1] and the last is a gripper
    np.testing.assert_allclose(prediction.actions, prediction.normalized * [1.0, 2.0, 1.0], rtol=1e-6)


def test_each_row_has_its_own_units(llama_like: Any) -> None:
    model, processor = pair(llama_like)
    model.config.norm_stats = {"small": tiny_statistics(3), "large": tiny_statistics(3, scale=10.0)}
    inputs = observations(processor)
    prediction = model.predict_actions(**inputs, unnorm_key=["small", "large", "small"])
    small, large = np.array([1.0, 2.0, 1.0]), np.array([10.0, 20.0, 1.0])
    expected = prediction.normalized * np.stack([small, large, small])[:, None]
    np.testing.assert_allclose(prediction.actions, expected, rtol=1e-5)
    together = model.predict_actions(**inputs, unnorm_key="large")
    np.testing.assert_allclose(together.actions, prediction.normalized * large, rtol=1e-5)
    assert model.get_action_stats("large") is model.config.norm_stats["large"]["action"]
    assert model.get_action_dim("small") == 3
    with pytest.raises(ValueError, match="got 2 unnorm_keys for 3 observations"):
        model.predict_actions(**inputs, unnorm_key=["small", "large"])
    with pytest.raises(ValueError, match="trained on 2 data sets; pass one of: large, small"):
        model.predict_actions(**inputs)
    with pytest.raises(ValueError, match=r"got unnorm_key='smal', .*did you mean 'small'"):
        model.predict_actions(**inputs, unnorm_key=["small", "smal", "large"])


def test_openvla_user_code_runs_unchanged(llama_like: Any) -> None:
    model, processor = pair(llama_like)
    inputs = processor(OPENVLA_PROMPT, picture()).to("cpu", dtype=torch.float32)
    assert inputs["input_ids"][0, -1] != model.config.action_config["lead_in_ids"][-1]
    action = model.predict_action(**inputs, unnorm_key="tiny", do_sample=False)
    np.testing.assert_array_equal(action, model.predict_action(**processor.action_inputs(picture(), "go")))
    assert action.shape == (3,)
    ids_only = model.predict_action(inputs["input_ids"], "tiny", pixel_values=inputs["pixel_values"])
    np.testing.assert_array_equal(ids_only, action)


def test_rows_with_and_without_the_lead_in_mix(llama_like: Any) -> None:
    model, processor = pair(llama_like)
    with_it = processor.action_prompt(INSTRUCTIONS[0])
    texts = [with_it, processor.action_prompt(INSTRUCTIONS[1]).removesuffix("\n"), with_it.removesuffix("\n")]
    images = [picture(0), picture(1), picture(0)]
    prediction = model.predict_actions(**processor(images=images, text=texts))
    expected = model.predict_actions(**observations(processor))
    assert prediction.text == [expected.text[0], expected.text[1], expected.text[0]]


def test_append_lead_in_by_hand() -> None:
    ids = torch.tensor([[0, 5, 13], [4, 5, 6]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    rows, masks = append_lead_in(ids, mask, [13], pad=9)
    assert rows.tolist() == [[9, 0, 5, 13], [4, 5, 6, 13]]
    assert masks.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert append_lead_in(ids, mask, [], pad=9)[0] is ids
    assert append_lead_in(ids[:1], mask[:1], [5, 13], pad=9)[0].tolist() == [[0, 5, 13]]
    two, masks = append_lead_in(ids[1:], mask[1:], [6, 13], pad=9)  # the whole lead-in or nothing
    assert two.tolist() == [[4, 5, 6, 6, 13]]
    assert masks.tolist() == [[1, 1, 1, 1, 1]]


def test_sampling_is_seeded_and_always_an_action(llama_like: Any) -> None:
    model, processor = pair(llama_like)
    inputs = observations(processor)
    texts = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        texts.append(model.predict_actions(**inputs, do_sample=True, temperature=2.0).text)
    assert texts[0] == texts[1] != texts[2]
    torch.manual_seed(0)
    cold = model.predict_actions(**inputs, do_sample=True, temperature=1e-4)
    assert cold.text == model.predict_actions(**inputs).text
    assert cold.digit_probabilities.min() > 0.99  # at the sampling temperature


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("beams", [2, 5])
def test_beams(llama_like: Any, style: str, beams: int) -> None:
    for seed in range(3):
        model, processor = pair(llama_like, seed, style=style, action_dim=2)
        inputs = observations(processor)
        prediction = model.predict_actions(**inputs, num_beams=beams)
        assert prediction.actions.shape == (3, 1, 2)
        for row in range(3):
            probabilities = chances_by_hand(
                model, processor.action_inputs(picture(row), INSTRUCTIONS[row]), prediction, row
            )
            np.testing.assert_allclose(prediction.digit_probabilities[row], probabilities, rtol=0, atol=1e-5)


@torch.no_grad()
def chances_by_hand(model: Any, inputs: Any, prediction: ActionPrediction, row: int) -> list[float]:
    """The probability of each token of a prediction among those allowed there, by one pass over all of it."""
    tokens, grammar = prediction.token_ids[row].tolist(), model.action_grammar
    ids = torch.cat((inputs["input_ids"], torch.tensor([tokens])), dim=1)
    logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -len(tokens) - 1 : -1].double()
    state, probabilities = 0, []
    for token, scores in zip(tokens, logits, strict=True):
        allowed = list(grammar.transitions[state])
        probabilities.append(float(scores[allowed].softmax(-1)[allowed.index(token)]))
        state = grammar.transitions[state][token]
    return probabilities


def test_plain_generation_stays_unconstrained(llama_like: Any) -> None:
    model, processor = pair(llama_like)
    inputs = observations(processor)
    before = model.generate(**inputs, do_sample=False, max_new_tokens=6)
    model.predict_actions(**inputs)
    after = model.generate(**inputs, do_sample=False, max_new_tokens=6)
    assert before.tolist() == after.tolist()
    assert not set(before[:, -6:].flatten().tolist()) <= set(model.action_grammar.text_of)


def test_the_grammar_follows_the_config(llama_like: Any) -> None:
    model, processor = pair(llama_like)
    grammar = model.action_grammar
    assert model.action_grammar is grammar
    other, _ = pair(llama_like, action_dim=2, style="plain")
    model.config.action_config, model.config.norm_stats = other.config.action_config, other.config.norm_stats
    assert model.action_grammar is not grammar
    assert model.predict_action(**observations(processor, 1)).shape == (2,)


def test_errors(llama_like: Any) -> None:
    model, processor = pair(llama_like)
    inputs = observations(processor)
    with pytest.raises(ValueError, match=r"got 3 observations, expected 1; predict_actions takes a batch"):
        model.predict_action(**inputs)
    with pytest.raises(ValueError, match=r"got no input_ids, expected those of processor.action_inputs"):
        model.predict_action(unnorm_key="tiny")
    with pytest.raises(ValueError, match="got unnorm_key='bridge_orig', which this model has no statistics for"):
        model.predict_actions(**inputs, unnorm_key="bridge_orig")
    without = {name: tensor for name, tensor in inputs.items() if name != "pixel_values"}
    with pytest.raises(ValueError, match=r"got no pixel_values, expected those of processor.action_inputs"):
        model.predict_actions(**without)
    with pytest.raises(ValueError, match=r"got no pixel_values"):  # words alone ask for no action
        model.predict_actions(**processor(OPENVLA_PROMPT, None))
    with pytest.raises(TypeError, match="got input_ids of type ndarray, expected a tensor: return_tensors='pt'"):
        model.predict_actions(**processor.action_inputs(picture(), "go", return_tensors="np"))
    blind = {**inputs, "input_ids": inputs["input_ids"].clone()}
    blind["input_ids"][1][blind["input_ids"][1] == model.config.image_token_id] = 5
    with pytest.raises(ValueError, match=r"got no image token in row 1 of 3, expected a picture for every"):
        model.predict_actions(**blind)
    right = processor(images=[picture(), picture()], text=["In: a\nOut:", "In: a a\nOut:"], padding_side="right")
    with pytest.raises(ValueError, match="got a batch padded on the right, expected the left"):
        model.predict_actions(**right)
    with pytest.raises(ValueError, match=r"got the option 'temperatur', .*did you mean 'temperature'"):
        model.predict_actions(**inputs, temperatur=0.5)
    with pytest.raises(ValueError, match=r"got the option 'num_return_sequences', .* one action per observation"):
        model.predict_actions(**inputs, num_return_sequences=2)
    for option in ({"num_beams": 0}, {"forced_eos_token_id": 2}):
        with pytest.raises(ValueError, match="expected at least one beam, and only tokens of the action's grammar"):
            model.predict_actions(**inputs, **option)
    with pytest.raises(ValueError, match="got do_sample=True with num_beams=3, expected one or the other"):
        model.predict_actions(**inputs, num_beams=3, do_sample=True)
    for temperature in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"got temperature={temperature} with do_sample=True, expected a number"):
            model.predict_actions(**inputs, do_sample=True, temperature=temperature)
    with pytest.raises(ValueError, match=r"got max_new_tokens=14, expected none: .* takes up to 15 tokens"):
        model.predict_actions(**inputs, max_new_tokens=14)
    talker = tiny_model(llama_like)
    with pytest.raises(ValueError, match=r"got a model without config\.action_config, expected one"):
        talker.predict_actions(**inputs)
    model.config.norm_stats = {}
    with pytest.raises(ValueError, match="got a model without action statistics"):
        model.predict_actions(**inputs)
    model.config.norm_stats = {"other": tiny_statistics(7)}
    with pytest.raises(ValueError, match="got actions of 3 dimensions and statistics of 7"):
        model.predict_actions(**inputs)


@pytest.mark.parametrize("options", [{"tree_nodes": 0}, {"tree_nodes": 6}, {"cache_implementation": "static"}])
def test_what_is_no_number_is_no_action(options: dict[str, Any], llama_like: Any) -> None:
    """A row of NaN is an error, and leaves nothing behind in buffers that stay from call to call."""
    strings = ActionStringProcessor(3)
    model, processor = tiny_model(llama_like, strings), tiny_processor(llama_like, strings)
    inputs = processor.action_inputs([picture(0), picture(1)], ["in", "out two"])
    before = model.predict_actions(**inputs, **options)
    broken = inputs["pixel_values"].clone()
    broken[1, 0, 2, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN as probabilities in row 1 of 2"):
        model.predict_actions(**{**inputs, "pixel_values": broken}, **options)
    after = model.predict_actions(**inputs, **options)
    np.testing.assert_array_equal(after.digit_probabilities, before.digit_probabilities)
    if "tree_nodes" not in options or options["tree_nodes"]:  # `generate` has words of its own for it
        with pytest.raises(ValueError, match="NaN as probabilities in row 1 of 2"):
            model.predict_actions(**{**inputs, "pixel_values": broken}, **options, do_sample=True)


def test_an_adapter_on_the_output_layer_takes_part(llama_like: Any) -> None:
    """Tree decoding reads rows of a weight that such an adapter does not change; merged, it does."""
    strings = ActionStringProcessor(3)
    model, processor = tiny_model(llama_like, strings), tiny_processor(llama_like, strings)
    inputs = processor.action_inputs([picture(0), picture(1)], ["in", "out two"])
    plain = model.predict_actions(**inputs)
    torch.manual_seed(0)
    adapter = get_peft_model(model, LoraConfig(target_modules=["lm_head"], r=4, init_lora_weights=False)).eval()
    model.lm_head.lora_B["default"].weight.data.mul_(30)
    slow, found = model.predict_actions(**inputs, tree_nodes=0), model.predict_actions(**inputs)
    assert found.text == slow.text != plain.text
    np.testing.assert_allclose(found.digit_probabilities, slow.digit_probabilities, atol=1e-5)
    with pytest.raises(ValueError, match="got tree_nodes=4 with an output layer that is more than its weight"):
        model.predict_actions(**inputs, tree_nodes=4)
    with adapter.disable_adapter():
        assert model.predict_actions(**inputs, tree_nodes=4).text == plain.text
    adapter.merge_adapter()
    assert model.predict_actions(**inputs, tree_nodes=4).text == slow.text


def more_than_a_weight(kind: str, head: Any) -> Any:
    """An output layer that computes something else than the product with its weight."""

    class Scaled(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return (8 * super().forward(input)).tanh() * torch.arange(self.out_features).div(self.out_features)

    other = (Scaled if kind == "scaled" else torch.nn.Linear)(head.in_features, head.out_features, bias=kind == "bias")
    other.weight = head.weight
    if kind == "bias":
        other.bias.copy_(torch.arange(head.out_features) % 7)
    if kind == "hook":
        offsets = torch.arange(head.out_features) % 7
        other.register_forward_hook(lambda module, inputs, output: output + offsets)  # pyright: ignore
    return other


@pytest.mark.parametrize("kind", ["bias", "scaled", "hook"])
@torch.no_grad()
def test_an_output_layer_that_is_more_than_its_weight(llama_like: Any, kind: str) -> None:
    model, processor = pair(llama_like)
    inputs = observations(processor, rows=1)
    plain = model.predict_actions(**inputs)
    model.set_output_embeddings(more_than_a_weight(kind, model.lm_head))
    prediction = model.predict_actions(**inputs)
    tokens, probabilities = greedy_by_hand(model, inputs)
    assert prediction.token_ids[0].tolist() == tokens != plain.token_ids[0].tolist()
    np.testing.assert_allclose(prediction.digit_probabilities[0], probabilities, rtol=1e-4)
    with pytest.raises(ValueError, match="with an output layer that is more than its weight, which only generate has"):
        model.predict_actions(**inputs, tree_nodes=4)


def test_forced_tokens_have_probability_one(llama_like: Any) -> None:
    model, processor = pair(llama_like)
    prediction = model.predict_actions(**observations(processor))
    transitions = model.action_grammar.transitions
    for tokens, probabilities in zip(prediction.token_ids.tolist(), prediction.digit_probabilities, strict=True):
        state, forced = 0, []
        for token in tokens:
            forced.append(len(transitions[state]) == 1)
            state = transitions[state][token]
        assert sum(forced) >= 3  # the points at least
        assert (probabilities[forced] == 1.0).all()
        assert (probabilities[~np.array(forced)] < 1.0).all()
        assert (probabilities > 0.0).all()
