"""A policy's actions beside recorded ones that it was not trained on, without a robot or a simulator.

Open loop: the policy sees recorded pictures, whatever it answers, so that its mistakes never lead it to places nobody
recorded. `data.py` reads the steps, `scores.py` compares the actions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from rich.table import Table
from tqdm import tqdm

from gen_vla.evaluation.benchmarks.decoding_agreement import model_views
from gen_vla.evaluation.open_loop.data import (
    RecordedEpisodes,
    RecordedStep,
    held_out_of,
    open_recorded,
    recipe_entry,
    trained_on,
)
from gen_vla.evaluation.open_loop.scores import POLICY, Comparison, score
from gen_vla.evaluation.policies.flow import starting_noise
from gen_vla.evaluation.policies.malformed_actions import actions_or_none
from gen_vla.evaluation.policies.states import state_arguments, takes_state
from gen_vla.evaluation.tables import results_table
from gen_vla.processors import select_statistics
from gen_vla.processors.relative_actions import to_relative
from gen_vla.training.checkpoints import dtype_name


FEW_EPISODES = 10
ALL_BUT_HELD_OUT = "all of its episodes but those that were held out"


@dataclass(frozen=True)
class OpenLoopSettings:
    unnorm_key: str | None = None  # whose statistics; None for the model's only ones
    cameras: Sequence[str] | None = None  # of the data set; None for those of the recipe, or of the model
    split: str | None = None  # None for all episodes of a LeRobot set, and "train" of others
    every: int = 10  # every n-th step of an episode is taken
    episodes: int | None = 50  # at most so many, from all over the data set; None for all
    rows: int = 8  # observations per call
    with_trained: bool = False  # of training data that held out episodes, take the others, too


def ask_policy(
    model: Any, processor: Any, episodes: RecordedEpisodes, key: str, rows: int = 8
) -> tuple[Comparison, int]:
    """The policy's actions at recorded steps, in the units of the statistics `key`, and how many of its answers were
    malformed; raises `ValueError` if no step was read, actions have another width than the model's, or no answer was
    an action."""
    if rows < 1:
        raise ValueError(f"got batches of {rows}, expected at least 1")
    answered: list[RecordedStep] = []
    actions: list[np.ndarray] = []
    asked, steps = 0, iter(episodes)
    with tqdm(total=episodes.total, unit="episode") as bar:
        while batch := list(islice(steps, rows)):
            width, expected = batch[0].action.shape[-1], len(model.config.norm_stats[key]["action"]["q01"])
            if width != expected:
                raise ValueError(
                    f"got actions of {width} values in the data, expected {expected}, as the statistics {key!r} of "
                    "the model have; name the data set of that robot, or another --unnorm-key"
                )
            predict = partial(predicted, model, processor, key)
            for step, action in zip(batch, actions_or_none(predict, batch), strict=True):
                asked += 1
                if action is not None:
                    answered.append(replace(step, images=[]))  # pictures would fill the memory
                    actions.append(action)
            bar.update(batch[-1].episode - bar.n)
            bar.set_postfix(steps=asked)
        bar.update(len(episodes.actions) - bar.n)
    if not actions:
        skipped = episodes.source.problems.report()
        raise ValueError(
            f"got no action to compare: {asked} steps were asked about, {asked} answers malformed, "
            f"{skipped['skipped']} steps skipped ({skipped['by_reason'] or 'none'}); expected at least one"
        )
    relative = model.config.norm_stats[key]["action"].get("relative")
    return _comparison(answered, actions, relative), asked - len(actions)


def predicted(model: Any, processor: Any, key: str, batch: Sequence[RecordedStep]) -> np.ndarray:
    state = state_arguments(processor, [step.state for step in batch], key)
    inputs = processor.action_inputs([step.images for step in batch], [step.instruction for step in batch], **state)
    noise = starting_noise(model, [step.name for step in batch])
    found = model.predict_actions(**inputs.to(model.device), unnorm_key=key, **noise).actions
    return torch.as_tensor(found).float().cpu().numpy()


def _comparison(
    steps: Sequence[RecordedStep], actions: Sequence[np.ndarray], relative: list[dict[str, Any]] | None
) -> Comparison:
    """All actions, made relative where the model's statistics are of relative ones."""
    recorded = np.stack([step.action for step in steps])
    missing = np.full(recorded.shape[-1], np.nan, np.float32)
    held, predicted = np.stack([missing if step.held is None else step.held for step in steps]), np.stack(actions)
    comparable = all(step.state is None or step.state.shape == missing.shape for step in steps)
    if relative:
        states, comparable = np.stack([step.state for step in steps if step.state is not None]), False
        predicted, recorded = (to_relative(chunks, states, relative) for chunks in (predicted, recorded))
        held = to_relative(held[:, None], states, relative)[:, 0]
    return Comparison(
        predicted=predicted,
        recorded=recorded,
        valid=~np.stack([step.padded for step in steps]),
        held=held,
        state=np.stack([missing if step.state is None else step.state for step in steps]) if comparable else None,
        episode=np.array([step.episode for step in steps]),
        place=np.array([step.place for step in steps]),
    )


def evaluate_open_loop(
    model: Any, processor: Any, name: str, data: str, settings: OpenLoopSettings
) -> tuple[dict[str, Any], Comparison, RecordedEpisodes]:
    """Results as they are written, with the actions and the episodes behind them; `name` is of the model, to find its
    recipe, `data` as for a recipe's robot data. Raises `ValueError` if the key, a camera or the split is unknown, or
    actions have another width than the model's."""
    statistics = select_statistics(model.config.norm_stats or {}, settings.unnorm_key)
    key = settings.unnorm_key or next(iter(model.config.norm_stats))
    entry, horizon = recipe_entry(name, key), model.config.action_config["horizon"]
    cameras = model_views(processor, settings.cameras or entry.get("cameras"))
    source = open_recorded(data, entry, cameras, horizon, settings.split)
    if takes_state(processor) and not source.has_state:
        raise ValueError(
            f"got {data} with the features {', '.join(source.reader.features)}, expected the robot's state among "
            f"them ({', '.join(source.transform.state)}), which the model takes"
        )
    trained_as = (model.config.norm_stats[key], entry, data, settings.split)
    held_out = held_out_of(source, *trained_as)
    apart = bool(held_out) and not settings.with_trained
    source = source.only(held_out) if apart else source
    episodes = RecordedEpisodes(source, settings.every, settings.episodes, takes_state(processor))
    found, malformed = ask_policy(model, processor, episodes, key, settings.rows)
    numbers = [str(dim) for dim in range(found.recorded.shape[-1])]
    called = source.action_names or statistics.get("names") or numbers  # the data set's word, or that of training
    results = {
        "suite": "open_loop",
        "model": name,
        "data": data,
        "split": settings.split,
        "unnorm_key": key,
        "cameras": source.cameras,
        "transform": source.transform.name,
        "thinned_by": source.every,
        "horizon": horizon,
        "parameters": model.num_parameters(),
        "dtype": dtype_name(model),
        "every": settings.every,
        "held_out": len(held_out) if apart else 0,
        "trained_on": "" if apart else ALL_BUT_HELD_OUT if held_out else trained_on(episodes, *trained_as),
        "malformed": malformed,
        "skipped": source.problems.report(),
        **score(found, statistics, called),
    }
    return results, found, episodes


def open_loop_tables(results: dict[str, Any]) -> list[Table]:
    named = [name for name, of in results["dimensions"][0].items() if isinstance(of, dict)]
    together, rows = results["normalized"], []
    for entry in results["dimensions"]:
        figures = [figure_text(entry[name], entry["measure"], name == POLICY) for name in named]
        label = entry["name"] + (", share right" if entry["measure"] == "accuracy" else "")
        rows.append((label, *figures, f"{entry['outside']:.1%}"))
    if together:
        shown = {name: figure_text(of["l1"], "error", name == POLICY) for name, of in together.items()}
        rows.append(("all, normalized", *(shown.get(name, "") for name in named), f"{results['outside']:.1%}"))
    size = f"{results['n']} steps of {results['episodes']} episodes"
    title = f"{results['model']} on {results['data']}: mean absolute error, {size}"
    tables = [results_table(title, ("dimension", *named, "outside"), rows)]
    if len(results["chunk_steps"]) > 1 and together:
        steps = [(s["step"], s["values"], *(f"{of:.4f}" for of in s["l1"].values())) for s in results["chunk_steps"]]
        title = "Along the chunk: all dimensions, normalized"
        tables.append(results_table(title, ("step", "values", *together), steps, left=0))
    return tables


def figure_text(figure: dict[str, Any], measure: str, bounds: bool) -> str:
    """`0.0312 (0.0290-0.0351)`, or a share in per cent."""
    scale, digits, unit = (100, ".1f", " %") if measure == "accuracy" else (1, ".4f", "")
    text = f"{scale * figure['value']:{digits}}"
    if bounds and figure["interval"]:
        text += " ({}-{})".format(*(f"{scale * bound:{digits}}" for bound in figure["interval"]))
    return text + unit


def open_loop_notes(results: dict[str, Any]) -> list[str]:
    notes = []
    if results["held_out"]:
        notes.append(f"asked about episodes that the training held out, {results['held_out']} of this data set")
    if results["trained_on"]:
        notes.append(
            f"warning: the policy was trained on this data ({results['trained_on']}): these errors say how well it "
            "remembers, not what it does elsewhere"
        )
    for name, figure in results["relative"].items():
        bounds = "" if not figure["interval"] else " ({:.2f}-{:.2f})".format(*figure["interval"])
        notes.append(f"its normalized error is {figure['value']:.2f}{bounds} times that of the {name}")
    notes.append(f"{results['outside']:.1%} of the recorded values lie outside the scaled range: no policy can follow")
    if results["episodes"] < FEW_EPISODES:
        notes.append(f"intervals are of a bootstrap over {results['episodes']} episodes: so few hardly tell")
    if results["malformed"]:
        notes.append(f"{results['malformed']} malformed answers are left out")
    if results["skipped"]["skipped"]:
        notes.append(f"{results['skipped']['skipped']} steps skipped: {results['skipped']['by_reason']}")
    return notes
