"""Which pictures an action is asked for with: one, or one per camera in the order of training, however given."""

from typing import Any

import numpy as np
import pytest
import torch
from test_processing_openvla_plus import PROMPT, STRINGS, row_of, rows_of
from tiny_models import picture, tiny_processor


def test_pictures_of_several_cameras_come_in_the_order_of_training(tokenizer: Any) -> None:
    processor = tiny_processor(tokenizer, STRINGS, cameras=["top", "wrist"])
    top, wrist, other = picture(0), picture(1), picture(2)
    expected = processor(images=[[top, wrist]], text=[PROMPT + "\n"])
    assert rows_of(expected) == [row_of(processor, PROMPT + "\n", pictures=2)]
    for given in ([top, wrist], (top, wrist), {"wrist": wrist, "top": top}, [{"top": top, "wrist": wrist}]):
        inputs = processor.action_inputs(given, "open the drawer")
        for name in expected:
            torch.testing.assert_close(inputs[name], expected[name], rtol=0, atol=0)
    inputs = processor.action_inputs([[top, wrist], {"wrist": other, "top": top}], ["go", "open the drawer"])
    alone = [processor.action_inputs([top, wrist], "go"), processor.action_inputs([top, other], "open the drawer")]
    assert rows_of(inputs) == [rows_of(single)[0] for single in alone]
    pixels = torch.cat([single["pixel_values"] for single in alone])
    torch.testing.assert_close(inputs["pixel_values"], pixels, rtol=0, atol=0)
    called = processor(PROMPT + "\n", [top, wrist])  # as OpenVLA's scripts do
    assert rows_of(called) == rows_of(expected)
    assert len(processor.question_inputs(top, "How many?")["pixel_values"]) == 1


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (picture(), r"got 1 pictures for an action, expected one per camera \(top, wrist, in this order\)"),
        ([picture()] * 3, "got 3 pictures for an action"),
        ({"top": picture()}, "got pictures of top for an action, expected one per camera"),
        ({"top": picture(), "front": picture()}, "got pictures of top, front for an action"),
        ({"top": picture(), "wrist": picture(), "front": picture()}, "got pictures of top, wrist, front"),
        ([[picture()]], "got 1 pictures for an action"),
        ({}, "got pictures of no camera"),
    ],
)
def test_other_pictures_than_those_of_training_are_refused(pictures: Any, message: str, llama_like: Any) -> None:
    processor = tiny_processor(llama_like, STRINGS, cameras=["top", "wrist"])
    with pytest.raises(ValueError, match=message):
        processor.action_inputs(pictures, "go")
    if isinstance(pictures, dict) or not isinstance(pictures, list):
        with pytest.raises(ValueError, match=message):
            processor(PROMPT, pictures)


def test_pictures_of_an_action_are_counted_however_they_are_given(llama_like: Any) -> None:
    processor = tiny_processor(llama_like, STRINGS, cameras=["top", "wrist"])
    top, wrist = picture(0), picture(1)
    expected = processor.action_inputs([top, wrist], "open the drawer")
    for given in ([top, wrist], [[top, wrist]], {"wrist": wrist, "top": top}, [{"wrist": wrist, "top": top}]):
        for text in (PROMPT + "\n", [PROMPT + "\n"], f"<s>{PROMPT}\n", f"<image><image>{PROMPT}\n"):
            inputs = processor(images=given, text=text)
            assert rows_of(inputs) == rows_of(expected)
            torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], rtol=0, atol=0)
    twice = [PROMPT] * 2
    for given, texts in ((top, PROMPT), ([top], [PROMPT]), ([top, top], twice), ([[top, wrist], [top]], twice)):
        with pytest.raises(ValueError, match=r"got 1 pictures for an action, expected one per camera \(top, wrist"):
            processor(images=given, text=texts)
    with pytest.raises(ValueError, match="got pictures of front for an action"):
        processor(images=[{"top": top, "wrist": wrist}, {"front": top}], text=[PROMPT] * 2)
    question = "In: How many?\nOut:"
    mixed = processor(images=[[top], [top, wrist]], text=[question, PROMPT])
    assert rows_of(mixed) == [row_of(processor, question, 1), row_of(processor, PROMPT, 2)]


def test_one_camera_is_not_asked_with_two_pictures(processor: Any) -> None:
    for given in ([picture(), picture(1)], [[picture(), picture(1)]]):
        with pytest.raises(ValueError, match="got 2 pictures for an action, expected one: as many"):
            processor(images=given, text=PROMPT)
        with pytest.raises(ValueError, match="got 2 pictures for an action"):
            processor(PROMPT, given)
    question = processor(images=[picture(), picture(1)], text="In: Which is red?\nOut:")
    assert rows_of(question) == [row_of(processor, "In: Which is red?\nOut:", pictures=2)]


def test_questions_of_training_may_be_worded_like_an_action(llama_like: Any) -> None:
    """The collator asks for no tensors; a data set may ask what a robot should do, about one picture or none."""
    processor = tiny_processor(llama_like, STRINGS, cameras=["top", "wrist"])
    rows = processor(images=[[picture()], []], text=[PROMPT, PROMPT], padding=False, return_tensors=None)
    assert rows["input_ids"] == [row_of(processor, PROMPT, 1), row_of(processor, PROMPT, 0)]


def test_one_camera_needs_no_name(tiny: Any) -> None:
    """A model without names, as all were before there were any, takes one picture under any name."""
    named = tiny_processor(tiny.tokenizer, STRINGS, cameras=["top"])
    expected = rows_of(tiny.action_inputs(picture(), "go"))
    assert rows_of(tiny.action_inputs({"any": picture()}, "go")) == expected
    for given in (picture(), [picture()], {"top": picture()}):
        assert rows_of(named.action_inputs(given, "go")) == expected
    with pytest.raises(ValueError, match=r"got pictures of wrist for an action, expected one per camera \(top"):
        named.action_inputs({"wrist": picture()}, "go")
    for both in ([picture(), picture()], {"a": picture(), "b": picture()}):
        with pytest.raises(ValueError, match="for an action, expected one: "):
            tiny.action_inputs(both, "go")
    for wrong in ([], "top", ["top", "top"]):
        with pytest.raises(ValueError, match="expected a list of different names"):
            tiny_processor(tiny.tokenizer, STRINGS, cameras=wrong)


def test_pictures_may_be_stacked(tiny: Any) -> None:
    """As a vectorised environment gives them, in numpy or torch."""
    pictures, words = [picture(seed) for seed in range(3)], ["go", "open the drawer", "close it"]
    stack = np.stack([np.asarray(each) for each in pictures])
    expected = tiny.action_inputs(pictures, words)
    for given in (stack, torch.from_numpy(stack)):
        for inputs in (
            tiny.action_inputs(given, words),
            tiny(images=given, text=[tiny.action_prompt(w) for w in words]),
        ):
            for name in expected:
                torch.testing.assert_close(inputs[name], expected[name], rtol=0, atol=0)
        asked = tiny.question_inputs(given, words)
        torch.testing.assert_close(asked["pixel_values"], expected["pixel_values"], rtol=0, atol=0)
    one = tiny.action_inputs(stack[:1], "go")
    torch.testing.assert_close(one["pixel_values"], expected["pixel_values"][:1], rtol=0, atol=0)
    with pytest.raises(ValueError, match="got 3 pictures for an action, expected one"):
        tiny.action_inputs(stack, "go")
    with pytest.raises(ValueError, match="got 3 images and 2 instructions"):
        tiny.action_inputs(stack, words[:2])
    two = tiny_processor(tiny.tokenizer, STRINGS, cameras=["top", "wrist"])
    assert rows_of(two.action_inputs(stack[:2], "go")) == rows_of(two.action_inputs(pictures[:2], "go"))
