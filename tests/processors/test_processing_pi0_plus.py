"""π0+'s rows: image tokens before BOS, PaliGemma's ids and pixels, and which token is prompt and which answer."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from test_processing_openvla_plus import row_of, rows_of
from tiny_models import IMAGE_SIZE, IMAGE_TOKENS, picture, tiny_pi0_processor
from transformers import PaliGemmaProcessor, SiglipImageProcessor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from gen_vla.processors import ActionStringProcessor, Pi0PlusProcessor
from gen_vla.training.collator import CoTrainingCollator


STRINGS = ActionStringProcessor(action_dim=3, decimals=2)
PROMPT = "What action should the robot take to open the drawer?\n"


@pytest.fixture(params=["gemma_like", "gemma"])
def processor(request: pytest.FixtureRequest) -> Pi0PlusProcessor:
    """The tiny processor, with the tiny Gemma vocabulary and with the real one."""
    return tiny_pi0_processor(request.getfixturevalue(request.param), STRINGS)


@pytest.fixture
def tiny(gemma_like: Any) -> Pi0PlusProcessor:
    """The tiny processor where the vocabulary does not matter."""
    return tiny_pi0_processor(gemma_like, STRINGS)


def test_prompts(processor: Any) -> None:
    assert processor.action_prompt(" Open the DRAWER ") == PROMPT
    assert processor.question_prompt("How many? ") == "How many?\n"
    assert processor.answer_text(" two ") == "two"
    inputs = processor.action_inputs(picture(), "open the drawer")
    assert rows_of(inputs) == [row_of(processor, PROMPT)]
    assert inputs["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert inputs["token_type_ids"].tolist() == [[0] * inputs["input_ids"].shape[1]]
    assert inputs["input_ids"][0, -1] == processor.action_config["lead_in_ids"][0]
    assert not processor(text=["one\n", "three\n"])["token_type_ids"].any()


def test_ids_and_pixels_are_paligemmas(gemma_like: Any, gemma: Any) -> None:
    for tokenizer in (gemma_like, gemma):
        processor = tiny_pi0_processor(tokenizer, STRINGS)
        siglip: Any = SiglipImageProcessor(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        siglip.image_seq_length = IMAGE_TOKENS
        stock: Any = PaliGemmaProcessor(siglip, deepcopy(tokenizer))
        for words in ("How many?", "caption en", "In: -0.5"):
            theirs = stock(images=picture(), text=f"<image>{words}", return_tensors="pt")
            ours = processor.question_inputs(picture(), words)
            assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
            assert ours["token_type_ids"].tolist() == theirs["token_type_ids"].tolist()
            torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], rtol=0, atol=1e-6)


def test_pixels_by_hand(tiny: Any) -> None:
    flat = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), (0, 255, 51), np.uint8)
    pixels = tiny.action_inputs(flat, "go")["pixel_values"][0]
    for channel, value in enumerate((-1.0, 1.0, -0.6)):
        torch.testing.assert_close(pixels[channel], torch.full((IMAGE_SIZE, IMAGE_SIZE), value), rtol=0, atol=1e-6)


ROWS = [
    ("robot", PROMPT, "+0.03-0.12+1.00", 1),
    ("robot", PROMPT, "-0.03-0.12+1.00", 1),
    ("vision_language", "How many?\n", "two", 1),
    ("vision_language", "Out?\n", "2", 0),
]


def types_of(inputs: Any) -> list[list[int]]:
    """`token_type_ids` of rows without their padding."""
    return rows_of({**inputs, "input_ids": inputs["token_type_ids"]})


def expected_rows(processor: Any) -> list[tuple[list[int], int]]:
    """Whole rows, and where their answers begin."""
    eos = processor.tokenizer.eos_token_id
    return [
        ([*row_of(processor, prompt + answer, count), eos], len(row_of(processor, prompt, count)))
        for _, prompt, answer, count in ROWS
    ]


def test_the_training_collator_marks_answers(processor: Any) -> None:
    rows = [
        {"source": source, "prompt": prompt, "completion": answer, "images": [picture()] * count}
        for source, prompt, answer, count in ROWS
    ]
    batch = CoTrainingCollator(processor)(rows)
    whole = expected_rows(processor)
    assert rows_of(batch) == [row for row, _ in whole]
    assert types_of(batch) == [[0] * start + [1] * (len(row) - start) for row, start in whole]
    assert torch.equal(batch["token_type_ids"] == 1, batch["labels"] != -100)
    assert batch["pixel_values"].shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_trls_collator_marks_answers_too(processor: Any) -> None:
    tokenizer = processor.tokenizer
    rows = [
        {
            "prompt": tokenizer.bos_token + prompt,
            "completion": answer + tokenizer.eos_token,
            "images": [picture()] * count,
        }
        for _, prompt, answer, count in ROWS
    ]
    batch = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(rows)
    whole = expected_rows(processor)
    assert rows_of(batch) == [row for row, _ in whole]
    assert types_of(batch) == [[0] * start + [1] * (len(row) - start) for row, start in whole]


def test_a_continuation_is_an_answer(tiny: Any) -> None:
    inputs = tiny(text=["two", "Go"], add_special_tokens=False)
    assert types_of(inputs) == [[1] * len(row) for row in rows_of(inputs)]
    assert tiny.model_input_names == ["input_ids", "attention_mask", "token_type_ids", "pixel_values"]


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("How many? \n", "How many?\n"),
        (" How many?\n ", "How many?\n"),
        (PROMPT + " ", PROMPT),
        (PROMPT.removesuffix("\n") + " ", PROMPT.removesuffix("\n")),
        ("how many? ", "how many? "),  # without the newline it is none of the prompts of training
        ("a\nb", "a\nb"),
    ],
)
def test_blanks_around_a_prompt_are_taken_off_and_its_newline_stays(processor: Any, typed: str, read: str) -> None:
    assert rows_of(processor(images=picture(), text=typed)) == [row_of(processor, read)]


def test_conversations_that_ask_nothing(gemma_like: Any) -> None:
    processor, options = tiny_pi0_processor(gemma_like), {"tokenize": True, "return_dict": True}
    answer, question = {"role": "assistant", "content": "a cup"}, {"role": "user", "content": "what?"}
    with pytest.raises(ValueError, match="got a conversation that begins with an answer"):
        processor.apply_chat_template([answer, question], **options)
    for nothing in ({"role": "user"}, {"role": "user", "content": None}, {"role": "user", "content": []}):
        with pytest.raises(ValueError, match="got a message without content"):
            processor.apply_chat_template([nothing], **options)
