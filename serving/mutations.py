"""Messages that went wrong, sent to a server: what comes back must be actions or a sentence, and memory stays flat.

Half of them are observations whose bytes were changed, cut, repeated or mixed with others; half are well-formed
messages in which one value is of another kind, shape or size. They go to the websocket and to `/act` alike.
"""

import http.client
import json
import random
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from tqdm import tqdm
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from gen_vla.evaluation.tables import results_table
from gen_vla.serving.load_test import observation_for, state_for
from gen_vla.serving.messages import pack, to_json, unpack


SIDE = 8  # pixels: small pictures, so that changes often hit what surrounds them
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 1.5, float("nan"), float("inf"), "", "x", "\0", "x" * 5000, b"", b"\x89PNG\r\n\x1a\n",
    [], [[]], ["two"] * 3, {}, {"a": {}}, np.zeros((0, 0, 3), np.uint8), np.zeros((8, 8), np.uint8),
    np.zeros((8, 8, 7), np.uint8), np.zeros((2, 8, 8, 3), np.uint8), np.full((8, 8, 3), np.nan), np.zeros((3, 3)),
    np.zeros(3), np.array([np.inf]), np.zeros((1, 1, 1, 1, 1), np.int64), np.zeros((5, 10_000), np.uint8),
)  # fmt: skip
MARKS: tuple[dict[Any, Any], ...] = (
    *({b"dtype": dtype} for dtype in ("|O", "<U4", ["x"], None, "<f8")),
    *({b"shape": shape} for shape in ([2**62, 8], [-1], "x", [8.0, 8, 3], [True], [], [0, 2**62])),
    *({b"data": data} for data in (5, b"", None)),
)
KEYS = (
    "prompt",
    "instruction",
    "unnorm_key",
    "state",
    "prefix_actions",
    "query",
    "reset",
    "endpoint",
    "seed",
    "encoded",
)


def mutated(observation: dict[str, Any], chance: random.Random, as_json: bool) -> bytes:
    """One message that went wrong."""
    message = dict(observation)
    if chance.random() < 0.5:
        return scrambled(encoded(message, as_json), chance)
    key = chance.choice([*message, *KEYS])
    if chance.random() < 0.3:
        mark = {b"data": bytes(SIDE * SIDE * 3), b"dtype": "|u1", b"shape": [SIDE, SIDE, 3], **chance.choice(MARKS)}
        message[key] = json_mark(mark) if as_json else {b"__ndarray__": True, **mark}
    elif chance.random() < 0.2:
        message.pop(key, None)
    else:
        message[key] = chance.choice(WRONG)
    return encoded(message, as_json)


def json_mark(mark: dict[bytes, Any]) -> dict[str, Any]:
    """The mark of an array as json_numpy writes it."""
    data = mark[b"data"]
    shown = b64encode(data).decode() if isinstance(data, bytes) else data
    return {"__numpy__": shown, "dtype": mark[b"dtype"], "shape": mark[b"shape"]}


def encoded(message: dict[str, Any], as_json: bool) -> bytes:
    """A message as msgpack or JSON, also one that JSON has no way for."""
    if not as_json:
        try:
            return pack(message)
        except OverflowError:
            return pack({**message, "seed": 1})
    try:
        return to_json(message).encode()
    except (ValueError, TypeError):
        return json.dumps(message, default=_in_json, skipkeys=True).encode()


def _in_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return json.loads(to_json(value))
    return {"__numpy__": b64encode(value).decode(), "dtype": "|u1", "shape": [len(value)]}


def scrambled(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut out, repeated, or nothing but noise."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        reach = len(changed) if chance.random() < 0.5 else min(len(changed), 40)  # often where the structure is
        place = chance.randrange(reach or 1)
        kind = chance.randrange(5)
        if kind == 0 and changed:
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[place:place] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 2:
            del changed[place : place + chance.randrange(1, 60)]
        elif kind == 3:
            changed[place:place] = changed[place : place + chance.randrange(1, 60)]
        else:
            changed = changed[: place + 1]
    return bytes(changed) if chance.random() < 0.95 else chance.randbytes(chance.randrange(200))


class Found:
    """What came back: actions and other replies, sentences, and whatever else, which there must not be."""

    def __init__(self) -> None:
        self.counts = {"replies": 0, "sentences": 0, "closed": 0}
        self.faults: list[str] = []

    def add(self, kind: str, fault: str | None = None) -> None:
        self.counts[kind] += 1
        if fault:
            self.faults.append(fault[:300])


def run_mutations(address: str, count: int, process: int | None = None, seed: int = 0, progress: bool = True) -> Any:
    """Sends so many messages; after every hundredth, a good one must get the same actions as at first.

    Args:
        address: HOST:PORT.
        process: the server's number, whose memory is read where there is /proc.

    Returns:
        Counts, `faults` (answers that are neither actions nor a sentence), memory in MB after a tenth and at the end.
    """
    chance, found, memory = random.Random(seed), Found(), {}
    session = connect(f"ws://{address}", compression=None, max_size=None)
    metadata: Any = unpack(session.recv())  # pyright: ignore[reportArgumentType]
    observation = observation_for(metadata["cameras"], side=SIDE)
    key = metadata["available_unnorm_keys"][0]
    observation |= {"unnorm_key": key, **state_for(metadata, key)}
    expected = good(session, observation)
    rest = http.client.HTTPConnection(address, timeout=60)
    for number in tqdm(range(count), unit="message", disable=not progress):
        if number % 2:
            post(rest, mutated(observation, chance, as_json=True), found)
        else:
            session = send(session, address, mutated(observation, chance, as_json=False), found)
        if number % 100 == 99:
            actions = good(session, observation)
            if not np.array_equal(actions, expected):
                found.faults.append(f"other actions for the same observation after message {number}")
        if number + 1 in (max(count // 10, 1), count):
            memory["megabytes" if number + 1 == count else "megabytes_after_a_tenth"] = resident(process)
    session.close()
    return {"messages": count, **found.counts, "faults": found.faults, **memory}


def good(session: Any, observation: dict[str, Any]) -> np.ndarray:
    """The actions for an observation that is as it should be."""
    session.send(pack(observation))
    return unpack(session.recv(timeout=60))["actions"]


def send(session: Any, address: str, data: bytes, found: Found) -> Any:
    """Sends a message to the websocket; returns it, or another one if it was closed."""
    try:
        session.send(data)
        reply = session.recv(timeout=60)
    except ConnectionClosed as closed:
        found.add("closed", f"closed without a sentence: {closed}")
        session = connect(f"ws://{address}", compression=None, max_size=None)
        session.recv()
        return session
    if isinstance(reply, str):
        found.add("sentences", None if is_sentence(reply) else f"no sentence: {reply!r}")
        return session
    understood: Any = unpack(reply)
    actions = understood.get("actions")
    broken = isinstance(actions, np.ndarray) and not np.isfinite(actions).all()
    found.add("replies", "actions that are not finite" if broken else None)
    return session


def post(rest: http.client.HTTPConnection, body: bytes, found: Found) -> None:
    """Sends a body to `/act`, on a connection of its own: servers end those on which nothing comes for seconds."""
    rest.close()
    rest.request("POST", "/act", body)
    reply = rest.getresponse()
    text = reply.read().decode()
    if reply.status == 200:
        found.add("replies", None if "__numpy__" in text else f"no actions: {text!r}")
        return
    sentence = json.loads(text)["error"] if reply.headers.get_content_type() == "application/json" else ""
    found.add("sentences", None if reply.status == 400 and is_sentence(sentence) else f"{reply.status}: {text!r}")


def is_sentence(text: str) -> bool:
    """Whether an error says what is wrong, and shows nothing of the program."""
    return 20 < len(text) < 1000 and "Traceback" not in text and "log" not in text


def resident(process: int | None) -> float | None:
    """The memory of a process in MB; `None` where that cannot be read."""
    status = Path(f"/proc/{process}/status")
    if process is None or not status.is_file():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return round(int(line.split()[1]) / 1024, 1)


def mutations_table(results: dict[str, Any]) -> Table:
    """What came back, and memory."""
    rows = [(name.replace("_", " "), value) for name, value in results.items() if name != "faults"]
    return results_table("Messages that went wrong", ("", ""), [*rows, ("faults", len(results["faults"]))])
