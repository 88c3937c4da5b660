"""The loop of a robot whose policy writes chunks: the next chunk is written while the robot carries out this one.

With T = 8 steps in a chunk and a delay of 2 steps:

    step          0   1   2   3   4   5   6   7   8
    chunk A       a0  a1  a2  a3  a4 ...
    chunk B               a2  a3  b2  b3  b4 ...      asked for at step 2, begins with the steps it will be late for
    chunk C                       b2  b3  c2  c3

A chunk starts at the step at which its observation was taken. The steps that will have been carried out when it
arrives are decided already: they are given to the policy as the beginning of the chunk, which it continues (real-time
chunking, for models that write digits). So chunks agree where they meet.
"""

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Robot(Protocol):
    """What the loop needs of a robot. Limits on speed, reach and force belong into `send`, which sees actions last."""

    def observe(self) -> Mapping[str, Any]:
        """Pictures, state and words, as the policy takes them."""
        ...

    def send(self, action: np.ndarray) -> None:
        """Carries out one action, float32 [D]."""
        ...

    def stop(self) -> None:
        """Stands still, whatever was sent before."""
        ...


@dataclass
class LoopReport:
    """How a run went.

    Attributes:
        sent: actions.
        late: of them, those that came later than the rate says.
        chunks: that were used.
        overtaken: chunks that came later than their decided steps reach, so that they may jump.
        delay: seconds, of the slowest chunk.
    """

    sent: int = 0
    late: int = 0
    chunks: int = 0
    overtaken: int = 0
    delay: float = 0.0


@dataclass
class Chunk:
    """Actions float32 [T, D] from a step on, of which the first `decided` were those of the chunk before."""

    actions: np.ndarray
    first: int
    decided: int = 0

    def at(self, step: int, count: int = 1) -> np.ndarray:
        """The actions of so many steps from a step on, as far as the chunk reaches."""
        return self.actions[step - self.first :][:count]


class ChunkLoop:
    """Drives a robot with a policy that writes chunks.

    Args:
        act: a policy: an observation and the decided steps (float [k, D], or `None`) to a chunk float32 [T, D], such
            as `PolicyClient.act`.
        robot: see `Robot`.
        hertz: actions per second: the rate of the data, see `fps` in the server's metadata.
        continues: whether `act` continues decided steps; otherwise it gets none, and chunks may jump.
        margin: steps that are decided beyond the delay that was measured.
    """

    def __init__(
        self,
        act: Callable[[Mapping[str, Any], np.ndarray | None], np.ndarray],
        robot: Robot,
        hertz: float,
        continues: bool = True,
        margin: int = 1,
    ):
        if not hertz > 0:
            raise ValueError(f"got hertz={hertz}, expected actions per second, above 0")
        self.act, self.robot, self.hertz, self.continues, self.margin = act, robot, hertz, continues, margin
        self.delays: list[float] = []

    def run(self, steps: int) -> LoopReport:
        """Sends so many actions; the robot is stopped at the end, and whatever goes wrong.

        The first chunk is written twice before the robot moves: once to warm up, once to measure the delay.
        """
        report = LoopReport()
        with ThreadPoolExecutor(max_workers=1) as writer:
            try:
                self._write(0, self.robot.observe(), None)
                self.delays.clear()
                chunk = self._write(0, self.robot.observe(), None)
                report.chunks += 1
                self._carry_out(chunk, steps, writer, report)
            finally:
                self.robot.stop()
        report.delay = max(self.delays)
        return report

    def _carry_out(self, chunk: Chunk, steps: int, writer: ThreadPoolExecutor, report: LoopReport) -> None:
        due, asked = time.monotonic(), self._ask(chunk, 0, writer)
        while report.sent < steps:
            if asked.done() or not len(chunk.at(report.sent)):  # at the end of a chunk the robot has to wait
                chunk = asked.result()
                report.chunks += 1
                report.overtaken += report.sent - chunk.first > chunk.decided
                asked = self._ask(chunk, report.sent, writer)
                continue
            report.late += report.sent > 0 and time.monotonic() > due
            time.sleep(max(due - time.monotonic(), 0.0))
            self.robot.send(chunk.at(report.sent)[0])
            report.sent += 1
            due = time.monotonic() + 1 / self.hertz  # after a delay, no burst of actions to catch up

    def _ask(self, chunk: Chunk, step: int, writer: ThreadPoolExecutor) -> "Future[Chunk]":
        """Asks for a chunk from a step on, whose first steps are those of the chunk that is being carried out."""
        delay = math.ceil(max(self.delays[-20:]) * self.hertz) + self.margin  # in steps
        decided = chunk.at(step, delay)
        decided = decided[: len(chunk.actions) - 1] if self.continues else decided[:0]
        return writer.submit(self._write, step, self.robot.observe(), decided)

    def _write(self, step: int, observation: Mapping[str, Any], decided: np.ndarray | None) -> Chunk:
        began = time.monotonic()
        actions = self.act(observation, decided)
        self.delays.append(time.monotonic() - began)
        return Chunk(actions, step, 0 if decided is None else len(decided))
