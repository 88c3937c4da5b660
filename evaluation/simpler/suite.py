"""SimplerEnv for a model and controls: which trials they run, what they score, what is written down.

Decides: what the folder holds, in which modes controls run. Refuses to know: how a trial is run (`simpler/runs.py`),
which trials there are and how they are averaged (`simpler/trials.py`), what the controls do (`simpler/controls.py`).

    FOLDER/settings.json             what is measured of the model
    FOLDER/trials*.jsonl             a line when a trial of the model begins and one when it ends
    FOLDER/controls/NAME/...         the same two of a control
    FOLDER/runs.jsonl                how each run came about (`provenance/origin.py`)
    FOLDER/results.json              the scores of all of them

Run the same command again to go on where it stopped. With `shard=(i, n)` n processes share the trials of a folder. A
model runs in every mode asked for, the controls beside it in `matching` only; without a model, the controls run in
every mode.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gen_vla.evaluation.simpler.controls import CONTROLS, announced, unknown_tasks
from gen_vla.evaluation.simpler.environment import check_assets, find_assets, make_environment
from gen_vla.evaluation.simpler.policy import ModelPrediction, Robot, SimplerPolicy
from gen_vla.evaluation.simpler.runs import Make, Paraphrase, TrialLog, run_trials
from gen_vla.evaluation.simpler.trials import TaskScore, Trial, first_trials, score_task, trials_of
from gen_vla.training.provenance.origin import (
    describe_machine,
    note_run,
    provenance,
    with_other_runs,
    with_provenance,
)
from gen_vla.training.provenance.training_record import with_record


def scores_of(outcomes: Iterable[dict[str, Any]], robot: str) -> list[TaskScore]:
    """A score for every mode and task of which there are outcomes, in the published order."""
    entries = list(outcomes)
    scores = []
    for mode, task in dict.fromkeys((entry["mode"], entry["task"]) for entry in entries):
        expected = sum(trial.counted for trial in trials_of(robot, mode, [task]))
        chosen = [entry for entry in entries if (entry["mode"], entry["task"]) == (mode, task)]
        scores.append(score_task(mode, task, chosen, expected))
    return scores


def tasks_of(log: TrialLog, robot: str) -> list[dict[str, Any]]:
    """A figure for every mode and task in a log."""
    found = []
    for score in scores_of(log.outcomes.values(), robot):
        entry = {"metric": "success rate", "value": score.score, **asdict(score)}
        del entry["score"]
        found.append(entry)
    return found


def results_of(
    log: TrialLog | None, model: str | None, robot: str, settings: dict[str, Any], environment: Any
) -> dict[str, Any]:
    """What `results.json` holds of a model and `gen-vla evaluate report` reads; without one, no tasks."""
    outcomes = [] if log is None else list(log.outcomes.values())
    return {
        "suite": "simpler",
        "model": model,
        "environment": environment,
        "settings": settings,
        "seeds": sorted({entry["seed"] for entry in outcomes if entry["seed"] is not None}),
        "tasks": [] if log is None else tasks_of(log, robot),
    }


@dataclass(frozen=True)
class SimplerSettings:
    """What is run.

    Attributes:
        modes, tasks: of `simpler/trials.py`; no task means all.
        episodes: at most so many of every part and variant, `None` for the whole protocol.
        shader: replaces the published choice of renderer.
        shard: run every n-th trial from the i-th on.
        controls: of `simpler/controls.py`.
    """

    robot: Robot
    modes: tuple[str, ...] = ("matching",)
    tasks: tuple[str, ...] = ()
    episodes: int | None = None
    shader: str | None = None
    unnorm_key: str | None = None
    action_ensemble: bool = False
    shard: tuple[int, int] = (0, 1)
    controls: tuple[str, ...] = ()

    def measured(self) -> dict[str, Any]:
        """What must be the same for earlier trials to count."""
        chosen = ("modes", "tasks", "episodes", "shard", "controls")
        return {key: value for key, value in asdict(self).items() if key not in chosen}

    def trials(self) -> list[Trial]:
        """Its share of the trials."""
        index, count = self.shard
        if not 0 <= index < count:
            raise ValueError(f"got shard {index}/{count}, expected one of 0/{count} to {count - 1}/{count}")
        found = [trial for mode in self.modes for trial in trials_of(self.robot, mode, self.tasks)]
        return first_trials(found, self.episodes)[index::count]


@dataclass(frozen=True)
class Contestant:
    """A policy, its trials, what builds their environments, and where the outcomes are written down."""

    policy: SimplerPolicy
    trials: list[Trial]
    make: Make
    log: TrialLog


def model_contestant(
    model: Any, processor: Any, name: str, settings: SimplerSettings, folder: Path, make: Make
) -> Contestant:
    """A model as a contestant.

    Raises:
        ValueError: if the model has no actions for this robot.
    """
    predict = ModelPrediction(model, processor, settings.robot, settings.unnorm_key)
    policy = SimplerPolicy(predict, settings.robot, action_ensemble=settings.action_ensemble)
    log = TrialLog(folder, {"model": name, **settings.measured()}, settings.shard)
    return Contestant(policy, settings.trials(), make, log)


def control_contestant(name: str, settings: SimplerSettings, folder: Path, make: Make) -> Contestant:
    """A control as a contestant, without the trials of tasks that it does not know.

    Raises:
        ValueError: if there is no such control, or none of the tasks is one that it knows.
    """
    if name not in CONTROLS:
        raise ValueError(f"got the policy {name!r}, expected some of {', '.join(CONTROLS)}")
    unknown = unknown_tasks(name, settings.robot)
    trials = [trial for trial in settings.trials() if trial.task not in unknown]
    if not trials and settings.trials():
        raise ValueError(
            f"got the policy {name!r} for {', '.join(settings.tasks)}, expected one that it knows, which are all but "
            f"{', '.join(unknown)}; leave it out of --policy"
        )
    control = CONTROLS[name](settings.robot)
    log = TrialLog(_control_folder(folder, name), _identity(name, settings), settings.shard)
    return Contestant(SimplerPolicy(control, settings.robot), trials, announced(make, control), log)


def _control_folder(folder: Path, name: str) -> Path:
    return folder / "controls" / name


def _identity(control: str, settings: SimplerSettings) -> dict[str, Any]:
    return {"control": control, "robot": settings.robot, "shader": settings.shader}


def left_out(settings: SimplerSettings) -> dict[str, list[str]]:
    """The tasks asked for that a control does not know, by its name."""
    asked = {trial.task for trial in settings.trials()}
    found = {name: [t for t in unknown_tasks(name, settings.robot) if t in asked] for name in settings.controls}
    return {name: tasks for name, tasks in found.items() if tasks}


def evaluate_simpler(
    model: Any, processor: Any, name: str | None, settings: SimplerSettings, folder: Path, progress: bool = True
) -> dict[str, Any]:
    """Runs the trials left, and scores all there are in the folder.

    Args:
        model, processor, name: what acts and what it is called in the results; `None` where only controls run.
        folder: for `settings.json`, `trials*.jsonl`, `controls` and `results.json`.

    Raises:
        SimplerMissingError, FileNotFoundError: if the simulator or a scene is not installed.
        ValueError: if a setting or the model does not fit, or there is nothing to run.
    """
    if name is None and not settings.controls:
        raise ValueError("got neither a model nor controls, expected a model, --policy expert, or both")
    if name is None and (folder / "settings.json").is_file():
        raise ValueError(f"got no model for {folder}, which has one's trials; name it, or another --output folder")
    assets = find_assets()
    for trial in settings.trials():
        check_assets(trial, assets)
    make: Make = partial(make_environment, assets=assets, shader=settings.shader)
    played = None if name is None else model_contestant(model, processor, name, settings, folder, make)
    contestants = [*([] if played is None else [played]), *_controls_beside(played, settings, folder, make)]
    logs = control_logs(settings, folder)
    record = provenance(name)
    note_run(folder, record)
    for c in contestants:
        run_trials(c.policy, c.trials, c.log, c.make, _paraphrases(settings), progress)
        c.log.read()
    environment = describe_machine() if model is None else {**describe_machine(), "parameters": model.num_parameters()}
    results = results_of(played and played.log, name, settings.robot, settings.measured(), environment)
    results |= control_results(logs, settings.robot)
    results = with_provenance(with_record(results, name), with_other_runs(record, folder))
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def _controls_beside(
    played: Contestant | None, settings: SimplerSettings, folder: Path, make: Make
) -> list[Contestant]:
    """The controls; says which tasks they leave out."""
    shown = settings if played is None else replace(settings, modes=("matching",))
    found = [control_contestant(name, shown, folder, make) for name in settings.controls]
    for control, tasks in left_out(shown).items():
        print(f"The {control} does not know {', '.join(tasks)}: it leaves out those trials")
    return found


def _paraphrases(settings: SimplerSettings) -> Paraphrase | None:
    if "paraphrase" not in settings.modes:
        return None
    from gen_vla.training.mixing.instruction_augmentation import held_out_paraphrases

    return held_out_paraphrases


def control_logs(settings: SimplerSettings, folder: Path) -> dict[str, TrialLog]:
    """Of all controls that have trials in the folder, of this run or of an earlier one.

    Raises:
        ValueError: if some are of another robot or renderer.
    """
    names = [name for name in CONTROLS if _control_folder(folder, name).is_dir()]
    return {name: TrialLog(_control_folder(folder, name), _identity(name, settings), settings.shard) for name in names}


def control_results(logs: Mapping[str, TrialLog], robot: Robot) -> dict[str, Any]:
    """`controls`, each with its figures and the tasks that it leaves out; empty without any."""
    found = {}
    for name, log in logs.items():
        log.read()
        found[name] = {"tasks": tasks_of(log, robot), "unknown": unknown_tasks(name, robot)}
    return {"controls": found} if found else {}


def results_table(results: Mapping[str, Any], title: str) -> Table:
    """A row per policy, mode and task: successes / trials judged of those of the whole protocol."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("policy", "mode", "task"):
        table.add_column(column, overflow="fold")
    for column in ("%", "95 %", "success", "mal-_formed", "crashed"):
        table.add_column(column.replace("_", "\n"), justify="right", no_wrap=True)
    controls = {name: found["tasks"] for name, found in results.get("controls", {}).items()}
    for policy, tasks in {"policy": results["tasks"], **controls}.items():
        for t in tasks:
            table.add_row(policy, t["mode"], t["task"], *_cells(t))
    return table


def _cells(task: Mapping[str, Any]) -> Sequence[str]:
    score = "-" if task["value"] is None else f"{100 * task['value']:.1f}"
    interval = (
        "-" if task["interval"] is None else "{:.0f}-{:.0f}".format(*(100 * bound for bound in task["interval"]))
    )
    counts = f"{task['successes']}/{task['n']} of {task['expected']}"
    return score, interval, counts, str(task["malformed"]), str(task["crashed"])
