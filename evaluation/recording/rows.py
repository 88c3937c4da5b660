"""What both recorders share: worker processes, disturbed experts, rows on disk.

    demonstrations  image, instruction, action float32 [7], state float32 [P], task, episode_index, frame_index, seed
    questions       image, question, answer, kind, seed, and where everything is (`recording/questions.py`)

An episode and a question depend on their own seed alone, so any number of workers records the same bytes. A finished
folder holds METADATA_FILE.
"""

import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from gen_vla.evaluation.simulation.actions import MAX_MOVE
from gen_vla.evaluation.simulation.layouts import EVALUATION_SEEDS, TRAIN_SEEDS
from gen_vla.evaluation.simulation.looks import LookSet
from gen_vla.training.storage.recordings import METADATA_FILE


Rows = list[dict[str, Any]]

# With 0.6 an expert drops a third of the objects; weaker noise leaves a policy helpless off the expert's path.
GAUSSIAN_NOISE = (0.0, 0.2, 0.4)  # standard deviation, in units of the largest move
RANDOM_HOLDS = (0.0, 0.1, 0.2)  # share of policy steps that hold a random move instead of the expert's
ACTION_NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]  # as LeRobot's copies of LIBERO call them
DEMONSTRATION_COLUMNS = {"image": "image", "instruction": "string", "action": "action", "state": "state"}
DEMONSTRATION_COLUMNS |= {"task": "string"} | dict.fromkeys(("episode_index", "frame_index", "seed"), "int64")
QUESTION_COLUMNS = {"image": "image", "question": "string", "answer": "string", "kind": "string", "seed": "int64"}
QUESTION_COLUMNS |= {
    "more_turns": "turns",
    "objects": "objects",
    "handle": "point",
    "opening": "float32",
    "picture_width": "float32",
}
MOST_CANDIDATES = 20  # for each episode that is wanted
MAX_START_MOVES = 5  # random policy steps before recording starts, in half of the episodes


def as_image(picture: np.ndarray) -> dict[str, Any]:
    """uint8 [H, W, 3] as a data set's image column holds it: a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def demonstrate(
    env: Any,
    observe: Callable[[], dict[str, Any]],
    wordings: Sequence[str],
    rng: np.random.Generator,
    noise: bool,
    max_steps: int,
    max_move: float = MAX_MOVE,
) -> Rows | None:
    """One episode as rows with image, instruction (one of the wordings), action and frame_index, or None if it failed.

    The disturbed action is executed, the clean one is the label: the state was visited, the mistake is not taught.

    Args:
        env: an environment that was reset, with `expert_action` and `step`.
        observe: what is seen, by column.
        max_move: the largest of an action's first three values.
    """
    deviation = rng.choice(GAUSSIAN_NOISE) if noise else 0.0
    holds = rng.choice(RANDOM_HOLDS) if noise else 0.0
    if noise and rng.random() < 0.5:
        start = env.expert_action()  # for its gripper: only the hand is moved about
        for _ in range(rng.integers(1, MAX_START_MOVES + 1)):
            start[:3] = rng.uniform(-max_move, max_move, 3)
            env.step(start)
    instruction = str(rng.choice(list(wordings))) if len(wordings) > 1 else wordings[0]
    rows: Rows = []
    for frame in range(max_steps):
        action = env.expert_action()
        rows.append({**observe(), "instruction": instruction, "action": action, "frame_index": frame})
        if env.step(disturb(action, deviation, holds, rng, max_move)):
            return rows
    return None


def disturb(
    action: np.ndarray, deviation: float, holds: float, rng: np.random.Generator, max_move: float
) -> np.ndarray:
    """float32 [7] -> float32 [7] with another move of the hand; the gripper stays."""
    disturbed = action.copy()
    disturbed[:3] += rng.normal(0.0, deviation * max_move, 3) if deviation else 0.0
    if rng.random() < holds:
        disturbed[:3] = rng.uniform(-max_move, max_move, 3)
    return disturbed


@dataclass(frozen=True)
class DemonstrationJob:
    """Everything one demonstration depends on."""

    task: str
    seed: int
    image_size: int
    noise: bool
    paraphrase: bool
    looks: LookSet = "home"
    familiar: bool = False


def record_demonstrations(
    output_dir: str | Path,
    record: Callable[[Any], Rows | None],
    first: DemonstrationJob,
    content: str,
    tasks: Sequence[str],
    episodes_per_task: int,
    fps: float,
    units: Sequence[str],
    *,
    workers: int,
    overwrite: bool = False,
    progress: bool = True,
    describe: Callable[[list[int]], dict[str, Any]] = lambda seeds: {},
) -> dict[str, Any]:
    """Records `episodes_per_task` successful episodes of every task -> the metadata written beside them.

    Candidates are tried in the order of their seeds and the first that succeed are kept. The seeds count from the
    first job's and lie wholly in TRAIN_SEEDS or in EVALUATION_SEEDS (the held-out split).

    Args:
        record: the rows of a job's episode, or None for one that failed; a function of a module, so that processes
            can call it.
        first: the first candidate; others differ in task and seed.
        content: what the metadata calls the data set.
        fps: steps a second.
        units: of an action's values, [7].
        describe: more metadata, from the seeds that were kept.

    Raises:
        ValueError: where the expert hardly ever finishes a task.
    """
    output = _claim_folder(output_dir, overwrite)
    if episodes_per_task < 1:
        raise ValueError(f"got episodes_per_task {episodes_per_task}, expected at least 1")
    began = time.perf_counter()
    split, allowed = _split_of(first.seed)
    kept: dict[str, list[Rows]] = {task: [] for task in tasks}
    tried = dict.fromkeys(tasks, 0)
    total = episodes_per_task * len(tasks)
    with _mapping(workers) as over_workers, tqdm(total=total, unit="episode", disable=not progress) as bar:
        while any(len(episodes) < episodes_per_task for episodes in kept.values()):
            jobs = []
            for offset, task in enumerate(tasks):
                if len(kept[task]) < episodes_per_task and tried[task] >= MOST_CANDIDATES * (episodes_per_task + 1):
                    raise ValueError(
                        f"got {len(kept[task])} finished episodes of {task} in {tried[task]}, expected "
                        f"{episodes_per_task}; leave the task out"
                    )
                for _ in range(episodes_per_task - len(kept[task])):
                    seed = _checked_seed(first.seed + tried[task] * len(tasks) + offset, allowed)
                    jobs.append(replace(first, task=task, seed=seed))
                    tried[task] += 1
            for job, rows in zip(jobs, over_workers(record, jobs), strict=True):
                if rows is not None:
                    kept[job.task].append([{**row, "task": job.task, "seed": job.seed} for row in rows])
                    bar.update()
    episodes = [rows for of_task in kept.values() for rows in of_task]
    frames = [{**row, "episode_index": index} for index, rows in enumerate(episodes) for row in rows]
    seeds = sorted({row["seed"] for row in frames})
    metadata = {
        "content": content,
        "split": split,
        "frames": len(frames),
        "episodes": {task: len(kept[task]) for task in tasks},
        "candidates": tried,
        "seeds": [seeds[0], seeds[-1]],
        "first_job": asdict(first),
        "action_names": ACTION_NAMES,
        "action_units": list(units),
        "fps": fps,
        **describe(seeds),
    }
    return _save_rows(output, frames, DEMONSTRATION_COLUMNS, metadata, began)


def recorded_layouts(folder: Path) -> dict[str, list[int]]:
    """Of recorded demonstrations, the seeds of each task's layouts, in the order of their episodes."""
    from datasets import load_from_disk

    if not (folder / METADATA_FILE).is_file():
        raise FileNotFoundError(
            f"got no {METADATA_FILE} in {folder}, expected demonstrations; gen-vla record makes them"
        )
    rows: Any = load_from_disk(str(folder)).select_columns(["task", "seed"])
    found: dict[str, list[int]] = {}
    for task, seed in dict.fromkeys(zip(rows["task"], rows["seed"], strict=True)):
        found.setdefault(task, []).append(seed)
    return found


@dataclass(frozen=True)
class QuestionJob:
    """Everything one question depends on."""

    seed: int
    image_size: int
    looks: LookSet
    kinds: tuple[str, ...] = ()  # all, if empty


def record_questions(
    output_dir: str | Path,
    record: Callable[[QuestionJob], dict[str, Any]],
    first: QuestionJob,
    content: str,
    count: int,
    *,
    workers: int,
    overwrite: bool = False,
    progress: bool = True,
    **description: Any,
) -> dict[str, Any]:
    """Records `count` pictures with a question each -> metadata with the majority baseline of every kind.

    Their seeds count from the first job's and lie wholly in TRAIN_SEEDS or in EVALUATION_SEEDS (the held-out split).

    Args:
        record: a simulator's; a function of a module, so that processes can call it.
        content: what the metadata calls the data set; `description` is added to it.
    """
    output = _claim_folder(output_dir, overwrite)
    if count < 1:
        raise ValueError(f"got count {count}, expected at least 1")
    began = time.perf_counter()
    seeds = range(first.seed, first.seed + count)
    split, allowed = _split_of(first.seed)
    jobs = [replace(first, seed=_checked_seed(seed, allowed)) for seed in seeds]
    with _mapping(workers) as over_workers:
        rows = list(tqdm(over_workers(record, jobs), total=count, unit="question", disable=not progress))
    metadata = {
        "content": content,
        "split": split,
        "questions": count,
        "seeds": [seeds[0], seeds[-1]],
        "image_size": first.image_size,
        "looks": first.looks,
        "kinds": first.kinds,
        **description,
        "majority_baseline": majority_baseline(rows),
    }
    return _save_rows(output, rows, QUESTION_COLUMNS, metadata, began)


def _split_of(seed: int) -> tuple[str, range]:
    return ("evaluation", EVALUATION_SEEDS) if seed in EVALUATION_SEEDS else ("train", TRAIN_SEEDS)


def majority_baseline(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Per kind of question, the share of its most frequent answer: what a model without eyes can reach."""
    answers: dict[str, Counter[str]] = {}
    for row in rows:
        answers.setdefault(row["kind"], Counter())[row["answer"]] += 1
    return {kind: round(max(c.values()) / c.total(), 4) for kind, c in answers.items()}


@contextmanager
def _mapping(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` in order over processes, or in this one for `workers=1`. Spawned: OpenGL does not survive a fork."""
    if workers < 1:
        raise ValueError(f"got workers {workers}, expected at least 1")
    if workers == 1:
        yield map
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield partial(pool.map, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def _checked_seed(seed: int, allowed: range) -> int:
    if seed not in allowed:
        raise ValueError(f"got seed {seed}, expected one in {allowed}: training and evaluation never share a layout")
    return seed


def _claim_folder(output_dir: str | Path, overwrite: bool) -> Path:
    output = Path(output_dir)
    if (output / METADATA_FILE).exists() and not overwrite:
        raise FileExistsError(f"got a finished data set in {output}, expected none; pass overwrite=True to replace it")
    if output.exists() and not (output / METADATA_FILE).exists() and any(output.iterdir()):
        raise FileExistsError(f"got other files in {output}, expected an empty or a new folder; choose another one")
    return output


def _save_rows(output: Path, rows: Rows, columns: Mapping[str, str], metadata: dict[str, Any], began: float) -> dict:
    """Write beside, then rename: a folder with METADATA_FILE in it is always complete."""
    # here, so that recording workers start a second sooner
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    from gen_vla.training.provenance.origin import provenance, with_provenance

    thing = {"colour": Value("int8"), "shape": Value("int8"), "u": Value("float32"), "v": Value("float32")}
    kinds = {"image": ImageFeature(), "action": List(Value("float32"), length=7), "objects": List(thing)}
    kinds["state"] = List(Value("float32"), length=len(rows[0].get("state", ())))
    kinds["turns"] = List({"question": Value("string"), "answer": Value("string")})
    kinds["point"] = List(Value("float32"), length=2)
    features = Features({name: kinds.get(kind) or Value(kind) for name, kind in columns.items()})
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    data = {name: [row[name] for row in rows] for name in columns}
    Dataset.from_dict(data, features=features).save_to_disk(str(unfinished))
    metadata = with_provenance({**metadata, "seconds": round(time.perf_counter() - began, 1)}, provenance())
    (unfinished / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    if output.exists():
        shutil.rmtree(output)
    unfinished.rename(output)
    return metadata
