"""Connections of senders without the key, which bring no request, or one in drops, are cut in time."""

import contextlib
import gc
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import json_numpy
import pytest
from policy_servers import frame, running

from gen_vla.serving.application import Limits
from gen_vla.serving.policy import ServedPolicy
from gen_vla.serving.server import PunctualProtocol


KEY = {"Authorization": "Api-Key secret"}
SECONDS = 1  # to bring a request; five by default
MOST = 2 * (1 + 1)  # connections at once, of which the last is refused; see `make_server`
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAuthorization: Api-Key secret\r\n\r\n"
REFUSED = b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
# What a sender writes first, and then ten times a second.
SENDERS = {
    "nothing": (b"", b""),
    "a head in drops": (b"GET /healthz HTTP/1.1\r\n", b"x: 1\r\n"),
    "a second head in drops": (HEALTH + b"GET /healthz HTTP/1.1\r\n", b"x: 1\r\n"),
    "a handshake in drops": (b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n", b"x: 1\r\n"),
    "a body in drops, without the key": (REFUSED, b"x"),
    "many questions that need no key": (HEALTH, HEALTH),
}


@pytest.fixture
def server(tiny_openvla):
    model, processor = tiny_openvla
    policy, limits = ServedPolicy(model, processor, "tiny"), Limits(api_key="secret", connections=1, queue=1)
    with running(policy, limits, timeout_keep_alive=SECONDS) as found:
        yield found


def ask(port, client: Any = httpx, timeout: float = 30):
    body = json_numpy.dumps({"image": frame(), "instruction": "two"})
    return client.post(f"http://127.0.0.1:{port}/act", content=body, headers=KEY, timeout=timeout)


def send(connection, first, drop, ended):
    """Sends until the connection is cut, or nobody reads."""
    connection.settimeout(3 * SECONDS)
    with contextlib.suppress(OSError):
        connection.sendall(first)
        while drop and not ended.wait(0.1):
            connection.sendall(drop)


@pytest.mark.parametrize("sender", SENDERS)
def test_connections_without_the_key_keep_nobody_out(server, sender):
    _, port = server
    connections, ended = [socket.create_connection(("127.0.0.1", port)) for _ in range(MOST - 1)], threading.Event()
    threads = [threading.Thread(target=send, args=(each, *SENDERS[sender], ended)) for each in connections]
    for thread in threads:
        thread.start()
    time.sleep(0.1 * SECONDS)
    try:
        assert ask(port).status_code == 503
        time.sleep(3 * SECONDS)
        assert ask(port).status_code == 200
    finally:
        ended.set()
        for thread, connection in zip(threads, connections, strict=True):
            thread.join()
            connection.close()


def test_who_reads_no_answers_is_cut(server):
    server, port = server
    server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # soon full
    with socket.create_connection(("127.0.0.1", port)) as connection:
        send(connection, 1_000 * METRICS, b"", threading.Event())
        time.sleep(3 * SECONDS)
        assert not server.server_state.connections


def test_one_question_after_another_without_the_key_is_cut(server):
    """Though there is always one that is being answered."""
    _, port = server
    with socket.create_connection(("127.0.0.1", port)) as connection, ThreadPoolExecutor(1) as sender:
        connection.settimeout(5 * SECONDS)
        sender.submit(connection.sendall, 100_000 * HEALTH)
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while connection.recv(2**16):
                assert time.monotonic() - began < 3 * SECONDS


def test_nothing_stays_of_those_who_leave_before_their_answer(server):
    server, port = server
    run = server.policy_server.actions.run
    server.policy_server.actions.run = lambda requests: time.sleep(1.5 * SECONDS) or run(requests)
    with pytest.raises(httpx.ReadTimeout):
        ask(port, timeout=0.5 * SECONDS)
    time.sleep(3 * SECONDS)
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, PunctualProtocol)]


def test_robots_with_the_key_keep_their_connection(server):
    """Also where an answer takes long, and over many pauses."""
    server, port = server
    run = server.policy_server.actions.run
    server.policy_server.actions.run = lambda requests: time.sleep(1.5 * SECONDS) or run(requests)
    addresses = []
    with httpx.Client() as client:
        for _ in range(3):
            answer = ask(port, client)
            assert answer.status_code == 200
            addresses.append(answer.extensions["network_stream"].get_extra_info("client_addr"))
            time.sleep(0.5 * SECONDS)
    assert len(set(addresses)) == 1
