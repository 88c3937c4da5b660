"""The drawers suite for one model: success beside controls, questions, speed, and the table that sums them up.

policy        the model as it is
blank image   the model, shown grey: what it scores without looking
swapped       the model, told the other task: what it scores without listening (it should not do the task)
zero, random  no model at all;  blind expert  the script without seeing where the drawer is
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from rich.table import Table

from gen_vla.evaluation.benchmarks.latency import measure_latency
from gen_vla.evaluation.drawers.environment import (
    INSTRUCTIONS,
    MAX_POLICY_STEPS,
    TASKS,
    BothDrawerTasks,
    Start,
    Task,
    Variation,
)
from gen_vla.evaluation.policies.flow import check_answers
from gen_vla.evaluation.policies.rollout import (
    Moment,
    Policy,
    VLAPolicy,
    blank_image,
    blind_expert_policy,
    random_policy,
    swapped_instruction,
    zero_policy,
)
from gen_vla.evaluation.simulation.actions import ACTION_REPEAT
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS
from gen_vla.evaluation.simulation.rollouts import Ending, EpisodeJob, run_episodes
from gen_vla.evaluation.simulation.simulators import Simulators
from gen_vla.evaluation.simulation.videos import record_video
from gen_vla.evaluation.statistics.intervals import wilson_interval
from gen_vla.evaluation.vqa.scene_questions import evaluate_questions


@dataclass(frozen=True)
class DrawerEpisode:
    """One judged episode; `steps` are policy steps taken, `refusal` why the last action could not be carried out."""

    task: str
    seed: int
    success: bool
    steps: int
    refusal: str | None = None


@dataclass(frozen=True)
class DrawerScore:
    """Successes of n episodes with Wilson's 95 % interval; `median_steps` of the successes."""

    successes: int
    n: int
    interval: tuple[float, float]
    refused: int
    median_steps: float | None


@dataclass
class DrawerReport:
    """What `evaluate_policy` found: scores by task, every episode, and under which settings."""

    policy: str
    scores: dict[str, DrawerScore]
    episodes: list[DrawerEpisode]
    settings: dict[str, Any]
    seconds: float
    policy_seconds: float
    policy_steps: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def drawer_job(task: Task, seed: int, max_steps: int = MAX_POLICY_STEPS) -> EpisodeJob:
    """An episode in `BothDrawerTasks`."""
    return EpisodeJob(task, seed, INSTRUCTIONS[task], max_steps, (task, seed))


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
) -> DrawerReport:
    """Every task on every seed, `batch_size` episodes at a time.

    Raises:
        ValueError: for seeds that are not for evaluation, or actions of a wrong shape.
        RuntimeError: if the simulator crashes twice in an episode.
    """
    others = [seed for seed in seeds if seed not in EVALUATION_SEEDS]
    if others or not len(seeds):
        raise ValueError(f"got seeds {others[:5]}, expected at least one and all in {EVALUATION_SEEDS}")
    jobs = [drawer_job(task, int(seed), max_steps) for task in tasks for seed in seeds]
    found: dict[EpisodeJob, DrawerEpisode] = {}

    def finish(job: EpisodeJob, ending: Ending) -> None:
        if ending.outcome == "crashed":
            raise RuntimeError(f"the simulator crashed: {ending.detail}; try workers=1 to see why")
        found[job] = DrawerEpisode(job.task, job.seed, ending.outcome == "success", ending.steps, ending.detail)

    def checked(images: list[np.ndarray], instructions: list[str], moments: list[Moment]) -> np.ndarray:
        actions = np.asarray(policy(images, instructions, moments))
        if actions.shape != (len(images), 7):
            raise ValueError(f"got actions of shape {actions.shape} from the policy, expected {(len(images), 7)}")
        return actions.astype(np.float32)

    with Simulators(workers, partial(BothDrawerTasks, image_size, variation, start)) as simulators:
        pace = run_episodes(checked, jobs, simulators, finish, batch_size=batch_size, name=None, progress=progress)
    episodes = [found[job] for job in jobs]
    settings = {"image_size": image_size, "variation": variation, "start": start, "seeds": [int(s) for s in seeds]}
    settings |= {"max_steps": max_steps, "action_repeat": ACTION_REPEAT, "batch_size": batch_size, "workers": workers}
    scores: dict[str, DrawerScore] = {task: _score([e for e in episodes if e.task == task]) for task in tasks}
    return DrawerReport(
        name, scores, episodes, settings, round(pace.seconds, 2), round(pace.policy_seconds, 2), pace.steps
    )


def _score(episodes: list[DrawerEpisode]) -> DrawerScore:
    steps = [e.steps for e in episodes if e.success]
    low, high = wilson_interval(len(steps), len(episodes))
    refused = sum(e.refusal is not None for e in episodes)
    median = float(np.median(steps)) if steps else None
    return DrawerScore(len(steps), len(episodes), (round(low, 4), round(high, 4)), refused, median)


def run_suite(
    model: Any,
    processor: Any,
    questions: Dataset | None = None,
    *,
    episodes: int = 50,
    control_episodes: int = 20,
    start: Start = "half-open",
    workers: int = 2,
    progress: bool = True,
) -> dict[str, Any]:
    """Everything the summary shows.

    Args:
        questions: held-out questions, or `None`.
        episodes: per task, for the policy and for the controls that need no model.
        control_episodes: per task, for the controls that run the model.
        start: how episodes begin; `"half-open"` shows both tasks the same scenes, so that only the words tell them
            apart.

    Returns:
        `{"rollouts": [DrawerReport], "questions": QuestionReport or None, "latency": {...}}`.

    Raises:
        ValueError: for questions to a model that writes no words, before anything is run.
    """
    if questions is not None:
        check_answers(model.config)
    image_size = processor.image_processor.image_size
    policy = VLAPolicy(model, processor, next(iter(model.config.norm_stats)))
    plan = [
        ("policy", policy, episodes),
        ("policy, blank image", blank_image(policy), control_episodes),
        ("policy, swapped instruction", swapped_instruction(policy), control_episodes),
        ("zero actions", zero_policy, episodes),
        ("random actions", random_policy, episodes),
        ("expert that cannot see x", blind_expert_policy, episodes),
    ]
    rollouts = []
    for name, policy_or_control, count in plan:
        if progress:
            print(f"  {name}, {count} episodes per task")
        shared = {"workers": workers, "image_size": image_size, "start": start, "progress": progress}
        seeds = EVALUATION_SEEDS[:count]
        rollouts.append(evaluate_policy(policy_or_control, seeds=seeds, name=name, batch_size=2 * count, **shared))
    answers = evaluate_questions(model, processor, questions, progress=progress) if questions is not None else None
    latency = measure_latency(model, processor, progress=progress)
    return {"rollouts": rollouts, "questions": answers, "latency": latency}


def record_episodes(model: Any, processor: Any, folder: Path, start: Start = "half-open") -> list[Path]:
    """A video (MP4 and GIF) of each task on the first evaluation seed; returns the GIFs."""
    policy = VLAPolicy(model, processor, next(iter(model.config.norm_stats)))
    env = BothDrawerTasks(processor.image_processor.image_size, "modest", start)
    for task in TASKS:
        record_video(env, policy, drawer_job(task, EVALUATION_SEEDS[0]), folder / task, size=256)
    return [(folder / task).with_suffix(".gif") for task in TASKS]


def summary_table(results: dict[str, Any], title: str) -> Table:
    """The table that ends a demo."""
    table = Table(title=title)
    table.add_column("what")
    for task in TASKS:
        table.add_column(task, justify="right", no_wrap=True)
    for report in results["rollouts"]:
        scores = [report.scores[task] for task in TASKS]
        table.add_row(report.policy, *(_share(score.successes, score.n, score.interval) for score in scores))
    table.add_section()
    if results["questions"] is not None:
        total = results["questions"].total
        share = _share(total.right, total.n, total.interval)
        table.add_row("questions about scenes", share, f"majority {100 * total.majority:.0f} %")
    latency = results["latency"]
    table.add_row("ms per action (median)", f"{latency['median_ms']:g}", f"p95 {latency['p95_ms']:g}")
    return table


def _share(successes: int, n: int, interval: tuple[float, float]) -> str:
    low, high = (100 * bound for bound in interval)
    return f"{successes}/{n} ({low:.0f}-{high:.0f} %)"


def as_card_results(results: dict[str, Any]) -> dict[str, Any]:
    """The figures a model card shows, from a suite's results."""
    figures = []
    for report in results["rollouts"]:
        for task, score in report.scores.items():
            figure = _figure(task, "meta-world-drawers", "success rate", score.successes, score.n, score.interval)
            figures.append({**figure, "note": report.policy, "control": report is not results["rollouts"][0]})
    if results["questions"] is not None:
        total = results["questions"].total
        named = ("questions about held-out scenes", "meta-world-drawer-questions", "exact match")
        figure = _figure(*named, total.right, total.n, total.interval)
        figures.append({**figure, "note": f"always the most frequent answer: {total.majority:.2f}"})
    latency = results["latency"]
    machine = ", ".join(f"{key} {value}" for key, value in latency["machine"].items())
    speed = f"{latency['median_ms']} (p95 {latency['p95_ms']}, {latency['forward_passes']} forward passes)"
    return {"figures": figures, "environment": {"milliseconds per action": speed, "machine": machine}}


def _figure(
    task: str, dataset: str, metric: str, successes: int, n: int, interval: tuple[float, float]
) -> dict[str, Any]:
    shown = "{:.2f}-{:.2f}".format(*interval)
    names = {"task": task, "dataset": dataset, "metric": metric}
    return {**names, "value": round(successes / n, 4), "n": n, "interval": shown}
