"""SimplerEnv for a model and controls: which trials they run, what they score, what is written down.

    FOLDER/settings.json, trials*.jsonl    what is measured of the model; when its trials began, and how they ended
    FOLDER/controls/NAME/...               the same two of a control
    FOLDER/runs.jsonl                      how each run came about (`provenance/origin.py`)
    FOLDER/results.json                    the scores of all of them

The same command goes on where it stopped; with `shard=(i, n)` n processes share the trials of a folder. A model runs
in every mode asked for, the controls beside it in `matching` only; without a model, the controls run in every mode.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gen_vla.evaluation.simpler.controls import CONTROLS, unknown_tasks
from gen_vla.evaluation.simpler.environment import check_assets, find_assets, make_environment
from gen_vla.evaluation.simpler.policy import ModelPrediction, Robot
from gen_vla.evaluation.simpler.runs import Begin, Make, TrialLog, run_left, run_trial
from gen_vla.evaluation.simpler.trials import Trial, first_trials, score_task, trials_of
from gen_vla.evaluation.tables import percent, percent_range, results_table
from gen_vla.training.checkpoints import dtype_name
from gen_vla.training.provenance.origin import describe_machine, note_run, provenance, with_other_runs, with_provenance
from gen_vla.training.provenance.training_record import with_record


@dataclass(frozen=True)
class SimplerSettings:
    robot: Robot
    modes: tuple[str, ...] = ("matching",)  # of `simpler/trials.py`, as tasks
    tasks: tuple[str, ...] = ()  # none means all
    episodes: int | None = None  # at most so many of every part and variant, None for the whole protocol
    shader: str | None = None  # replaces the published choice of renderer
    unnorm_key: str | None = None
    action_ensemble: bool = False
    shard: tuple[int, int] = (0, 1)  # run every n-th trial from the i-th on
    controls: tuple[str, ...] = ()  # of `simpler/controls.py`

    def measured(self) -> dict[str, Any]:
        """What must be the same for earlier trials to count."""
        chosen = ("modes", "tasks", "episodes", "shard", "controls")
        return {key: value for key, value in asdict(self).items() if key not in chosen}

    def trials(self) -> list[Trial]:
        index, count = self.shard
        if not 0 <= index < count:
            raise ValueError(f"got shard {index}/{count}, expected one of 0/{count} to {count - 1}/{count}")
        found = [trial for mode in self.modes for trial in trials_of(self.robot, mode, self.tasks)]
        return first_trials(found, self.episodes)[index::count]


def evaluate_simpler(
    model: Any, processor: Any, name: str | None, settings: SimplerSettings, folder: Path
) -> dict[str, Any]:
    """Runs the trials left, and scores all there are in the folder; model, processor and name are `None` where only
    controls run. Raises `SimplerMissingError` or `FileNotFoundError` if the simulator or a scene is not installed,
    `ValueError` if a setting or the model does not fit, or there is nothing to run."""
    if name is None and not settings.controls:
        raise ValueError("got neither a model nor controls, expected a model, --policy expert, or both")
    if name is None and (folder / "settings.json").is_file():
        raise ValueError(f"got no model for {folder}, which has one's trials; name it, or another --output folder")
    assets = find_assets()
    for trial in settings.trials():
        check_assets(trial, assets)
    make: Make = partial(make_environment, assets=assets, shader=settings.shader)
    runs: list[tuple[Begin, list[Trial], TrialLog, bool]] = []
    log = None
    if name is not None:
        predict = ModelPrediction(model, processor, settings.robot, settings.unnorm_key)
        log = TrialLog(folder, {"model": name, "dtype": dtype_name(model), **settings.measured()}, settings.shard)
        runs.append((predict.begin, settings.trials(), log, settings.action_ensemble))
    shown = settings if name is None else replace(settings, modes=("matching",))
    for control in settings.controls:
        trials = control_trials(control, shown)
        runs.append((CONTROLS[control], trials, _control_log(control, settings, folder), False))
    record = provenance(name)
    note_run(folder, record)
    for begin, trials, trial_log, ensemble in runs:
        run_left(trials, trial_log, partial(run_trial, begin, make=make, action_ensemble=ensemble))
        trial_log.read()
    environment = describe_machine()
    if model is not None:
        environment |= {"parameters": model.num_parameters(), "dtype": dtype_name(model)}
    results: dict[str, Any] = {
        "suite": "simpler",
        "model": name,
        "environment": environment,
        "settings": settings.measured(),
        "seeds": sorted({entry["seed"] for entry in log.outcomes.values()} - {None}) if log else [],
        "tasks": scores_of(log, settings.robot) if log else [],
    }
    # Of all controls that have trials in the folder, of this run or of an earlier one.
    for control in (control for control in CONTROLS if (folder / "controls" / control).is_dir()):
        found = scores_of(_control_log(control, settings, folder), settings.robot)
        unknown = unknown_tasks(control, settings.robot)
        results.setdefault("controls", {})[control] = {"tasks": found, "unknown": unknown}
    results = with_provenance(with_record(results, name), with_other_runs(record, folder))
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def control_trials(name: str, settings: SimplerSettings) -> list[Trial]:
    """The trials of a control, without those of tasks that it does not know: it says so. Raises `ValueError` if there
    is no such control, or none of the tasks is one that it knows."""
    if name not in CONTROLS:
        raise ValueError(f"got the policy {name!r}, expected some of {', '.join(CONTROLS)}")
    asked, unknown = settings.trials(), unknown_tasks(name, settings.robot)
    trials = [trial for trial in asked if trial.task not in unknown]
    if asked and not trials:
        raise ValueError(
            f"got the policy {name!r} for {', '.join(settings.tasks)}, expected one that it knows, which are all but "
            f"{', '.join(unknown)}; leave it out of --policy"
        )
    if len(trials) < len(asked):
        print(f"The {name} does not know {', '.join(unknown)}: it leaves out those trials")
    return trials


def _control_log(name: str, settings: SimplerSettings, folder: Path) -> TrialLog:
    identity = {"control": name, "robot": settings.robot, "shader": settings.shader}
    return TrialLog(folder / "controls" / name, identity, settings.shard)


def scores_of(log: TrialLog, robot: str) -> list[dict[str, Any]]:
    by_task: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in log.outcomes.values():
        by_task.setdefault((entry["mode"], entry["task"]), []).append(entry)
    return [
        score_task(mode, task, entries, sum(trial.counted for trial in trials_of(robot, mode, [task])))
        for (mode, task), entries in by_task.items()
    ]


def simpler_table(results: Mapping[str, Any], title: str) -> Table:
    rows = []
    controls = {name: found["tasks"] for name, found in results.get("controls", {}).items()}
    for policy, tasks in {"policy": results["tasks"], **controls}.items():
        for t in tasks:
            interval = "-" if t["interval"] is None else percent_range(t["interval"])
            counts = (f"{t['successes']}/{t['n']} of {t['expected']}", t["malformed"], t["crashed"])
            rows.append((policy, t["mode"], t["task"], percent(t["value"], 1, "-"), interval, *counts))
    columns = ("policy", "mode", "task", "%", "95 %", "success", "mal-\nformed", "crashed")
    return results_table(
        title, columns, rows, left=3, no_wrap=True, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
