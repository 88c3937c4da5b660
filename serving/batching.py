"""Requests that arrive together become one batch: a queue with a limit, a bounded wait, one thread for the model."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from gen_vla.serving.policy import Answer
from gen_vla.serving.requests import Request


class Busy(Exception):
    """The queue is full."""


class TooLate(Exception):
    """A request was not answered in time."""


@dataclass
class Waiting:
    """A request in the queue; whoever sent it awaits `answer`, or cancels it and is left out."""

    request: Request
    answer: asyncio.Future[Answer]
    arrived: float = field(default_factory=time.perf_counter)


class Batcher:
    """Answers requests in batches of at most `max_batch`; `run` answers one in a thread of this batcher's, never twice
    at once. The first of a batch waits `wait` seconds for others, but not for more than are `expected`; `max_queue`
    may wait, each for `timeout` seconds."""

    def __init__(
        self,
        run: Callable[[Sequence[Request]], list[Answer]],
        max_batch: int,
        wait: float,
        max_queue: int,
        timeout: float,
        expected: Callable[[], int],
    ):
        self.run, self.max_batch, self.wait, self.max_queue = run, max_batch, wait, max_queue
        self.timeout, self.expected = timeout, expected
        self.queue: list[Waiting] = []
        self.running: list[Waiting] = []
        self.arrival = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, "model")
        self.task: asyncio.Task[None] | None = None

    @property
    def length(self) -> int:
        return sum(not waiting.answer.done() for waiting in self.queue)

    async def answer(self, request: Request) -> Answer:
        """The answer to a request; raises `Busy` if the queue is full, `TooLate` if there is none in time, or whatever
        `run` raises for this request alone."""
        if self.length >= self.max_queue:
            raise Busy(f"got a request while {self.length} wait, which is the limit; try again later")
        self.task = self.task or asyncio.create_task(self._work())
        waiting = Waiting(request, asyncio.get_running_loop().create_future())
        self.queue.append(waiting)
        self.arrival.set()
        try:
            return await asyncio.wait_for(waiting.answer, self.timeout)
        except TimeoutError:
            raise TooLate(
                f"got no answer within {self.timeout:g} s; the server is too busy, or the model too slow"
            ) from None

    def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
        self.thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while True:
            while not self.queue:
                self.arrival.clear()
                await self.arrival.wait()
            await self._gather()
            waiting = [each for each in self.queue if not each.answer.done()]  # others are left out
            self.running, self.queue = waiting[: self.max_batch], waiting[self.max_batch :]
            if self.running:
                await self._run(self.running)
            self.running = []

    async def _gather(self) -> None:
        end = self.queue[0].arrived + self.wait
        while len(self.queue) < min(self.max_batch, self.expected()) and time.perf_counter() < end:
            self.arrival.clear()
            try:
                await asyncio.wait_for(self.arrival.wait(), max(end - time.perf_counter(), 0.0))
            except TimeoutError:
                return

    async def _run(self, batch: list[Waiting]) -> None:
        """Answers a batch; where that fails, each alone, so that a request's mistake stays its own."""
        try:
            requests, loop = [waiting.request for waiting in batch], asyncio.get_running_loop()
            answers = await loop.run_in_executor(self.thread, self.run, requests)
        except Exception as error:
            if len(batch) > 1:
                for waiting in batch:
                    if not waiting.answer.done():
                        await self._run([waiting])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
