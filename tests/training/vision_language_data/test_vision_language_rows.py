"""Conversations to turns: markers anywhere, speakers in order, texts to the letter, bad rows by reason."""

import json
from base64 import b64encode
from typing import Any

import pytest
from published_sets import conversation, picture

from gen_vla.training.vision_language_data.rows import (
    EMPTY_ANSWER,
    EMPTY_QUESTION,
    MISSING_PICTURE,
    NO_CONVERSATION,
    TWO_PLACES,
    WRONG_ORDER,
    RowError,
    build_row,
    messages_of,
    pictures_of,
    read_picture,
    turns_of,
)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("<image>\nWhat is it?", "What is it?"),
        ("What is it?\n<image>", "What is it?"),
        ("What is it? <image>", "What is it?"),
        ("Compare <image> and <image> now.", "Compare and now."),
        ("Look at this:\n<image>\nWhat is it?", "Look at this:\nWhat is it?"),
        ("<image>What is it?", "What is it?"),
        ("<image>", ""),
        ("Keep  two spaces\n\nand lines.", "Keep  two spaces\n\nand lines."),
    ],
)
def test_markers_leave_the_text_and_nothing_else_changes(text, question):
    turns, markers = turns_of([("human", text), ("gpt", "A can.")])
    assert turns == [{"question": question, "answer": "A can."}]
    assert markers == text.count("<image>")


@pytest.mark.parametrize(
    ("messages", "turns"),
    [
        (
            [("human", "Where?"), ("gpt", "[(0.461, 0.527), (0.498, 0.521), (1.0, 0.0)]")],
            [("Where?", "[(0.461, 0.527), (0.498, 0.521), (1.0, 0.0)]")],
        ),
        (
            [("user", "One?"), ("assistant", "1"), ("human", "Two? <image>"), ("gpt", "2")],
            [("One?", "1"), ("Two?", "2")],
        ),
        (
            [("system", "Be brief. "), ("human", "<image>\nWhat?"), ("gpt", "A"), ("human", "So?"), ("gpt", "Yes.")],
            [("Be brief.\nWhat?", "A"), ("So?", "Yes.")],
        ),
        ([("system", " "), ("human", "What?"), ("gpt", "A can.")], [("What?", "A can.")]),
    ],
)
def test_turns_of_both_vocabularies_of_speakers(messages, turns):
    found, markers = turns_of(messages)
    assert [(turn["question"], turn["answer"]) for turn in found] == turns
    assert markers == sum("<image>" in text for _, text in messages)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([("gpt", "A can."), ("human", "What is it?")], WRONG_ORDER),
        ([("human", "What?"), ("human", "Hm?"), ("gpt", "A can.")], WRONG_ORDER),
        ([("human", "What?")], WRONG_ORDER),
        ([("human", "What?"), ("system", "Be brief."), ("gpt", "A can.")], WRONG_ORDER),
        ([("human", "What?"), ("gpt", "A can."), ("system", "Be brief.")], WRONG_ORDER),
        ([("tool", "x"), ("human", "What?"), ("gpt", "A can.")], WRONG_ORDER),
        ([("human", "What?"), ("gpt", "  ")], EMPTY_ANSWER),
        ([("human", "What?"), ("gpt", "<image>")], EMPTY_ANSWER),
        ([("human", " "), ("gpt", "A can.")], EMPTY_QUESTION),
        ([("human", None), ("gpt", "A can.")], NO_CONVERSATION),
        ([], NO_CONVERSATION),
    ],
)
def test_bad_conversations_have_a_reason(messages, reason):
    with pytest.raises(RowError) as caught:
        turns_of(messages)
    assert str(caught.value) == reason


@pytest.mark.parametrize("conversations", [None, "text", ["text"], {"from": "human"}])
def test_what_is_no_list_of_messages_is_no_conversation(conversations):
    with pytest.raises(RowError, match=NO_CONVERSATION):
        messages_of({"conversations": conversations})


PICTURE, OTHER = picture(1), picture(2)
ASKED, ANSWERED = {"type": "text", "text": "What?"}, {"type": "text", "text": "A can."}


def said(*content: Any, **row: Any) -> dict[str, Any]:
    """A row of one question, under `messages`, and its answer."""
    messages = [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "A can."}]
    return {"messages": messages, **row}


@pytest.mark.parametrize(
    "row",
    [
        {"image": PICTURE, "conversations": conversation("<image>\nWhat?", "A can.")},
        {"image": {"bytes": PICTURE, "path": None}, "messages": conversation("What?", "A can.")},
        {"image": [PICTURE], "conversations": json.dumps(conversation("What?<image>", "A can."))},
        {"images": [{"bytes": None, "path": "a.jpg"}], "conversations": conversation("What?", "A can.")},
        {"images": ["./a.jpg"], "conversations": conversation("What?", "A can.")},
        {"images": "images\\a.jpg", "image": None, "conversations": conversation("What?", "A can.")},
        said("<image>What?", images=[PICTURE]),
        said("What?", images=[PICTURE]),
        said({"type": "image"}, ASKED, images=[PICTURE]),
        said({"type": "image", "text": None, "index": 0}, {**ASKED, "index": None}, images=[PICTURE]),
        said({"type": "image", "image": PICTURE}, ASKED),
        said({"type": "image", "path": "a.jpg"}, {"text": "What?"}),
        said({"type": "image_url", "image_url": {"url": "a.jpg"}}, ASKED),
        said({"type": "image_url", "image_url": f"data:image/jpeg;base64,{b64encode(PICTURE).decode()}"}, ASKED),
    ],
)
def test_rows_as_people_publish_them(row):
    files = {"a.jpg": PICTURE, "images/a.jpg": PICTURE}
    pictures = [read_picture(p, files.__getitem__) for p in pictures_of(row)]
    built = build_row("row", messages_of(row), pictures)
    assert [image["bytes"] for image in built["images"]] == [PICTURE]
    assert built["turns"] == [{"question": "What?", "answer": "A can."}]


def test_contents_of_several_parts_and_numbers_and_a_column_of_system_messages():
    row = said({"type": "text", "text": "How many"}, "cans?", system="Be short.")
    row["messages"][1]["content"] = 3
    assert messages_of(row) == [("system", "Be short."), ("user", "How many\ncans?"), ("assistant", "3")]


@pytest.mark.parametrize(
    "part", [{"type": "video"}, {"type": "text", "text": None}, None, True, {"type": "audio", "text": "x"}]
)
def test_a_part_that_is_neither_words_nor_a_picture_is_no_conversation(part):
    with pytest.raises(RowError, match=NO_CONVERSATION):
        messages_of(said(part))


@pytest.mark.parametrize(
    "row",
    [
        {"image": "a.jpg", "messages": conversation("What?", "A can.")},
        {"images": [None], "messages": conversation("What?", "A can.")},
        {"images": [{"bytes": None, "path": None}], "messages": conversation("What?", "A can.")},
        {"images": [], "messages": conversation("<image>What?", "A can.")},
        said({"type": "image", "index": 1}, ASKED, images=[PICTURE]),
        said({"type": "image"}, ASKED),
        said({"type": "image"}, {"type": "image"}, ASKED, images=[PICTURE]),
        {"images": [PICTURE, OTHER], "messages": conversation("<image><image><image>What?", "A can.")},
        {"images": [PICTURE, OTHER], "messages": conversation("<image><image>1?", "A can.", "<image>2?", "A can.")},
    ],
)
def test_a_row_never_loses_a_picture_in_silence(row):
    with pytest.raises(RowError, match=MISSING_PICTURE):
        build_row("row", messages_of(row), [read_picture(p, None) for p in pictures_of(row)])


def test_pictures_in_two_places_and_numbers_that_are_none():
    part: dict[str, Any] = {"type": "image", "image": OTHER}
    row = said(part, ASKED, images=[PICTURE])
    with pytest.raises(RowError, match=TWO_PLACES):
        pictures_of(row)
    assert pictures_of({**row, "images": [PICTURE, OTHER]}) == [PICTURE, OTHER]
    assert pictures_of(said({"type": "image", "index": None}, ASKED, images=[PICTURE])) == [PICTURE]
    for index in ("first", 0.5, 2):
        with pytest.raises(RowError, match=MISSING_PICTURE):
            pictures_of(said({"type": "image", "index": index}, ASKED, images=[PICTURE]))


def test_pictures_without_a_marker_and_markers_of_later_turns():
    both = {"images": [PICTURE, OTHER], "messages": conversation("<image>1?", "A can.", "2?", "Two.")}
    twice = {"images": [PICTURE, OTHER], "messages": conversation("<image><image>1?", "A", "<image><image>2?", "B")}
    for row in (both, twice):
        built = build_row("row", messages_of(row), [read_picture(p, None) for p in pictures_of(row)])
        assert [image["bytes"] for image in built["images"]] == [PICTURE, OTHER]
