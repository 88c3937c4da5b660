"""`PolicyClient` against a real server: actions, delays, lost connections, late answers, refusals."""

import time

import numpy as np
import pytest
from PIL import Image
from policy_servers import frame, free_port, running

from gen_vla.serving import PolicyClient, PolicyError
from gen_vla.serving.application import Limits
from gen_vla.serving.policy import ServedPolicy


def directly(pair, seed=0, words="two", **options):
    model, processor = pair
    return model.predict_actions(**processor.action_inputs(Image.fromarray(frame(seed)), words), **options).actions[0]


def slow_once(server, seconds):
    """Makes the next batch of a server take longer."""
    batcher = server.policy_server.actions
    run = batcher.run

    def slowly(requests):
        batcher.run = run
        time.sleep(seconds)
        return run(requests)

    batcher.run = slowly


def test_acts_asks_and_measures(chunking, serve):
    server, port = serve(chunking)
    with PolicyClient(f"ws://127.0.0.1:{port}") as client:
        assert client.metadata["action_chunk_size"] == 6
        assert client.delay == 0
        expected = directly(chunking)
        np.testing.assert_array_equal(client.act({"image": frame(), "prompt": "two"}), expected)
        begun = directly(chunking, 3)[:2]
        np.testing.assert_array_equal(
            client.act({"image": frame(), "prompt": "two"}, begun), directly(chunking, prefix_actions=begun[None])
        )
        assert isinstance(client.ask({"image": frame()}, "how many?"), str)
        slow_once(server, 0.3)
        client.act({"image": frame(), "prompt": "two"})
        assert 0.3 < client.delay < 3
        with pytest.raises(PolicyError, match="expected an instruction under"):
            client.act({"image": frame()})
        client.reset("two")
        np.testing.assert_array_equal(client.act({"image": frame()}), expected)
        with pytest.raises(PolicyError, match="got observation/state with NaN"):
            client.act({"observation/image": frame(), "observation/state": np.full(8, np.nan)})


def test_a_lost_connection_comes_back_with_its_episode(chunking):
    model, processor = chunking
    port, policy = free_port(), ServedPolicy(model, processor, "tiny")
    with running(policy, Limits(), port) as (server, _):
        client = PolicyClient(f"ws://127.0.0.1:{port}", timeout=20)
        client.reset("two")
        first = client.act({"image": frame()})
        for connection in list(server.server_state.connections):
            connection.transport.abort()  # as when a cable is pulled
        np.testing.assert_array_equal(client.act({"image": frame()}), first)
        assert client.reconnections == 1
    with running(policy, Limits(), port):
        np.testing.assert_array_equal(client.act({"image": frame()}), first)
        assert client.reconnections == 2
    client.timeout, began = 0.5, time.monotonic()
    with pytest.raises(ConnectionError, match=r"got no policy server at .* start gen-vla serve"):
        client.act({"image": frame()})
    assert time.monotonic() - began < 3


def test_an_answer_that_comes_too_late_is_nobodys(chunking, serve):
    server, port = serve(chunking)
    client = PolicyClient(f"ws://127.0.0.1:{port}", timeout=0.5)
    slow_once(server, 0.8)
    with pytest.raises(TimeoutError, match=r"got no answer from .* within 0.5 s"):
        client.act({"image": frame(1), "prompt": "in"})
    client.timeout = 10
    np.testing.assert_array_equal(client.act({"image": frame(), "prompt": "two"}), directly(chunking))


def test_an_answer_to_a_call_that_was_stopped_is_nobodys(chunking, serve, monkeypatch):
    def stopped(timeout):
        monkeypatch.undo()
        raise KeyboardInterrupt

    _, port = serve(chunking)
    client = PolicyClient(f"ws://127.0.0.1:{port}")
    monkeypatch.setattr(client._connection, "recv", stopped)
    with pytest.raises(KeyboardInterrupt):
        client.act({"image": frame(1), "prompt": "in"})
    np.testing.assert_array_equal(client.act({"image": frame(), "prompt": "two"}), directly(chunking))


def test_nothing_acts_where_its_reset_is_refused(chunking, serve):
    """A server that was started again, without the statistics that the episode began with."""
    server, port = serve(chunking)
    client = PolicyClient(f"ws://127.0.0.1:{port}")
    client.reset("two", "tiny")
    client._reset = {**(client._reset or {}), "unnorm_key": "huge"}
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    for _ in range(2):
        with pytest.raises(PolicyError, match="got unnorm_key='huge', expected one of tiny"):
            client.act({"image": frame()})


def test_another_model_at_the_same_address_moves_nothing(chunking):
    model, processor = chunking
    port = free_port()
    with running(ServedPolicy(model, processor, "tiny"), Limits(), port):
        client = PolicyClient(f"ws://127.0.0.1:{port}", timeout=20)
        client.reset("two")
    entry = model.config.norm_stats["tiny"]
    model.config.norm_stats = {"tiny": {**entry, "action": {**entry["action"], "q99": [10, 20, 30]}}}
    with running(ServedPolicy(model, processor, "tiny"), Limits(), port):
        for _ in range(2):
            with pytest.raises(PolicyError, match=r"got another model or other settings .* make another PolicyClient"):
                client.act({"image": frame()})


def test_decided_steps_are_not_sent_to_a_model_that_would_jump(tiny_openvla, serve):
    _, port = serve(tiny_openvla)
    client = PolicyClient(f"ws://127.0.0.1:{port}")
    with pytest.raises(PolicyError, match="does not continue chunks; leave them out, and pass continues=False"):
        client.act({"image": frame(), "prompt": "two"}, np.zeros((1, 3)))


def test_a_message_that_is_too_large_is_not_sent_for_ever(tiny_openvla, serve):
    _, port = serve(tiny_openvla, message_bytes=10_000)
    client = PolicyClient(f"ws://127.0.0.1:{port}")
    with pytest.raises(PolicyError, match="--message-mb"):
        client.act({"image": frame(0, 200, 200), "prompt": "two"})
    assert client.act({"image": frame(), "prompt": "two"}).shape == (1, 3)


def test_a_wrong_key_is_no_reason_to_try_again(tiny_openvla, serve):
    _, port = serve(tiny_openvla, api_key="secret")
    began = time.monotonic()
    with pytest.raises(PolicyError, match="got no key or a wrong one"):
        PolicyClient(f"ws://127.0.0.1:{port}", api_key="wrong")
    assert time.monotonic() - began < 5
    assert PolicyClient(f"ws://127.0.0.1:{port}", api_key="secret").act({"image": frame(), "prompt": "two"}).size
    with pytest.raises(PolicyError, match=r"expected one such as ws://127\.0\.0\.1:8000"):
        PolicyClient("127.0.0.1")
