"""Checked requests: from a message's dictionary to pictures and words that a model can be given.

Pictures are arrays, uint8 or float in [0, 1], [H, W, 3] or [3, H, W] as openpi's clients send them, or the bytes of a
PNG, JPEG or WebP. A text is never taken for a picture: it could be a path of the server's or an address.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from gen_vla.processors.rgb_pictures import DECODING_ERRORS, to_rgb
from gen_vla.serving.layouts import Layout, Layouts, find, shown_keys


FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 4096 * 4096  # of a picture
MAX_CHARACTERS = 1000  # of an instruction or a question
MAX_STATE = 256  # values of one part of a robot's state


@dataclass(frozen=True)
class Session:
    """What a connection has said for all its requests."""

    instruction: str | None = None  # for observations without words
    unnorm_key: str | None = None  # for those without one
    episode: int = 0  # how many there were before
    step: int = 0  # how many actions were asked for in this one
    seed: int = 0  # of the noise that a flow-matching model starts from


@dataclass(frozen=True)
class Request:
    pictures: tuple[Image.Image, ...]  # RGB, in the order of the model's cameras
    words: str  # an instruction; or a question, if `asks`
    asks: bool = False
    unnorm_key: str | None = None  # whose units the actions have
    prefix: np.ndarray | None = None  # float [k, D], steps of the chunk that are decided
    noise_name: str = ""  # of the noise that a flow-matching model starts from
    state: np.ndarray | None = None  # float64 [P], the robot's, for a model that takes it


@dataclass(frozen=True)
class Requests:
    layouts: Layouts
    unnorm_keys: Sequence[str]  # those the model has statistics for
    default_key: str | None  # for requests and sessions without one
    action_dim: int  # D
    horizon: int  # T
    state_dims: Mapping[str, int] = field(default_factory=dict)  # P by data set; empty for a model that takes no state

    def read(self, message: Any, session: Session) -> Request:
        """The request in a message; raises `ValueError` or `TypeError` that says what to send instead."""
        checked_dictionary(message)
        layout = self.layouts.of(message)
        if "query" in message:
            [picture] = layout.pictures(message, self.layouts.cameras and self.layouts.cameras[:1])
            return Request((read_picture(picture),), words_of(message["query"], "query"), asks=True)
        pictures = tuple(map(read_picture, layout.pictures(message, self.layouts.cameras)))
        for key in layout.state:
            check_state(find(message, key), key)
        found = [message[key] for key in layout.instruction if key in message]
        words = found[0] if found else session.instruction
        if words is None:
            raise ValueError(
                f"got an observation with {shown_keys(message)}, expected an instruction under "
                f"{' or '.join(layout.instruction)}, or one in a reset before it"
            )
        given = message.get("unnorm_key", session.unnorm_key)
        key = self.checked_key(self.default_key if given is None else given)
        return Request(
            pictures,
            words_of(words, "instruction"),
            unnorm_key=key,
            state=self.joined_state(message, layout, self.state_dims[key]) if self.state_dims else None,
            prefix=self.checked_prefix(message.get("prefix_actions")),
            noise_name=f"{session.seed} {session.episode} {session.step}",
        )

    def checked_key(self, key: Any) -> str:
        """A data set of the model; raises `ValueError` for another, or for none where there are several."""
        if key is None and len(self.unnorm_keys) == 1:
            return self.unnorm_keys[0]
        if not isinstance(key, str) or key not in self.unnorm_keys:
            raise ValueError(
                f"got {'no unnorm_key' if key is None else f'unnorm_key={str(key)[:60]!r}'}, expected one of "
                f"{', '.join(self.unnorm_keys)}: whose units the actions shall have"
            )
        return key

    def joined_state(self, message: dict[str, Any], layout: Layout, width: int) -> np.ndarray:
        """The checked parts of the robot's state side by side, float64 [P]."""
        parts = {key: found for key in layout.state if (found := find(message, key)) is not None}
        joined = np.concatenate([np.zeros(0), *(np.atleast_1d(np.asarray(part, float)) for part in parts.values())])
        if len(joined) != width:
            raise ValueError(
                f"got {len(joined)} values of the robot's state under {', '.join(parts) or 'no key'}, expected "
                f"{width} under {', '.join(layout.state) or 'state'}: the model was trained with it; send it, or name "
                "its keys in a file for --keys"
            )
        return joined

    def checked_prefix(self, given: Any) -> np.ndarray | None:
        """Steps float [k, D] that are decided, or `None`."""
        if given is None:
            return None
        if not isinstance(given, np.ndarray) or given.dtype.kind != "f" or given.shape[1:] != (self.action_dim,):
            shape = f"shape {list(given.shape)} and dtype {given.dtype}" if isinstance(given, np.ndarray) else given
            raise ValueError(f"got prefix_actions of {str(shape)[:80]}, expected floats [k, {self.action_dim}]")
        if len(given) >= self.horizon or not np.isfinite(given).all():
            raise ValueError(
                f"got {len(given)} prefix_actions, expected fewer than the {self.horizon} steps of a chunk, all finite"
            )
        return given


def checked_dictionary(message: Any) -> dict[str, Any]:
    """The message, if it is a dictionary with texts as keys."""
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise ValueError(f"got a message that is a {type(message).__name__}, expected a dictionary with texts as keys")
    return message


def read_picture(given: Any) -> Image.Image:
    """A picture in RGB; raises `ValueError` or `TypeError` for anything else, and for one that is too large."""
    if isinstance(given, bytes):
        try:
            with Image.open(io.BytesIO(given), formats=FORMATS) as header:  # reads no pixels yet
                check_size(header.height, header.width)
        except DECODING_ERRORS as error:
            raise ValueError(
                f"got {len(given)} bytes as a picture ({str(error)[:120]}), expected a PNG or JPEG"
            ) from error
        return to_rgb(given)
    if not isinstance(given, np.ndarray):
        raise TypeError(f"got {type(given).__name__} as a picture, expected an array uint8 [H, W, 3]")
    if given.ndim not in (2, 3):
        raise ValueError(f"got a picture of shape {list(given.shape)}, expected [H, W, 3], one picture per camera")
    if given.ndim == 3 and given.shape[0] in (1, 3) and given.shape[2] not in (1, 3, 4):
        given = given.transpose(1, 2, 0)
    check_size(*given.shape[:2])
    if given.dtype.kind == "f":
        if not (given.size and np.isfinite(given).all() and given.min() >= 0 and given.max() <= 1):
            raise ValueError(
                f"got a picture of dtype {given.dtype} with values outside [0, 1], expected uint8, or floats in [0, 1]"
            )
        given = (255 * given.astype(np.float32)).round().astype(np.uint8)
    return to_rgb(given)


def check_size(height: int, width: int) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"got a picture of {width} x {height} pixels, expected 1 to {MAX_PIXELS}; make it smaller")


def check_state(state: Any, key: str) -> None:
    """Raises `ValueError` for a part of the robot's state that is there and is no list of finite numbers."""
    if state is None:
        return
    short = isinstance(state, list) and len(state) <= MAX_STATE and all(type(each) in (int, float) for each in state)
    values = np.asarray(state) if isinstance(state, (np.ndarray, int, float)) or short else None
    if values is None or values.dtype.kind not in "biuf" or values.ndim > 1 or values.size > MAX_STATE:
        got = f"shape {list(state.shape)}" if isinstance(state, np.ndarray) else type(state).__name__
        raise ValueError(f"got {key} of {got}, expected at most {MAX_STATE} numbers in a row")
    if not np.isfinite(values).all():
        raise ValueError(f"got {key} with NaN or infinity, expected finite numbers; stop the robot and look at it")


def words_of(given: Any, what: str) -> str:
    if not isinstance(given, str):
        raise TypeError(f"got {type(given).__name__} as {what}, expected a text")
    if not given.strip() or len(given) > MAX_CHARACTERS:
        raise ValueError(f"got {what} of {len(given)} characters, expected words, at most {MAX_CHARACTERS} characters")
    return given
