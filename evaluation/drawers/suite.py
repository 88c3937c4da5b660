"""The drawers suite for one model: success beside controls, questions, speed, and the table that sums them up.

policy        the model as it is
blank image   the model, shown grey: what it scores without looking
swapped       the model, told the other task: what it scores without listening (it should not do the task)
zero, random  no model at all;  blind expert  the script without seeing where the drawer is
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.table import Table

from gen_vla.evaluation.benchmarks.latency import measure_latency
from gen_vla.evaluation.drawers.environment import TASKS, Start
from gen_vla.evaluation.drawers.rollouts import BothDrawerTasks, DrawerReport, drawer_job, evaluate_policy
from gen_vla.evaluation.policies.flow import check_answers
from gen_vla.evaluation.policies.rollout import (
    VLAPolicy,
    blank_image,
    blind_expert_policy,
    random_policy,
    swapped_instruction,
    zero_policy,
)
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS
from gen_vla.evaluation.simulation.videos import record_video
from gen_vla.evaluation.vqa.scene_questions import QuestionReport, evaluate_questions


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
        rollouts.append(
            evaluate_policy(
                policy_or_control,
                seeds=EVALUATION_SEEDS[:count],
                name=name,
                batch_size=2 * count,
                workers=workers,
                image_size=image_size,
                start=start,
                progress=progress,
            )
        )
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
        table.add_row(report.policy, *(_cell(report, task) for task in TASKS))
    table.add_section()
    if results["questions"] is not None:
        table.add_row(*_question_row(results["questions"]))
    latency = results["latency"]
    table.add_row("ms per action (median)", f"{latency['median_ms']:g}", f"p95 {latency['p95_ms']:g}")
    return table


def _cell(report: DrawerReport, task: str) -> str:
    score = report.scores[task]
    low, high = (100 * bound for bound in score.interval)
    return f"{score.successes}/{score.n} ({low:.0f}-{high:.0f} %)"


def _question_row(report: QuestionReport) -> Sequence[str]:
    low, high = (100 * bound for bound in report.total.interval)
    share = f"{report.total.right}/{report.total.n} ({low:.0f}-{high:.0f} %)"
    return "questions about scenes", share, f"majority {100 * report.total.majority:.0f} %"


def as_card_results(results: dict[str, Any]) -> dict[str, Any]:
    """The figures a model card shows, from a suite's results."""
    figures = []
    for report in results["rollouts"]:
        for task, score in report.scores.items():
            figures.append(
                {
                    "task": task,
                    "dataset": "meta-world-drawers",
                    "metric": "success rate",
                    "value": round(score.successes / score.n, 4),
                    "n": score.n,
                    "interval": _interval(score.interval),
                    "note": report.policy,
                    "control": report is not results["rollouts"][0],
                }
            )
    if results["questions"] is not None:
        total = results["questions"].total
        figures.append(
            {
                "task": "questions about held-out scenes",
                "dataset": "meta-world-drawer-questions",
                "metric": "exact match",
                "value": round(total.right / total.n, 4),
                "n": total.n,
                "interval": _interval(total.interval),
                "note": f"always the most frequent answer: {total.majority:.2f}",
            }
        )
    latency = results["latency"]
    machine = ", ".join(f"{key} {value}" for key, value in latency["machine"].items())
    speed = f"{latency['median_ms']} (p95 {latency['p95_ms']}, {latency['forward_passes']} forward passes)"
    return {"figures": figures, "environment": {"milliseconds per action": speed, "machine": machine}}


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.2f}-{bounds[1]:.2f}"
