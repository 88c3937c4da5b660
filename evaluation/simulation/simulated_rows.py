"""What all recorders of simulated data share: processes, disturbed experts, rows on disk.

Decides: how an expert is disturbed, which episodes are kept, the columns of both kinds of data sets, how a finished
one is told from a torn one. Refuses to know: environments, tasks, what is asked.

    demonstrations  image, instruction, action float32 [7], task, episode_index, frame_index, seed
    questions       image, question, answer, kind, seed

A finished folder holds METADATA_FILE.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from gen_vla.evaluation.drawers.environment import MAX_MOVE


Job = TypeVar("Job")
Result = TypeVar("Result")
Rows = list[dict[str, Any]]

METADATA_FILE = "recording.json"
# Stronger noise no longer lets an expert open a drawer; weaker noise leaves a policy helpless off the expert's path.
GAUSSIAN_NOISE = (0.0, 0.3, 0.6)  # standard deviation, in units of the largest move
RANDOM_HOLDS = (0.0, 0.1, 0.2)  # share of policy steps that hold a random move instead of the expert's
MAX_START_MOVES = 5  # random policy steps before recording starts, in half of the episodes


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


class Demonstrable(Protocol):
    """An environment in the middle of an episode, with an expert."""

    def expert_action(self) -> np.ndarray: ...

    def step(self, action: np.ndarray) -> bool: ...

    def render(self) -> np.ndarray: ...


def demonstrate(
    env: Demonstrable, wordings: Sequence[str], rng: np.random.Generator, noise: bool, max_steps: int
) -> Rows | None:
    """One episode as rows with image, instruction (one of the wordings), action and frame_index, or None if it failed.

    The disturbed action is executed, the clean one is the label: the state was visited, the mistake is not taught.
    """
    deviation = rng.choice(GAUSSIAN_NOISE) if noise else 0.0
    holds = rng.choice(RANDOM_HOLDS) if noise else 0.0
    if noise and rng.random() < 0.5:
        _move_at_random(env, rng)
    instruction = str(rng.choice(list(wordings))) if len(wordings) > 1 else wordings[0]
    rows: Rows = []
    for frame in range(max_steps):
        action = env.expert_action()
        row = {"image": {"bytes": png(env.render()), "path": None}, "instruction": instruction, "action": action}
        rows.append({**row, "frame_index": frame})
        if env.step(disturb(action, deviation, holds, rng)):
            return rows
    return None


def _move_at_random(env: Demonstrable, rng: np.random.Generator) -> None:
    action = env.expert_action()  # for its gripper: only the hand is moved about
    for _ in range(rng.integers(1, MAX_START_MOVES + 1)):
        action[:3] = rng.uniform(-MAX_MOVE, MAX_MOVE, 3)
        env.step(action)


def disturb(action: np.ndarray, deviation: float, holds: float, rng: np.random.Generator) -> np.ndarray:
    """float32 [7] -> float32 [7] with another move of the hand; the gripper stays."""
    disturbed = action.copy()
    disturbed[:3] += rng.normal(0.0, deviation * MAX_MOVE, 3) if deviation else 0.0
    if rng.random() < holds:
        disturbed[:3] = rng.uniform(-MAX_MOVE, MAX_MOVE, 3)
    return disturbed


def collect_episodes(
    pool: Workers,
    record: Callable[[Job], Rows | None],
    make_job: Callable[[str, int], Job],
    tasks: Sequence[str],
    episodes_per_task: int,
    progress: bool,
) -> tuple[dict[str, list[Rows]], dict[str, int]]:
    """The first `episodes_per_task` successes of every task, and how many candidates that took.

    Args:
        record: the rows of a job's episode, or None for one that failed.
        make_job: the candidate of a task with a number, counted over all tasks.
    """
    kept: dict[str, list[Rows]] = {task: [] for task in tasks}
    tried = dict.fromkeys(tasks, 0)
    with tqdm(total=episodes_per_task * len(tasks), unit="episode", disable=not progress) as bar:
        while any(len(episodes) < episodes_per_task for episodes in kept.values()):
            jobs = []
            for offset, task in enumerate(tasks):
                for _ in range(episodes_per_task - len(kept[task])):
                    jobs.append((task, make_job(task, tried[task] * len(tasks) + offset)))
                    tried[task] += 1
            for (task, _), rows in zip(jobs, pool.map(record, [job for _, job in jobs]), strict=True):
                if rows is not None:
                    kept[task].append(rows)
                    bar.update()
    return kept, tried


@dataclass(frozen=True)
class QuestionJob:
    """Everything one question depends on; consecutive seeds take turns over kinds and answers, so both balance."""

    seed: int
    image_size: int


def record_scene_questions(
    output_dir: str | Path,
    record: Callable[[QuestionJob], dict[str, Any]],
    content: str,
    seeds: range,
    splits: dict[str, range],
    *,
    workers: int,
    image_size: int,
    overwrite: bool,
    progress: bool,
) -> dict[str, Any]:
    """Records a picture with a question for every seed -> metadata with the majority baseline of every kind.

    Args:
        record: a simulator's; a function of a module, so that processes can call it.
        content: what the metadata calls the data set.
        splits: the seeds of each split by its name; all of `seeds` must lie in one.
    """
    output = claim_folder(output_dir, overwrite)
    if not seeds:
        raise ValueError(f"got count {len(seeds)}, expected at least 1")
    began = time.perf_counter()
    split = "evaluation" if seeds[0] in splits["evaluation"] else "train"
    for seed in (seeds[0], seeds[-1]):
        check_seed(seed, splits[split])
    jobs = [QuestionJob(seed, image_size) for seed in seeds]
    with Workers(workers) as pool:
        rows = list(tqdm(pool.map(record, jobs), total=len(jobs), unit="question", disable=not progress))
    metadata = {
        "content": content,
        "split": split,
        "questions": len(seeds),
        "seeds": [seeds[0], seeds[-1]],
        "image_size": image_size,
        "majority_baseline": majority_baseline(rows),
    }
    return save_rows(output, rows, question_features(), metadata, began)


def frames_of(kept: dict[str, list[Rows]]) -> Rows:
    """All rows of all episodes, numbered."""
    episodes = [rows for of_task in kept.values() for rows in of_task]
    return [{**row, "episode_index": index} for index, rows in enumerate(episodes) for row in rows]


def majority_baseline(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Per kind, how often the most frequent answer is right: what a model without eyes can reach."""
    answers: dict[str, Counter[str]] = {}
    for row in rows:
        answers.setdefault(row["kind"], Counter())[row["answer"]] += 1
    return {kind: round(max(c.values()) / c.total(), 4) for kind, c in answers.items()}


class Workers:
    """`map` in order over processes, or in this process for `workers=1`. Spawned: OpenGL does not survive a fork."""

    def __init__(self, workers: int):
        if workers < 1:
            raise ValueError(f"got workers {workers}, expected at least 1")
        self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Job], Result], jobs: list[Job]) -> Iterator[Result]:
        return map(function, jobs) if self._pool is None else self._pool.map(function, jobs, chunksize=4)


def check_seed(seed: int, allowed: range) -> None:
    if seed not in allowed:
        raise ValueError(f"got seed {seed}, expected one in {allowed}: training and evaluation never share a layout")


def claim_folder(output_dir: str | Path, overwrite: bool) -> Path:
    output = Path(output_dir)
    if (output / METADATA_FILE).exists() and not overwrite:
        raise FileExistsError(f"got a finished data set in {output}, expected none; pass overwrite=True to replace it")
    if output.exists() and not (output / METADATA_FILE).exists() and any(output.iterdir()):
        raise FileExistsError(f"got other files in {output}, expected an empty or a new folder; choose another one")
    return output


def demonstration_features() -> dict[str, Any]:
    from datasets import Image as ImageFeature
    from datasets import List, Value

    text, number = Value("string"), Value("int64")
    columns = {"image": ImageFeature(), "instruction": text, "action": List(Value("float32"), length=7)}
    return {**columns, "task": text, "episode_index": number, "frame_index": number, "seed": number}


def question_features() -> dict[str, Any]:
    from datasets import Image as ImageFeature
    from datasets import Value

    text = Value("string")
    return {"image": ImageFeature(), "question": text, "answer": text, "kind": text, "seed": Value("int64")}


def save_rows(
    output: Path, rows: list[dict[str, Any]], features: dict[str, Any], metadata: dict, began: float
) -> dict:
    """Write beside, then rename: a folder with METADATA_FILE in it is always complete."""
    # here, so that recording workers start a second sooner
    from datasets import Dataset, Features

    from gen_vla.training.provenance.origin import provenance, with_provenance

    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    data = {name: [row[name] for row in rows] for name in features}
    Dataset.from_dict(data, features=Features(features)).save_to_disk(str(unfinished))
    metadata = with_provenance({**metadata, "seconds": round(time.perf_counter() - began, 1)}, provenance())
    (unfinished / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    if output.exists():
        shutil.rmtree(output)
    unfinished.rename(output)
    return metadata
