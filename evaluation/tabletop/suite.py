"""The tabletop suite: a model and controls, all modes, in one folder of results.

    FOLDER/episodes/POLICY.jsonl   every finished episode, as it ended; running again continues there
    FOLDER/runs.jsonl              how each run came about that wrote episodes here (`provenance/origin.py`)
    FOLDER/results.json            scores, settings, speed
    FOLDER/variants.png            a picture per variant (with the mode `variants`)
    FOLDER/success.png             success per variant (with the mode `variants`)
    FOLDER/videos/*.mp4            an episode of each task

A model runs in every mode asked for, the controls beside it in `matching` only: their physics is the same everywhere.
Without a model, the controls run in every mode.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gen_vla.evaluation.simulation.actions import ACTION_REPEAT
from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.layouts import (
    EVALUATION_SEEDS,
    MAX_STEPS,
    TASKS,
    TRAIN_SEEDS,
    Task,
    check_unseen,
    layout_digests,
)
from gen_vla.evaluation.simulation.rollouts import SimulationPolicy, run_episodes
from gen_vla.evaluation.simulation.simulators import Simulators
from gen_vla.evaluation.tabletop.episodes import EpisodeLog, Mode, Paraphrase, plan_jobs
from gen_vla.evaluation.tabletop.policies import (
    CONTROLS,
    ModelPolicy,
    choose_unnorm_key,
    fingerprint,
)
from gen_vla.evaluation.tabletop.scores import summarise
from gen_vla.training.mixing.instruction_augmentation import held_out_paraphrases
from gen_vla.training.provenance.origin import note_run, provenance, with_other_runs, with_provenance
from gen_vla.training.provenance.training_record import with_record


BENCHMARK_VERSION = 1  # another one when layouts, looks, limits or success change: results are no longer comparable
TRAIN_LAYOUTS_CHECKED = 2000  # besides those a data set names


@dataclass(frozen=True)
class SuiteSettings:
    """What to run; `trained_on` is a recorded data set whose layouts must not be judged."""

    modes: tuple[Mode, ...] = ("matching", "variants", "masked", "paraphrase")
    tasks: tuple[Task, ...] = TASKS
    episodes: int = 50
    workers: int = 2
    batch_size: int = 16
    image_size: int = 112
    videos: int = 1
    trained_on: Path | None = None


@dataclass(frozen=True)
class Contestant:
    """A policy, what the results call it, which modes it runs in, and what identifies it when a run is continued."""

    name: str
    policy: SimulationPolicy
    modes: tuple[Mode, ...]
    identity: dict[str, Any]


def model_contestant(
    model: Any, processor: Any, name: str, modes: tuple[Mode, ...], unnorm_key: str | None = None
) -> Contestant:
    """A model as a contestant."""
    key = choose_unnorm_key(model, unnorm_key)
    identity = {"model": name, "weights": fingerprint(model), "unnorm_key": key}
    return Contestant("policy", ModelPolicy(model, processor, key), modes, identity)


def control_contestants(names: Sequence[str], modes: tuple[Mode, ...]) -> list[Contestant]:
    """Controls by name.

    Raises:
        ValueError: if a name is unknown.
    """
    unknown = [name for name in names if name not in CONTROLS]
    if unknown:
        raise ValueError(f"got policies {unknown}, expected some of {', '.join(CONTROLS)}")
    return [Contestant(name, CONTROLS[name], modes, {"control": name}) for name in names]


def run_suite(
    contestants: Sequence[Contestant],
    settings: SuiteSettings,
    output: Path | None = None,
    *,
    paraphrase: Paraphrase = held_out_paraphrases,
    environment: type[TabletopEnv] = TabletopEnv,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs what is missing -> everything `results.json` holds.

    Raises:
        ValueError: if settings are impossible, if `output` holds results of others, or if a layout was trained on.
    """
    check_unseen(EVALUATION_SEEDS[: settings.episodes], _trained_layouts(settings.trained_on))
    plans = {c.name: plan_jobs(c.modes, settings.tasks, settings.episodes, paraphrase) for c in contestants}
    logs = {c.name: EpisodeLog(_log_path(output, c), _identity(c, settings)) for c in contestants}
    environment(settings.image_size).reset("pick_object", EVALUATION_SEEDS[0])  # fails here where nothing can simulate
    results: dict[str, Any] = {"settings": _describe(settings), "policies": {}}
    record = None if output is None else _begin(contestants, settings, output)
    with Simulators(settings.workers, partial(environment, settings.image_size)) as simulators:
        for c in contestants:
            jobs, log = plans[c.name], logs[c.name]
            missing = log.missing(jobs)
            options = {"batch_size": settings.batch_size, "name": c.name, "progress": progress}
            options |= {"finished_before": len(jobs) - len(missing)}
            pace = run_episodes(c.policy, missing, simulators, log.finish, **options)
            scores = summarise(log.of(jobs))
            scored = {"identity": c.identity, "scores": scores, "pace": pace.to_dict()}
            results["policies"][c.name] = with_record(scored, c.identity.get("model"))
    if output is not None and record is not None:
        written = with_provenance(results, with_other_runs(record, output))
        (output / "results.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return results


def draw_results(
    contestants: Sequence[Contestant], results: dict[str, Any], settings: SuiteSettings, output: Path
) -> list[Path]:
    """Pictures and videos of a finished run -> their paths."""
    from gen_vla.evaluation.simulation.videos import record_video
    from gen_vla.evaluation.tabletop.pictures import plot_variants, variants_sheet

    paths = []
    first = contestants[0]
    scores = results["policies"][first.name]["scores"]
    if "variants" in scores:
        paths += [output / "variants.png", output / "success.png"]
        variants_sheet(paths[0])
        plot_variants(scores, paths[1], first.identity.get("model", first.name))
    for job in plan_jobs(("matching",), settings.tasks, settings.videos) if settings.videos else []:
        paths.append(output / "videos" / f"{first.name}-{job.task}-{job.seed}.mp4")
        record_video(TabletopEnv(settings.image_size), first.policy, job, paths[-1], size=320)
    return paths


def _begin(contestants: Sequence[Contestant], settings: SuiteSettings, output: Path) -> dict[str, Any]:
    """The record of this run, which the folder's list of runs has from now on."""
    models = [c.identity["model"] for c in contestants if "model" in c.identity]
    record = provenance(next(iter(models), None), [settings.trained_on], models[1:])
    note_run(output, record)
    return record


def _log_path(output: Path | None, contestant: Contestant) -> Path | None:
    return None if output is None else output / "episodes" / f"{contestant.name}.jsonl"


def _identity(contestant: Contestant, settings: SuiteSettings) -> dict[str, Any]:
    """What must be the same for earlier episodes to count; more episodes, modes or tasks may be added."""
    return {
        **contestant.identity,
        "benchmark": BENCHMARK_VERSION,
        "image_size": settings.image_size,
        "action_repeat": ACTION_REPEAT,
        "max_steps": dict(MAX_STEPS),
        "mujoco": version("mujoco"),
    }


def _describe(settings: SuiteSettings) -> dict[str, Any]:
    seeds = EVALUATION_SEEDS[: settings.episodes]
    return {
        "benchmark": BENCHMARK_VERSION,
        "modes": list(settings.modes),
        "tasks": list(settings.tasks),
        "episodes_per_task_and_variant": settings.episodes,
        "seeds": [seeds[0], seeds[-1]],
        "image_size": settings.image_size,
        "action_repeat": ACTION_REPEAT,
        "max_steps": dict(MAX_STEPS),
        "workers": settings.workers,
        "batch_size": settings.batch_size,
        "trained_on": str(settings.trained_on) if settings.trained_on else None,
    }


def _trained_layouts(trained_on: Path | None) -> set[str]:
    """Digests of training layouts: those a recording wrote beside its data, and the first of the training seeds."""
    found = layout_digests(TRAIN_SEEDS[:TRAIN_LAYOUTS_CHECKED])
    if trained_on is None:
        return found
    path = trained_on / "recording.json"
    if not path.is_file():
        raise ValueError(f"got no {path}, expected a folder that gen_vla.evaluation.simulation.recording wrote")
    return found | set(json.loads(path.read_text(encoding="utf-8"))["layouts"])
