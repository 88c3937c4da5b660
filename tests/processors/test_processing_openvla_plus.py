"""Rows of tokens: one BOS, image tokens behind it, prompts, padding, and the same ids however a text arrives."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import TemplateError
from tiny_models import IMAGE_TOKENS, picture, tiny_processor
from transformers import AutoProcessor, PreTrainedTokenizerFast
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from gen_vla.processors import ActionStringProcessor, OpenVLAPlusImageProcessor, OpenVLAPlusProcessor
from gen_vla.training.checkpoints import read_processor


STRINGS = ActionStringProcessor(action_dim=3, decimals=2)
PROMPT = "In: What action should the robot take to open the drawer?\nOut:"


def row_of(processor: Any, text: str, pictures: int = 1) -> list[int]:
    """The layout, written out: BOS, image tokens, the text."""
    tokenizer = processor.tokenizer
    images = [tokenizer.convert_tokens_to_ids("<image>")] * (IMAGE_TOKENS * pictures)
    return [tokenizer.bos_token_id, *images, *tokenizer.encode(text, add_special_tokens=False)]


def rows_of(inputs: Any) -> list[list[int]]:
    """Rows without their padding."""
    return [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]


def test_action_inputs(processor: Any) -> None:
    inputs = processor.action_inputs(picture(), "  Open the DRAWER ")
    assert rows_of(inputs) == [row_of(processor, PROMPT + "\n")]
    assert inputs["pixel_values"].shape == (1, 6, 8, 8)
    assert inputs["input_ids"].dtype == inputs["attention_mask"].dtype == torch.int64
    assert inputs["pixel_values"].dtype == torch.float32
    legacy = tiny_processor(processor.tokenizer, ActionStringProcessor(style="legacy"))
    assert rows_of(legacy.action_inputs(picture(), "open the drawer")) == [row_of(processor, PROMPT)]
    assert legacy.action_strings.style == "legacy"


def test_question_inputs_keep_the_case(processor: Any) -> None:
    inputs = processor.question_inputs([picture(), picture(1)], ["Is it Open?", "Two?"])
    assert rows_of(inputs) == [row_of(processor, "In: Is it Open?\nOut:"), row_of(processor, "In: Two?\nOut:")]
    assert processor.answer_text("two ") == " two"
    assert inputs["pixel_values"].shape == (2, 6, 8, 8)


def test_batches_are_left_padded(tiny: Any) -> None:
    images = [picture(), np.asarray(picture(1))]
    inputs = tiny.action_inputs(images, ["open the drawer", "go"])
    one_by_one = [tiny.action_inputs(images[0], "open the drawer"), tiny.action_inputs(images[1], "go")]
    long, short = (rows_of(single)[0] for single in one_by_one)
    gap = len(long) - len(short)
    pad = tiny.tokenizer.pad_token_id
    assert inputs["input_ids"].tolist() == [long, [pad] * gap + short]
    assert inputs["attention_mask"].tolist() == [[1] * len(long), [0] * gap + [1] * len(short)]
    pixels = torch.cat([single["pixel_values"] for single in one_by_one])
    torch.testing.assert_close(inputs["pixel_values"], pixels, rtol=0, atol=0)


def test_either_order_is_the_same_call(processor: Any) -> None:
    calls = [
        processor(PROMPT, picture()),
        processor(images=picture(), text=PROMPT),
        processor(picture(), PROMPT),
        processor([PROMPT], [picture()]),
        processor(text=PROMPT, images=[[picture()]]),
    ]
    for call in calls:
        assert rows_of(call) == [row_of(processor, PROMPT)]
        torch.testing.assert_close(call["pixel_values"], calls[0]["pixel_values"], rtol=0, atol=0)


def test_one_bos_never_two(processor: Any) -> None:
    bos = processor.tokenizer.bos_token
    prompt = processor.question_prompt("Go?")
    expected = [row_of(processor, prompt)]
    texts = [prompt, f"<image>{prompt}", f"{bos}{prompt}", f"{bos}<image>{prompt}", f"<image>{bos}{prompt}"]
    for text in (*texts, f"{bos}{bos}{prompt}"):
        assert rows_of(processor(images=picture(), text=text)) == expected
    for text in texts[3:]:
        assert rows_of(processor(images=picture(), text=text, add_special_tokens=False)) == expected
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Go?"}]}]
    rendered = processor.apply_chat_template(messages)
    assert rendered == f"{bos}<image>{prompt}"
    for special in (True, False):
        assert rows_of(processor(images=picture(), text=rendered, add_special_tokens=special)) == expected
    messages[0]["content"][0] = {"type": "image", "image": picture()}
    tokenized = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert rows_of(tokenized) == expected
    assert torch.equal(tokenized["pixel_values"], processor(images=picture())["pixel_values"])


def test_text_alone_and_mixed_batches(processor: Any) -> None:
    alone = processor(text=processor.question_prompt("Go?"))
    assert rows_of(alone) == [row_of(processor, processor.question_prompt("Go?"), pictures=0)]
    assert "pixel_values" not in alone
    assert "pixel_values" not in processor(images=[[], []], text=["a", "b"])
    pictures = [picture(seed) for seed in range(3)]
    mixed = processor(images=[pictures[:1], [], pictures[1:]], text=["one", "none", "two"])
    expected = [row_of(processor, text, count) for text, count in (("one", 1), ("none", 0), ("two", 2))]
    assert rows_of(mixed) == expected
    flat = processor(images=pictures, text=["<image>one", "none", "t<image>wo<image>"])
    assert rows_of(flat) == expected
    images_only = processor(images=pictures)
    assert list(images_only) == ["pixel_values"]
    for batch in (mixed, flat):
        assert torch.equal(batch["pixel_values"], images_only["pixel_values"])


def test_all_settings_survive_saving(gemma_like: Any, tmp_path: Path) -> None:
    base = tiny_processor(gemma_like, STRINGS)
    template = {**base.prompt_template, "question": "Q: {question}\nA:"}
    images = base.image_processor
    images.center_crop_area = 0.9
    settings = {"prompt_template": template, "image_token": "<image>", "cameras": ["top", "wrist"]}
    processor = type(base)(images, base.tokenizer, 5, base.action_config, **settings)
    processor.save_pretrained(tmp_path)
    loaded = type(processor).from_pretrained(tmp_path, trust_remote_code=True)
    for name in ("num_image_tokens", "action_config", "prompt_template", "image_token", "image_token_id", "cameras"):
        assert getattr(loaded, name) == getattr(processor, name), name
    assert loaded.chat_template == processor.chat_template
    assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
    before, after = (p.action_inputs([picture(), picture(1)], "go") for p in (processor, loaded))
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    assert before["input_ids"].tolist()[0].count(processor.image_token_id) == 10


def test_the_chat_template_renders_turns_with_the_prompts(tiny: Any) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "How many?"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": "Sure?"},
    ]
    rendered = "<s><image>In: How many?\nOut: two</s>In: Sure?\nOut:"
    assert tiny.apply_chat_template(messages) == rendered
    own = {"action": "{instruction}!", "question": "Q '{question}' \"?\"\n", "answer": "{answer}."}
    other = tiny_processor(tiny.tokenizer, prompt_template=own)
    assert other.apply_chat_template(messages) == "<s><image>Q 'How many?' \"?\"\ntwo.</s>Q 'Sure?' \"?\"\n"
    assert other.question_prompt("How many?") == "Q 'How many?' \"?\"\n"


def test_another_image_token(llama_like: Any) -> None:
    processor = tiny_processor(llama_like, image_token="<PAD>")  # any token of the vocabulary will do
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Go?"}]}]
    rendered = processor.apply_chat_template(messages)
    assert rendered == "<s><PAD>In: Go?\nOut:"
    ids = processor(images=picture(), text=rendered)["input_ids"][0].tolist()
    assert ids[: IMAGE_TOKENS + 1] == [1] + [llama_like.pad_token_id] * IMAGE_TOKENS


@pytest.mark.parametrize(
    ("pictures", "texts"),
    [
        (1, ["a", "b"]),
        (2, ["<image>a"]),
        (0, ["<image>a"]),
        (3, ["<image>a", "b<image>"]),
        ([[1], [1, 2]], ["<image>a", "<image>b"]),
        ([[1]], ["a", "b"]),
        ([[], [1]], ["<image>a", "b"]),
    ],
)
def test_pictures_that_do_not_match_raise(tiny: Any, pictures: Any, texts: list[str]) -> None:
    if isinstance(pictures, list):
        count, images = sum(map(len, pictures)), [[picture(n) for n in row] for row in pictures]
    else:
        count, images = pictures, [picture(n) for n in range(pictures)] or None
    marks = "".join(texts).count("<image>")
    with pytest.raises(ValueError, match=f"got {count} images for {len(texts)} texts with {marks} <image> placeho"):
        tiny(images=images, text=texts)


def test_wrong_inputs_are_named(tiny: Any) -> None:
    with pytest.raises(ValueError, match="got 1 images and 2 instructions, expected one of each per row"):
        tiny.action_inputs(picture(), ["open", "close"])
    with pytest.raises(ValueError, match="got 2 images and 1 questions"):
        tiny.question_inputs([picture(), picture()], "what?")
    with pytest.raises(ValueError, match="got an empty instruction, expected words"):
        tiny.action_inputs(picture(), "  \n")
    for wrong in (None, 5, [b"open"]):
        with pytest.raises(TypeError, match="as instruction, expected a string"):
            tiny.action_inputs(picture(), wrong)
    with pytest.raises(ValueError, match=r"got 'photo\.png' as an image, which is no file here"):
        tiny.action_inputs("photo.png", "open")
    with pytest.raises(TypeError, match="got int as text, expected a string"):
        tiny(images=picture(), text=[3])
    with pytest.raises(ValueError, match="got no texts"):
        tiny.action_inputs([], [])
    with pytest.raises(ValueError, match="got videos or audio"):
        tiny(text="a", videos=[picture()])
    with pytest.raises(ValueError, match=r"got a text with 1 pictures that does not start with '<s>'"):
        tiny(images=picture(), text="In: Go?", add_special_tokens=False)
    with pytest.raises(ValueError, match="got a processor without action_config"):
        _ = tiny_processor(tiny.tokenizer).action_strings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": 1}, r"got the argument 'image', expected one of images, text, .*; did you mean 'images'\?"),
        ({"retrun_tensors": "np"}, r"got the argument 'retrun_tensors', .*; did you mean 'return_tensors'\?"),
        ({"maxlength": 3}, r"did you mean 'max_length'\?"),
        ({"crop": True}, r"got the argument 'crop', expected one of [\w, ]+$"),
        ({"do_resize": False}, "got do_resize=False, expected True or nothing"),
        ({"images_kwargs": {"size": 8}}, r"got images_kwargs=\{'size': 8\}, expected \{\} or nothing"),
        ({"return_attention_mask": False}, "got return_attention_mask=False, expected True or nothing"),
    ],
)
def test_no_argument_vanishes(processor: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        processor(text=PROMPT, images=picture(), **arguments)


def test_arguments_that_ask_for_what_happens_anyhow(processor: Any) -> None:
    kinds = {f"return_{name}": name in processor.model_input_names for name in ("attention_mask", "token_type_ids")}
    asked = processor(text=PROMPT, images=picture(), do_rescale=True, suffix=None, text_kwargs={}, **kinds)
    plain = processor(text=PROMPT, images=picture())
    assert rows_of(asked) == rows_of(plain)
    assert set(asked) == set(plain)


def test_padding_sides_and_lengths(tiny: Any) -> None:
    texts = ["a", "a:a"]
    short, long = ([*tiny.tokenizer.encode(text, add_special_tokens=False)] for text in texts)
    bos, pad = tiny.tokenizer.bos_token_id, tiny.tokenizer.pad_token_id
    assert tiny(text=texts)["input_ids"].tolist() == [[pad, pad, bos, *short], [bos, *long]]
    right = tiny(text=texts, padding_side="right")
    assert right["input_ids"].tolist() == [[bos, *short, pad, pad], [bos, *long]]
    assert right["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    wide = tiny(text=texts, padding="max_length", max_length=7)
    assert wide["input_ids"].tolist() == [[pad] * 4 + [bos, *short], [pad] * 2 + [bos, *long]]
    ragged = tiny(text=texts, padding=False, return_tensors=None)
    assert ragged["input_ids"] == [[bos, *short], [bos, *long]]
    for wrong in ({"padding": "longset"}, {"padding_side": "lefft"}):
        with pytest.raises(ValueError, match=r"got padding=.*, padding_side=.*, expected True, 'longest'"):
            tiny(text=texts, **wrong)


def test_a_row_that_is_too_long_raises_and_is_never_cut(tiny: Any) -> None:
    length = tiny(images=picture(), text="a")["input_ids"].shape[1]
    fits = tiny(images=picture(), text="a", truncation=True, max_length=length)
    assert fits["input_ids"].shape[1] == length
    for options in ({"truncation": True}, {"padding": "max_length"}):
        with pytest.raises(ValueError, match=f"got a row of {length} tokens and max_length={length - 1}; nothing"):
            tiny(images=picture(), text="a", max_length=length - 1, **options)


ROWS = [  # prompt and completion as training writes them; the pitfall is the space Llama puts before a lone text
    (PROMPT + "\n", "+0.03-0.12+1.00"),
    (PROMPT + "\n", "-0.03-0.12+1.00"),
    (PROMPT + "\n", "0.03\n-0.12\n1.00"),
    ("In: How many?\nOut:", " two"),
    ("In: How many?\nOut:", "\ntwo\n\ntwo"),
    ("In: How many?\nOut:", " 2"),
    ("In: Where?\nOut:", "Out"),
    ("In: Who?\nOut:", "\n\nIn"),
]


def test_trl_collator_gives_the_ids_of_the_whole_text(processor: Any) -> None:
    tokenizer = processor.tokenizer
    collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    examples, whole, supervised = [], [], []
    for number, (prompt, completion) in enumerate(ROWS):
        images = [picture(number)] if number % 3 else []
        texts = {"prompt": tokenizer.bos_token + prompt, "completion": completion + tokenizer.eos_token}
        examples.append({"images": images, **texts})
        whole.append([*row_of(processor, prompt + completion, len(images)), tokenizer.eos_token_id])
        start = len(row_of(processor, prompt, len(images)))
        supervised.append([-100] * start + whole[-1][start:])
    batch = collator(examples)
    assert rows_of(batch) == whole
    for labels, expected in zip(batch["labels"], supervised, strict=True):
        assert labels.tolist() == expected + [-100] * (len(labels) - len(expected))
    assert len(batch["pixel_values"]) == sum(len(example["images"]) for example in examples)


def test_trl_collator_on_conversations(processor: Any) -> None:
    collator = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    conversation = {
        "images": [picture()],
        "prompt": [{"role": "user", "content": "How many?"}],
        "completion": [{"role": "assistant", "content": "two"}],
    }
    batch = collator([conversation])
    whole = row_of(processor, processor.question_prompt("How many?") + processor.answer_text("two"))
    assert rows_of(batch) == [[*whole, processor.tokenizer.eos_token_id]]
    supervised = batch["labels"][0][batch["labels"][0] != -100].tolist()
    assert processor.tokenizer.decode(supervised, skip_special_tokens=True).strip() == "two"


def test_a_processor_that_cannot_work_is_refused(llama_like: Any) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=llama_like.backend_tokenizer, bos_token="<s>", eos_token="</s>")
    with pytest.raises(ValueError, match="got a tokenizer without pad_token, expected all three"):
        tiny_processor(bare)
    with pytest.raises(ValueError, match="got a tokenizer without '<picture>', expected it in the vocabulary"):
        tiny_processor(llama_like, image_token="<picture>")
    with pytest.raises(ValueError, match=r"got prompt_template\['answer'\]=None, expected a text with {answer} once"):
        tiny_processor(llama_like, prompt_template={"action": "{instruction}", "question": "{question}"})


def test_a_system_message_begins_the_question_after_it(tiny: Any) -> None:
    system = {"role": "system", "content": "You are a robot."}
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a < b & c?"}]}
    answer = {"role": "assistant", "content": "two"}
    assert tiny.apply_chat_template([system, question]) == "<s><image>In: You are a robot.\na < b & c?\nOut:"
    rendered = "<s><image><image>In: a < b & c?\nOut: two</s>In: You are a robot.\na < b & c?\nOut:"
    assert tiny.apply_chat_template([question, answer, system, question]) == rendered
    with pytest.raises(TemplateError, match="a system message with no message of the user after it"):
        tiny.apply_chat_template([question, answer, system])
    with pytest.raises(TemplateError, match="got a message of role tool, expected system, user or assistant"):
        tiny.apply_chat_template([question, {"role": "tool", "content": "4"}])


def test_a_folder_that_transformers_4_saved_is_read(llama_like: Any, tmp_path: Path) -> None:
    """The image processor in a file of its own, and the older names of a tokenizer's settings."""
    image_processor = OpenVLAPlusImageProcessor(center_crop_area=0.9)
    saved = OpenVLAPlusProcessor(image_processor, llama_like, num_image_tokens=4, cameras=["top"])
    saved.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "openvla_plus"}))
    both = json.loads((tmp_path / "processor_config.json").read_text())
    pixels = both.pop("image_processor", None)
    if pixels is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
        (tmp_path / "processor_config.json").write_text(json.dumps(both))
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens", ["<image>"])
    file.write_text(json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"}))
    for read in (read_processor(tmp_path), AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)):
        assert read.image_processor.center_crop_area == 0.9
        assert (read.num_image_tokens, read.cameras) == (4, ["top"])
        assert read.chat_template == saved.chat_template
        assert read.tokenizer.get_vocab() == llama_like.get_vocab()
        text = "In: go <image>\nOut:"
        assert read.tokenizer(text)["input_ids"] == llama_like(text)["input_ids"]
