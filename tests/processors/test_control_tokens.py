"""Words that look like control tokens are text, through every door; prompts that a template renders have theirs."""

from typing import Any

import numpy as np
import pytest
from tiny_models import IMAGE_TOKENS, picture, tiny_pi0_flow_processor, tiny_processor, tiny_tokenizer
from tokenizers import AddedToken

from gen_vla.processors import PROMPT_TEMPLATE, ActionStringProcessor
from gen_vla.processors.prompt_texts import control_tokens
from gen_vla.training.collator import CoTrainingCollator
from gen_vla.training.flow.rows import FlowCollator


STRINGS = ActionStringProcessor(2, decimals=1)


@pytest.fixture
def processor(tokenizer: Any) -> Any:
    return tiny_processor(tokenizer, STRINGS)


def looks(tokenizer: Any) -> str:
    """Words in which every control token of a tokenizer occurs."""
    return "go " + " ".join(control_tokens(tokenizer)) + " now" + "".join(control_tokens(tokenizer)) + "."


def check_row(processor: Any, ids: list[int], text: str, pictures: int = 1, ends: int = 0) -> None:
    """A row has one BOS, its image tokens, an EOS per answer, no other control token, and reads as `text`."""
    tokenizer = processor.tokenizer
    special = {token: ids.count(tokenizer.convert_tokens_to_ids(token)) for token in control_tokens(tokenizer)}
    expected = {tokenizer.bos_token: 1, tokenizer.eos_token: ends, processor.image_token: IMAGE_TOKENS * pictures}
    assert {token: count for token, count in special.items() if count} == {t: c for t, c in expected.items() if c}
    control = {tokenizer.convert_tokens_to_ids(token) for token in control_tokens(tokenizer)}
    assert tokenizer.decode([token for token in ids if token not in control]) == text


def test_instructions_and_questions(processor: Any) -> None:
    words = looks(processor.tokenizer)
    acting = processor.action_inputs(picture(), words)
    check_row(processor, acting["input_ids"][0].tolist(), processor.action_prompt(words))
    assert acting["pixel_values"].shape[0] == 1
    asking = processor.question_inputs(picture(), words)
    check_row(processor, asking["input_ids"][0].tolist(), processor.question_prompt(words))


def test_training_shows_what_acting_feeds(processor: Any) -> None:
    words, images = looks(processor.tokenizer), [picture()]
    robot = {"images": images, "prompt": processor.action_prompt(words), "completion": "+0.5-1.0", "source": "robot/a"}
    asked, answer = processor.question_prompt(words), processor.answer_text(words)
    question = {"images": images, "prompt": asked, "completion": answer, "source": "vision_language/a"}
    talk = {**question, "images": [], "more_turns": [{"prompt": asked, "completion": answer}] * 2}
    collator = CoTrainingCollator(processor)
    rows = [collator([row])["input_ids"][0].tolist() for row in (robot, question, talk)]
    check_row(processor, rows[0], robot["prompt"] + robot["completion"], ends=1)
    check_row(processor, rows[1], asked + answer, ends=1)
    check_row(processor, rows[2], (asked + answer) * 3, pictures=0, ends=3)
    for row, inputs in zip(rows, (processor.action_inputs, processor.question_inputs)):
        fed = inputs(picture(), words)["input_ids"][0].tolist()
        assert row[: len(fed)] == fed
    collator.fit(question)


def test_the_flow_matching_pi0(gemma_like: Any) -> None:
    processor = tiny_pi0_flow_processor(gemma_like)
    words = looks(gemma_like)
    acting = processor.action_inputs(picture(), words)["input_ids"]
    check_row(processor, acting[0].tolist(), processor.action_prompt(words))
    row = {"images": [picture()], "prompt": processor.action_prompt(words), "timestep": 0.5, "source": "robot/a"}
    numbers = {"actions": np.zeros((4, 3)), "noise": np.zeros((4, 3)), "action_is_pad": np.zeros(4, dtype=bool)}
    assert FlowCollator(processor)([{**row, **numbers}])["input_ids"].tolist() == acting.tolist()


def test_a_call_reads_the_control_tokens_of_a_rendered_conversation(processor: Any) -> None:
    tokenizer = processor.tokenizer
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "two"}]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    ]
    text = processor.apply_chat_template(messages, tokenize=False)
    ids = processor(images=[picture()], text=text, add_special_tokens=False)["input_ids"][0].tolist()
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
    assert ids.count(processor.image_token_id) == IMAGE_TOKENS


@pytest.mark.parametrize("as_parts", [False, True])
@pytest.mark.parametrize("tokenize", [False, True])
def test_a_control_token_in_a_message_is_refused(processor: Any, as_parts: bool, tokenize: bool) -> None:
    for token in control_tokens(processor.tokenizer):
        if token == processor.image_token:
            continue
        content: Any = f"the {token} can"
        messages = [{"role": "user", "content": [{"type": "text", "text": content}] if as_parts else content}]
        for conversation in (messages, [messages]):
            with pytest.raises(ValueError, match=f"got '{token}' in a message .* where it is text"):
                processor.apply_chat_template(conversation, tokenize=tokenize)


def test_a_placeholder_without_its_picture_is_refused(processor: Any) -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "an <image> tag?"}]}]
    text = processor.apply_chat_template(messages, tokenize=False)
    with pytest.raises(ValueError, match="got 1 images for 1 texts with 2 <image> placeholders"):
        processor(images=[picture()], text=text, add_special_tokens=False)


@pytest.mark.parametrize("kind", ["llama_like", "gemma_like"])
def test_marks_of_a_prompt_template_stay_tokens(kind: str) -> None:
    """As in the authors' release, whose prompts are marked."""
    tokenizer = tiny_tokenizer(kind)
    tokenizer.add_tokens([AddedToken("<VLA_PROMPT>", special=True, normalized=False)], special_tokens=True)  # pyright: ignore
    action = PROMPT_TEMPLATE["action"].replace("In: ", "In: <VLA_PROMPT> ")
    processor = tiny_processor(tokenizer, STRINGS, prompt_template={**PROMPT_TEMPLATE, "action": action})
    mark = tokenizer.convert_tokens_to_ids("<VLA_PROMPT>")
    plain = processor.action_inputs(picture(), "open the drawer")["input_ids"][0].tolist()
    text = processor.action_prompt("open the drawer")
    assert plain == [*processor.row_start(1), *tokenizer.encode(text, add_special_tokens=False)]
    ids = processor.action_inputs(picture(), "open the </s> drawer")["input_ids"][0].tolist()
    assert (ids.count(mark), ids.count(tokenizer.eos_token_id)) == (plain.count(mark), 0) == (1, 0)
    start = plain.index(mark) + len(tokenizer.encode("What action should", add_special_tokens=False))
    assert ids[:start] == plain[:start]
    assert "</s>" in tokenizer.decode(ids)
