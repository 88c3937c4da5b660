"""`gen-vla train RECIPE --rehearse MINUTES`: everything of a run but the model, at full size and on this machine.

Batches come as in a run, from as many loader processes, and are thrown away. Memory is that of this process and its
loaders at the end: resident (RSS), in which what several processes share counts in each, and proportional (PSS), in
which it counts once. A run's own process has the model besides. Rows per second of a core are those of the processor
time of all of these processes, so that other work on the machine does not matter. Bytes read are those of the system's
calls (Linux).
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
from gen_vla.training.planning.plan import loading_gigabytes, plan_recipe
from gen_vla.training.recipes.schema import Recipe
from gen_vla.training.recipes.sources import open_data
from gen_vla.training.run import build_collator, build_mixture, build_preparer


@dataclass(frozen=True)
class Rehearsal:
    seconds_to_open: float  # data sets, with statistics and tables that were not there yet
    seconds_to_batch: float  # from then to the first batch
    rows_per_second: float
    rows_per_core_second: float
    megabytes_read: float | None  # per row; `None` where the system does not count them
    needed: float  # rows per second of one GPU, as `--plan` estimates
    gpu: str  # which
    resident: float  # gigabytes
    proportional: float
    expected: float | None  # what `--plan` says that loaders with full buffers take; `None` without a stream
    loaders: list[float]  # gigabytes resident in each
    episodes: float | None  # different ones among a micro-batch's robot rows, in the mean; `None` if they do not say
    robot_rows: float  # of a micro-batch
    padding: float  # share of the tokens that are padding
    skipped: dict[str, int]  # bad rows per data set
    rows: int
    note: str | None  # where the tokenizer is a stand-in

    def table(self, name: str) -> Table:
        bad = ", ".join(f"{name}: {count}" for name, count in self.skipped.items() if count)
        title = f"{name}, rehearsed with {self.rows:,} rows; the model is left out"
        table = Table(show_header=False, title=title, caption=self.note)
        table.add_row("data sets open after", f"{self.seconds_to_open:.1f} s")
        table.add_row("first batch after that", f"{self.seconds_to_batch:.1f} s")
        table.add_row(f"rows/s of {len(self.loaders)} loaders", f"{self.rows_per_second:.1f}")
        table.add_row(f"rows/s that one {self.gpu} takes (--plan)", f"{self.needed:.1f}")
        table.add_row("rows/s of one core", f"{self.rows_per_core_second:.1f}")
        if self.megabytes_read is not None:
            table.add_row("read per row", f"{self.megabytes_read:.3f} MB")
        table.add_row("memory", f"{self.resident:.2f} GB; {self.proportional:.2f} GB with shared pages counted once")
        if self.expected is not None:
            table.add_row("memory once all buffers are full (--plan)", f"{self.expected:.1f} GB")
        table.add_row("largest loader", f"{max(self.loaders, default=0):.2f} GB")
        if self.episodes is not None:
            found = f"{self.episodes:.2f} of {self.robot_rows:.1f} robot rows"
            table.add_row("different episodes in a micro-batch", found)
        table.add_row("padding", f"{self.padding:.1%} of all tokens")
        table.add_row("bad rows", bad or "none")
        return table


@dataclass(frozen=True)
class Seen:
    """Collates as a run does, and keeps what is measured of a batch."""

    collate: Any

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate_with_counts(rows, self.collate)
        mask = batch["attention_mask"]
        # "" of a row of a recorded table, which is named by its number
        robots = [row["identity"].rpartition(" step ")[0] for row in rows if row["source"].startswith(f"{ROBOT}/")]
        return {"batch": batch, "robots": robots, "tokens": int(mask.sum()), "places": mask.numel(), "rows": len(rows)}


def rehearse(recipe: Recipe, work_dir: Path, minutes: float, gpu: str = "h100") -> Rehearsal:
    """Loads micro-batches of one process for so many minutes, the first of every loader not timed."""
    started = time.perf_counter()
    opened = open_data(recipe, work_dir)
    config, processor, note = config_and_processor(recipe, work_dir, opened)
    collator = build_collator(recipe, config, processor, opened.names)
    prepare = build_preparer(recipe, processor, opened.norm_stats, collator, config)
    mixture, sampler = build_mixture(recipe, opened, prepare)
    opened_after = time.perf_counter() - started
    loaders, size = recipe.data.num_workers, recipe.training.batch_size
    sampled: dict[str, Any] = {} if sampler is None else {"sampler": sampler}
    # Named: its loaders end with it.
    batched = iter(DataLoader(mixture, size, collate_fn=Seen(collator), num_workers=loaders, **sampled))
    seen: list[dict[str, Any]] = []
    began, first, before = 0.0, 0.0, usage()
    for number, batch in enumerate(tqdm(batched, unit="batch")):
        now = time.perf_counter()
        first = first or now - started - opened_after
        receive_counts(mixture, batch.pop("batch"))
        seen.append(batch)
        if number <= loaders:
            began, before = now, usage()
        elif now - began >= 60 * minutes:
            break
    seconds, used = time.perf_counter() - began, usage() - before
    resident, proportional, each = memory()
    timed, robots = seen[loaders + 1 :], [entry["robots"] for entry in seen if entry["robots"]]
    rows = sum(entry["rows"] for entry in timed)
    if not rows:
        raise ValueError(
            f"got a run of {len(seen)} micro-batches, expected more than {loaders + 1}, the first of which are not "
            "timed; raise training.steps, or lower data.num_workers"
        )
    plans = plan_recipe(recipe, work_dir, gpu)[1]
    plan = next((plan for plan in plans if plan.fits), plans[-1])
    return Rehearsal(
        seconds_to_open=opened_after,
        seconds_to_batch=first,
        rows_per_second=rows / seconds,
        rows_per_core_second=rows / max(used[0], 0.01),  # what the clock tells apart
        megabytes_read=used[1] / rows / 1e6 if hasattr(psutil.Process, "io_counters") else None,
        needed=plan.rows_per_second / plan.gpus,
        gpu=gpu,
        resident=resident,
        proportional=proportional,
        expected=loading_gigabytes(recipe) if recipe.data.streaming else None,
        loaders=each,
        episodes=float(np.mean([len(set(names)) for names in robots])) if robots and all(robots[0]) else None,
        robot_rows=float(np.mean([len(names) for names in robots])) if robots else 0.0,
        padding=1 - sum(entry["tokens"] for entry in seen) / sum(entry["places"] for entry in seen),
        skipped={name: counter.report()["skipped"] for name, counter in mixture.counters().items()},
        rows=sum(entry["rows"] for entry in seen),
        note=note,
    )


def usage() -> np.ndarray:
    """Seconds of the processor and bytes read, of this process and its children: float64 [2]."""
    used = np.zeros(2)
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        times = process.cpu_times()
        read = process.io_counters().read_chars if hasattr(process, "io_counters") else 0  # type: ignore[attr-defined]
        used += (times.user + times.system, read)
    return used


def memory() -> tuple[float, float, list[float]]:
    """Gigabytes of this process and its children: resident, proportional, and resident in each child."""
    children = psutil.Process().children(recursive=True)
    used = [process.memory_full_info() for process in (psutil.Process(), *children)]
    resident = [entry.rss / GIGA for entry in used]
    return sum(resident), sum(getattr(entry, "pss", entry.rss) for entry in used) / GIGA, resident[1:]
