"""Vision-language models of transformers, converted from the folders that transformers writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import picture
from tiny_vlms import FAMILIES, tiny_vlm_config, write_base_processor
from transformers import AutoModelForImageTextToText, AutoProcessor

from gen_vla.commands.main import main
from gen_vla.modeling import VLAPlusForVision2Seq
from gen_vla.modeling.conversion_plan import ConversionError
from gen_vla.training.converting import vlm_conversion
from gen_vla.training.converting.conversion import convert


EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def base_folder(family: str, folder: Path, seed: int = 0) -> Any:
    """Writes a base model with its processor; returns the model."""
    tokenizer = write_base_processor(family, folder)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(tiny_vlm_config(family, tokenizer)).eval()
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


def test_the_command_says_what_it_did_and_checks(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    base_folder("smolvlm", tmp_path / "base")
    assert main(["convert", str(tmp_path / "base"), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert "Converted into" in capsys.readouterr().out
    assert (
        next(VLAPlusForVision2Seq.from_pretrained(tmp_path / "half", dtype="auto").parameters()).dtype
        == torch.bfloat16
    )
    logits = vlm_conversion.first_logits
    calls: list[Any] = []
    monkeypatch.setattr(vlm_conversion, "first_logits", lambda *a: calls.append(a) or logits(*a) + len(calls))
    with pytest.raises(ConversionError, match="got logits that differ from the base model's by up to 1"):
        convert(tmp_path / "base", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    convert(tmp_path / "base", tmp_path / "unchecked", check=False)
    assert len(calls) == 2


def test_incomplete_checkpoints_and_options_of_others_are_refused(tmp_path: Path) -> None:
    base_folder("llava", tmp_path / "base")
    with pytest.raises(ConversionError, match="got tokenizer for a llava, expected none of actions"):
        convert(tmp_path / "base", tmp_path / "plus", tokenizer="llama")
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    weights.pop(next(name for name in weights if "projector" in name))
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ConversionError, match=r"got a checkpoint with 1 missing and 0 unexpected weights .*projector"):
        convert(tmp_path / "base", tmp_path / "plus")
    assert not (tmp_path / "plus").exists()
