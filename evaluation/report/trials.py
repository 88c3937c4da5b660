"""The single trials behind a result file, so that two policies can be compared trial by trial.

Decides: where each suite keeps its trials, and when two of them are the same trial. Refuses to know: figures
(`report/figures.py`), the statistics (`intervals.py`).

    tabletop   episodes/policy.jsonl beside results.json
    simpler    trials*.jsonl beside results.json
    drawers    in the file itself
    vqa        NAME_answers.jsonl beside NAME.json

Where these are missing, or are not those that the figures were made from, there are no trials, and a comparison is one
of strangers.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gen_vla.evaluation.simpler.trials import scored_trial
from gen_vla.evaluation.statistics.intervals import Scored


class Cell(NamedTuple):
    """Which figure of a file its trials belong to."""

    mode: str
    task: str


Trials = dict[str, Scored]  # by name: the same name in two files is the same trial
AVERAGED = ("simpler", "tabletop")  # suites whose trials of all tasks together make the figure `average`


def read_trials(path: Path) -> dict[Cell, Trials]:
    """The trials behind the figures of a result file; empty where there are none."""
    results = json.loads(path.read_text(encoding="utf-8"))
    suite = next((name for name in SUITES if results.get("suite") == name or MARKS.get(name) in results), None)
    if suite is None:
        return {}
    cells: dict[Cell, Trials] = defaultdict(dict)
    for cell, name, trial in SUITES[suite](results, path):
        cells[cell][name] = trial
        if suite in AVERAGED:
            cells[Cell(cell.mode, "average")][f"{cell.task}/{name}"] = trial._replace(part=cell.task)
    return dict(cells)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """JSON lines; one cut short by a kill is left out."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def _simpler(results: dict[str, Any], path: Path) -> Iterator[tuple[Cell, str, Scored]]:
    shader = (results.get("settings") or {}).get("shader")
    for file in sorted(path.parent.glob("trials*.jsonl")):
        for entry in _lines(file):
            if entry.get("outcome", "crashed") != "crashed" and entry["counted"]:
                _, name = entry["trial"].split("/", 1)
                yield Cell(entry["mode"], entry["task"]), f"{name}, {shader}", scored_trial(entry)


def _tabletop(results: dict[str, Any], path: Path) -> Iterator[tuple[Cell, str, Scored]]:
    settings = results["settings"]
    rules = f"{settings.get('benchmark')}, {settings.get('max_steps')}"
    names = [name for name, policy in results["policies"].items() if "model" in policy["identity"]]
    for entry in (line for name in names for line in _lines(path.parent / "episodes" / f"{name}.jsonl")):
        if "outcome" not in entry or entry["outcome"] == "crashed" or entry["seed"] > settings["seeds"][1]:
            continue  # the file's head, or of a longer run than the one reported
        part = f"{entry['task']}/{entry['variant']}"
        trial = Scored(str(entry["seed"]), part, float(entry["outcome"] == "success"))
        yield Cell(entry["mode"], entry["task"]), f"{entry['variant']}/{entry['seed']}, {rules}", trial


def _drawers(results: dict[str, Any], path: Path) -> Iterator[tuple[Cell, str, Scored]]:
    for entry in results["rollouts"][0].get("episodes", []):
        yield Cell("", entry["task"]), str(entry["seed"]), Scored(str(entry["seed"]), "", float(entry["success"]))


def _vqa(results: dict[str, Any], path: Path) -> Iterator[tuple[Cell, str, Scored]]:
    for index, entry in enumerate(_lines(path.with_name(f"{path.stem}_answers.jsonl"))):
        name = f"{index}: {entry['question']}"
        picture = entry.get("picture")  # questions about one picture go along with each other
        layout = name if picture is None else f"picture {picture}"
        yield Cell("questions", entry["task"]), name, Scored(layout, "", float(entry["score"]))


Reader = Callable[[dict[str, Any], Path], Iterator[tuple[Cell, str, Scored]]]
SUITES: dict[str, Reader] = {"simpler": _simpler, "vqa": _vqa, "tabletop": _tabletop, "drawers": _drawers}
MARKS = {"tabletop": "policies", "drawers": "rollouts"}  # what a file of theirs is known by
