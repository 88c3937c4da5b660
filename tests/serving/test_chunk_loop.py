"""A policy that learned a triangle wave, whose phase no picture shows, asked for chunks over a slow line."""

import time

import numpy as np
import pytest
import torch
from policy_servers import frame
from tiny_models import picture, tiny_model, tiny_processor

from gen_vla.processors import ActionStringProcessor
from gen_vla.serving import ChunkLoop, PolicyClient


HORIZON, PERIOD, STEP = 10, 16, 0.1


def wave(phase: int, steps: int) -> np.ndarray:
    """Float [steps, 1] between -0.4 and 0.4."""
    places = (np.arange(steps) + phase) % PERIOD
    return (np.minimum(places, PERIOD - places)[:, None] - PERIOD / 4) * STEP


@pytest.fixture(scope="module")
def swinging(llama_like):
    """A tiny model that learned to write ten steps of the wave from any phase, and its processor."""
    strings = ActionStringProcessor(1, HORIZON, 1)
    model, processor = tiny_model(llama_like, strings), tiny_processor(llama_like, strings)
    torch.manual_seed(0)
    model.apply(model._init_weights)  # small ones, which learn
    model.model.vision_tower.requires_grad_(False)  # the picture is always the same
    inputs, grammar = processor.action_inputs(picture(), "swing"), model.action_grammar
    actions = torch.tensor([grammar.token_ids(strings.encode(wave(phase, HORIZON))) for phase in range(PERIOD)])
    prompt = inputs["input_ids"].expand(PERIOD, -1)
    ids, labels = torch.cat((prompt, actions), dim=1), torch.cat((torch.full_like(prompt, -100), actions), dim=1)
    pixels = inputs["pixel_values"].expand(PERIOD, -1, -1, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=300, pct_start=0.1)
    for _ in range(300):
        model(input_ids=ids, pixel_values=pixels, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # without, some processors' rounding learns nothing
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval(), processor


class Swing:
    """A robot that writes down what it is told, and when; its camera may break."""

    def __init__(self, broken_after=None):
        self.told, self.times, self.seen, self.stops, self.broken_after = [], [], 0, 0, broken_after

    def observe(self):
        self.seen += 1
        if self.seen == self.broken_after:
            raise OSError("the camera is gone")
        return {"image": frame(), "prompt": "swing"}

    def send(self, action):
        self.told.append(action)
        self.times.append(time.monotonic())

    def stop(self):
        self.stops += 1


def delayed(act, seconds):
    def later(*given):
        began = time.monotonic()
        actions = act(*given)
        time.sleep(max(seconds - (time.monotonic() - began), 0))
        return actions

    return later


def jumps(robot):
    return np.abs(np.diff(np.stack(robot.told), axis=0)).max()


def test_no_late_step_and_no_jump_whatever_the_delay(swinging, serve):
    _, port = serve(swinging)
    client, hertz = PolicyClient(f"ws://127.0.0.1:{port}"), 10.0
    robot = Swing()
    report = ChunkLoop(delayed(client.act, 0.25), robot, hertz).run(35)
    assert (report.sent, report.late, report.overtaken, robot.stops) == (35, 0, 0, 1)
    assert report.chunks > 35 / HORIZON
    assert 0.25 <= report.delay < 0.4
    assert jumps(robot) < 1.01 * STEP
    np.testing.assert_array_less(np.diff(robot.times), 2 / hertz)
    np.testing.assert_array_less(0.9 / hertz, np.diff(robot.times))

    robot = Swing()  # the same without decided steps: every chunk begins anew
    report = ChunkLoop(delayed(client.act, 0.25), robot, hertz, continues=False).run(35)
    assert report.late == 0
    assert jumps(robot) > 1.5 * STEP


def test_a_delay_that_is_longer_than_a_chunk_makes_steps_late_and_says_so(swinging, serve):
    _, port = serve(swinging)
    client, robot = PolicyClient(f"ws://127.0.0.1:{port}"), Swing()
    report = ChunkLoop(delayed(client.act, 0.3), robot, hertz=50.0).run(30)
    assert report.late > 0
    assert robot.stops == 1


@pytest.mark.parametrize("what", ["camera", "policy"])
def test_the_robot_is_stopped_when_something_breaks(what):
    robot, asked = Swing(broken_after=4 if what == "camera" else None), []

    def act(observation, decided):
        asked.append(decided)
        if what == "policy" and len(asked) == 4:
            raise ConnectionError("the server is gone")
        return np.zeros((4, 1), np.float32)

    with pytest.raises(OSError, match="is gone"):
        ChunkLoop(act, robot, hertz=100.0).run(50)
    assert robot.stops == 1
    assert len(robot.told) < 50


def test_chunks_begin_with_the_steps_that_are_carried_out_meanwhile():
    """Every chunk counts on from its number; what is sent never goes back to an older chunk."""
    robot, asked = Swing(), []

    def act(observation, decided):
        asked.append(np.zeros((0, 1)) if decided is None else decided.copy())
        time.sleep(0.05)
        chunk = 100.0 * len(asked) + np.arange(8, dtype=np.float32)[:, None]
        chunk[: len(asked[-1])] = asked[-1]
        return chunk

    report = ChunkLoop(act, robot, hertz=50.0).run(40)
    told = np.concatenate(robot.told)
    assert report.overtaken == 0
    assert (np.diff(told // 100) >= 0).all()
    for decided in asked[2:]:
        assert len(decided) >= 3  # 0.05 s at 50 Hz
        places = [start for start in range(40) if np.array_equal(told[start : start + 3], decided[:3, 0])]
        assert places or decided[0, 0] >= told[-3], "the decided steps are those that are sent"
    with pytest.raises(ValueError, match="got hertz=0"):
        ChunkLoop(act, robot, hertz=0)
