"""Measures a recipe's loading on this machine: memory, rows per second, episodes and padding of micro-batches.

    python -m gen_vla.training.planning.loading my_robot --work-dir runs --loaders 8 --batches 200

Batches come as in a run, from as many loader processes, and are thrown away; shuffle buffers are filled first. Memory
is that of this process and its loaders at the end: resident (RSS), in which what several processes share counts in
each, and proportional (PSS), in which it counts once. A run's own process has the model besides. Tokens are those of
`gen-vla train RECIPE --check`.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from torch.utils.data import DataLoader

from gen_vla.training.mixing.buffer_sizes import GIGA
from gen_vla.training.mixing.prepared_rows import ROBOT
from gen_vla.training.mixing.skipped_rows import collate_with_counts
from gen_vla.training.mixing.streaming_mixture import StreamingMixture
from gen_vla.training.planning.check import config_and_processor
from gen_vla.training.recipes.loading import load_recipe
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.run import build_collator, build_mixture, build_preparer


@dataclass(frozen=True)
class Loading:
    """What was measured."""

    rows_per_second: float
    resident: float  # gigabytes
    proportional: float
    loaders: list[float]  # gigabytes resident in each
    episodes: float  # different ones among the robot rows of a micro-batch, in the mean
    robot_rows: float  # of a micro-batch
    padding: float  # share of the tokens that are padding

    def __str__(self) -> str:
        return (
            f"{self.rows_per_second:.1f} rows/s; memory of this process and {len(self.loaders)} loaders: "
            f"{self.resident:.2f} GB resident, {self.proportional:.2f} GB with shared pages counted once (a loader "
            f"{max(self.loaders, default=0):.2f} GB at most); {self.episodes:.2f} different episodes among "
            f"{self.robot_rows:.1f} robot rows of a micro-batch; {self.padding:.1%} of all tokens are padding"
        )


@dataclass(frozen=True)
class Seen:
    """Collates as a run does, and keeps what is measured of a batch."""

    collate: Any

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate_with_counts(rows, self.collate)
        mask = batch["attention_mask"]
        robots = [row["identity"].rpartition(" step ")[0] for row in rows if row["source"].startswith(f"{ROBOT}/")]
        return {"batch": batch, "robots": robots, "tokens": int(mask.sum()), "places": mask.numel(), "rows": len(rows)}


def measure_loading(recipe: Recipe, work_dir: Path, batches: int) -> Loading:
    """Loads `batches` micro-batches of one process, the first of every loader not timed."""
    opened = open_data(recipe, work_dir)
    config, processor, _ = config_and_processor(recipe, work_dir, opened)
    collator = build_collator(recipe, config, processor, opened.names)
    prepare = build_preparer(recipe, processor, opened.norm_stats, collator, config)
    mixture, sampler = build_mixture(recipe, opened, prepare)
    if isinstance(mixture, StreamingMixture):
        mixture = replace(mixture, initial=sys.maxsize)
    loaders = recipe.data.num_workers
    sampled: dict[str, Any] = {} if sampler is None else {"sampler": sampler}
    size = recipe.training.batch_size
    batched = iter(DataLoader(mixture, size, collate_fn=Seen(collator), num_workers=loaders, **sampled))
    seen: list[dict[str, Any]] = []
    began = time.perf_counter()
    for number, batch in enumerate(batched):
        if number == loaders:
            began = time.perf_counter()
        seen.append({name: value for name, value in batch.items() if name != "batch"})
        if number + 1 == batches + loaders:
            break
    seconds = time.perf_counter() - began
    resident, proportional, each = memory()
    timed, robots = seen[loaders:], [entry["robots"] for entry in seen if entry["robots"]]
    return Loading(
        rows_per_second=sum(entry["rows"] for entry in timed[1:]) / seconds,
        resident=resident,
        proportional=proportional,
        loaders=each,
        episodes=float(np.mean([len(set(names)) for names in robots])) if robots else 0.0,
        robot_rows=float(np.mean([len(names) for names in robots])) if robots else 0.0,
        padding=1 - sum(entry["tokens"] for entry in seen) / sum(entry["places"] for entry in seen),
    )


def memory() -> tuple[float, float, list[float]]:
    """Gigabytes of this process and its children: resident, proportional, and resident in each child."""
    children = psutil.Process().children(recursive=True)
    used = [process.memory_full_info() for process in (psutil.Process(), *children)]
    resident = [entry.rss / GIGA for entry in used]
    return sum(resident), sum(getattr(entry, "pss", entry.rss) for entry in used) / GIGA, resident[1:]


def main(
    recipe: str,
    work_dir: Annotated[str, typer.Option(help="Where data sets lie.")] = "outputs",
    loaders: Annotated[int | None, typer.Option(help="Loader processes; by default the recipe's.")] = None,
    batches: Annotated[int, typer.Option(help="Micro-batches to load.")] = 100,
) -> None:
    loaded = load_recipe(recipe)
    if loaders is not None:
        loaded = replace(loaded, data=replace(loaded.data, num_workers=loaders))
    print(measure_loading(loaded, Path(work_dir), batches))


if __name__ == "__main__":
    typer.run(main)
