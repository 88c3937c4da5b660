"""`PolicyClient`: a policy server as an object with `act`, for control loops (`control_loop.py`).

It speaks openpi's protocol, so that it drives openpi's servers, too, as long as nothing else is asked of them.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect

from gen_vla.serving.messages import MessageError, pack, unpack


ATTEMPTS = 3  # to send a message, each on another connection
TOO_LARGE = 1009  # the code that a websocket closes with
RECENT = 20  # delays that are remembered
LONGEST_PAUSE = 1.0  # seconds between two attempts to connect


class PolicyError(RuntimeError):
    """The server refused a request; the message is its sentence."""


class PolicyClient(AbstractContextManager["PolicyClient"]):
    """A connection to a policy server, which comes back after it was lost. Threads may share it.

    Args:
        address: such as `"ws://127.0.0.1:8000"`.
        api_key: what the server was started with.
        timeout: seconds for an answer, and for connecting, attempts included.

    Attributes:
        metadata: what the server says about its model: `action_chunk_size`, `action_names`, `fps`, `cameras`...
        reconnections: how often the connection was lost and came back.

    Raises:
        ConnectionError: if there is no server in time.
        PolicyError: if it refuses the connection, as for a wrong key, or has another model when it comes back.
    """

    def __init__(self, address: str = "ws://127.0.0.1:8000", api_key: str | None = None, timeout: float = 10.0):
        self.address, self.timeout = address, timeout
        self.headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self.metadata: dict[str, Any] = {}
        self.reconnections = 0
        self.delays: deque[float] = deque(maxlen=RECENT)
        self._lock = threading.Lock()
        self._reset: dict[str, Any] | None = None
        self._connection: ClientConnection | None = None
        with self._lock:
            self._connect(time.monotonic() + timeout)

    def act(self, observation: Mapping[str, Any], prefix_actions: Any = None) -> np.ndarray:
        """The actions for an observation, float32 [T, D].

        Args:
            observation: pictures, state and words under the keys of a layout that the server knows.
            prefix_actions: float [k, D], steps that are decided; the chunk begins with them and continues them.

        Raises:
            PolicyError: if the server refuses, has another model than at first, or answers with anything but finite
                actions.
            ConnectionError: if it is gone and does not come back in time.
            TimeoutError: if it does not answer in time.
        """
        began = time.monotonic()
        if prefix_actions is not None and len(prefix_actions):
            if not self.metadata.get("continues_chunks"):
                raise PolicyError(
                    f"got prefix_actions for {self.address}, whose model does not continue chunks; leave them "
                    "out, and pass continues=False to ChunkLoop"
                )
            observation = {**observation, "prefix_actions": np.asarray(prefix_actions, dtype=np.float32)}
        actions = self.infer(observation).get("actions")
        if not isinstance(actions, np.ndarray) or actions.dtype.kind != "f" or actions.ndim != 2:
            raise PolicyError(
                f"got a reply without actions float [T, D] from {self.address}, expected a policy server"
            )
        if not actions.size or not np.isfinite(actions).all():
            raise PolicyError("got actions that are not finite numbers, expected finite ones; stop the robot")
        self.delays.append(time.monotonic() - began)
        return actions.astype(np.float32)

    def ask(self, observation: Mapping[str, Any], query: str) -> str:
        """The model's answer to a question about the picture of an observation."""
        return self.infer({**observation, "query": query})["answer"]

    def reset(self, prompt: str | None = None, unnorm_key: str | None = None, seed: int = 0) -> None:
        """Begins an episode, with what its observations need not say again; said again after a lost connection."""
        said = {"prompt": prompt, "unnorm_key": unnorm_key, "seed": seed}
        message = {"reset": True, **{name: value for name, value in said.items() if value is not None}}
        self.infer(message)
        self._reset = message

    def infer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The server's reply to a message, as openpi's client has it; raises as `act`."""
        with self._lock:
            end = time.monotonic() + self.timeout
            data = pack(dict(message))
            for attempt in itertools.count(1):
                connection = self._connection or self._connect(end)
                try:
                    connection.send(data)
                    reply = connection.recv(timeout=max(end - time.monotonic(), 0.001))
                except TimeoutError:
                    self._drop()  # a reply that comes later must not be taken for that of the next request
                    raise TimeoutError(f"got no answer from {self.address} within {self.timeout:g} s") from None
                except (OSError, WebSocketException) as error:
                    self._drop()
                    if isinstance(error, ConnectionClosed) and error.rcvd and error.rcvd.code == TOO_LARGE:
                        raise PolicyError(
                            f"got a message of {len(data)} bytes, which {self.address} does not take; send smaller "
                            "pictures, or start it with a larger --message-mb"
                        ) from error
                    if attempt == ATTEMPTS:
                        raise ConnectionError(f"lost {self.address} {attempt} times in a row: {error}") from error
                except BaseException:  # Ctrl+C, say: this reply, too, must not be taken for the next request's
                    self._drop()
                    raise
                else:
                    return self._understood(reply)
        raise AssertionError  # the loop ends by an answer or an error

    @property
    def delay(self) -> float:
        """Seconds from asking to having the actions: the longest of the recent ones; 0 before the first."""
        return max(self.delays, default=0.0)

    def close(self) -> None:
        """Ends the connection."""
        with self._lock:
            self._drop()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self, end: float) -> ClientConnection:
        """Connects, again and again until a moment of `time.monotonic`, and says the last reset again."""
        pause, known = 0.05, bool(self.metadata)
        while True:
            try:
                left = max(end - time.monotonic(), 0.05)
                connection = connect(
                    self.address, additional_headers=self.headers, compression=None, max_size=None, open_timeout=left
                )
                try:
                    metadata = self._understood(connection.recv(timeout=left))
                    if known and pack(metadata) != pack(self.metadata):
                        raise PolicyError(
                            f"got another model or other settings at {self.address} than before the connection was "
                            "lost, expected the same: its actions may mean something else; make another PolicyClient"
                        )
                    self.metadata = metadata
                    if self._reset is not None:
                        connection.send(pack(self._reset))
                        self._understood(connection.recv(timeout=left))
                except BaseException:  # a refused reset, say: no action may come from what was not reset
                    connection.close()
                    raise
                self._connection = connection
                self.reconnections += known
                return connection
            except InvalidURI as error:
                raise PolicyError(
                    f"got the address {self.address!r}, expected one such as ws://127.0.0.1:8000"
                ) from error
            except (OSError, WebSocketException) as error:  # a TimeoutError is an OSError
                self._drop()
                status = getattr(getattr(error, "response", None), "status_code", None)
                if isinstance(error, InvalidHandshake) and status in (401, 403):
                    raise PolicyError(f"{self.address} refuses the connection: {self._sentence(error)}") from error
                if time.monotonic() + pause > end:
                    why = self._sentence(error)
                    raise ConnectionError(
                        f"got no policy server at {self.address} within {self.timeout:g} s ({why}), expected one; "
                        "start gen-vla serve, or correct the address"
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _understood(self, reply: bytes | str) -> dict[str, Any]:
        if isinstance(reply, str):
            raise PolicyError(reply)
        try:
            found = unpack(reply)
        except MessageError as error:
            self._drop()
            raise PolicyError(f"{self.address}: {error}") from error
        if not isinstance(found, dict):
            raise PolicyError(
                f"got a reply that is a {type(found).__name__} from {self.address}, expected a dictionary"
            )
        return found

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close_timeout = 0.1  # a server that is gone says nothing more
            connection.close()

    @staticmethod
    def _sentence(error: BaseException) -> str:
        body = getattr(getattr(error, "response", None), "body", None)
        return " ".join((body.decode(errors="replace") if body else str(error)).split())[:200]
