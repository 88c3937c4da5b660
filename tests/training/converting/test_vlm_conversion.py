"""Vision-language models of transformers, converted from the folders that transformers writes."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import picture
from tiny_vlms import FAMILIES, tiny_vlm_config, write_base_processor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    DeepseekV3Config,
    Gemma3Config,
    LlavaConfig,
    MllamaConfig,
    Qwen3_5Config,
)

from gen_vla.commands.main import main
from gen_vla.modeling import VLAPlusForVision2Seq
from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.training.checkpoints import load_processor
from gen_vla.training.converting import vlm_conversion
from gen_vla.training.converting.conversion import convert
from gen_vla.training.publishing.assembling import install_in_cache
from gen_vla.training.storage.tensor_files import Output, SafetensorsFolder, write_shards


EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def base_folder(family: str, folder: Path, seed: int = 0, **text: Any) -> Any:
    """Writes a base model with its processor; returns the model; `text` are settings of its language model."""
    tokenizer = write_base_processor(family, folder)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(tiny_vlm_config(family, tokenizer, **text)).eval()
    model.save_pretrained(folder)
    return model


@EACH_FAMILY
@pytest.mark.parametrize("dual", [True, False])
def test_the_result_is_its_base(family: str, dual: bool, tmp_path: Path) -> None:
    """Loaded by name it gives the base model's logits, bit for bit, and answers like it."""
    base = base_folder(family, tmp_path / "base")
    options = {"family": "vla_plus"} if family.startswith("paligemma") else {}
    convert(tmp_path / "base", tmp_path / "plus", dual=dual, **options)
    model: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "plus", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(tmp_path / "plus", trust_remote_code=True)
    assert bool(model.config.frozen) == dual == hasattr(model.vlm.model, "frozen_vision")
    inputs = processor.question_inputs([picture(0), picture(1)], ["How many?", "Which two?"])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, base(**inputs).logits)
    with pytest.raises(ValueError, match="it was not trained to act"):
        model.predict_actions(**inputs)


@EACH_FAMILY
def test_the_files_are_those_of_save_pretrained(family: str, tmp_path: Path) -> None:
    """Weights streamed from several files into several are those of the model that was in memory as a whole."""
    base = base_folder(family, tmp_path / "base")
    base.save_pretrained(tmp_path / "base", max_shard_size=40_000)
    (tmp_path / "base" / "model.safetensors").unlink()
    plus = convert(tmp_path / "base", tmp_path / "plus", check=False, max_shard_bytes=60_000)
    written = SafetensorsFolder(plus)
    VLAPlusForVision2Seq.from_vlm(base).save_pretrained(tmp_path / "whole")
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    assert written.files.keys() == expected.keys()
    assert len(set(written.files.values())) > 2
    assert all(torch.equal(written.read(name), tensor) for name, tensor in expected.items())
    for name in ("config.json", "generation_config.json"):
        whole, made = (json.loads((folder / name).read_text()) for folder in (tmp_path / "whole", plus))
        assert {**made, **{key: whole[key] for key in ("prompt_template",) if key in whole}} == whole


def test_memory_is_that_of_a_few_tensors(tmp_path: Path) -> None:
    """250 MB of weights, from a name on the Hub, by a process that needs no 50 MB for it, libraries included."""
    tokenizer = write_base_processor("llava", tmp_path / "base")
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 20}
    config = tiny_vlm_config("llava", tokenizer, **sizes)
    config.save_pretrained(tmp_path / "base")
    with torch.device("meta"):
        weights = AutoModelForImageTextToText.from_config(config).state_dict()
    outputs = [
        Output(name, tuple(weight.shape), torch.float32, weight.new_ones(weight.shape, device="cpu").clone)
        for name, weight in weights.items()
    ]
    write_shards(tmp_path / "base", outputs, max_shard_bytes=100 * 10**6)
    install_in_cache(tmp_path / "base", "someone/base", tmp_path / "hub")
    script = """
from gen_vla.evaluation.benchmarks.training_step import memory_bytes
from gen_vla.training.converting.conversion import convert
before = memory_bytes("VmRSS")
convert("someone/base", "plus", check=False)
print(memory_bytes("VmHWM") - before)
"""
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    command, options = [sys.executable, "-c", script], {"capture_output": True, "text": True, "timeout": 300}
    run = subprocess.run(command, cwd=tmp_path, env=settings, **options)
    assert run.returncode == 0, run.stderr[-2000:]
    written = sum(file.stat().st_size for file in (tmp_path / "plus").glob("*.safetensors"))
    assert written > 250e6
    assert int(run.stdout) < 50e6


def test_the_command_says_what_it_did_and_checks(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    base_folder("smolvlm", tmp_path / "base")
    assert main(["convert", str(tmp_path / "base"), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert "Converted into" in capsys.readouterr().out
    assert (
        next(VLAPlusForVision2Seq.from_pretrained(tmp_path / "half", dtype="auto").parameters()).dtype
        == torch.bfloat16
    )
    alarms: list[str] = []
    logger = logging.getLogger("transformers.configuration_utils")
    monkeypatch.setattr(logger, "callHandlers", lambda record: alarms.append(record.getMessage()))
    load_processor(tmp_path / "half")
    assert not alarms
    logits = vlm_conversion.first_logits
    calls: list[Any] = []
    monkeypatch.setattr(vlm_conversion, "first_logits", lambda *a: calls.append(a) or logits(*a) + len(calls))
    with pytest.raises(ConversionError, match="got logits that differ from the base model's by up to 1"):
        convert(tmp_path / "base", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    convert(tmp_path / "base", tmp_path / "unchecked", check=False)
    assert len(calls) == 2


def test_what_files_hold_besides(tmp_path: Path) -> None:
    """Tied weights under both their names, positions as integers, weights finer than the model is loaded with,
    another attention than converted models ask for.
    """
    base = base_folder("llava", tmp_path / "base", tie_word_embeddings=True)
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    embeddings = next(weights[name] for name in weights if "embed_tokens" in name)
    more = {"lm_head.weight": embeddings.clone(), "vision_tower.embeddings.position_ids": torch.arange(4)[None]}
    save_file({**weights, **more}, file, metadata={"format": "pt"})
    settings = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(
        json.dumps({**settings, "dtype": "bfloat16", "_attn_implementation": "eager"})
    )
    plus = convert(tmp_path / "base", tmp_path / "plus")
    assert set(SafetensorsFolder(plus).dtypes.values()) == {torch.float32}
    model: Any = VLAPlusForVision2Seq.from_pretrained(plus, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, base.get_input_embeddings().weight.bfloat16())


def test_other_families_are_refused_before_their_weights_are_read(tmp_path: Path) -> None:
    """By what is missing for them; the folder holds a configuration alone."""
    quantized: Any = {"quantization_config": {"quant_method": "awq"}}
    for config, missing in (
        (Qwen3_5Config(), "layers of type linear_attention, expected full or sliding attention: recurrent"),
        (LlavaConfig(text_config=DeepseekV3Config()), r"got a deepseek_v3 .* keys and values of different widths"),
        (MllamaConfig(), r"of type 'mllama', expected one of gemma3, .*; another one needs an entry"),
        (Gemma3Config(**quantized), r"got weights that are quantised \(awq\)"),
    ):
        config.save_pretrained(tmp_path / config.model_type)
        with pytest.raises(ValueError, match=missing):
            convert(tmp_path / config.model_type, tmp_path / "plus")


def test_incomplete_checkpoints_and_options_of_others_are_refused(tmp_path: Path) -> None:
    base_folder("llava", tmp_path / "base")
    with pytest.raises(ConversionError, match="got tokenizer for a llava, expected none of actions"):
        convert(tmp_path / "base", tmp_path / "plus", tokenizer="llama")
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "projector" in name)
    weight = weights.pop(name)
    for spoiled in (weights, {**weights, name: weight[..., :-1].contiguous()}):
        save_file(spoiled, file, metadata={"format": "pt"})
        with pytest.raises(ConversionError, match=r"got a checkpoint with 1 missing and 0 unexpected .*projector"):
            convert(tmp_path / "base", tmp_path / "plus")
    assert not (tmp_path / "plus").exists()
