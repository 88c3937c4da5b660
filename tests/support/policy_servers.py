"""A policy server of a tiny model behind uvicorn on a free port, in a thread of the test's process."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gen_vla.serving.application import Limits
from gen_vla.serving.policy import ServedPolicy
from gen_vla.serving.server import GracefulServer, make_server


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(
    policy: ServedPolicy, limits: Limits, port: int = 0, **settings: Any
) -> Iterator[tuple[GracefulServer, int]]:
    """A server that answers, and its port; `settings` are of `uvicorn.Config`."""
    port = port or free_port()
    server = make_server(policy, limits, "127.0.0.1", port, log_level="warning", **settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield server, port
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


def frame(seed: int = 0, height: int = 10, width: int = 12) -> np.ndarray:
    """A picture of noise, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
