"""Conversations as people publish them to rows of questions and answers; rows that cannot be used say why.

    LLaVA, ShareGPT   {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, ...]}
    OpenAI, TRL       {"images": [...], "messages": [{"role": "user", "content": "What is it?"}, ...]}
    parts             "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    ->                {"images": [...], "turns": [{"question": "What is it?", "answer": "A can."}], "identity": "..."}

`<image>` markers leave the text: the pictures of a row come first, also those without a marker. The text of a system
message begins the question after it, on a line of its own, as in the processor's chat template. Otherwise texts keep
their wording, so that the points of RoboPoint (`[(0.461, 0.527), (0.498, 0.521)]`) stay as they were published.
"""

import binascii
import copy
import json
import re
from abc import ABC, abstractmethod
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from gen_vla.training.mixing.encoded_pictures import NO_PICTURE, PictureError, check_picture
from gen_vla.training.mixing.skipped_rows import RowProblems


IMAGE_MARKER = "<image>"
ASKING, ANSWERING, SYSTEM = ("human", "user"), ("gpt", "assistant"), "system"
CONVERSATIONS, PICTURES = ("conversations", "messages"), ("images", "image")  # columns, either of each
NO_CONVERSATION = "no conversation"
WRONG_ORDER = "speakers that do not take turns, a person first and a model last"
EMPTY_QUESTION = "empty question without a picture"
EMPTY_ANSWER = "empty answer"
MISSING_PICTURE = "missing picture"
TWO_PLACES = "pictures in a column and others in the messages"
ROWS_PER_SHARD = 1000
SHARDS_WANTED = 64  # of a small set, so that several processes each get some
_MARKER = re.compile(r"\s*<image>\s*")

Row = dict[str, Any]
Attempts = Iterator[tuple[str, Callable[[], Row]]]  # identities, and what builds the row or raises `RowError`
ReadPicture = Callable[[str], bytes]  # the encoded bytes of a picture by its path; raises `RowError` without it


class RowError(ValueError):
    """A row that cannot be used; its text is one of a few reasons, so that problems count by reason."""


def turns_of(messages: Iterable[tuple[Any, Any]]) -> tuple[list[dict[str, str]], int]:
    """Speakers and their texts as turns; raises `RowError` if speakers do not alternate, or a text is missing or
    empty. A question may be nothing but a marker.

    Args:
        messages: (speaker, text) in order. Speakers are `human` or `user`, `gpt` or `assistant`, and `system`.

    Returns:
        `[{"question", "answer"}]`, at least one, and the number of image markers that were taken out.
    """
    turns: list[dict[str, str]] = []
    markers, question, system = 0, None, ""
    for speaker, text in messages:
        if not isinstance(text, str):
            raise RowError(NO_CONVERSATION)
        markers += text.count(IMAGE_MARKER)
        plain = _MARKER.sub(lambda found: "\n" if "\n" in found[0] else " ", text).strip()
        if question is None and speaker == SYSTEM:
            system += f"{plain}\n" if plain else ""
        elif question is None and speaker in ASKING:
            if not plain and IMAGE_MARKER not in text:
                raise RowError(EMPTY_QUESTION)
            question, system = (system + plain).strip(), ""
        elif question is not None and speaker in ANSWERING:
            if not plain:
                raise RowError(EMPTY_ANSWER)
            turns.append({"question": question, "answer": plain})
            question = None
        else:
            raise RowError(WRONG_ORDER)
    if question is not None or system:
        raise RowError(WRONG_ORDER)
    if not turns:
        raise RowError(NO_CONVERSATION)
    return turns, markers


def messages_of(row: Any) -> list[tuple[Any, Any]]:
    """The messages of a row as (speaker, text), with an `IMAGE_MARKER` where a part is a picture.

    They may be under `from` and `value` or `role` and `content`, as JSON text, and their contents text, numbers or
    lists of parts, which are joined by line breaks. A column `system` is a message before them; else `RowError`.
    """
    messages = [
        (message.get("from") or message.get("role"), "\n".join(map(_text_of, _parts(message))))
        for message in _messages(row)
    ]
    return [(SYSTEM, row["system"]), *messages] if row.get("system") else messages


def _messages(row: Any) -> list[dict[str, Any]]:
    found = next((row[key] for key in CONVERSATIONS if row.get(key)), None) if isinstance(row, dict) else None
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except json.JSONDecodeError as error:
            raise RowError(NO_CONVERSATION) from error
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        raise RowError(NO_CONVERSATION)
    return found


def _parts(message: dict[str, Any]) -> list[Any]:
    content = message["content"] if message.get("value") is None and "content" in message else message.get("value")
    return content if isinstance(content, list) else [content]


def _is_picture(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image", "image_url")


def _text_of(part: Any) -> str:
    if _is_picture(part):
        return IMAGE_MARKER
    text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        text = str(text)
    if not isinstance(text, str):
        raise RowError(NO_CONVERSATION)
    return text


def pictures_of(row: Any) -> list[Any]:
    """A row's pictures, not yet read: those of its column, else those that its messages hold themselves.

    Where parts have an `index` they come in the order in which the parts name them, the others behind. Raises
    `RowError` for an index without a picture, or other pictures in the messages than in the column.
    """
    if not isinstance(row, dict):
        return []
    found = next((row[key] for key in PICTURES if row.get(key)), [])
    pictures = found if isinstance(found, list) else [found]
    try:
        parts = [part for message in _messages(row) for part in _parts(message) if _is_picture(part)]
    except RowError:
        return pictures  # `messages_of` says so
    places = [part.get(part["type"]) or part.get("url") or part.get("path") for part in parts]
    held = [picture for picture in places if picture]
    if not pictures:
        return held
    if any(picture not in pictures for picture in held):
        raise RowError(TWO_PLACES)
    shown = [part["index"] for part in parts if part.get("index") is not None]
    if any(index not in range(len(pictures)) for index in shown):
        raise RowError(MISSING_PICTURE)
    shown = [int(index) for index in shown]
    return [pictures[index] for index in dict.fromkeys([*shown, *range(len(pictures))])]


def picture_name(picture: Any) -> str | None:
    """The path of a picture that is given by one, with `/` between folders."""
    if isinstance(picture, dict):
        picture = picture.get("path") or picture.get("url")
    return picture.replace("\\", "/").removeprefix("./") if isinstance(picture, str) else None


def read_picture(picture: Any, read: ReadPicture | None) -> dict[str, Any]:
    """A picture given as bytes, by a path beside the rows, as base64 or as `{"bytes", "path"}`, as the last one."""
    if isinstance(picture, bytes):
        return {"bytes": picture, "path": None}
    name = picture_name(picture)
    if isinstance(picture, dict) and picture.get("bytes"):
        return {"bytes": picture["bytes"], "path": name}
    if name and name.startswith("data:image/"):
        try:
            return {"bytes": b64decode(name.partition(",")[2], validate=True), "path": None}
        except binascii.Error as error:
            raise RowError(NO_PICTURE) from error
    if not name or read is None:
        raise RowError(MISSING_PICTURE)
    return {"bytes": read(name), "path": name}


def build_row(identity: str, messages: Iterable[tuple[Any, Any]], pictures: list[dict[str, Any]]) -> Row:
    """A vision-language row; raises `RowError` for bad turns, a picture that is missing or damaged, or more markers
    than pictures. Markers for all pictures that are repeated in later turns mean the same ones.

    Args:
        messages: (speaker, text) in order.
        pictures: `{"bytes": bytes | None, "path": str | None}`, in the order the model shall see them.
    """
    messages = list(messages)
    turns, markers = turns_of(messages)
    if markers > len(pictures) and any(text.count(IMAGE_MARKER) not in (0, len(pictures)) for _, text in messages):
        raise RowError(MISSING_PICTURE)
    for picture in pictures:
        if not picture.get("bytes"):
            raise RowError(MISSING_PICTURE)
        try:
            check_picture(picture["bytes"])
        except PictureError as error:
            raise RowError(str(error)) from error
    return {"images": pictures, "turns": turns, "identity": identity}


def row_ranges(count: int) -> list[range]:
    """Ranges of at most `ROWS_PER_SHARD` rows; smaller ones where that gives too few."""
    step = max(1, min(ROWS_PER_SHARD, -(-count // SHARDS_WANTED)))
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


class ConversationSource(ABC):
    """A vision-language data set as a `DataSource`. Readers of a layout say what their shards are and read them."""

    lanes = 1  # see `DataSource`

    def __init__(self, name: str, problems: RowProblems):
        self.name, self.problems = name, problems
        self._shards: dict[str, Any] = {}  # what `_attempts` takes, by name
        self._wanted: Callable[[str], bool] | None = None

    def shards(self) -> list[str]:
        return list(self._shards)

    @abstractmethod
    def count_rows(self) -> int:
        """Rows of all shards, bad ones too, and those that `only` leaves out."""

    def only(self, wanted: Callable[[str], bool], problems: RowProblems | None = None) -> Self:
        """The data set of the rows whose identity is wanted, with its own counter or another."""
        source = copy.copy(self)
        source._wanted, source.problems = wanted, problems or self.problems
        return source

    @abstractmethod
    def _attempts(self, shards: list[Any]) -> Attempts: ...

    def rows(self, shards: list[str]) -> Iterator[Row]:
        """The rows of these shards; bad ones are counted under their identity, and stop the run past its limit."""
        for identity, build in self._attempts([self._shards[shard] for shard in shards]):
            if self._wanted is not None and not self._wanted(identity):
                continue
            try:
                row = build()
            except RowError as error:
                self.problems.skip(identity, str(error))
                continue
            self.problems.seen()
            yield row
