"""Runs episodes of the simulated suites: many at once, one policy call for all of them.

As soon as an episode ends its place goes to the next, so the batch stays full. One whose step cannot be carried out is
malformed: a failure, never replaced by another action. Crashed episodes are run once more, each alone, after all
others; one that crashes again is reported as crashed and says nothing about the policy.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from gen_vla.evaluation.policies.rollout import Moment, Policy
from gen_vla.evaluation.simulation.simulators import Crash, Move, Reply, Simulators, Start


ATTEMPTS = 2  # of an episode whose simulator crashes
Outcome = Literal["success", "failure", "malformed", "crashed"]


@dataclass(frozen=True)
class EpisodeJob:
    """An episode to run; `start` holds the arguments of its environment's `reset`."""

    task: str
    seed: int
    instruction: str
    max_steps: int
    start: tuple[Any, ...]


class Ending(NamedTuple):
    """How an episode ended, after how many policy steps; `detail` says what was malformed or how it crashed."""

    outcome: Outcome
    steps: int
    attempts: int
    detail: str | None = None


@dataclass
class _Running:
    job: EpisodeJob
    reply: Reply | None = None
    steps: int = 0


@dataclass
class _Rollouts:
    """Episodes in slots; the bar counts the steps done of those that may come, since whole batches end at once."""

    policy: Policy
    simulators: Simulators
    finish: Callable[[Any, Ending], None]
    bar: tqdm
    ended: int
    episodes: int
    steps: int = 0  # of the policy, and the seconds inside it
    policy_seconds: float = 0.0
    slots: dict[int, _Running] = field(default_factory=dict)

    def run(self, jobs: Sequence[EpisodeJob], width: int, attempt: int) -> list[EpisodeJob]:
        """Runs every job, `width` at a time -> those whose simulator crashed and that may be tried again."""
        queue, crashed = deque(jobs), []
        while queue or self.slots:
            requests: list[Start | Move] = self._moves() if self.slots else []
            for slot in range(width):
                if slot not in self.slots and queue:
                    job = queue.popleft()
                    self.slots[slot] = _Running(job)
                    requests.append(Start(slot, job.start))
            for request, answer in zip(requests, self.simulators.ask(requests), strict=True):
                running = self.slots[request.slot]
                if isinstance(answer, Crash) and attempt < ATTEMPTS:
                    crashed.append(self.slots.pop(request.slot).job)
                    self.bar.total += running.steps
                elif outcome := self._outcome(running, answer):
                    del self.slots[request.slot]
                    self.finish(running.job, Ending(outcome[0], running.steps, attempt, outcome[1]))
                    self.ended += 1
                    self.bar.total -= running.job.max_steps - running.steps
                    self.bar.set_postfix_str(f"{self.ended}/{self.episodes} episodes", refresh=False)
        return crashed

    def _moves(self) -> list[Start | Move]:
        states = [(slot, running, running.reply) for slot, running in self.slots.items() if running.reply is not None]
        moments = [Moment(s.job.task, s.job.seed, s.steps, reply.state, *reply.experts) for _, s, reply in states]
        began = time.perf_counter()
        actions = self.policy([r.image for _, _, r in states], [s.job.instruction for _, s, _ in states], moments)
        self.policy_seconds += time.perf_counter() - began
        if len(actions) != len(states):
            raise ValueError(
                f"got {len(actions)} actions from the policy, expected {len(states)}, None where it has none"
            )
        arrays = [None if action is None else np.asarray(action, dtype=np.float64) for action in actions]
        return [Move(slot, action) for (slot, _, _), action in zip(states, arrays, strict=True)]

    def _outcome(self, running: _Running, answer: Reply | Crash) -> tuple[Outcome, str | None] | None:
        """How an episode ends with this answer, and what was wrong; None if it goes on."""
        if isinstance(answer, Crash):
            return "crashed", answer.message
        moved, running.reply = running.reply is not None, answer
        running.steps += moved
        self.steps += moved
        self.bar.update(moved)
        if answer.refusal is not None:
            return "malformed", answer.refusal
        if answer.success:
            return "success", None
        return ("failure", None) if running.steps >= running.job.max_steps else None


def run_episodes(
    policy: Policy,
    jobs: Sequence[EpisodeJob],
    simulators: Simulators,
    finish: Callable[[Any, Ending], None],
    batch_size: int = 16,
    finished_before: int = 0,
    name: str = "policy",
) -> dict[str, float]:
    """Runs every job and calls `finish` as it ends -> how fast it went: policy steps, seconds in all and inside the
    policy, steps per second outside it. `finished_before` is for the progress bar."""
    if batch_size < 1:
        raise ValueError(f"got batch_size {batch_size}, expected at least 1")
    began, steps = time.perf_counter(), sum(job.max_steps for job in jobs)
    with tqdm(total=steps, unit="step", desc=name) as bar:
        rollouts = _Rollouts(policy, simulators, finish, bar, finished_before, finished_before + len(jobs))
        crashed = rollouts.run(jobs, batch_size, attempt=1)
        rollouts.run(crashed, 1, attempt=2)
    seconds = time.perf_counter() - began
    figures = {"steps": rollouts.steps, "seconds": seconds, "policy_seconds": rollouts.policy_seconds}
    simulated = rollouts.steps / max(seconds - rollouts.policy_seconds, 1e-9)
    return {**{name: round(value, 2) for name, value in figures.items()}, "simulated_per_second": round(simulated, 1)}
