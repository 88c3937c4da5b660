"""The tabletop suite: a model and controls, all modes, in one folder of results.

    FOLDER/episodes/POLICY.jsonl   every finished episode, as it ended; running again continues there
    FOLDER/runs.jsonl              how each run came about that wrote episodes here (`provenance/origin.py`)
    FOLDER/results.json            scores, settings, speed
    FOLDER/variants.png            a picture per variant (with the modes `variants` and `seen_variants`)
    FOLDER/MODE_success.png        success per variant (with these modes)
    FOLDER/videos/*.mp4            an episode of each task

A model runs in every mode asked for, the controls beside it in `matching` only: their physics is the same everywhere.
Without a model, the controls run in every mode.

    expert   the script that reads the simulator's state: the ceiling
    zero     stays where it is
    random   a random move per policy step
    blind    the expert that does not know where along x anything is: skill without seeing
    deaf     the expert that does one of the six things a scene offers, whatever it is told: skill without words

Three more are the model itself, hindered:

    blank     shown a grey picture
    swapped   told the opposite: the other object, the other way of the drawer
    nonsense  told nothing that means anything
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gen_vla.evaluation.policies.malformed_actions import wrote_no_action
from gen_vla.evaluation.policies.rollout import (
    Moment,
    VLAPolicy,
    blank_image,
    blind_expert_policy,
    deaf_expert_policy,
    expert_policy,
    nonsense_instruction,
    random_policy,
    swapped_instruction,
    zero_policy,
)
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
from gen_vla.evaluation.simulation.looks import check_unseen_looks
from gen_vla.evaluation.simulation.rollouts import Actions, SimulationPolicy, run_episodes
from gen_vla.evaluation.simulation.simulators import Simulators
from gen_vla.evaluation.tabletop.episodes import LOOKS, MODES, EpisodeLog, Mode, Paraphrase, plan_jobs
from gen_vla.evaluation.tabletop.scores import summarise
from gen_vla.evaluation.tabletop.variants import VARIANTS
from gen_vla.training.checkpoints import dtype_name
from gen_vla.training.mixing.instruction_augmentation import held_out_paraphrases
from gen_vla.training.provenance.origin import note_run, provenance, with_other_runs, with_provenance
from gen_vla.training.provenance.training_record import with_record


BENCHMARK_VERSION = 2  # another one when layouts, looks, limits or success change: results are no longer comparable
TRAIN_LAYOUTS_CHECKED = 2000  # besides those a data set names


CONTROLS: dict[str, SimulationPolicy] = {
    "expert": expert_policy,
    "random": random_policy,
    "zero": zero_policy,
    "blind": blind_expert_policy,
    "deaf": deaf_expert_policy,
}
HINDERED = {"blank": blank_image, "swapped": swapped_instruction, "nonsense": nonsense_instruction}


class ModelPolicy:
    """A model whose text may fail to be an action: then that observation, and no other, gets None."""

    def __init__(self, model: Any, processor: Any, unnorm_key: str):
        self._policy = VLAPolicy(model, processor, unnorm_key)

    def __call__(self, images: list[np.ndarray], instructions: list[str], moments: list[Moment]) -> Actions:
        try:
            return self._policy(images, instructions, moments)
        except ValueError as error:
            if not wrote_no_action(error):
                raise
        if len(images) == 1:
            return [None]
        single = [self([i], [t], [m]) for i, t, m in zip(images, instructions, moments, strict=True)]
        return [actions[0] for actions in single]


def choose_unnorm_key(model: Any, unnorm_key: str | None) -> str:
    """The statistics whose units the model's actions get: the key asked for, or the only one.

    Raises:
        ValueError: if the key is unknown, or none was given and there are several.
    """
    keys = list(model.config.norm_stats)
    if unnorm_key is None and len(keys) == 1:
        return keys[0]
    if unnorm_key is None or unnorm_key not in keys:
        raise ValueError(f"got unnorm_key {unnorm_key!r}, expected one of {', '.join(keys)}")
    return unnorm_key


def fingerprint(model: Any) -> str:
    """Differs for models with other weights, so that a retrained model does not continue its predecessor's results."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        some = weight.detach().reshape(-1)[:256].float().cpu().numpy()
        digest.update(name.encode() + str(tuple(weight.shape)).encode() + some.tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class SuiteSettings:
    """What to run; `trained_on` is a recorded data set whose layouts must not be judged."""

    modes: tuple[Mode, ...] = MODES
    tasks: tuple[Task, ...] = TASKS
    episodes: int = 50
    workers: int = 2
    batch_size: int = 16
    image_size: int = 96
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
    """A model among the contestants."""
    key = choose_unnorm_key(model, unnorm_key)
    identity = {"model": name, "weights": fingerprint(model), "dtype": dtype_name(model), "unnorm_key": key}
    return Contestant("policy", ModelPolicy(model, processor, key), modes, identity)


def control_contestants(
    names: Sequence[str], modes: tuple[Mode, ...], model: Contestant | None = None
) -> list[Contestant]:
    """Controls by name, some of them the model itself, hindered.

    Raises:
        ValueError: if a name is unknown, or is that of a hindered model and there is none.
    """
    known = [*CONTROLS, *(HINDERED if model else ())]
    unknown = [name for name in names if name not in known]
    if unknown:
        alone = "" if model else f"; {', '.join(HINDERED)} need a model"
        raise ValueError(f"got policies {unknown}, expected some of {', '.join(known)}{alone}")
    policies = {**CONTROLS, **({name: hinder(model.policy) for name, hinder in HINDERED.items()} if model else {})}
    weights = {"weights": model.identity["weights"]} if model else {}
    return [
        Contestant(name, policies[name], modes, {"control": name, **(weights if name in HINDERED else {})})
        for name in names
    ]


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
    check_unseen_looks(VARIANTS)
    plans = {c.name: plan_jobs(c.modes, settings.tasks, settings.episodes, paraphrase) for c in contestants}
    folder = None if output is None else output / "episodes"
    logs = {c.name: EpisodeLog(folder and folder / f"{c.name}.jsonl", _identity(c, settings)) for c in contestants}
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
    for mode in (mode for mode in scores if mode in LOOKS):
        paths.append(output / f"{mode}_success.png")
        plot_variants(scores, paths[-1], first.identity.get("model", first.name), mode)
    if paths:
        paths.append(output / "variants.png")
        variants_sheet(paths[-1])
    for job in plan_jobs(("matching",), settings.tasks, settings.videos) if settings.videos else []:
        paths.append(output / "videos" / f"{first.name}-{job.task}-{job.seed}.mp4")
        record_video(TabletopEnv(settings.image_size), {first.name: first.policy}, job, paths[-1], size=320)
    return paths


def _begin(contestants: Sequence[Contestant], settings: SuiteSettings, output: Path) -> dict[str, Any]:
    """The record of this run, which the folder's list of runs has from now on."""
    models = [c.identity["model"] for c in contestants if "model" in c.identity]
    record = provenance(next(iter(models), None), [settings.trained_on], models[1:])
    note_run(output, record)
    return record


def _rules(settings: SuiteSettings) -> dict[str, Any]:
    names = {"benchmark": BENCHMARK_VERSION, "image_size": settings.image_size}
    return {**names, "action_repeat": ACTION_REPEAT, "max_steps": dict(MAX_STEPS)}


def _identity(contestant: Contestant, settings: SuiteSettings) -> dict[str, Any]:
    """What must be the same for earlier episodes to count; more episodes, modes or tasks may be added."""
    return {**contestant.identity, **_rules(settings), "mujoco": version("mujoco")}


def _describe(settings: SuiteSettings) -> dict[str, Any]:
    seeds = EVALUATION_SEEDS[: settings.episodes]
    return {
        **_rules(settings),
        "modes": list(settings.modes),
        "tasks": list(settings.tasks),
        "episodes_per_task_and_variant": settings.episodes,
        "seeds": [seeds[0], seeds[-1]],
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
        raise ValueError(f"got no {path}, expected a folder that gen-vla record demonstrations wrote")
    return found | set(json.loads(path.read_text(encoding="utf-8"))["layouts"])
