"""Tabletop environments spread over processes that may crash.

Decides: where environments live, what a reply holds, how a crash is contained. Refuses to know: policies, scores, what
to do about a crash.

An exception in a simulation, a process that dies, and one that no longer answers are all a `Crash`: it is returned in
place of the reply, the environment (or the process) is replaced, and everything else goes on. A process that dies
takes all its episodes along.
"""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np

from gen_vla.evaluation.drawers.environment import ActionError
from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.layouts import Task
from gen_vla.evaluation.simulation.looks import variant_of


ANSWER_SECONDS = 120.0  # for one step of all environments of a process, the first of which also loads the simulator


class Start(NamedTuple):
    """Begin an episode in a slot."""

    slot: int
    task: Task
    seed: int
    variant: str
    masked: bool


class Move(NamedTuple):
    """Carry an action out in a slot; None stands for a policy that gave none."""

    slot: int
    action: np.ndarray | None


class Reply(NamedTuple):
    """What an environment answers: picture uint8 [H, W, 3], the experts' next actions float32 [7], and how it went."""

    image: np.ndarray
    expert: np.ndarray
    blind_expert: np.ndarray
    deaf_expert: np.ndarray
    success: bool
    refusal: str | None


class Crash(NamedTuple):
    """The simulator failed; `message` says how."""

    message: str


class _Bench:
    """The environments of one process by slot, made on first use."""

    def __init__(self, image_size: int, environment: type[TabletopEnv]):
        self._image_size, self._environment = image_size, environment
        self._slots: dict[int, tuple[TabletopEnv, bool]] = {}

    def answer(self, request: Start | Move) -> Reply | Crash:
        """Whatever an environment raises but a refusal to act is a crash, and the environment is given up."""
        try:
            return self._start(request) if isinstance(request, Start) else self._move(request)
        except Exception as error:
            self._slots.pop(request.slot, None)
            return Crash(f"{type(error).__name__}: {error}")

    def _start(self, request: Start) -> Reply:
        known = self._slots.get(request.slot)
        env = known[0] if known else self._environment(self._image_size)
        self._slots[request.slot] = env, request.masked
        env.reset(request.task, request.seed, variant_of(request.variant))
        return self._reply(request.slot, success=False)

    def _move(self, request: Move) -> Reply:
        if request.action is None:
            return self._reply(request.slot, success=False, refusal="the policy gave no action")
        try:
            return self._reply(request.slot, success=self._slots[request.slot][0].step(request.action))
        except ActionError as error:
            return self._reply(request.slot, success=False, refusal=str(error))

    def _reply(self, slot: int, success: bool, refusal: str | None = None) -> Reply:
        env, masked = self._slots[slot]
        image = env.render_masked() if masked else env.render()
        experts = env.expert_action(), env.blind_expert_action(), env.deaf_expert_action()
        return Reply(image, *experts, success, refusal)


def _serve(pipe: Any, image_size: int, environment: type[TabletopEnv]) -> None:
    """Answers lists of requests until the other end closes."""
    bench = _Bench(image_size, environment)
    while True:
        try:
            requests = pipe.recv()
        except EOFError:
            return
        pipe.send([bench.answer(request) for request in requests])


class Simulators:
    """Slots over worker processes; slot s lives in worker s modulo workers. `workers=1`: in this process.

    Every request of one `ask` goes to another slot; a slot starts an episode before it moves.
    """

    def __init__(self, workers: int, image_size: int = 112, environment: type[TabletopEnv] = TabletopEnv):
        if workers < 1:
            raise ValueError(f"got workers {workers}, expected at least 1")
        self._setting = image_size, environment
        self._bench = _Bench(*self._setting) if workers == 1 else None
        self._workers = [self._spawn() for _ in range(workers if workers > 1 else 0)]

    def _spawn(self) -> tuple[Any, Any]:
        context = get_context("spawn")  # a forked OpenGL context does not work
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, *self._setting), daemon=True)
        process.start()
        there.close()
        return here, process

    def ask(self, requests: Sequence[Start | Move]) -> list[Reply | Crash]:
        """Answers in the order of the requests."""
        if self._bench is not None:
            return [self._bench.answer(request) for request in requests]
        count = len(self._workers)
        shares = [[r for r in requests if r.slot % count == worker] for worker in range(count)]
        failures = [self._send(worker, share) for worker, share in enumerate(shares)]
        answers: dict[int, Reply | Crash] = {}
        for worker, share in enumerate(shares):
            if share:
                received = failures[worker] or self._receive(worker, len(share))
                answers.update(zip([r.slot for r in share], received, strict=True))
        return [answers[request.slot] for request in requests]

    def _send(self, worker: int, share: list[Start | Move]) -> list[Reply | Crash] | None:
        try:
            if share:
                self._workers[worker][0].send(share)
        except OSError:
            return self._replace(worker, len(share), "ended between two steps")
        return None

    def _receive(self, worker: int, count: int) -> list[Reply | Crash]:
        pipe = self._workers[worker][0]
        try:
            if pipe.poll(ANSWER_SECONDS):
                return pipe.recv()
        except (EOFError, OSError):
            return self._replace(worker, count, "ended")
        return self._replace(worker, count, f"gave no answer for {ANSWER_SECONDS:g} s")

    def _replace(self, worker: int, count: int, what: str) -> list[Reply | Crash]:
        """A new process in the place of a dead or hanging one; a crash for each of its requests."""
        pipe, process = self._workers[worker]
        pipe.close()
        process.join(timeout=1.0)
        if process.is_alive():
            process.kill()
            process.join()
        self._workers[worker] = self._spawn()
        crash = Crash(f"the simulator's process {what} (exit code {process.exitcode})")
        return [crash] * count

    def __enter__(self) -> Simulators:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe, _process in self._workers:
            pipe.close()
        for _pipe, process in self._workers:
            process.join()
