"""Several robots at once: each has its own answers, and nobody suffers from another. What a server refuses."""

import io
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import json_numpy
import numpy as np
import pytest
from PIL import Image
from policy_servers import frame
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from gen_vla.commands.main import main
from gen_vla.serving.application import Limits
from gen_vla.serving.messages import pack, unpack
from gen_vla.serving.server import check_address


INSTRUCTIONS = ["two", "out in", "in", "open it", "go", "put two in", "out two out", "no"]


class Robot:
    """A websocket that sends observations."""

    def __init__(self, port, **options):
        self.socket = connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, **options)
        self.metadata = unpack(self.socket.recv())

    def send(self, words="two", seed=0, **more):
        self.socket.send(pack({"image": frame(seed), "prompt": words, **more}))

    def receive(self) -> Any:
        reply = self.socket.recv(timeout=30)
        return reply if isinstance(reply, str) else unpack(reply)

    def act(self, *given, **more):
        self.send(*given, **more)
        return self.receive()


def directly(pair, seed, words):
    model, processor = pair
    return model.predict_actions(**processor.action_inputs(Image.fromarray(frame(seed)), words)).actions[0]


def slow(server, seconds, log=None, batcher="actions"):
    """Makes every batch of a server take longer, and writes down its instructions."""
    slowed = getattr(server.policy_server, batcher)
    run = slowed.run

    def slowly(requests):
        if log is not None:
            log.append([request.words for request in requests])
        time.sleep(seconds)
        return run(requests)

    slowed.run = slowly


def test_robots_that_ask_together_share_batches_and_get_their_own_actions(chunking, serve):
    server, port = serve(chunking, wait=0.2)
    batches = []
    slow(server, 0.02, batches)
    robots = [Robot(port) for _ in INSTRUCTIONS]
    expected = [[directly(chunking, seed, words) for seed in range(4)] for words in INSTRUCTIONS]

    def episode(number):
        return [robots[number].act(INSTRUCTIONS[number], seed)["actions"] for seed in range(4)]

    with ThreadPoolExecutor(len(robots)) as pool:
        found = list(pool.map(episode, range(len(robots))))
    np.testing.assert_array_equal(found, expected)
    assert max(map(len, batches)) > 1
    assert sum(map(len, batches)) == 32
    assert len(batches) < 20


def test_a_robot_alone_does_not_wait_for_others(tiny_openvla, serve):
    _, port = serve(tiny_openvla, wait=5.0)
    robot, began = Robot(port), time.monotonic()
    robot.act()
    assert time.monotonic() - began < 2


def test_robots_do_not_wait_for_questions(tiny_openvla, serve):
    server, port = serve(tiny_openvla)
    slow(server, 1.0, batcher="questions")
    curious, moving = Robot(port), Robot(port)
    curious.send(query="how many?")
    time.sleep(0.1)
    began = time.monotonic()
    for _ in range(3):
        assert "actions" in moving.act()
    assert time.monotonic() - began < 0.8
    assert "answer" in curious.receive()


def test_half_a_message_stalls_nobody(tiny_openvla, serve):
    _, port = serve(tiny_openvla)
    other = Robot(port)
    slow_one = Robot(port)
    slow_one.socket.socket.sendall(b"\x82\xff" + struct.pack("!Q", 10**6) + b"mask" + b"x" * 1000)
    body = socket.create_connection(("127.0.0.1", port))
    body.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{")
    began = time.monotonic()
    for _ in range(3):
        assert "actions" in other.act()
    assert time.monotonic() - began < 5
    body.close()


def test_a_mistake_is_answered_and_the_session_goes_on(tiny_openvla, serve):
    _, port = serve(tiny_openvla)
    robot = Robot(port)
    for message, expected in [
        (b"\xc1", "no msgpack message"),
        (b"", "no msgpack message"),
        (pack({"image": frame(), "prompt": "two"})[:-1], "no msgpack message"),
        (pack([1, 2]), "got a message that is a list"),
        (pack({1: 2}), "no msgpack message"),
        (pack({b"image": 2}), "expected a dictionary with texts as keys"),
        (b"\xdd\x7f\xff\xff\xff", "no msgpack message"),
        (b"\x91" * 5000 + b"\xc0", "no msgpack message"),
        (b"\xdc\xff\xff" + b"\xc0" * 0xFFFF, "no msgpack message"),
        (pack([[[]] * 200] * 200), "more than 20000 entries"),
        (b"\xc7\x01\x05x", "extension of type 5"),
        (pack({"image": {b"__ndarray__": True, b"data": b"x", b"dtype": "|O", b"shape": (1,)}}), r"dtype '|O'"),
        (pack({"image": {b"__ndarray__": True, b"data": 5, b"dtype": "|u1", b"shape": (1,)}}), "got int for an array"),
        (
            pack({"image": {b"nd": True, b"type": "O", b"kind": b"O", b"data": b"cos\nsystem\n"}, "prompt": "two"}),
            "dict",
        ),
        ("text", "expected binary messages"),
        (pack({"reset": True, "seed": "x"}), "got str as seed"),
        (pack({"image": frame(), "prompt": "two", "reset": "true"}), "got str as reset, expected true or false"),
    ]:
        robot.socket.send(message)
        reply = robot.receive()
        assert isinstance(reply, str), reply
        assert expected in reply
    assert "actions" in robot.act()


def bomb(side: int) -> bytes:
    """A PNG of side x side black pixels, in a few kilobytes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_pictures_as_files_and_picture_bombs(tiny_openvla, serve):
    _, port = serve(tiny_openvla)
    robot, file = Robot(port), io.BytesIO()
    Image.fromarray(frame()).save(file, "PNG")
    np.testing.assert_array_equal(robot.act(image=file.getvalue())["actions"], robot.act()["actions"])
    assert "got a picture of 6000 x 6000 pixels" in robot.act(image=bomb(6000))
    assert "could be decompression bomb" in robot.act(image=bomb(30000))
    assert "bytes as a picture" in robot.act(image=b"no picture")
    assert "does not decode" in robot.act(image=file.getvalue()[:60])
    wide = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (1, 4096 * 4096 + 1), (0, 0))
    assert "16777217 x 1 pixels" in robot.act(image=np.ascontiguousarray(wide))
    assert "actions" in robot.act()


def test_keys(tiny_openvla, serve):
    _, port = serve(tiny_openvla, api_key="secret")
    address = f"http://127.0.0.1:{port}"
    for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": "secret"}):
        with pytest.raises(InvalidStatus, match="401"):
            Robot(port, additional_headers=headers)
        assert httpx.post(f"{address}/act", content="{}", headers=headers).status_code == 401
        assert httpx.get(f"{address}/metrics", headers=headers).status_code == 401
    assert httpx.get(f"{address}/healthz").status_code == 200
    for scheme in ("Api-Key", "Bearer"):
        assert "actions" in Robot(port, additional_headers={"Authorization": f"{scheme} secret"}).act()


def test_pages_in_a_browser_are_refused(tiny_openvla, serve):
    _, port = serve(tiny_openvla)
    for origin in ("http://127.0.0.1", "http://page.example", "null"):
        with pytest.raises(InvalidStatus, match="403"):
            Robot(port, origin=origin)
    for page in ("http://page.example", "http://["):  # whose name stands for this machine
        headers = {"Origin": page, "Host": "page.example"}
        assert httpx.get(f"http://127.0.0.1:{port}/metadata", headers=headers).status_code == 403
    assert "actions" in Robot(port, origin=f"http://127.0.0.1:{port}").act()  # as websocket-client writes it
    answer = httpx.post(f"http://127.0.0.1:{port}/act", content="{}", headers={"Origin": "null"})
    assert answer.status_code == 403


def test_other_machines_need_a_key(capsys):
    check_address("127.0.0.1", Limits())
    check_address("0.0.0.0", Limits(api_key="secret"))
    assert main(["serve", "gen-vla/nothing", "--host", "0.0.0.0"]) == 2
    assert "set GEN_VLA_API_KEY" in capsys.readouterr().err
    assert main(["serve", "gen-vla/nothing", "--batch", "0"]) == 2


def test_messages_and_connections_have_limits(tiny_openvla, serve):
    _, port = serve(tiny_openvla, message_bytes=10_000, connections=2)
    robots = [Robot(port), Robot(port)]
    with pytest.raises(InvalidStatus, match="429"):
        Robot(port)
    robots[0].socket.send(bytes(20_000))
    with pytest.raises(ConnectionClosed) as closed:
        robots[0].receive()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
    assert "actions" in robots[1].act()
    assert "actions" in Robot(port).act()  # in the place of the one that is gone


def test_a_full_queue_refuses(tiny_openvla, serve):
    server, port = serve(tiny_openvla, queue=1, batch=1)
    slow(server, 2.0)
    robots = [Robot(port) for _ in range(3)]
    for robot in robots:
        robot.send()
        time.sleep(0.15)
    reply = robots[2].receive()
    assert "got a request while 1 wait, which is the limit" in reply
    with pytest.raises(ConnectionClosed) as closed:
        robots[2].receive()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1013
    body = json_numpy.dumps({"image": frame(), "instruction": "two"})
    assert httpx.post(f"http://127.0.0.1:{port}/act", content=body).status_code == 429
    assert all("actions" in robot.receive() for robot in robots[:2])


def test_requests_without_an_answer_in_time_are_refused(tiny_openvla, serve):
    server, port = serve(tiny_openvla, timeout=0.3)
    slow(server, 1.0)
    robot = Robot(port)
    assert "got no answer within 0.3 s" in robot.act()
    with pytest.raises(ConnectionClosed):
        robot.receive()
    body = json_numpy.dumps({"image": frame(), "instruction": "two"})
    assert httpx.post(f"http://127.0.0.1:{port}/act", content=body, timeout=10).status_code == 504


def test_nobody_writes_actions_for_a_robot_that_left(tiny_openvla, serve):
    server, port = serve(tiny_openvla, batch=1)
    batches = []
    slow(server, 0.4, batches)
    first, leaving, last = Robot(port), Robot(port), Robot(port)
    for robot, words in ((first, "one"), (leaving, "gone"), (last, "two")):
        robot.send(words)
        time.sleep(0.05)
    leaving.socket.close()
    assert "actions" in first.receive()
    assert "actions" in last.receive()
    assert batches == [["one"], ["two"]]
    assert server.policy_server.sessions == 2


def test_a_broken_action_is_an_error_and_not_the_neighbours(tiny_openvla, serve):
    model, _ = tiny_openvla
    server, port = serve(tiny_openvla, wait=0.2)
    predict = model.predict_actions

    def broken(**inputs):
        found = predict(**inputs)
        dark = inputs["pixel_values"].flatten(2).std(dim=2).amax(dim=1) < 1e-6
        found.actions[dark.numpy()] = np.nan
        return found

    model.predict_actions = broken
    good, bad = Robot(port), Robot(port)
    good.send()
    bad.send(image=np.zeros((8, 8, 3), np.uint8))
    assert "actions" in good.receive()
    assert "the model failed (RuntimeError)" in bad.receive()
    body = {"image": np.zeros((8, 8, 3), np.uint8), "instruction": "two"}
    answer = httpx.post(f"http://127.0.0.1:{port}/act", content=json_numpy.dumps(body))
    assert answer.status_code == 500
    assert "actions" in good.act()
    assert server.policy_server.actions.running == []


def test_a_stop_lets_running_requests_finish(tiny_openvla, serve):
    server, port = serve(tiny_openvla)
    slow(server, 0.5)
    robot, idle = Robot(port), Robot(port)
    robot.send()
    time.sleep(0.1)
    server.should_exit = True
    time.sleep(0.25)
    assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 503
    assert "shutting down" in idle.act()
    assert "actions" in robot.receive()
    with pytest.raises(ConnectionClosed) as closed:
        robot.receive()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
