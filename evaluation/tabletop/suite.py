"""The tabletop suite: a model and controls, all modes, in one folder of results.

    FOLDER/episodes/POLICY.jsonl   every finished episode, as it ended; running again continues there
    FOLDER/runs.jsonl              how each run came about that wrote episodes here (`provenance/origin.py`)
    FOLDER/results.json            scores, settings, speed
    FOLDER/*.png, videos/*.mp4     every variant, success in each; an episode of each task

A model runs in every mode asked for, the controls (`policies/rollout.py`) beside it in those of CONTROLLED only: their
physics is the same everywhere. Without a model, the controls run in every mode.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gen_vla.evaluation.policies.rollout import ALTERED, CONTROLS, Policy, VLAPolicy
from gen_vla.evaluation.simulation.actions import ACTION_REPEAT
from gen_vla.evaluation.simulation.environment import TabletopEnv
from gen_vla.evaluation.simulation.layouts import (
    EVALUATION_SEEDS,
    MAX_STEPS,
    NEW_WORDS,
    TASKS,
    TRAIN_SEEDS,
    Task,
    check_unseen,
    layout_digests,
)
from gen_vla.evaluation.simulation.rollouts import run_episodes
from gen_vla.evaluation.simulation.simulators import Simulators
from gen_vla.evaluation.tabletop.episodes import DEFAULT_MODES, LOOKS, EpisodeLog, Mode, TabletopJob, plan_jobs
from gen_vla.evaluation.tabletop.scores import summarise
from gen_vla.evaluation.tabletop.variants import PER_FAMILY
from gen_vla.processors import select_statistics
from gen_vla.training.checkpoints import dtype_name
from gen_vla.training.provenance.origin import note_run, provenance, with_other_runs, with_provenance
from gen_vla.training.provenance.training_record import with_record
from gen_vla.training.storage.recordings import METADATA_FILE


TRAIN_LAYOUTS_CHECKED = 2000  # besides those a data set names
BENCHMARK_VERSION = 2  # another one when layouts, looks, limits or success change: results are no longer comparable


def fingerprint(model: Any) -> str:
    """Differs for models with other weights, so that a retrained model does not continue its predecessor's results."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        some = weight.detach().reshape(-1)[:256].float().cpu().numpy()
        digest.update(name.encode() + str(tuple(weight.shape)).encode() + some.tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class SuiteSettings:
    """What to run; `variants` of each family; `trained_on` is a recorded data set whose layouts must not be judged."""

    modes: tuple[Mode, ...] = DEFAULT_MODES
    tasks: tuple[Task, ...] = TASKS
    episodes: int = 50
    workers: int = 2
    batch_size: int = 16
    image_size: int = 96
    videos: int = 1
    trained_on: Path | None = None
    variants: int = PER_FAMILY


@dataclass(frozen=True)
class Contestant:
    """A policy, what the results call it, which modes it runs in, and what identifies it when a run is continued."""

    name: str
    policy: Policy
    modes: tuple[Mode, ...]
    identity: dict[str, Any]


def model_contestant(
    model: Any, processor: Any, name: str, modes: tuple[Mode, ...], unnorm_key: str | None = None
) -> Contestant:
    """A model among the contestants; its actions get the units of the data set `unnorm_key`, or of its only one."""
    select_statistics(model.config.norm_stats, unnorm_key)
    key = unnorm_key or next(iter(model.config.norm_stats))
    identity = {"model": name, "weights": fingerprint(model), "dtype": dtype_name(model), "unnorm_key": key}
    return Contestant("policy", VLAPolicy(model, processor, key), modes, identity)


def control_contestants(
    names: Sequence[str], modes: tuple[Mode, ...], model: Contestant | None = None
) -> list[Contestant]:
    """Controls by name; raises `ValueError` if one is unknown, or is that of an altered model and there is none."""
    known = [*CONTROLS, *(ALTERED if model else ())]
    unknown = [name for name in names if name not in known]
    if unknown:
        alone = "" if model else f"; {', '.join(ALTERED)} need a model"
        raise ValueError(f"got policies {unknown}, expected some of {', '.join(known)}{alone}")
    found = []
    for name in names:
        altered = model if name in ALTERED else None
        policy = ALTERED[name](altered.policy) if altered else CONTROLS[name]
        weights = {"weights": altered.identity["weights"]} if altered else {}
        found.append(Contestant(name, policy, modes, {"control": name, **weights}))
    return found


def run_suite(
    contestants: Sequence[Contestant], settings: SuiteSettings, output: Path | None = None
) -> dict[str, Any]:
    """Runs what is missing -> all that `results.json` holds; raises `ValueError` if settings are impossible, `output`
    holds results of others, or a layout was trained on."""
    rules = {**_rules(settings), "mujoco": version("mujoco")}
    plans = {c.name: plan_jobs(c.modes, settings.tasks, settings.episodes, settings.variants) for c in contestants}
    folder = None if output is None else output / "episodes"
    planned = [job for jobs in plans.values() for job in jobs]
    _check_demonstrations(settings.trained_on, planned)
    logs = {c.name: EpisodeLog(folder and folder / f"{c.name}.jsonl", {**c.identity, **rules}) for c in contestants}
    TabletopEnv(settings.image_size).reset("pick_object", EVALUATION_SEEDS[0])  # fails here where nothing can simulate
    results: dict[str, Any] = {"settings": _describe(settings, planned), "policies": {}}
    record: dict[str, Any] = {}
    if output is not None:
        models = [c.identity["model"] for c in contestants if "model" in c.identity]
        record = provenance(next(iter(models), None), [settings.trained_on], models[1:])
        note_run(output, record)
    with Simulators(settings.workers, partial(TabletopEnv, settings.image_size)) as simulators:
        for c in contestants:
            jobs, log = plans[c.name], logs[c.name]
            missing = log.missing(jobs)
            before = len(jobs) - len(missing)
            pace = run_episodes(c.policy, missing, simulators, log.finish, settings.batch_size, before, c.name)
            scores = summarise(log.of(jobs))
            scored = {"identity": c.identity, "scores": scores, "pace": pace}
            results["policies"][c.name] = with_record(scored, c.identity.get("model"))
    if output is not None:
        written = with_provenance(results, with_other_runs(record, output))
        (output / "results.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return results


def _check_demonstrations(folder: Path | None, jobs: Sequence[TabletopJob]) -> None:
    """Raises `ValueError` if recorded demonstrations show a layout that is judged, or things that are to be new."""
    trained, shown = layout_digests(TRAIN_SEEDS[:TRAIN_LAYOUTS_CHECKED]), NEW_WORDS
    if folder is not None:
        path = folder / METADATA_FILE
        if not path.is_file():
            raise ValueError(f"got no {path}, expected a folder that gen-vla record demonstrations wrote")
        metadata = json.loads(path.read_text(encoding="utf-8"))
        trained, shown = trained | set(metadata["layouts"]), set(metadata.get("objects", NEW_WORDS))
    if shown & NEW_WORDS and any(job.mode == "new_objects" for job in jobs):
        raise ValueError(
            f"got new_objects and demonstrations ({folder or 'unknown'}) that may show "
            f"{', '.join(sorted(shown & NEW_WORDS))}, expected none of these; record them with --familiar and name "
            "them with --trained-on"
        )
    check_unseen({job.seed for job in jobs}, trained)


def draw_results(
    contestants: Sequence[Contestant], results: dict[str, Any], settings: SuiteSettings, output: Path
) -> None:
    from gen_vla.evaluation.simulation.videos import record_video
    from gen_vla.evaluation.tabletop.pictures import plot_variants, variants_sheet

    first = contestants[0]
    scores = results["policies"][first.name]["scores"]
    drawn = [mode for mode in scores if mode in LOOKS]
    for mode in drawn:
        plot_variants(scores, output / f"{mode}_success.png", first.identity.get("model", first.name), mode)
    if drawn:
        variants_sheet(output / "variants.png")
    for job in plan_jobs(("matching",), settings.tasks, settings.videos) if settings.videos else []:
        path = output / "videos" / f"{first.name}-{job.task}-{job.seed}.mp4"
        record_video(TabletopEnv(settings.image_size), {first.name: first.policy}, job, path, size=320)


def _rules(settings: SuiteSettings) -> dict[str, Any]:
    """What must be the same for earlier episodes to count; more episodes, modes or tasks may be added."""
    names = {"benchmark": BENCHMARK_VERSION, "image_size": settings.image_size}
    return {**names, "action_repeat": ACTION_REPEAT, "max_steps": dict(MAX_STEPS)}


def _describe(settings: SuiteSettings, jobs: Sequence[TabletopJob]) -> dict[str, Any]:
    seeds = {mode: [job.seed for job in jobs if job.mode == mode] for mode in settings.modes}
    return {
        **_rules(settings),
        "modes": list(settings.modes),
        "tasks": list(settings.tasks),
        "episodes_per_task_and_variant": settings.episodes,
        "variants_per_family": settings.variants,
        "seeds": {mode: [min(found), max(found)] for mode, found in seeds.items() if found},
        "workers": settings.workers,
        "batch_size": settings.batch_size,
        "trained_on": str(settings.trained_on) if settings.trained_on else None,
    }
