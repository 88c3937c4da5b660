"""Messages that went wrong, sent to a server: what comes back must be actions or a sentence, and memory stays flat.

Half of them are observations whose bytes were changed, cut, repeated or mixed with others; half are well-formed
messages in which one value is of another kind, shape or size. They go to the websocket and to `/act` alike.
"""

import http.client
import json
import random
from base64 import b64encode
from collections import Counter
from contextlib import closing
from typing import Any

import numpy as np
import psutil
from rich.table import Table
from tqdm import tqdm
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from gen_vla.evaluation.tables import results_table
from gen_vla.serving.load_test import observation_for, state_for
from gen_vla.serving.messages import pack, unpack


SIDE = 8  # pixels: small pictures, so that changes often hit what surrounds them
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 1.5, float("nan"), float("inf"), "", "x", "\0", "x" * 5000, b"", b"\x89PNG\r\n\x1a\n",
    [], [[]], ["two"] * 3, {}, {"a": {}}, np.zeros((0, 0, 3), np.uint8), np.zeros((8, 8), np.uint8),
    np.zeros((8, 8, 7), np.uint8), np.zeros((2, 8, 8, 3), np.uint8), np.full((8, 8, 3), np.nan), np.zeros((3, 3)),
    np.zeros(3), np.array([np.inf]), np.zeros((1, 1, 1, 1, 1), np.int64), np.zeros((5, 10_000), np.uint8),
)  # fmt: skip
PIXELS, SHAPE = bytes(SIDE * SIDE * 3), [SIDE, SIDE, 3]
# Data, dtype and shape of arrays that do not fit each other.
MARKS: tuple[tuple[Any, Any, Any], ...] = (
    *((PIXELS, dtype, SHAPE) for dtype in ("|O", "<U4", ["x"], None, "<f8")),
    *((PIXELS, "|u1", shape) for shape in ([2**62, 8], [-1], "x", [8.0, 8, 3], [True], [], [0, 2**62])),
    *((data, "|u1", SHAPE) for data in (5, b"", None)),
)
KEYS = ("prompt", "instruction", "unnorm_key", "state", "prefix_actions", "query", "reset", "seed", "encoded")


def mutated(observation: dict[str, Any], chance: random.Random, as_json: bool) -> bytes:
    message, kind = dict(observation), chance.random()
    key = chance.choice([*message, *KEYS])
    if 0.5 < kind < 0.65:
        data, dtype, shape = chance.choice(MARKS)
        if as_json:
            data = b64encode(data).decode() if isinstance(data, bytes) else data
            message[key] = {"__numpy__": data, "dtype": dtype, "shape": shape}
        else:
            message[key] = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    elif 0.65 <= kind < 0.75:
        message.pop(key, None)
    elif kind >= 0.75:
        message[key] = chance.choice(WRONG)
    encoded = json.dumps(message, default=_in_json).encode() if as_json else pack(message)
    return scrambled(encoded, chance) if kind <= 0.5 else encoded


def _in_json(value: np.ndarray | bytes) -> dict[str, Any]:
    array = np.array(bytearray(value), np.uint8) if isinstance(value, bytes) else value
    return {"__numpy__": b64encode(array.tobytes()).decode(), "dtype": array.dtype.str, "shape": array.shape}


def scrambled(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut out, repeated, or nothing but noise."""
    if chance.random() < 0.05:
        return chance.randbytes(chance.randrange(200))
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        reach = len(changed) if chance.random() < 0.5 else min(len(changed), 40)  # often where the structure is
        place, length = chance.randrange(reach or 1), chance.randrange(1, 60)
        kind = chance.randrange(5)
        if kind == 0 and changed:
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[place:place] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 2:
            del changed[place : place + length]
        elif kind == 3:
            changed[place:place] = changed[place : place + length]
        else:
            del changed[place + 1 :]
    return bytes(changed)


def run_mutations(address: str, count: int, process: int | None = None) -> dict[str, Any]:
    """Sends so many messages to a server at HOST:PORT; after every hundredth, a good one must get the same actions as
    at first. Returns counts, `faults` (answers that are neither actions nor a sentence), and the memory of the
    server's process in MB after a tenth and at the end."""
    chance, found, faults, memory = random.Random(0), Counter(replies=0, sentences=0, closed=0), [], {}
    session, metadata = opened(address)
    observation = observation_for(metadata["cameras"], side=SIDE)
    key = metadata["available_unnorm_keys"][0]
    observation |= {"unnorm_key": key, **state_for(metadata, key)}
    expected = good(session, observation)
    for number in tqdm(range(count), unit="message"):
        if number % 2:
            kind, fault = post(address, mutated(observation, chance, as_json=True))
        else:
            kind, fault = send(session, mutated(observation, chance, as_json=False))
        found[kind] += 1
        faults += [fault[:300]] if fault else []
        if kind == "closed":
            session, _ = opened(address)
        if number % 100 == 99 and not np.array_equal(good(session, observation), expected):
            faults.append(f"other actions for the same observation after message {number}")
        if process is not None and number + 1 in (max(count // 10, 1), count):
            name = "megabytes" if number + 1 == count else "megabytes_after_a_tenth"
            memory[name] = round(psutil.Process(process).memory_info().rss / 2**20, 1)
    session.close()
    return {"messages": count, **found, "faults": faults, **memory}


def opened(address: str) -> tuple[Any, dict[str, Any]]:
    """A websocket, and what the server says first."""
    session = connect(f"ws://{address}", compression=None, max_size=None)
    return session, unpack(session.recv())  # pyright: ignore[reportArgumentType]


def good(session: Any, observation: dict[str, Any]) -> np.ndarray:
    """The actions for an observation that is as it should be."""
    session.send(pack(observation))
    return unpack(session.recv(timeout=60))["actions"]


def send(session: Any, data: bytes) -> tuple[str, str | None]:
    """Sends a message to the websocket: what came back, and what is wrong with it."""
    try:
        session.send(data)
        reply = session.recv(timeout=60)
    except ConnectionClosed as closed:
        return "closed", f"closed without a sentence: {closed}"
    if isinstance(reply, str):
        return "sentences", None if is_sentence(reply) else f"no sentence: {reply!r}"
    actions = unpack(reply).get("actions")
    broken = isinstance(actions, np.ndarray) and not np.isfinite(actions).all()
    return "replies", "actions that are not finite" if broken else None


def post(address: str, body: bytes) -> tuple[str, str | None]:
    """The same with a body and `/act`."""
    with closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        connection.request("POST", "/act", body)
        reply = connection.getresponse()
        text = reply.read().decode()
    if reply.status == 200:
        return "replies", None if "__numpy__" in text else f"no actions: {text!r}"
    sentence = json.loads(text)["error"] if reply.headers.get_content_type() == "application/json" else ""
    return "sentences", None if reply.status == 400 and is_sentence(sentence) else f"{reply.status}: {text!r}"


def is_sentence(text: str) -> bool:
    """Whether an error says what is wrong, and shows nothing of the program."""
    return 20 < len(text) < 1000 and "Traceback" not in text and "log" not in text


def mutations_table(results: dict[str, Any]) -> Table:
    rows = [(name.replace("_", " "), value) for name, value in results.items() if name != "faults"]
    return results_table("Messages that went wrong", ("", ""), [*rows, ("faults", len(results["faults"]))])
