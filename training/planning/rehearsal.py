"""`gen-vla train RECIPE --rehearse MINUTES`: everything of a run but the model, at full size and on this machine.

Batches come as in a run, from as many loader processes, and are thrown away. Memory is that of this process and its
loaders at the end: resident (RSS), in which what several processes share counts in each, and proportional (PSS), in
which it counts once. A run's own process has the model besides.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.table import Table
from torch.utils.data import DataLoader
from tqdm import tqdm

from gen_vla.training.mixing.buffer_sizes import GIGA
from gen_vla.training.mixing.prepared_rows import ROBOT
from gen_vla.training.mixing.skipped_rows import collate_with_counts, receive_counts
from gen_vla.training.planning.check import config_and_processor
from gen_vla.training.planning.plan import plan_recipe
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.run import build_collator, build_mixture, build_preparer


@dataclass(frozen=True)
class Rehearsal:
    seconds_to_open: float  # data sets, with statistics and tables that were not there yet
    seconds_to_batch: float  # from then to the first batch
    rows_per_second: float
    needed: float  # rows per second of one GPU, as `--plan` estimates
    resident: float  # gigabytes
    proportional: float
    loaders: list[float]  # gigabytes resident in each
    episodes: float  # different ones among the robot rows of a micro-batch, in the mean
    robot_rows: float  # of a micro-batch
    padding: float  # share of the tokens that are padding
    skipped: dict[str, int]  # bad rows per data set
    rows: int

    def table(self, name: str) -> Table:
        bad = ", ".join(f"{name}: {count}" for name, count in self.skipped.items() if count)
        table = Table(show_header=False, title=f"{name}, rehearsed with {self.rows:,} rows; the model is left out")
        for line in {
            "data sets open after": f"{self.seconds_to_open:.1f} s",
            "first batch after that": f"{self.seconds_to_batch:.1f} s",
            f"rows/s of {len(self.loaders)} loaders": f"{self.rows_per_second:.1f}",
            "rows/s that one GPU takes (--plan)": f"{self.needed:.1f}",
            "memory": f"{self.resident:.2f} GB; {self.proportional:.2f} GB with shared pages counted once",
            "largest loader": f"{max(self.loaders, default=0):.2f} GB",
            "different episodes in a micro-batch": f"{self.episodes:.2f} of {self.robot_rows:.1f} robot rows",
            "padding": f"{self.padding:.1%} of all tokens",
            "bad rows": bad or "none",
        }.items():
            table.add_row(*line)
        return table


@dataclass(frozen=True)
class Seen:
    """Collates as a run does, and keeps what is measured of a batch."""

    collate: Any

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate_with_counts(rows, self.collate)
        mask = batch["attention_mask"]
        robots = [row["identity"].rpartition(" step ")[0] for row in rows if row["source"].startswith(f"{ROBOT}/")]
        return {"batch": batch, "robots": robots, "tokens": int(mask.sum()), "places": mask.numel(), "rows": len(rows)}


def rehearse(recipe: Recipe, work_dir: Path, minutes: float) -> Rehearsal:
    """Loads micro-batches of one process for so many minutes, the first of every loader not timed."""
    started = time.perf_counter()
    opened = open_data(recipe, work_dir)
    config, processor, _ = config_and_processor(recipe, work_dir, opened)
    collator = build_collator(recipe, config, processor, opened.names)
    prepare = build_preparer(recipe, processor, opened.norm_stats, collator, config)
    mixture, sampler = build_mixture(recipe, opened, prepare)
    opened_after = time.perf_counter() - started
    loaders, size = recipe.data.num_workers, recipe.training.batch_size
    sampled: dict[str, Any] = {} if sampler is None else {"sampler": sampler}
    # Named: its loaders end with it.
    batched = iter(DataLoader(mixture, size, collate_fn=Seen(collator), num_workers=loaders, **sampled))
    seen: list[dict[str, Any]] = []
    began = first = 0.0
    for number, batch in enumerate(tqdm(batched, unit="batch")):
        now = time.perf_counter()
        first = first or now - started - opened_after
        receive_counts(mixture, batch.pop("batch"))
        seen.append(batch)
        if number <= loaders:
            began = now
        elif now - began >= 60 * minutes:
            break
    seconds = time.perf_counter() - began
    children = psutil.Process().children(recursive=True)
    used = [process.memory_full_info() for process in (psutil.Process(), *children)]
    resident = [entry.rss / GIGA for entry in used]
    timed, robots = seen[loaders + 1 :], [entry["robots"] for entry in seen if entry["robots"]]
    plans = plan_recipe(recipe, work_dir)[1]
    plan = next((plan for plan in plans if plan.fits), plans[-1])
    return Rehearsal(
        seconds_to_open=opened_after,
        seconds_to_batch=first,
        rows_per_second=sum(entry["rows"] for entry in timed) / seconds if timed else 0.0,
        needed=plan.rows_per_second / plan.gpus,
        resident=sum(resident),
        proportional=sum(getattr(entry, "pss", entry.rss) for entry in used) / GIGA,
        loaders=resident[1:],
        episodes=float(np.mean([len(set(names)) for names in robots])) if robots else 0.0,
        robot_rows=float(np.mean([len(names) for names in robots])) if robots else 0.0,
        padding=1 - sum(entry["tokens"] for entry in seen) / sum(entry["places"] for entry in seen),
        skipped={name: counter.report()["skipped"] for name, counter in mixture.counters().items()},
        rows=sum(entry["rows"] for entry in seen),
    )
