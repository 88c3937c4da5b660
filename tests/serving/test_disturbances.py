"""Robots that ask, leave, send nonsense and come back, all at once: everyone gets their own actions all the same."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image
from policy_servers import frame
from websockets.sync.client import connect

from gen_vla.serving.messages import pack, unpack


WORDS = ["two", "out in", "in", "open it", "go", "put two in"]
TURNS = 20


def test_everyone_gets_their_own_actions_among_disturbances(chunking, serve):
    model, processor = chunking
    server, port = serve(chunking, wait=0.01, connections=64)
    expected = {}
    for seed in range(3):
        for words in WORDS:
            inputs = processor.action_inputs(Image.fromarray(frame(seed)), words)
            free = model.predict_actions(**inputs).actions
            begun = model.predict_actions(**inputs, prefix_actions=-free[:, :2] * (1, 1, 0)).actions
            expected[words, seed] = free[0], begun[0]

    def robot(number):
        chance, words, right = random.Random(number), WORDS[number], 0
        session: Any = None
        for _ in range(TURNS):
            if session is None:
                session = connect(f"ws://127.0.0.1:{port}", compression=None)
                session.recv()
                session.send(pack({"reset": True, "prompt": words}))
                assert unpack(session.recv())["reset"]
            seed, kind = chance.randrange(3), chance.random()
            free, begun = expected[words, seed]
            if kind < 0.15:
                session.send(chance.randbytes(chance.randrange(300)))
                assert isinstance(session.recv(timeout=30), str)
            elif kind < 0.3:  # leaves before the answer comes, in different ways
                session.send(pack({"image": frame(seed)}))
                time.sleep(chance.random() * 0.02)
                session.close() if kind < 0.22 else session.socket.close()
                session = None
            elif kind < 0.5:
                session.send(
                    pack({"image": frame(seed), "prefix_actions": -free[:2] * np.array([1, 1, 0], np.float32)})
                )
                np.testing.assert_array_equal(unpack(session.recv(timeout=30))["actions"], begun)
                right += 1
            else:
                session.send(pack({"image": frame(seed)}))
                np.testing.assert_array_equal(unpack(session.recv(timeout=30))["actions"], free)
                right += 1
        return right

    with ThreadPoolExecutor(len(WORDS)) as pool:
        assert sum(pool.map(robot, range(len(WORDS)))) > TURNS * len(WORDS) / 2
    end = time.monotonic() + 10
    while server.policy_server.busy and time.monotonic() < end:
        time.sleep(0.05)
    assert (server.policy_server.busy, server.policy_server.actions.length) == (0, 0)
    assert server.policy_server.actions.running == []
