"""PaliGemma in the layout of its published files becomes π0+, or the flow-matching π0 with a new action expert."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from paligemma_checkpoint import published, stock_paligemma, write_paligemma
from tiny_models import picture
from transformers import AutoModel, AutoProcessor

from gen_vla.commands.main import main
from gen_vla.modeling import Pi0FlowForActionPrediction
from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.training.checkpoints import load_model, read_processor
from gen_vla.training.converting.conversion import convert
from gen_vla.training.converting.paligemma_flow import expert_weights


EXPERT = {"hidden_size": 32, "intermediate_size": 48}


@pytest.fixture(scope="module")
def stock() -> Any:
    return stock_paligemma()


@pytest.fixture(scope="module")
def folder(stock: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("flow")
    source = write_paligemma(place / "source", stock)
    return convert(source, place / "converted", family="pi0_flow", expert=EXPERT)


@torch.no_grad()
def test_the_prefix_is_paligemmas(stock: Any, folder: Path) -> None:
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


def test_the_expert_is_new_and_always_the_same(folder: Path, stock: Any, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("dual", [True, False])
def test_step_0_is_paligemma(stock: Any, tmp_path: Path, dual: bool) -> None:
    source = write_paligemma(tmp_path / "source", stock)
    convert(source, tmp_path / "converted", dual=dual)
    model, processor = load_model(tmp_path / "converted"), read_processor(tmp_path / "converted")
    assert model.config.frozen == ("vision" if dual else None)
    assert list(processor.image_processor.image_mean) == [0.5, 0.25, 0.5]
    inputs = processor.question_inputs(picture(), "how many?")
    bos = processor.tokenizer.bos_token_id
    assert inputs["input_ids"][0, :5].tolist() == [model.config.image_token_id] * 4 + [bos]
    with torch.no_grad():
        ours, theirs = model(**inputs).logits, stock(**inputs).logits
    assert torch.equal(ours, theirs)
    assert float(ours.std()) > 0.1


def test_paligemma_that_was_trained_further(stock: Any, folder: Path, tmp_path: Path) -> None:
    """A `vla_plus` of one encoder has it inside."""
    source = write_paligemma(tmp_path / "source", stock)
    convert(source, tmp_path / "vla", dual=False)
    convert(tmp_path / "vla", tmp_path / "flow", family="pi0_flow", expert=EXPERT)
    ours, theirs = (
        Pi0FlowForActionPrediction.from_pretrained(each).state_dict() for each in (tmp_path / "flow", folder)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    got, expected = (read_processor(each).action_inputs(picture(), "go") for each in (tmp_path / "flow", folder))
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    with pytest.raises(ConversionError, match="got a vla_plus, expected --family pi0_flow"):
        convert(tmp_path / "vla", tmp_path / "again")
    convert(source, tmp_path / "two")
    with pytest.raises(
        ConversionError, match="with two encoders, expected one, as gen-vla convert --no-dual makes it"
    ):
        convert(tmp_path / "two", tmp_path / "again", family="pi0_flow")


@pytest.mark.parametrize("family", ["vla_plus", "pi0_flow"])
def test_what_does_not_fit_is_refused(family: str, stock: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"family": family, "expert": EXPERT}
    write_paligemma(tmp_path / "more", stock, {**published(stock), "action_expert.weight": torch.ones(1)})
    with pytest.raises(ConversionError, match=r"0 missing and 1 unexpected weights \(action_expert.weight"):
        convert(tmp_path / "more", tmp_path / "converted", **options)
    spoiled = published(stock)
    del spoiled["language_model.model.layers.1.self_attn.v_proj.weight"]
    write_paligemma(tmp_path / "cut", stock, spoiled)
    with pytest.raises(ConversionError, match=r"1 missing and 0 unexpected weights \(.*layers.1.self_attn.v_proj"):
        convert(tmp_path / "cut", tmp_path / "converted", **options)
    for given, message in (
        ({"family": "pi0_flow", "dual": True}, "got dual for a paligemma, expected none of actions, frozen, dual"),
        ({"family": "openvla"}, "got family='openvla', expected one of 'vla_plus', 'pi0_flow'"),
        ({"actions": "bins"}, "got actions for a paligemma, expected none of actions"),
    ):
        with pytest.raises(ConversionError, match=message):
            convert(tmp_path / "cut", tmp_path / "converted", **given)
    assert not (tmp_path / "converted").exists()


def test_the_command(stock: Any, tmp_path: Path) -> None:
    source = write_paligemma(tmp_path / "source", stock)
    command = ["convert", str(source), str(tmp_path / "flow"), "--family", "pi0_flow", "--dtype", "bfloat16"]
    assert main(command) == 0
    settings = json.loads((tmp_path / "flow" / "config.json").read_text(encoding="utf-8"))
    assert settings["model_type"] == "pi0_flow"
    assert settings["dtype"] == "bfloat16"
    sizes = [settings["dit_config"][name] for name in ("hidden_size", "intermediate_size")]
    assert sizes == [32, 24], "a half and a quarter of the language model's, as in π0"
