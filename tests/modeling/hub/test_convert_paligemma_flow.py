"""`gen-vla convert --family pi0_flow`: PaliGemma's numbers in the prefix, an expert that learned nothing behind it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_convert_paligemma_weights import published, stock, write_paligemma  # noqa: F401  # a fixture
from tiny_models import picture, tiny_statistics
from transformers import AutoModel, AutoProcessor

from gen_vla.commands.main import main
from gen_vla.modeling import Pi0FlowForActionPrediction
from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.modeling.convert_paligemma_flow import expert_weights
from gen_vla.processors import make_flow_action_config
from gen_vla.training.converting.conversion import convert


EXPERT = {"hidden_size": 32, "intermediate_size": 48}


@pytest.fixture(scope="module")
def folder(stock: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    place = tmp_path_factory.mktemp("flow")
    source = write_paligemma(place / "source", published(stock))
    return convert(source, place / "converted", family="pi0_flow", expert=EXPERT, progress=False)


@torch.no_grad()
def test_the_prefix_is_paligemmas(stock: Any, folder: Path) -> None:  # noqa: F811
    result: Any = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    model, info = result
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(model.eval()).__name__ == "Pi0FlowForActionPrediction"
    assert type(processor).__name__ == "Pi0FlowProcessor"
    assert not any(info.values())
    theirs = stock.model.state_dict()
    assert {name.removeprefix("model.vlm.") for name in model.state_dict() if ".vlm." in name} == set(theirs)
    inputs = processor.action_inputs(picture(), "go")
    assert processor.tokenizer.decode(inputs["input_ids"][0]).endswith("<bos>go\n")
    expected = stock.model(**inputs).last_hidden_state
    embeds = model.model.embed_prefix(
        inputs["input_ids"], inputs["pixel_values"][:, None], torch.ones(1, 1, dtype=torch.bool)
    )
    prefix = model.model.vlm(inputs_embeds=embeds, token_type_ids=torch.zeros_like(inputs["input_ids"]))
    torch.testing.assert_close(prefix.last_hidden_state, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1


def test_the_expert_is_new_and_always_the_same(folder: Path, stock: Any, tmp_path: Path) -> None:  # noqa: F811
    model = Pi0FlowForActionPrediction.from_pretrained(folder)
    assert model.config.dit_config.hidden_size == 32
    assert model.config.dit_config.num_hidden_layers == model.config.text_config.num_hidden_layers == 2
    expert = {name: tensor for name, tensor in model.state_dict().items() if ".vlm." not in name}
    drawn = expert_weights(model.config, seed=0)
    assert expert.keys() == drawn.keys()
    assert all(torch.equal(expert[name], drawn[name]) for name in expert)
    assert abs(float(expert["model.dit.layers.1.mlp.up_proj.weight"].std()) - 0.02) < 0.003
    other = expert_weights(model.config, seed=1)
    assert not torch.equal(other["action_out_proj.weight"], drawn["action_out_proj.weight"])


def test_a_converted_model_can_be_told_to_act(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert settings["action_config"] is None
    model = Pi0FlowForActionPrediction.from_pretrained(
        folder,
        chunk_size=2,
        action_config=make_flow_action_config(3, 2),
        norm_stats={"tiny": tiny_statistics(3)},
    )
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    action = model.predict_action(**processor.action_inputs(picture(), "go"))
    assert action.shape == (2, 3)
    assert np.isfinite(action).all()


def test_what_does_not_fit_is_refused(stock: Any, tmp_path: Path) -> None:  # noqa: F811
    write_paligemma(tmp_path / "spoiled", {**published(stock), "action_expert.weight": torch.ones(1)})
    with pytest.raises(ConversionError, match=r"0 missing and 1 unexpected(?s:.*)unexpected: action_expert.weight"):
        convert(tmp_path / "spoiled", tmp_path / "converted", family="pi0_flow", progress=False)
    spoiled = published(stock)
    del spoiled["language_model.model.layers.1.self_attn.v_proj.weight"]
    write_paligemma(tmp_path / "cut", spoiled)
    with pytest.raises(ConversionError, match=r"1 missing(?s:.*)model.vlm.language_model.layers.1.self_attn.v_proj"):
        convert(tmp_path / "cut", tmp_path / "converted", family="pi0_flow", expert=EXPERT, progress=False)
    for options, message in (
        ({"family": "pi0_flow", "dual": True}, "got dual for the flow-matching π0"),
        ({"family": "openvla"}, "got family='openvla', expected one of 'pi0_plus', 'pi0_flow'"),
    ):
        with pytest.raises(ConversionError, match=message):
            convert(tmp_path / "cut", tmp_path / "converted", **options, progress=False)
    assert not (tmp_path / "converted").exists()


def test_the_command(stock: Any, tmp_path: Path) -> None:  # noqa: F811
    source = write_paligemma(tmp_path / "source", published(stock))
    command = ["convert", str(source), str(tmp_path / "flow"), "--family", "pi0_flow", "--dtype", "bfloat16"]
    assert main(command) == 0
    settings = json.loads((tmp_path / "flow" / "config.json").read_text(encoding="utf-8"))
    assert settings["model_type"] == "pi0_flow"
    assert settings["dtype"] == "bfloat16"
    assert settings["dit_config"]["hidden_size"] == 1024
