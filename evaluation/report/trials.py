"""The single trials behind a result file, so that two policies can be compared trial by trial.

They lie beside it: `episodes/policy.jsonl` of tabletop, `trials*.jsonl` of simpler, `NAME_answers.jsonl` of vqa. Where
they are missing, or are not those that the figures were made from, a comparison is one of independent samples.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gen_vla.evaluation.report.figures import Figure, suite_of
from gen_vla.evaluation.resumable import read_lines
from gen_vla.evaluation.simpler.trials import scored_trial
from gen_vla.evaluation.statistics.intervals import Scored, clustered_share


Cell = tuple[str, str]  # mode and task of a figure
Trials = dict[str, Scored]  # by name: the same name in two files is the same trial
AVERAGED = ("simpler", "tabletop")  # suites whose trials of all tasks together make the figure `average`
TOLERANCE = 2e-3  # figures are written with four decimals, means of them with fewer


class TrialFiles:
    """The trials behind figures; each of the result files `paths` is read once."""

    def __init__(self, paths: Sequence[Path]):
        self._files = {str(path): read_trials(path) for path in paths}

    def of(self, figure: Figure) -> Trials:
        """The trials that a figure was made from, of a mean over seeds each with its mean score; empty if there are
        none, or the ones there are do not give the figure."""
        if figure.get("seeds"):
            return mean_trials([self.of(run) for run in figure["seeds"]])
        trials = self._files.get(figure["source"], {}).get((figure["mode"], figure["task"]), {})
        if not trials or len(trials) != figure["n"] or figure["value"] is None:
            return {}
        return trials if abs(clustered_share(list(trials.values())).share - figure["value"]) < TOLERANCE else {}


def mean_trials(runs: Sequence[Trials]) -> Trials:
    """Each trial with its mean score over the runs that have it; empty if a run has none."""
    if not all(runs):
        return {}
    scores: dict[str, list[Scored]] = defaultdict(list)
    for run in runs:
        for name, trial in run.items():
            scores[name].append(trial)
    return {name: of[0]._replace(score=sum(trial.score for trial in of) / len(of)) for name, of in scores.items()}


def read_trials(path: Path) -> dict[Cell, Trials]:
    results = json.loads(path.read_text(encoding="utf-8"))
    suite = suite_of(results)
    cells: dict[Cell, Trials] = defaultdict(dict)
    for (mode, task), name, trial in READERS[suite](results, path) if suite in READERS else ():
        cells[mode, task][name] = trial
        if suite in AVERAGED:
            cells[mode, "average"][f"{task}/{name}"] = trial._replace(part=task)
    return dict(cells)


def _simpler(results: dict[str, Any], path: Path) -> Iterator[tuple[Cell, str, Scored]]:
    shader = (results.get("settings") or {}).get("shader")
    for file in sorted(path.parent.glob("trials*.jsonl")):
        for entry in read_lines(file):
            if entry.get("outcome", "crashed") != "crashed" and entry["counted"]:
                _, name = entry["trial"].split("/", 1)
                yield (entry["mode"], entry["task"]), f"{name}, {shader}", scored_trial(entry)


def _tabletop(results: dict[str, Any], path: Path) -> Iterator[tuple[Cell, str, Scored]]:
    settings = results["settings"]
    rules = f"{settings.get('benchmark')}, {settings.get('max_steps')}"
    names = [name for name, policy in results["policies"].items() if "model" in policy["identity"]]
    lines = [line for name in names for line in read_lines(path.parent / "episodes" / f"{name}.jsonl")]
    judged: Counter[tuple[str, ...]] = Counter()
    for entry in sorted((line for line in lines if "outcome" in line), key=lambda line: line["seed"]):
        judged[kind := (entry["mode"], entry["variant"], entry["task"])] += 1
        if judged[kind] > settings["episodes_per_task_and_variant"] or entry["outcome"] == "crashed":
            continue  # of a longer run than the one reported, or not counted
        trial = Scored(str(entry["seed"]), f"{entry['task']}/{entry['variant']}", float(entry["outcome"] == "success"))
        yield (entry["mode"], entry["task"]), f"{entry['variant']}/{entry['seed']}, {rules}", trial


def _vqa(results: dict[str, Any], path: Path) -> Iterator[tuple[Cell, str, Scored]]:
    for index, entry in enumerate(read_lines(path.with_name(f"{path.stem}_answers.jsonl"))):
        name = f"{index}: {entry['question']}"
        picture = entry.get("picture")  # questions about one picture tend to be answered alike
        layout = name if picture is None else f"picture {picture}"
        yield ("questions", entry["task"]), name, Scored(layout, "", float(entry["score"]))


READERS: dict[str | None, Callable[[dict[str, Any], Path], Iterator[tuple[Cell, str, Scored]]]] = {
    "simpler": _simpler,
    "vqa": _vqa,
    "tabletop": _tabletop,
}
