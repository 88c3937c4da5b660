"""The way back to OpenVLA's layout, and what other engines have to know of the actions."""

import json
import re

import numpy as np
import pytest
import torch
from foreign_checkpoints import load_converted, parity_tensors, wide_tokenizer, write_hub_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_models import tiny_model, tiny_pi0_model, tiny_processor

from gen_vla.commands.main import main
from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.processors import ActionStringProcessor, compute_statistics, unnormalize_actions
from gen_vla.processors.action_strings import ActionStringError
from gen_vla.training.converting.conversion import convert
from gen_vla.training.converting.to_openvla import action_pattern, convert_to_openvla, openvla_statistics
from gen_vla.training.storage.tensor_files import SafetensorsFolder


@pytest.fixture(scope="module")
def tensors():
    return parity_tensors()


@pytest.fixture(scope="module", params=["bins", "signed"])
def folders(request, tmp_path_factory, tensors):
    """OpenVLA's folder, ours, and OpenVLA's again."""
    root = tmp_path_factory.mktemp(request.param)
    source = write_hub_folder(root / "source", tensors, wide_tokenizer())
    ours = convert(source, root / "ours", actions=request.param)
    return source, ours, convert_to_openvla(ours, root / "back", max_shard_bytes=10**6)


def test_every_tensor_that_matters_comes_back_exactly(folders, tensors):
    _, _, back = folders
    found = SafetensorsFolder(back)
    assert found.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    # Features are those of the block before the last.
    zeros = re.compile(r".*(\.featurizer\.blocks\.2\.|\.fused_featurizer\.blocks\.3\.|featurizer\.norm|attn_pool)")
    for name, tensor in tensors.items():
        wanted = torch.zeros_like(tensor) if zeros.match(name) else tensor
        assert torch.equal(found.read(name), wanted), name


def test_settings_come_back(folders):
    """What the original has is written as it is, defaults of its configuration spelled out beside it."""
    source, _, back = folders
    for name, skipped in (
        ("config.json", {"transformers_version", "norm_stats"}),
        ("preprocessor_config.json", {"means", "stds"}),
    ):
        before, after = (json.loads((folder / name).read_text()) for folder in (source, back))
        for key in before.keys() - skipped - {"text_config"}:
            assert after[key] == before[key], key
        if "text_config" in before:
            assert before["text_config"].items() <= after["text_config"].items()
            for key, entry in before["norm_stats"].items():
                assert after["norm_stats"][key]["action"] == entry["action"]


def test_the_round_trip_acts_the_same(folders, tmp_path):
    _, ours, back = folders
    style = json.loads((ours / "config.json").read_text())["action_config"].get("style", "bins")
    again = convert(back, tmp_path / "again", actions=style)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    found = []
    for folder in (ours, again):
        model, processor = load_converted(folder)
        inputs = processor.action_inputs(picture, "close the drawer")
        found.append(model.predict_actions(**inputs, unnorm_key="bridge_orig"))
    np.testing.assert_array_equal(found[0].token_ids, found[1].token_ids)
    np.testing.assert_array_equal(found[0].actions, found[1].actions)
    told = json.loads((back / "action_format.json").read_text())
    written = found[0].token_ids[0].tolist()
    assert len(written) == told["max_tokens"]
    if style == "bins":
        assert told["token_ids"] == list(range(32000 - 256, 32000))
        assert told["regular_expression"] is None
        assert set(written) <= set(told["token_ids"])
    else:
        eos = processor.tokenizer.eos_token_id
        assert processor.tokenizer.convert_ids_to_tokens(sorted(set(told["token_ids"]) - {eos})) == [*"+-.0123456789"]
        assert eos in told["token_ids"]
        assert re.fullmatch(told["regular_expression"], found[0].text[0])


STRINGS = [
    ActionStringProcessor(2, horizon=2, decimals=2, style=style, binary_dims=binary)
    for style in ("signed", "plain")
    for binary in ((), (1,))
]


@pytest.mark.parametrize("strings", STRINGS, ids=lambda s: f"{s.style}-{len(s.binary_dims)}")
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_pattern_matches_what_the_grammar_reads_and_nothing_else(strings, data):
    config = {"style": strings.style, "decimals": 2, "action_dim": 2, "horizon": 2}
    pattern = str(action_pattern({**config, "binary_dims": list(strings.binary_dims)}))
    values = data.draw(st.lists(st.sampled_from([-1.0, -0.57, -0.01, 0.0, 0.08, 1.0]), min_size=4, max_size=4))
    chunk = np.array(values).reshape(2, 2)
    for dim in strings.binary_dims:
        chunk[:, dim] = chunk[:, dim] > 0
    text = strings.encode(chunk)
    assert re.fullmatch(pattern, text)
    place = data.draw(st.integers(0, len(text) - 1))
    changed = text[:place] + data.draw(st.sampled_from("+-.0123459\n,")) + text[place + data.draw(st.integers(0, 1)) :]
    try:
        strings.decode(changed)
        reads = True
    except ActionStringError:
        reads = False
    assert bool(re.fullmatch(pattern, changed)) == reads, changed


def test_openvlas_formula_gives_the_units_of_every_normalization():
    actions = np.random.default_rng(0).normal(2, 3, (50, 4))
    modes = ["quantiles", "min_max", "mean_std", "quantiles"]
    ours = compute_statistics(actions, 1, [True] * 3 + [False], modes)
    theirs = openvla_statistics({"mine": ours})["mine"]["action"]
    low, high, mask = (np.array(theirs[name]) for name in ("q01", "q99", "mask"))
    values = np.random.default_rng(1).uniform(-1, 1, (20, 4))
    expected = np.where(mask, 0.5 * (values + 1) * (high - low) + low, values)  # `predict_action` of openvla-7b
    np.testing.assert_allclose(unnormalize_actions(values, ours["action"]), expected, rtol=1e-5, atol=1e-6)
    assert "normalization" not in theirs


def test_what_openvla_cannot_say_is_refused(llama_like, gemma_like, tmp_path):
    strings = ActionStringProcessor(3)
    for folder, model in (("heads", tiny_model(llama_like, strings)), ("pi0", tiny_pi0_model(gemma_like, strings))):
        model.save_pretrained(tmp_path / folder)
        tiny_processor(llama_like, strings).save_pretrained(tmp_path / folder)
    with pytest.raises(ConversionError, match="expected both for 224 or 384 pixels with 16 heads"):
        convert_to_openvla(tmp_path / "heads", tmp_path / "out")
    with pytest.raises(ConversionError, match="got a model of type 'vla_plus'"):
        convert_to_openvla(tmp_path / "pi0", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(folders, tmp_path, capsys):
    _, ours, _ = folders
    assert main(["convert", str(ours), str(tmp_path / "out"), "--to", "openvla"]) == 0
    assert (tmp_path / "out" / "action_format.json").is_file()
    assert main(["convert", str(ours), str(tmp_path / "two"), "--to", "openvla", "--actions", "bins"]) != 0
    assert "got --actions beside --to openvla" in capsys.readouterr().err
