"""Scores of tabletop episodes, and the tables that show them.

a rate           successes of the episodes that ran; malformed ones are failures, crashed ones are left out
a variant's mean the mean over tasks of their rates
a family's mean  the mean over its variants, `variants` the mean over families, each of which has as many variants.
                 SimplerEnv's scripts run camera poses but do not count them: the mean without stands beside
intervals        Wilson's, 95 %, of as many trials as these are worth: tasks and variants share their layouts
"""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gen_vla.evaluation.simulation.layouts import TASKS
from gen_vla.evaluation.statistics.intervals import Scored, clustered_share
from gen_vla.evaluation.tables import percent, percent_range, results_table
from gen_vla.evaluation.tabletop.episodes import LOOKS, TabletopEpisode
from gen_vla.evaluation.tabletop.variants import FAMILIES, variant_of


NOT_COUNTED_BY_SIMPLER = "camera"


def rate(episodes: Sequence[TabletopEpisode]) -> dict[str, Any]:
    """Figures of some episodes; `rate` and `median_steps`, of the successes, are None without one to count."""
    ran = [e for e in episodes if e.outcome != "crashed"]
    steps = [e.steps for e in ran if e.outcome == "success"]
    return {
        "successes": len(steps),
        "n": len(ran),
        "rate": round(len(steps) / len(ran), 4) if ran else None,
        "interval": _interval([scored_episode(e) for e in ran]),
        "malformed": sum(e.outcome == "malformed" for e in ran),
        "crashed": len(episodes) - len(ran),
        "median_steps": float(np.median(steps)) if steps else None,
    }


def scored_episode(episode: TabletopEpisode, part: str = "") -> Scored:
    return Scored(str(episode.seed), part, float(episode.outcome == "success"))


def _interval(trials: Sequence[Scored], weights: Sequence[float] | None = None) -> list[float]:
    return [round(bound, 4) for bound in clustered_share(trials, weights).interval] if trials else [0.0, 1.0]


def summarise(episodes: Sequence[TabletopEpisode]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for mode in dict.fromkeys(e.mode for e in episodes):
        chosen = [e for e in episodes if e.mode == mode]
        summary[mode] = _summarise_variants(chosen) if mode in LOOKS else _summarise_tasks(chosen)
    return summary


def _summarise_tasks(episodes: Sequence[TabletopEpisode]) -> dict[str, Any]:
    present = {e.task for e in episodes}
    tasks = {task: rate([e for e in episodes if e.task == task]) for task in TASKS if task in present}
    mean = _mean([cell["rate"] for cell in tasks.values()])
    by_task = [scored_episode(e, e.task) for e in episodes if e.outcome != "crashed"]
    return {"tasks": tasks, "all": rate(episodes), "mean": mean, "interval": _interval(by_task)}


def _summarise_variants(episodes: Sequence[TabletopEpisode]) -> dict[str, Any]:
    families: dict[str, Any] = {}
    for family in FAMILIES:
        members = [e for e in episodes if variant_of(e.variant).family == family]
        variants = {
            variant_of(key).name: _summarise_tasks([e for e in members if e.variant == key])
            for key in dict.fromkeys(e.variant for e in members)
        }
        if variants:
            families[family] = {"variants": variants, "mean": _mean([v["mean"] for v in variants.values()])}
    counted = [families[f]["mean"] for f in families if f != NOT_COUNTED_BY_SIMPLER]
    ran = [e for e in episodes if e.outcome != "crashed"]
    return {
        **_summarise_tasks(episodes),
        "families": families,
        "mean": _mean([family["mean"] for family in families.values()]),
        "mean_without_camera": _mean(counted),
        "interval": _interval([scored_episode(e) for e in ran], family_weights(ran)),
    }


def family_weights(episodes: Sequence[TabletopEpisode]) -> list[float]:
    """Of each episode in the mean over families of the mean over variants of the mean over tasks of the rates."""
    cells = Counter((e.variant, e.task) for e in episodes)
    tasks = Counter(variant for variant, _ in cells)
    variants = Counter(variant_of(variant).family for variant in tasks)
    shares = {v: 1 / (len(variants) * variants[variant_of(v).family] * tasks[v]) for v in tasks}
    return [shares[e.variant] / cells[e.variant, e.task] for e in episodes]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(fmean(known), 4) if known else None


def tabletop_table(summaries: dict[str, dict[str, Any]], title: str = "tabletop") -> Table:
    tasks = [t for t in TASKS if any(t in mode["tasks"] for s in summaries.values() for mode in s.values())]
    rows = []
    for policy, summary in summaries.items():
        for mode, found in summary.items():
            known = [found["tasks"].get(task) for task in tasks]
            cells = [f"{c['successes']}/{c['n']}\n{percent_range(c['interval'])} %" if c else "-" for c in known]
            rows.append((policy, mode, *cells, percent(found["mean"], 0, "-"), *_counts(found)))
    return _table(title, ("policy", "mode", *tasks), rows, left=2)


def variants_table(variants: dict[str, Any], title: str = "variants") -> Table:
    tasks = list(variants["tasks"])
    rows: list[Sequence[Any]] = []
    for family, found in variants["families"].items():
        mean = f"[bold]{percent(found['mean'], 0, '-')}"
        rows.append((f"[bold]{family.replace('_', ' ')}", *[""] * len(tasks), mean))
        for name, cell in found["variants"].items():
            shares = [percent(cell["tasks"].get(task, {}).get("rate"), 0, "-") for task in tasks]
            rows.append((f"  {name.replace('_', ' ')}", *shares, percent(cell["mean"], 0, "-"), *_counts(cell)))
    for label, mean in (
        (f"[bold]mean of families ({percent_range(variants['interval'])})", variants["mean"]),
        ("  without camera", variants["mean_without_camera"]),
    ):
        rows.append((label, *[""] * len(tasks), percent(mean, 0, "-")))
    return _table(title, ("variant", *tasks), rows, left=1)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], left: int) -> Table:
    headings = [column.replace("_", "\n") for column in (*columns, "mean %", "mal-_formed", "crashed")]
    return results_table(title, headings, rows, left, no_wrap=True, box=SIMPLE_HEAD, pad_edge=False)


def _counts(found: dict[str, Any]) -> tuple[int, int]:
    return found["all"]["malformed"], found["all"]["crashed"]
