"""Simulated environments spread over processes that may crash; `simulation/rollouts.py` runs episodes in them.

An exception in a simulation, a process that dies, and one that no longer answers are all a `Crash`: it is returned in
place of the reply, the environment (or the process, and with it all its episodes) is replaced, and all else goes on.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np

from gen_vla.evaluation.simulation.actions import ActionError


# A process is taken for dead after so long: the first answer also loads the simulator, an environment per request.
LOADING_SECONDS, REQUEST_SECONDS = 120.0, 10.0


class Start(NamedTuple):
    """Begin an episode in a slot: the arguments of its environment's `reset`."""

    slot: int
    arguments: tuple[Any, ...]


class Move(NamedTuple):
    """Carry an action out in a slot; None stands for a policy that gave none."""

    slot: int
    action: np.ndarray | None


class Reply(NamedTuple):
    """An environment's answer: picture uint8 [H, W, 3], the robot's state float32 [4], the experts' next actions
    float32 [7], and how it went."""

    image: np.ndarray
    state: np.ndarray
    experts: Sequence[np.ndarray]
    success: bool = False
    refusal: str | None = None


class Crash(NamedTuple):
    message: str


class _Slots:
    """The environments of one process by slot, made on first use."""

    def __init__(self, make: Callable[[], Any]):
        self._make = make
        self._environments: dict[int, Any] = {}

    def answer(self, request: Start | Move) -> Reply | Crash:
        """Whatever an environment raises but a refusal to act is a crash, and the environment is given up."""
        success, refusal = False, None
        try:
            if isinstance(request, Start):
                if request.slot not in self._environments:
                    self._environments[request.slot] = self._make()
                self._environments[request.slot].reset(*request.arguments)
            elif request.action is None:
                refusal = "the policy gave no action"
            else:
                try:
                    success = self._environments[request.slot].step(request.action)
                except ActionError as error:
                    refusal = str(error)
            env = self._environments[request.slot]
            return Reply(env.render(), env.robot_state(), env.expert_actions(), success, refusal)
        except Exception as error:
            self._environments.pop(request.slot, None)
            return Crash(f"{type(error).__name__}: {error}")


def _serve(pipe: Any, make: Callable[[], Any]) -> None:
    slots = _Slots(make)
    while True:
        try:
            requests = pipe.recv()
        except EOFError:
            return
        pipe.send([slots.answer(request) for request in requests])


class Simulators(AbstractContextManager["Simulators"]):
    """Slots over worker processes; slot s lives in worker s modulo workers. `workers=1`: in this process.

    Every request of one `ask` goes to another slot; a slot starts an episode before it moves. `make` can be pickled,
    and returns an environment: `reset(*Start.arguments)`, `step(action [7]) -> done`, `render() -> uint8 [H, W, 3]`,
    `robot_state()`, `expert_actions()`.
    """

    def __init__(self, workers: int, make: Callable[[], Any]):
        if workers < 1:
            raise ValueError(f"got workers {workers}, expected at least 1")
        self._make = make
        self._slots = _Slots(make) if workers == 1 else None
        self._workers = [self._spawn() for _ in range(workers if workers > 1 else 0)]

    def _spawn(self) -> tuple[Any, Any]:
        context = get_context("spawn")  # a forked OpenGL context does not work
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, self._make), daemon=True)
        process.start()
        there.close()
        return here, process

    def ask(self, requests: Sequence[Start | Move]) -> list[Reply | Crash]:
        if self._slots is not None:
            return [self._slots.answer(request) for request in requests]
        count = len(self._workers)
        shares = [[r for r in requests if r.slot % count == worker] for worker in range(count)]
        for (pipe, _), share in zip(self._workers, shares, strict=True):
            if share:
                with suppress(OSError):  # of a process that is dead: receiving says so
                    pipe.send(share)
        answers: dict[int, Reply | Crash] = {}
        for worker, share in enumerate(shares):
            if share:
                answers.update(zip([r.slot for r in share], self._receive(worker, len(share)), strict=True))
        return [answers[request.slot] for request in requests]

    def _receive(self, worker: int, count: int) -> Sequence[Reply | Crash]:
        pipe, limit = self._workers[worker][0], LOADING_SECONDS + REQUEST_SECONDS * count
        try:
            if pipe.poll(limit):
                return pipe.recv()
        except (EOFError, OSError):
            return self._replace(worker, count, "ended")
        return self._replace(worker, count, f"gave no answer for {limit:g} s")

    def _replace(self, worker: int, count: int, what: str) -> Sequence[Crash]:
        """A new process in the place of a dead or hanging one; a crash for each of its requests."""
        pipe, process = self._workers[worker]
        pipe.close()
        process.join(timeout=1.0)
        if process.is_alive():
            process.kill()
            process.join()
        self._workers[worker] = self._spawn()
        return [Crash(f"the simulator's process {what} (exit code {process.exitcode})")] * count

    def __exit__(self, *_: object) -> None:
        for pipe, _process in self._workers:
            pipe.close()
        for _pipe, process in self._workers:
            process.join()
