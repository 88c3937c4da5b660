"""mini-vlm as a PaliGemma: what it keeps, and what its projector is fit to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as Pictures
from transformers import AutoModelForImageTextToText

from gen_vla.modeling import VLAPlusForVision2Seq
from gen_vla.training.checkpoints import load_model, load_processor, read_processor
from gen_vla.training.converting.conversion import convert
from gen_vla.training.model_building import PACKAGED_MODELS
from gen_vla.training.pretraining.paligemma_start import write_paligemma


WORDS = "In: Which shape is the red object?\nOut: mug"


def drawn_picture(seed: int) -> Pictures.Image:
    """Patches of random colours: something that encoders tell apart."""
    colours = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Pictures.fromarray(colours.repeat(12, 0).repeat(12, 1))


@pytest.fixture(scope="module")
def base() -> tuple[Any, Any]:
    folder = PACKAGED_MODELS / "mini-vlm"
    return load_model(folder), load_processor(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("start")
    pictures = [drawn_picture(seed) for seed in range(40)]
    questions = Dataset.from_dict({"image": pictures}, features=Features({"image": Image()}))
    questions.save_to_disk(str(place / "questions"))
    (place / "questions" / "recording.json").write_text("{}", encoding="utf-8")
    write_paligemma(place / "questions", place / "paligemma")
    return place / "paligemma"


@torch.no_grad()
def test_its_language_model_is_the_llama(base: tuple[Any, Any], folder: Path) -> None:
    vlm, processor = base
    gemma = AutoModelForImageTextToText.from_pretrained(folder)
    ids = processor.tokenizer(WORDS, return_tensors="pt")["input_ids"]
    causal = torch.full((1, 1, ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
    expected = vlm.lm_head(vlm.model.language_model(input_ids=ids, attention_mask=causal).last_hidden_state)
    hidden = gemma.model.language_model(input_ids=ids, attention_mask=causal).last_hidden_state
    logits = gemma.lm_head(hidden)[..., : expected.shape[-1]]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert expected.std() > 1


@torch.no_grad()
def test_its_image_tokens_are_close_to_those_of_both_encoders(base: tuple[Any, Any], folder: Path) -> None:
    vlm, processor = base
    gemma = AutoModelForImageTextToText.from_pretrained(folder)
    unseen = [drawn_picture(seed) for seed in range(100, 110)]
    pixels = processor.image_processor(unseen, return_tensors="pt")["pixel_values"]
    expected = vlm.model.get_image_features(pixels)
    got = gemma.model.get_image_features(pixels[:, 3:]).pooler_output
    explained = 1 - (got - expected).square().sum() / (expected - expected.mean(dim=(0, 1))).square().sum()
    assert explained > 0.5


def test_it_is_trained_as_a_vla_plus(base: tuple[Any, Any], folder: Path, tmp_path: Path) -> None:
    """Its tokens are the base's, and the ids of special ones, too."""
    model = load_model(convert(folder, tmp_path / "start", dual=False))
    assert isinstance(model, VLAPlusForVision2Seq)
    tokenizer, before = read_processor(tmp_path / "start").tokenizer, base[1].tokenizer
    assert (
        tokenizer(WORDS, add_special_tokens=False)["input_ids"] == before(WORDS, add_special_tokens=False)["input_ids"]
    )
    assert [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id] == [
        before.bos_token_id, before.eos_token_id, before.pad_token_id
    ]  # fmt: skip
    assert tokenizer.bos_token == "<bos>"
