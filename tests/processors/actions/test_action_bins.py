"""The baseline representation: 256 bins on the last tokens of the vocabulary, as OpenVLA has them."""

from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_models import picture, tiny_model, tiny_processor, tiny_statistics
from tiny_runs import tiny_settings, write_questions, write_robot_data
from transformers import AutoModel, AutoProcessor

from gen_vla.processors import (
    ActionBins,
    ActionLogitsProcessor,
    ActionStringError,
    ActionStringProcessor,
    BinGrammar,
    codec_from_action_config,
    grammar_from_action_config,
    make_action_config,
)
from gen_vla.training.collator import CoTrainingCollator
from gen_vla.training.loss_weights import BinTokenWeights
from gen_vla.training.mixing.prepared_rows import ROBOT
from gen_vla.training.model_building import make_action_format
from gen_vla.training.publishing.assembling import publish_to_folder
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.schema import ActionRecipe
from gen_vla.training.run import run_recipe


def test_text_and_values_of_exact_numbers() -> None:
    bins = ActionBins(action_dim=5)
    assert bins.encode([-1.0, -0.5, 0.0, 0.996, 1.0]) == "0 63 127 254 255"
    np.testing.assert_allclose(
        bins.decode("0 63 127 254 255"), [[-0.99607843, -0.50196078, 0.0, 0.99607843, 0.99607843]], atol=1e-7
    )


def test_encode_is_openvlas_formula() -> None:
    """vocabulary - digitize(clipped value) is the token; vocabulary - token - 1, clipped, is the centre's index."""
    values = np.concatenate((np.linspace(-1, 1, 256), np.random.default_rng(1).uniform(-1.2, 1.2, 744)))
    tokens = 32000 - np.digitize(np.clip(values, -1, 1), np.linspace(-1, 1, 256))
    edges = np.linspace(-1, 1, 256)
    centres = ((edges[:-1] + edges[1:]) / 2)[np.clip(32000 - tokens - 1, 0, 254)]
    bins = ActionBins(action_dim=1000)
    grammar = BinGrammar(bins, bin_tokens_end=32000, eos_token_id=2)
    text = bins.encode(values)
    assert grammar.token_ids(text) == tokens.tolist()
    np.testing.assert_array_equal(bins.decode(text)[0], centres.astype(np.float32))


def test_values_outside_are_clipped_and_counted_and_nan_raises() -> None:
    bins = ActionBins(action_dim=2)
    assert bins.encode([1.5, -7.0]) == "255 0"
    assert bins.clipped.tolist() == [1, 1]
    with pytest.raises(ActionStringError, match="got nan in step 0, dimension 1, expected a finite number"):
        bins.encode([0.0, np.nan])
    with pytest.raises(ActionStringError, match=r"got an action of shape \[3\], expected \[2\] or \[1, 2\]"):
        bins.encode([0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    "text", ["", "1", "1 2 3", "1  2", " 1 2", "1 2 ", "1 2\n", "1 -2", "1 256", "01 2", "a b", "१ 2"]
)
def test_no_other_text_is_an_action(text: str) -> None:
    with pytest.raises(ActionStringError, match="got "):
        ActionBins(action_dim=2).decode(text)


def test_impossible_settings_are_refused(llama_like: Any) -> None:
    with pytest.raises(ValueError, match="got bins=1, expected an integer of at least 3"):
        ActionBins(bins=1)
    with pytest.raises(ValueError, match="none of them BOS, EOS or padding"):
        make_action_config(ActionBins(), llama_like, bin_tokens_end=258)
    with pytest.raises(ValueError, match="got representation='words', expected one of 'string', 'bins'"):
        grammar_from_action_config({"representation": "words"})
    with pytest.raises(ValueError, match="got representation=None, expected one of 'string', 'bins'"):
        codec_from_action_config({})
    with pytest.raises(ValueError, match="got an action_config without bins, expected action_dim, horizon, bins"):
        codec_from_action_config({"representation": "bins", "action_dim": 1, "horizon": 1})


def test_config_of_the_llama_vocabulary(llama2: Any) -> None:
    config = make_action_config(ActionBins(), llama2)
    sizes = {"representation": "bins", "action_dim": 7, "horizon": 1, "bins": 256, "bin_tokens_end": 32000}
    assert config == {**sizes, "lead_in": " ", "lead_in_ids": [29871], "eos_token_id": 2}
    assert isinstance(codec_from_action_config(config), ActionBins)
    strings = ActionStringProcessor()
    assert isinstance(codec_from_action_config(make_action_config(strings, llama2)), ActionStringProcessor)


def test_only_bins_may_be_generated() -> None:
    grammar = BinGrammar(ActionBins(action_dim=2, horizon=2, bins=4), bin_tokens_end=20, eos_token_id=2)
    assert grammar.max_tokens == 4
    constraint = ActionLogitsProcessor(grammar, prompt_length=1)
    scores = constraint(torch.tensor([[5], [5]]), torch.zeros(2, 24))  # type: ignore[arg-type]
    assert scores[0].isfinite().nonzero().ravel().tolist() == [16, 17, 18, 19]
    ended = constraint(torch.tensor([[5, 16, 17, 18, 19]]), torch.zeros(1, 24))  # type: ignore[arg-type]
    assert ended[0].isfinite().nonzero().ravel().tolist() == [2]
    assert grammar.text([16, 17, 18, 19, 2, 2]) == "3 2\n1 0"
    with pytest.raises(ActionStringError, match="got token 3 at position 1 of an action"):
        grammar.advance([16, 3])


@pytest.fixture
def tiny_bins(llama_like: Any) -> tuple[Any, Any]:
    """A tiny model that acts in bins, 7 values of 16 bins, and its processor."""
    config = make_action_config(ActionBins(bins=16), llama_like)
    model = tiny_model(llama_like, action_config=config, norm_stats={"tiny": tiny_statistics(7)})
    processor = tiny_processor(llama_like)
    processor.action_config = config
    return model, processor


def test_prediction_is_greedy_over_the_bins(tiny_bins: tuple[Any, Any]) -> None:
    """Seven times the most likely bin token, found by whole forward passes without a cache."""
    model, processor = tiny_bins
    inputs = processor.action_inputs(picture(), "open the drawer")
    prediction = model.predict_actions(**inputs)
    end, ids = model.config.action_config["bin_tokens_end"], inputs["input_ids"]
    for _ in range(7):
        with torch.no_grad():
            logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1]
        ids = torch.cat((ids, (logits[end - 16 : end].argmax() + end - 16).view(1, 1)), dim=1)
    assert prediction.token_ids[0].tolist() == ids[0, -7:].tolist()
    assert prediction.actions.shape == (1, 1, 7)
    assert prediction.text[0].count(" ") == 6
    assert prediction.forward_passes <= 7
    centres = ActionBins(bins=16).decode(prediction.text[0])[0]
    np.testing.assert_allclose(prediction.actions[0, 0], centres * [1, 2, 3, 4, 5, 6, 1], rtol=1e-6)


def test_the_lead_in_is_appended_where_it_is_missing(tiny_bins: tuple[Any, Any]) -> None:
    model, processor = tiny_bins
    prompt = "In: What action should the robot take to open the drawer?\nOut:"
    expected = model.predict_action(**processor.action_inputs(picture(), "open the drawer"))
    for text in (prompt, prompt + " "):
        actual = model.predict_action(**processor(text, picture()), unnorm_key="tiny", do_sample=False)
        np.testing.assert_array_equal(actual, expected)


def test_a_saved_repository_acts_in_bins(tiny_bins: tuple[Any, Any], tmp_path: Any) -> None:
    model, processor = tiny_bins
    model.save_pretrained(tmp_path / "bins")
    processor.save_pretrained(tmp_path / "bins")
    loaded = AutoModel.from_pretrained(tmp_path / "bins", trust_remote_code=True)
    reader = AutoProcessor.from_pretrained(tmp_path / "bins", trust_remote_code=True)
    expected = model.predict_action(**processor.action_inputs(picture(), "go"))
    np.testing.assert_array_equal(loaded.predict_action(**reader.action_inputs(picture(), "go")), expected)
    assert reader.action_strings.encode([0.0] * 7) == "7 7 7 7 7 7 7"


def test_training_rows_hold_the_tokens_inference_generates(tiny_bins: tuple[Any, Any]) -> None:
    _, processor = tiny_bins
    text = processor.action_strings.encode([-1, -0.5, 0, 0.5, 1, 0.25, 1])
    row = {"images": [picture()], "prompt": processor.action_prompt("go"), "completion": text, "source": ROBOT}
    weights = BinTokenWeights(7, constant_dims=[3], constant_weight=0.1)
    batch = CoTrainingCollator(processor, weights)([row])
    labels = batch["labels"][0]
    answer = labels[labels != -100].tolist()
    end = processor.action_config["bin_tokens_end"]
    assert answer == [*(end - 1 - int(number) for number in text.split()), processor.tokenizer.eos_token_id]
    assert batch["input_ids"][0, (labels != -100).nonzero()[0] - 1].tolist() == processor.action_config["lead_in_ids"]
    np.testing.assert_allclose(batch["token_weights"][0][labels != -100], [1, 1, 1, 0.1, 1, 1, 1, 1])


def test_recipes_choose_the_representation(trained: Any, llama2: Any) -> None:
    recipe = ActionRecipe(representation="bins", action_dim=4, binary_dims=[], bin_tokens="bytes")
    config = make_action_format(recipe, trained)
    assert (config["bin_tokens_end"], config["action_dim"]) == (259, 4)
    assert make_action_format(ActionRecipe(representation="bins"), llama2)["bin_tokens_end"] == 32000
    assert make_action_format(ActionRecipe(), llama2)["representation"] == "string"
    with pytest.raises(ValueError, match="expected none: only strings have decimals"):
        ActionRecipe(representation="bins", label_decimals=2)


def test_a_recipe_with_bins_trains_and_publishes(tmp_path: Any) -> None:
    write_robot_data(tmp_path / "robot")
    write_questions(tmp_path / "questions")
    settings = tiny_settings(training__steps=2)
    settings["actions"] = {"representation": "bins", "bin_tokens": "bytes", "action_dim": 3, "binary_dims": []}
    (tmp_path / "bins.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    folder = run_recipe(load_recipe(tmp_path / "bins.yaml"), tmp_path, progress=False)
    published = publish_to_folder(folder, "gen-vla/tiny-bins", tmp_path / "published")
    assert "none: one of 256 bins per value, 3 dimensions" in (published / "README.md").read_text(encoding="utf-8")


def test_round_trip_is_within_half_a_bin() -> None:
    bins = ActionBins(action_dim=4, horizon=3)
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 4))
    text = bins.encode(actions)
    assert text.count("\n") == 2
    assert np.abs(bins.decode(text) - actions).max() <= 1 / 255 + 1e-6
