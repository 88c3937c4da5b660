"""What a run's checkpoints record besides its recipe: how a step's rows are divided among processes, which data sets
these rows are of, and their statistics; a resumed run must agree with it.

    WORK_DIR/<recipe name>/checkpoints/resume.json

Rows are told apart by their number, their texts (of tables) or their files (of streams), and the statistics of their
actions. Pictures are not compared, nor where and when files were written, so that data sets may be moved.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gen_vla.training.mixing.row_stream import BufferSize
from gen_vla.training.mixing.streaming_mixture import RunShape
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.recipes.sources import OpenedData
from gen_vla.training.robot_data.statistics import MEASURES
from gen_vla.training.storage.json_files import read_json, write_json


FILE = "resume.json"
TEXTS = ("instruction", "question", "answer", "turns")  # columns of tables that are compared
START_OVER = "or start over without these checkpoints, if need be from trained weights (model.initial_model)"


def run_shape(recipe: Recipe) -> RunShape:
    """The shape of this run; known before its processes know of each other."""
    settings, processes = recipe.training, int(os.environ.get("WORLD_SIZE", "1"))
    return RunShape(processes, settings.batch_size, settings.gradient_accumulation_steps, recipe.data.num_workers)


def check_shape(recipe: Recipe, checkpoints: Path) -> None:
    """Raises `ValueError` unless a resumed run learns as many rows a step as the run did when it began."""
    began, now = _first_shape(checkpoints), run_shape(recipe)
    if began.rows_per_step != now.rows_per_step:
        raise ValueError(
            f"got {now} for a run that began with {began}, expected the same product: a resumed run learns the rows "
            "that are left, as many a step; change the number of processes, training.batch_size or "
            f"training.gradient_accumulation_steps, {START_OVER}"
        )


def record_data(recipe: Recipe, opened: OpenedData, checkpoints: Path, begins: bool) -> RunShape:
    """Records a run's data when it begins; when it is resumed, checks the data and goes on with the statistics that it
    began with; raises `ValueError` if rows or statistics differ from those recorded.

    Returns:
        The shape the run began with.
    """
    data = {name: _identity(opened, name) for name in opened.names}
    if begins:
        shape = run_shape(recipe)
        if int(os.environ.get("RANK", "0")) == 0:
            commits = {entry["path"]: entry["revision"] for entry in opened.origins.values() if "revision" in entry}
            record = {"shape": asdict(shape), "data": data, "commits": commits, "norm_stats": opened.norm_stats}
            write_json(checkpoints / FILE, record)
        return shape
    record = read_json(checkpoints / FILE)
    differences = [
        f"{name} had {record['data'].get(name)} and has {data.get(name)}"
        for name in sorted(record["data"].keys() | data.keys())
        if record["data"].get(name) != data.get(name)
    ]
    differences += [
        f"the statistics of robot/{key} differ"
        for key, kept in record["norm_stats"].items()
        if not _same_statistics(kept, opened.norm_stats.get(key))
    ]
    if differences:
        raise ValueError(
            f"got other data than that of {checkpoints}: {'; '.join(differences)}; expected the rows and statistics "
            f"the run began with: restore the data sets, {START_OVER}"
        )
    opened.norm_stats = record["norm_stats"]
    return _first_shape(checkpoints)


def recorded_commits(checkpoints: Path) -> dict[str, str]:
    return read_json(checkpoints / FILE).get("commits", {})


def record_buffers(
    checkpoints: Path, begins: bool, measure: Callable[[], dict[str, BufferSize]]
) -> dict[str, BufferSize]:
    """The buffers of a stream, which decide the order of its rows: measured when a run begins, and recorded."""
    file = checkpoints / FILE
    if begins:
        buffers = measure()
        if int(os.environ.get("RANK", "0")) == 0:
            write_json(file, {**read_json(file), "buffers": {name: asdict(size) for name, size in buffers.items()}})
        return buffers
    return {name: BufferSize(**size) for name, size in read_json(file)["buffers"].items()}


def _first_shape(checkpoints: Path) -> RunShape:
    return RunShape(**read_json(checkpoints / FILE)["shape"])


def _identity(opened: OpenedData, name: str) -> dict[str, Any]:
    """The number of rows, `None` where a stream does not know it, and a digest of what tells them apart."""
    digest = hashlib.sha256()
    if name not in opened.tables:
        digest.update(json.dumps(opened.streams[name].shards()).encode())
        return {"rows": opened.streams[name].count_rows(), "files": digest.hexdigest()[:16]}
    rows = opened.tables[name].dataset
    texts: Any = rows.select_columns([column for column in rows.column_names if column in TEXTS])
    for batch in texts.with_format("arrow").iter(batch_size=10_000):
        digest.update(json.dumps(batch.to_pylist()).encode())
    return {"rows": len(opened.tables[name]), "texts": digest.hexdigest()[:16]}


def _same_statistics(kept: dict[str, Any], found: dict[str, Any] | None) -> bool:
    """Whether the counts agree, and the figures of actions up to the last digits, which depend on the machine."""
    counts = ("num_transitions", "num_trajectories")
    if found is None or any(kept.get(count) != found.get(count) for count in counts):
        return False
    one, other = kept["action"], found["action"]
    return all(one.get(name) == other.get(name) for name in ("mask", "normalization")) and all(
        np.shape(one[measure]) == np.shape(other[measure])
        and np.allclose(one[measure], other[measure], rtol=1e-5, atol=1e-8)
        for measure in MEASURES
    )
