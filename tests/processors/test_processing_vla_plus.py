"""The stock processors with `action_inputs`: what they give to a model, and that they stay what they are."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import picture
from tiny_vlms import FAMILIES, PROCESSORS, tiny_vla_pair, write_base_processor
from transformers import AutoProcessor

from gen_vla.processors import ActionStringProcessor, read_stock, with_actions


EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)
PICTURES, WORDS = [picture(0), picture(1, (30, 9))], ["lift it", "Open the drawer two"]


@EACH_FAMILY
def test_its_inputs_are_what_the_model_acts_on(family: str, tmp_path: Path) -> None:
    strings = ActionStringProcessor(2, 2, decimals=2)
    model, processor = tiny_vla_pair(family, tmp_path, strings)
    inputs = processor.action_inputs(PICTURES, WORDS)
    prediction = model.predict_actions(**inputs)
    assert prediction.actions.shape == (2, 2, 2)
    assert prediction.text == model.predict_actions(**inputs, tree_nodes=0).text
    alone = processor.action_inputs(PICTURES[0], WORDS[0])
    assert model.predict_actions(**alone).text == prediction.text[:1]
    assert model.predict_action(**alone).shape == (2, 2)
    text = processor.decode(inputs["input_ids"][1])
    assert "What action should the robot take to open the drawer two?" in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    lead_in = processor.action_config["lead_in_ids"]
    assert inputs["input_ids"][:, -len(lead_in) :].tolist() == [lead_in] * 2
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1]


@EACH_FAMILY
def test_saved_and_loaded_by_name_it_is_the_stock_processor_and_acts(family: str, tmp_path: Path) -> None:
    base, saved = tmp_path / "base", tmp_path / "saved"
    base.mkdir()
    _, processor = tiny_vla_pair(family, base)
    processor.picture_options, processor.cameras = {**processor.picture_options, "do_rescale": True}, ["front"]
    processor.save_pretrained(saved)
    loaded: Any = AutoProcessor.from_pretrained(saved, trust_remote_code=True)
    stock_class = getattr(transformers, PROCESSORS[family][0])
    assert isinstance(loaded, stock_class)
    for name in ("action_config", "prompt_template", "cameras", "picture_options", "chat_template"):
        assert getattr(loaded, name) == getattr(processor, name)
    expected, found = (each.action_inputs({"front": PICTURES[0]}, "lift it") for each in (processor, loaded))
    assert list(found) == list(expected)
    assert pickle.loads(pickle.dumps(loaded)).to_dict() == loaded.to_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    stock, marks = read_stock(base, stock_class), loaded.image_token
    for asked in ({"text": [f"{marks} two"], "images": [PICTURES[:1]]}, {"text": ["two"]}):
        if family.startswith("paligemma") and "images" not in asked:
            continue  # the stock processor demands a picture
        expected, found = (each(**asked, return_tensors="pt") for each in (stock, loaded))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@EACH_FAMILY
def test_questions_are_answered(family: str, tmp_path: Path) -> None:
    model, processor = tiny_vla_pair(family, tmp_path)
    inputs = processor.question_inputs(PICTURES, ["How many?", "Which two?"])
    answer = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=-1, pad_token_id=0)
    assert answer.shape == (2, inputs["input_ids"].shape[1] + 5)


@EACH_FAMILY
def test_rows_with_different_numbers_of_pictures(family: str, tmp_path: Path) -> None:
    """Two cameras, and a batch whose rows differ: each row as if it were alone, also with beams."""
    model, processor = tiny_vla_pair(family, tmp_path)
    if family.startswith("qwen"):  # which then have different numbers of tokens, too
        processor.picture_options = {"min_pixels": 64, "max_pixels": 4096}
    rows, prompts = [PICTURES[:1], [picture(2, (64, 32)), picture(3)]], ["lift it two", "go"]
    together = processor._inputs(rows, prompts)
    for options in ({}, {"tree_nodes": 0}, {"num_beams": 3}):
        alone = [
            model.predict_actions(**processor._inputs([row], [prompt]), **options).text[0]
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        assert model.predict_actions(**together, **options).text == alone


def test_several_cameras_and_prompts_without_lead_in(tmp_path: Path) -> None:
    model, processor = tiny_vla_pair("smolvlm", tmp_path)
    processor.cameras = ["top", "wrist"]
    processor.chat_template = processor.chat_template.replace("assistant\n", "assistant:")
    inputs = processor.action_inputs({"wrist": PICTURES[1], "top": PICTURES[0]}, "lift it")
    assert inputs["pixel_values"].shape[:2] == (1, 2)
    assert processor.decode(inputs["input_ids"][0]).endswith("assistant:\n")
    assert model.predict_actions(**inputs).text == model.predict_actions(**inputs, tree_nodes=0).text
    with pytest.raises(ValueError, match="expected"):
        processor.action_inputs(PICTURES[0], "lift it")


def test_what_cannot_be_is_an_error(tmp_path: Path) -> None:
    _, processor = tiny_vla_pair("llava", tmp_path)
    with pytest.raises(ValueError, match=r"got '<\|im_end\|>' in a text, expected words"):
        processor.action_inputs(PICTURES[0], "lift<|im_end|>")
    with pytest.raises(ValueError, match="got 2 images and 1 instructions"):
        processor.action_inputs(PICTURES, ["lift it"])
    with pytest.raises(ValueError, match="empty instruction"):
        processor.action_inputs(PICTURES[0], " ")
    processor.action_config = None
    with pytest.raises(ValueError, match="it was not made for actions"):
        _ = processor.action_strings


def test_pictures_of_a_robot_are_not_tiled_unless_asked(tmp_path: Path) -> None:
    write_base_processor("internvl", tmp_path)
    wide = picture(3, (64, 16))
    counts = []
    for options in (None, {"crop_to_patches": True, "min_patches": 1, "max_patches": 4}):
        stock = read_stock(tmp_path, transformers.InternVLProcessor)
        inputs = with_actions(stock, picture_options=options).action_inputs(wide, "lift it")
        counts.append(int((inputs["input_ids"] == stock.image_token_id).sum()))
    assert counts[0] == 4 < counts[1]


def test_an_answer_ends_in_a_control_token_or_eos(tmp_path: Path) -> None:
    """LLaVA's own template writes a space behind an answer, which must not become what ends it."""
    _, processor = tiny_vla_pair("llava", tmp_path)
    end, eos = processor.tokenizer.convert_tokens_to_ids("<|im_end|>"), processor.tokenizer.eos_token_id
    assert processor.answer_ids("how many?", "two")[-1] == end
    processor.chat_template = (
        "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
        "{{ '<image>' if part.type == 'image' else part.text }}{% endfor %} {% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert processor.answer_ids("how many?", "two")[-1] == eos
    later = processor.decode(processor.later_prompt_ids("which two?"))
    assert later.strip() == "user: which two? assistant:"


def test_rows_of_paligemma_are_the_stock_processors(tmp_path: Path) -> None:
    """Those without a picture, too, which it does not take."""
    _, processor = tiny_vla_pair("paligemma", tmp_path)
    rows, texts = [PICTURES[:1], PICTURES], ["how?", "which two?"]
    found = processor._inputs(rows, texts)
    placed = ["<image>" * len(row) + text for row, text in zip(rows, texts, strict=True)]
    expected = processor(images=rows, text=placed, padding=True, padding_side="left", return_tensors="pt")
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in expected.items() if name != "labels"
    }
    (words,) = processor._inputs([[]], ["how?"])["input_ids"].tolist()
    assert processor.decode(words) == f"{processor.tokenizer.bos_token}how?\n"
