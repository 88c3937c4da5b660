"""Judge a policy on the Meta-World drawers: many episodes in lock step, controls, intervals.

Decides: how episodes are batched over processes, when one ends, what counts as success or as a refused action, which
controls stand beside a score. Refuses to know: how a policy works (`policies/rollout.py`).

    python -m gen_vla.evaluation.drawers.rollouts --json outputs/controls.json --sheet outputs/scenes.png

A policy step that cannot be carried out (NaN, a turned wrist) ends its episode as refused: counted, never replaced.
Environments live in spawned processes: two reach 2.1 times the rate of one, two threads only 1.6 times.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from gen_vla.evaluation.drawers.environment import (
    ACTION_REPEAT,
    EVALUATION_SEEDS,
    INSTRUCTIONS,
    MAX_POLICY_STEPS,
    TASKS,
    ActionError,
    DrawerEnv,
    Start,
    Task,
    Variation,
)
from gen_vla.evaluation.policies.rollout import CONTROLS, Moment, Policy, expert_policy
from gen_vla.evaluation.policies.step_progress import StepProgress
from gen_vla.evaluation.statistics.intervals import wilson_interval


# Environments, in this process or in others.
class _Setting(NamedTuple):
    image_size: int
    variation: Variation
    start: Start


class _Reply(NamedTuple):
    image: np.ndarray
    expert: np.ndarray
    blind_expert: np.ndarray
    success: bool
    refusal: str | None


class _Bench:
    """The environments of one process by slot: loaded on first use, reused by later episodes."""

    def __init__(self, setting: _Setting):
        self._setting = setting
        self._environments: dict[tuple[int, Task], DrawerEnv] = {}
        self._current: dict[int, DrawerEnv] = {}

    def reset(self, slot: int, task: Task, seed: int) -> _Reply:
        if (slot, task) not in self._environments:
            self._environments[slot, task] = DrawerEnv(task, *self._setting)
        env = self._current[slot] = self._environments[slot, task]
        env.reset(seed)
        return self._reply(env, success=False)

    def step(self, slot: int, action: np.ndarray) -> _Reply:
        env = self._current[slot]
        try:
            return self._reply(env, success=env.step(action))
        except ActionError as error:
            return self._reply(env, success=False, refusal=str(error))

    def _reply(self, env: DrawerEnv, success: bool, refusal: str | None = None) -> _Reply:
        return _Reply(env.render(), env.expert_action(), env.blind_expert_action(), success, refusal)


def _serve(pipe: Any, setting: _Setting) -> None:
    """Answer lists of (method, arguments) until the other end closes."""
    bench = _Bench(setting)
    while True:
        try:
            calls = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send([getattr(bench, method)(*arguments) for method, arguments in calls])
        except Exception as error:
            pipe.send(error)
            return


class _Simulators:
    """Slots spread over worker processes; slot s lives in worker s modulo workers. `workers=1`: in this process."""

    def __init__(self, workers: int, setting: _Setting):
        if workers < 1:
            raise ValueError(f"got workers {workers}, expected at least 1")
        self._bench = _Bench(setting) if workers == 1 else None
        self._pipes, self._processes = [], []
        context = get_context("spawn")  # a forked OpenGL context does not work
        for _ in range(workers if workers > 1 else 0):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, setting), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def call(self, method: str, arguments: Sequence[tuple]) -> list[_Reply]:
        """`arguments` start with the slot; replies come in their order."""
        if self._bench is not None:
            return [getattr(self._bench, method)(*a) for a in arguments]
        shares = [[a for a in arguments if a[0] % len(self._pipes) == w] for w in range(len(self._pipes))]
        for pipe, share in zip(self._pipes, shares, strict=True):
            pipe.send([(method, a) for a in share])
        replies: dict[int, _Reply] = {}
        for pipe, share in zip(self._pipes, shares, strict=True):
            replies.update(zip([a[0] for a in share], self._receive(pipe), strict=True))
        return [replies[a[0]] for a in arguments]

    def _receive(self, pipe: Any) -> list[_Reply]:
        try:
            answer = pipe.recv()
        except EOFError as error:
            raise RuntimeError("a simulator process died, expected replies; try workers=1 to see why") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __enter__(self) -> _Simulators:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()


@dataclass(frozen=True)
class Episode:
    """One judged episode; `steps` are policy steps taken, `refusal` why the last action could not be carried out."""

    task: Task
    seed: int
    success: bool
    steps: int
    refusal: str | None = None


@dataclass(frozen=True)
class Score:
    """Successes of n episodes with Wilson's 95 % interval; `median_steps` of the successes."""

    successes: int
    n: int
    interval: tuple[float, float]
    refused: int
    median_steps: float | None


@dataclass
class Report:
    """What `evaluate_policy` found: scores by task, every episode, and under which settings."""

    policy: str
    scores: dict[str, Score]
    episodes: list[Episode]
    settings: dict[str, Any]
    seconds: float
    policy_seconds: float
    policy_steps: int = field(default=0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


def evaluate_policy(
    policy: Policy,
    tasks: Sequence[Task] = TASKS,
    seeds: Sequence[int] = EVALUATION_SEEDS[:50],
    *,
    name: str = "policy",
    batch_size: int = 16,
    workers: int = 2,
    image_size: int = 96,
    variation: Variation = "modest",
    start: Start = "stock",
    max_steps: int = MAX_POLICY_STEPS,
    progress: bool = True,
) -> Report:
    """Every task on every seed, `batch_size` episodes at a time; the batch shrinks as episodes end."""
    strangers = [seed for seed in seeds if seed not in EVALUATION_SEEDS]
    if strangers or not len(seeds):
        raise ValueError(f"got seeds {strangers[:5]}, expected at least one and all in {EVALUATION_SEEDS}")
    jobs: list[tuple[Task, int]] = [(task, int(seed)) for task in tasks for seed in seeds]
    episodes: list[Episode] = []
    clock = _Clock()
    setting = _Setting(image_size, variation, start)
    with (
        _Simulators(workers, setting) as simulators,
        StepProgress([max_steps] * len(jobs), progress=progress) as bar,
    ):
        for first in range(0, len(jobs), batch_size):
            episodes += _roll_out(policy, jobs[first : first + batch_size], simulators, max_steps, clock, bar)
    settings = {**setting._asdict(), "seeds": [int(s) for s in seeds], "max_steps": max_steps}
    settings.update(action_repeat=ACTION_REPEAT, batch_size=batch_size, workers=workers)
    scores = {task: _score([e for e in episodes if e.task == task]) for task in tasks}
    steps = sum(e.steps for e in episodes)
    return Report(name, scores, episodes, settings, round(clock.seconds(), 2), round(clock.policy, 2), steps)


class _Clock:
    """Seconds since the start and those spent inside the policy."""

    def __init__(self) -> None:
        self._start, self.policy = time.perf_counter(), 0.0

    def seconds(self) -> float:
        return time.perf_counter() - self._start


def _roll_out(
    policy: Policy,
    jobs: list[tuple[Task, int]],
    simulators: _Simulators,
    max_steps: int,
    clock: _Clock,
    bar: StepProgress,
) -> list[Episode]:
    """One batch from reset to its last end."""
    replies = dict(enumerate(simulators.call("reset", [(slot, *job) for slot, job in enumerate(jobs)])))
    ended: dict[int, Episode] = {}
    for step in range(max_steps):
        live = [slot for slot in range(len(jobs)) if slot not in ended]
        if not live:
            break
        actions = _ask(policy, [(*jobs[slot], replies[slot]) for slot in live], step, clock)
        answers = simulators.call("step", list(zip(live, actions, strict=True)))
        bar.step(len(live))
        for slot, reply in zip(live, answers, strict=True):
            replies[slot] = reply
            if reply.success or reply.refusal is not None or step + 1 == max_steps:
                ended[slot] = Episode(*jobs[slot], reply.success, step + 1, reply.refusal)
                bar.end(max_steps - step - 1)
    return [ended[slot] for slot in range(len(jobs))]


def _ask(policy: Policy, states: list[tuple[Task, int, _Reply]], step: int, clock: _Clock) -> np.ndarray:
    """float32 [B, 7] for the episodes still running."""
    moments = [Moment(task, seed, step, reply.expert, reply.blind_expert) for task, seed, reply in states]
    began = time.perf_counter()
    actions = np.asarray(policy([s[2].image for s in states], [INSTRUCTIONS[s[0]] for s in states], moments))
    clock.policy += time.perf_counter() - began
    if actions.shape != (len(states), 7):
        raise ValueError(f"got actions of shape {actions.shape} from the policy, expected {(len(states), 7)}")
    return actions.astype(np.float32)


def _score(episodes: list[Episode]) -> Score:
    steps = [e.steps for e in episodes if e.success]
    interval = wilson_interval(len(steps), len(episodes))
    refused = sum(e.refusal is not None for e in episodes)
    median = float(np.median(steps)) if steps else None
    return Score(len(steps), len(episodes), (round(interval[0], 4), round(interval[1], 4)), refused, median)


def results_table(reports: Sequence[Report]) -> Table:
    """A row per policy and task: successes, Wilson interval, refused episodes, median policy steps to success."""
    table = Table(title="Meta-World drawers")
    for column in ("policy", "task", "success", "95 %", "refused", "steps"):
        table.add_column(column, justify="left" if column in ("policy", "task") else "right", no_wrap=True)
    for report in reports:
        for task, s in report.scores.items():
            interval = f"{100 * s.interval[0]:.0f}-{100 * s.interval[1]:.0f} %"
            median = "-" if s.median_steps is None else f"{s.median_steps:g}"
            table.add_row(report.policy, task, f"{s.successes}/{s.n}", interval, str(s.refused), median)
    return table


def main(arguments: list[str] | None = None) -> int:
    """Scores the controls, with pictures if asked."""
    from gen_vla.evaluation.drawers.videos import contact_sheet, first_picture, record_video  # it imports this file
    from gen_vla.training.provenance.origin import provenance, with_provenance

    parser = argparse.ArgumentParser(description="Score the controls on the Meta-World drawers.")
    parser.add_argument("--episodes", type=int, default=50, help="per task")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--start", choices=("stock", "half-open"), default="stock", help="how far open it starts")
    parser.add_argument("--variation", choices=("none", "modest", "full"), default="modest", help="looks of scenes")
    parser.add_argument("--json", type=Path, help="write all reports here")
    parser.add_argument("--video", type=Path, help="record the expert: PATH-TASK.mp4 and .gif")
    parser.add_argument("--sheet", type=Path, help="write a PNG of a dozen first pictures here")
    a = parser.parse_args(arguments)
    looks = {"variation": a.variation, "start": a.start}
    seeds = EVALUATION_SEEDS[: a.episodes]
    reports = [evaluate_policy(p, seeds=seeds, name=n, workers=a.workers, **looks) for n, p in CONTROLS.items()]
    Console().print(results_table(reports))
    if a.json:
        a.json.parent.mkdir(parents=True, exist_ok=True)
        written = with_provenance({"controls": [report.to_dict() for report in reports]}, provenance())
        a.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    if a.video:
        for task in TASKS:
            path = a.video.with_name(f"{a.video.name}-{task}")
            record_video(expert_policy, task, seeds[0], path, **looks)  # pyright: ignore  # knows this file by two names
    if a.sheet:
        scenes: list[tuple[Task, int]] = [(task, seed) for seed in EVALUATION_SEEDS[:6] for task in TASKS]
        contact_sheet([first_picture(task, seed, **looks) for task, seed in scenes], a.sheet, [t for t, _ in scenes])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
