"""LIBERO for a model and controls: which trials they run, what they score, what is written down.

    FOLDER/settings.json           what is measured of the model
    FOLDER/trials*.jsonl           a line when a trial begins and one when it ends
    FOLDER/controls/NAME/...       the same two of a control
    FOLDER/videos/*.mp4            what the policy saw in the first trials of each task
    FOLDER/runs.jsonl              how each run came about
    FOLDER/results.json            scores of all of them

Run the same command again to go on where it stopped. Controls see nothing, and nothing is drawn for them. The expert
leaves out tasks that it does not know, and says so.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gen_vla.evaluation.libero.environment import (
    DRAWN,
    HORIZONS,
    IMAGE_SIZE,
    PERTURBATIONS,
    TRIALS,
    LiberoEnvironment,
    LiberoMissingError,
    LiberoTrial,
    Observation,
    load_suite,
)
from gen_vla.evaluation.libero.expert import UnknownTaskError
from gen_vla.evaluation.libero.policy import CONTROLS, LiberoModel
from gen_vla.evaluation.recording.rows import recorded_layouts
from gen_vla.evaluation.simpler.policy import MalformedActionError
from gen_vla.evaluation.simpler.runs import (
    Outcome,
    SimulatorCrashError,
    TrialLog,
    attempts,
    outcome_of,
    run_left,
    simulate,
)
from gen_vla.evaluation.simulation.videos import write_video
from gen_vla.evaluation.statistics.intervals import Scored, clustered_share
from gen_vla.evaluation.tables import percent, percent_range, results_table
from gen_vla.training.checkpoints import dtype_name
from gen_vla.training.provenance.origin import describe_machine, note_run, provenance, with_other_runs, with_provenance
from gen_vla.training.provenance.training_record import with_record


UNKNOWN = "unknown"  # how a trial ends that a control leaves out


@dataclass(frozen=True)
class LiberoSettings:
    """What is run.

    Attributes:
        suites, perturbations: of `libero/environment.py`.
        trials: stored states of each task.
        tasks: numbers of tasks in their suite; none means all.
        controls: of `libero/policy.py`.
        steps: of a chunk that are carried out; all by default.
        image_size: pixels a side; the published evaluations have 256.
        videos: trials of each task that are filmed.
        shard: run every n-th trial from the i-th on.
        layouts: a recorded data set, in whose layouts trials begin instead of the stored states.
    """

    suites: tuple[str, ...] = ("spatial", "object", "goal", "10")
    perturbations: tuple[str, ...] = ("none",)
    trials: int = TRIALS
    tasks: tuple[int, ...] = ()
    controls: tuple[str, ...] = ()
    unnorm_key: str | None = None
    steps: int | None = None
    image_size: int = IMAGE_SIZE
    videos: int = 0
    shard: tuple[int, int] = (0, 1)
    layouts: Path | None = None

    def __post_init__(self) -> None:
        for name, known in (("suites", HORIZONS), ("perturbations", PERTURBATIONS), ("controls", CONTROLS)):
            if unknown := [each for each in getattr(self, name) if each not in known]:
                raise ValueError(f"got {name} {', '.join(unknown)}, expected some of {', '.join(known)}")
        if not 1 <= self.trials <= TRIALS:
            raise ValueError(f"got {self.trials} trials, expected 1 to {TRIALS}, the stored states of a task")
        if not 0 <= self.shard[0] < self.shard[1]:
            raise ValueError(f"got shard {self.shard[0]}/{self.shard[1]}, expected one of 0/N to N-1/N")
        if self.layouts is not None and self.perturbations != ("none",):
            raise ValueError("got layouts and perturbations, expected one of them: layouts are as LIBERO draws them")

    def measured(self) -> dict[str, Any]:
        """What must be the same for earlier trials to count."""
        return {name: getattr(self, name) for name in ("unnorm_key", "steps", "image_size")}

    def all_trials(self) -> list[LiberoTrial]:
        """Its share of the trials; raises `LiberoMissingError` where a suite is not installed."""
        found = self._stored() if self.layouts is None else self._drawn(self.layouts)
        return found[self.shard[0] :: self.shard[1]]

    def _stored(self) -> list[LiberoTrial]:
        found = []
        for suite in self.suites:
            for perturbation in self.perturbations:
                count = load_suite(suite, perturbation).n_tasks
                if wrong := [number for number in self.tasks if not 0 <= number < count]:
                    raise ValueError(f"got task {wrong[0]} of {suite}, expected 0 to {count - 1}")
                for number in self.tasks or range(count):
                    found += [LiberoTrial(suite, perturbation, number, state) for state in range(self.trials)]
        return found

    def _drawn(self, folder: Path) -> list[LiberoTrial]:
        """Of the first episodes that were recorded of each task."""
        found = []
        layouts = recorded_layouts(folder)
        for task, seeds in layouts.items():
            suite, _, number = task.partition("/")
            if suite in self.suites and (not self.tasks or int(number) in self.tasks):
                numbered = enumerate(seeds[: self.trials])
                found += [LiberoTrial(suite, DRAWN, int(number), place, seed) for place, seed in numbered]
        if not found:
            raise ValueError(
                f"got {folder} with layouts of {', '.join(layouts)}, expected some of the suites and tasks asked for"
            )
        return found


def evaluate_libero(
    model: Any, processor: Any, name: str | None, settings: LiberoSettings, folder: Path
) -> dict[str, Any]:
    """Runs the trials left, and scores all there are in the folder.

    Args:
        model, processor, name: what acts and what it is called; `None` where only controls run.

    Raises:
        LiberoMissingError: if the benchmark or a suite is not installed.
        ValueError: if a setting or the model does not fit, or there is nothing to run.
    """
    if name is None and not settings.controls:
        raise ValueError("got neither a model nor controls, expected a model, --policy expert, or both")
    trials = settings.all_trials()
    logs: dict[str, TrialLog] = {}
    runs: list[tuple[Any, TrialLog, int | None]] = []
    if name is not None:
        player = LiberoModel(model, processor, settings.unnorm_key, settings.steps)
        logs["policy"] = TrialLog(
            folder, {"model": name, "dtype": dtype_name(model), **settings.measured()}, settings.shard
        )
        runs.append((player.begin, logs["policy"], settings.image_size))
    known = [each for each in CONTROLS if each in settings.controls or (folder / "controls" / each).is_dir()]
    for control in known:
        logs[control] = TrialLog(folder / "controls" / control, {"control": control}, settings.shard)
        if control in settings.controls:
            runs.append((CONTROLS[control], logs[control], None))
    record = provenance(name)
    note_run(folder, record)
    for begin, log, image_size in runs:
        environment = LiberoEnvironment(image_size)
        films = folder / "videos" if image_size is not None and settings.videos else None
        try:
            one = partial(run_trial, begin, environment, films=films, filmed=settings.videos)
            run_left(trials, log, lambda trial, one=one: attempts(trial, partial(one, trial)))
        finally:
            environment.close()
        log.read()
    machine = describe_machine()
    if model is not None:
        machine |= {"parameters": model.num_parameters(), "dtype": dtype_name(model)}
    results: dict[str, Any] = {"suite": "libero", "model": name, "environment": machine}
    results |= {"settings": settings.measured(), "tasks": scores_of(logs["policy"]) if name is not None else []}
    results["controls"] = {control: {"tasks": scores_of(logs[control])} for control in known}
    results = with_provenance(with_record(results, name), with_other_runs(record, folder))
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def run_trial(
    begin: Any, environment: LiberoEnvironment, trial: LiberoTrial, films: Path | None = None, filmed: int = 0
) -> Outcome:
    """One trial from its stored state to success or its last step.

    Args:
        begin: of a policy, see `libero/policy.py`.
        films: the folder of videos, of the first `filmed` trials of a task.

    Raises:
        SimulatorCrashError: if the simulator raised.
    """
    began = time.perf_counter()
    frames: list[Image.Image] = []
    outcome, steps, error = "failure", 0, None
    try:
        seen, instruction = simulate(environment.begin, trial, passing=LiberoMissingError)
    except SimulatorCrashError:
        environment.close()
        raise
    try:
        act = begin(trial, instruction, environment.simulation)
    except UnknownTaskError as unknown:
        return outcome_of(trial, UNKNOWN, instruction=instruction, error=str(unknown))
    while steps < HORIZONS[trial.task] and outcome == "failure":
        if films is not None and trial.state < filmed:
            frames.append(film_frame(seen))
        try:
            action = act(seen)
        except MalformedActionError as malformed:
            outcome, error = "malformed", str(malformed)
            break
        seen, done = simulate(environment.step, action)
        outcome, steps = "success" if done else "failure", steps + 1
    if frames and films is not None:
        write_video(frames, films / f"{trial.name.replace('/', '-')}-{outcome}.mp4")
    seconds = round(time.perf_counter() - began, 2)
    return outcome_of(trial, outcome, steps=steps, instruction=instruction, seconds=seconds, error=error)


def film_frame(seen: Observation) -> Image.Image:
    """Both pictures beside each other."""
    views = [Image.fromarray(picture) for picture in seen.pictures.values()]
    frame = Image.new("RGB", (sum(view.width for view in views), views[0].height))
    for number, view in enumerate(views):
        frame.paste(view, (number * view.width, 0))
    return frame


def scores_of(log: TrialLog) -> list[dict[str, Any]]:
    """A score for every suite and mode of which there are outcomes."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in log.outcomes.values():
        groups.setdefault((entry["task"], entry["mode"]), []).append(entry)
    modes = [*PERTURBATIONS, DRAWN]
    order = sorted(groups, key=lambda pair: (list(HORIZONS).index(pair[0]), modes.index(pair[1])))
    return [score(suite, perturbation, groups[suite, perturbation]) for suite, perturbation in order]


def score(suite: str, perturbation: str, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The score of a suite: the mean over its tasks of the share of successes, as published.

    Returns:
        `value`, its 95 % `interval`, `successes` of `n` judged trials, `malformed` of them, `crashed` and `unknown`
        ones, which are not judged, and `by_task`: successes and trials of each task.
    """
    judged = [entry for entry in outcomes if entry["outcome"] not in ("crashed", UNKNOWN)]
    ends = Counter(entry["outcome"] for entry in outcomes)
    found = (
        clustered_share(
            [Scored(entry["trial"], entry["part"], float(entry["outcome"] == "success")) for entry in judged]
        )
        if judged
        else None
    )
    by_task: dict[str, list[int]] = {}
    for entry in sorted(judged, key=lambda entry: int(entry["part"])):
        seen = by_task.setdefault(entry["part"], [0, 0])
        seen[0] += entry["outcome"] == "success"
        seen[1] += 1
    return {
        "metric": "success rate",
        "task": suite,
        "mode": perturbation,
        "value": round(found.share, 6) if found else None,
        "interval": (round(found.interval[0], 4), round(found.interval[1], 4)) if found else None,
        "successes": ends["success"],
        "n": len(judged),
        "malformed": ends["malformed"],
        "crashed": ends["crashed"],
        "unknown": ends[UNKNOWN],
        "by_task": by_task,
    }


def libero_table(results: Mapping[str, Any], title: str) -> Table:
    """A row per policy, suite and perturbation."""
    rows = []
    controls = {name: found["tasks"] for name, found in results.get("controls", {}).items()}
    for policy, tasks in {"policy": results["tasks"], **controls}.items():
        for t in tasks:
            interval = "-" if t["interval"] is None else percent_range(t["interval"])
            counts = (f"{t['successes']}/{t['n']}", t["malformed"], t["crashed"], t["unknown"])
            rows.append((policy, t["task"], t["mode"], percent(t["value"], 1, "-"), interval, *counts))
    columns = ("policy", "suite", "changed", "%", "95 %", "success", "mal-\nformed", "crashed", "un-\nknown")
    return results_table(
        title, columns, rows, left=3, no_wrap=True, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
